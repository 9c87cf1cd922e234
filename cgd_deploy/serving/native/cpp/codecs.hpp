// The decoders that `decode` calls. They throw Damaged, or Failure where Python's library has a sentence of its own.
#ifndef CGD_CODECS_HPP
#define CGD_CODECS_HPP

#include "bytes.hpp"
#include "decode.hpp"
#include "exif.hpp"

namespace cgd {

// What the markers of a JPEG file say before its first scan.
struct JpegHeader {
    std::uint32_t width = 0, height = 0;
    std::uint32_t layers = 0;  // 1: grey, 3: colour, 4: CMYK
    Metadata metadata;
};

JpegHeader read_jpeg_header(Bytes file);

// Upright RGB.
Picture decode_jpeg(Bytes file);
Picture decode_png(Bytes file);

// Turn a picture as its EXIF orientation says.
Picture turned(Picture picture, int orientation);

}  // namespace cgd

#endif
