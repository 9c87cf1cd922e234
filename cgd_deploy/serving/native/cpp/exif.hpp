// The orientation of a picture, from the metadata of its file. Reads what Pillow reads, and fails where Pillow fails.
#ifndef CGD_EXIF_HPP
#define CGD_EXIF_HPP

#include <optional>
#include <string>

namespace cgd {

struct Metadata {
    std::optional<std::string> exif;         // a block, possibly with "Exif\0\0" before it
    std::optional<std::string> raw_profile;  // the text "Raw profile type exif" of a PNG file
    std::string xmp;
};

// 2 to 8 as in EXIF; 1 for an upright picture and for unreadable metadata.
int orientation(const Metadata &metadata);

}  // namespace cgd

#endif
