// Decodes JPEG and PNG files to upright RGB. Equals the decoding of Python's library, which Pillow does, to the bit.
#ifndef CGD_DECODE_HPP
#define CGD_DECODE_HPP

#include "resize.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cgd {

struct Picture {
    std::uint32_t width, height;
    std::vector<std::uint8_t> rgb;  // [height][width][3]

    View view() const { return {rgb.data(), width, height, 3 * static_cast<std::size_t>(width), false}; }
};

// Throws Failure(CGD_BAD_INPUT) for a damaged file, another format, a side below 8 pixels, and beyond the limits.
Picture decode(const std::uint8_t *bytes, std::size_t size);

}  // namespace cgd

#endif
