// What the chunks of a PNG file say beside the pixels, with the checks of Pillow.
#ifndef CGD_PNG_CHUNKS_HPP
#define CGD_PNG_CHUNKS_HPP

#include "bytes.hpp"
#include "exif.hpp"

#include <cstdint>
#include <optional>
#include <string>

namespace cgd {

struct PngHeader {
    std::uint32_t width = 0, height = 0;
    int depth = 0;  // bits of a sample
    int colour = 0;
    bool interlaced = false;

    std::uint32_t channels() const { return colour == 2 ? 3 : colour == 4 ? 2 : colour == 6 ? 4 : 1; }
    std::uint32_t bits() const { return channels() * static_cast<std::uint32_t>(depth); }  // of a pixel
};

// A part of a picture.
struct Area {
    std::uint32_t left, top, width, height;
};

class PngChunks {
  public:
    // Keep the facts of a whole chunk. Throws Damaged if Pillow refuses such a chunk.
    void read(Bytes name, Bytes content);

    // Take note of the first four bytes of an fdAT chunk.
    void read_frame_number(Bytes number);

    PngHeader header;
    bool has_mode = false;  // the header names a colour and depth that exist
    std::optional<std::string> palette;
    std::optional<std::string> transparency;  // tRNS
    std::optional<Area> frame;                // the first picture of an animation
    std::optional<std::uint32_t> frames;
    Metadata metadata;

  private:
    void read_header(Bytes content);
    void read_profile(Bytes content);
    void read_text(Bytes content);
    void read_compressed_text(Bytes content);
    void read_international_text(Bytes content);
    void read_animation(Bytes content);
    void read_frame(Bytes content);
    void keep_text(Bytes keyword, const std::string &text, std::size_t letters);

    std::optional<std::uint32_t> frame_number_;
    std::size_t text_letters_ = 0;
};

}  // namespace cgd

#endif
