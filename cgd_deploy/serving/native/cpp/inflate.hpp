// zlib's decompression.
#ifndef CGD_INFLATE_HPP
#define CGD_INFLATE_HPP

#include "bytes.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include <zlib.h>

namespace cgd {

class Inflater {
  public:
    Inflater();
    ~Inflater();
    Inflater(const Inflater &) = delete;
    Inflater &operator=(const Inflater &) = delete;

    void give(Bytes input);
    std::size_t left() const { return stream_.avail_in; }

    // Write up to `count` bytes to `out`, and return how many. Throws Damaged for input that is not compressed.
    std::size_t read(std::uint8_t *out, std::size_t count);
    bool ended() const { return ended_; }

  private:
    z_stream stream_{};
    bool ended_ = false;
};

// A short text; nullopt for damaged input. Throws Damaged if it is longer than 1 MiB, as Pillow does.
std::optional<std::string> inflated_text(Bytes input);

}  // namespace cgd

#endif
