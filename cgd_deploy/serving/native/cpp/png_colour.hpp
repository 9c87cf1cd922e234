// Turns the samples of a PNG file into 8-bit RGB, with transparent pixels on white.
#ifndef CGD_PNG_COLOUR_HPP
#define CGD_PNG_COLOUR_HPP

#include "decode.hpp"
#include "png_rows.hpp"

#include <optional>
#include <string>

namespace cgd {

// `palette` and `transparency` are the contents of the chunks PLTE and tRNS.
// Throws Damaged, and Failure(CGD_BAD_INPUT) for 16 bits of which the highest four are not used.
Picture coloured(const PngHeader &header, const std::optional<std::string> &palette,
                 const std::optional<std::string> &transparency, Samples samples);

}  // namespace cgd

#endif
