// Reads the markers of a JPEG file as Pillow does, so that both refuse the same files.
#include "codecs.hpp"

#include <algorithm>
#include <optional>
#include <string>

namespace cgd {

namespace {

constexpr std::uint32_t DHT = 0xC4, DAC = 0xCC, JPG = 0xC8, SOS = 0xDA, DHP = 0xDE, EXP = 0xDF;
constexpr std::uint32_t APP0 = 0xE0, APP1 = 0xE1, APP2 = 0xE2, APP13 = 0xED, APP14 = 0xEE, APP15 = 0xEF, COM = 0xFE;
constexpr Bytes EXIF{"Exif\0\0", 6}, XMP{"http://ns.adobe.com/xap/1.0/\0", 29}, PROFILE{"ICC_PROFILE\0", 12};
constexpr Bytes PHOTOSHOP{"Photoshop 3.0\0", 14};

bool is_frame(std::uint32_t marker) {
    const bool other = marker == DHT || marker == JPG || marker == DAC;
    return marker == DHP || (marker >= 0xC0 && marker <= 0xCF && !other);
}

bool has_segment(std::uint32_t marker) {
    const bool is_table = marker == DHT || marker == DAC || (marker >= SOS && marker <= EXP);
    return is_frame(marker) || is_table || (marker >= APP0 && marker <= APP15) || marker == COM;
}

// Photoshop's resources: those that Pillow reads beyond their end.
void check_photoshop(Bytes content) {
    std::size_t place = PHOTOSHOP.size();
    while (place < content.size() && content.substr(place, 4) == "8BIM") {
        place += 6;
        if (place > content.size()) return;
        const bool is_resolution = big16(content, place - 2) == 0x03ED;
        place += 1U + byte_at(content, place);
        place += place & 1;
        if (place + 4 > content.size()) return;
        const std::size_t size = big32(content, place);
        if (is_resolution && std::min(size, content.size() - place - 4) < 14) return;
        place += 4 + size;
        place += place & 1;
    }
}

class Header {
  public:
    void read(std::uint32_t marker, Bytes content) {
        if (is_frame(marker)) return read_frame(content);
        if (marker == APP0 && starts_with(content, "JFIF")) big16(content, 5);
        if (marker == APP1) read_metadata(content);
        if (marker == APP2 && starts_with(content, PROFILE)) add_profile(content);
        if (marker == APP13 && starts_with(content, PHOTOSHOP)) check_photoshop(content);
        if (marker == APP14 && starts_with(content, "Adobe")) big16(content, 5);
    }

    JpegHeader finished() {
        if (found_.layers == 0 || found_.width == 0 || found_.height == 0) throw Damaged("its header has no size");
        return found_;
    }

  private:
    void read_frame(Bytes content) {
        found_.height = big16(content, 1);
        found_.width = big16(content, 3);
        const std::uint32_t bits = byte_at(content, 0);
        if (bits != 8) throw Damaged("it has layers of " + std::to_string(bits) + " bits, not of 8");
        found_.layers = byte_at(content, 5);
        if (found_.layers != 1 && found_.layers != 3 && found_.layers != 4)
            throw Damaged("it has " + std::to_string(found_.layers) + " layers");
        if ((content.size() - 6) % 3 != 0) throw Damaged("its header is too short");
        if (least_profile_) byte_at(*least_profile_, 13);
        least_profile_.reset();
    }

    void read_metadata(Bytes content) {
        if (starts_with(content, EXIF)) {
            if (!found_.metadata.exif) found_.metadata.exif = EXIF;
            *found_.metadata.exif += content.substr(EXIF.size());
        } else if (starts_with(content, XMP)) {
            found_.metadata.xmp = content.substr(XMP.size());
        }
    }

    void add_profile(Bytes content) {
        if (!least_profile_ || content < *least_profile_) least_profile_ = content;
    }

    JpegHeader found_;
    std::optional<Bytes> least_profile_;  // the first part of a colour profile, in the order of the parts' bytes
};

Bytes take_segment(Cursor &file) {
    const std::size_t size = big16(file.take(2), 0);
    return size < 2 ? Bytes() : file.take(size - 2);
}

}  // namespace

JpegHeader read_jpeg_header(Bytes file) {
    Cursor cursor(file.substr(2));
    Header header;
    for (Bytes byte = cursor.up_to(1); !byte.empty(); byte = cursor.up_to(1)) {
        if (byte_at(byte, 0) != 0xFF) continue;
        Bytes next = cursor.up_to(1);
        while (!next.empty() && byte_at(next, 0) == 0xFF) next = cursor.up_to(1);
        if (next.empty()) break;
        const std::uint32_t marker = byte_at(next, 0);
        if (marker == 0) continue;
        if (marker < 0xC0) throw Damaged("it has an unknown marker");
        if (has_segment(marker)) header.read(marker, take_segment(cursor));
        if (marker == SOS) return header.finished();
    }
    throw Damaged("the file is truncated");
}

}  // namespace cgd
