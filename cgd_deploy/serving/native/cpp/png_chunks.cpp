#include "png_chunks.hpp"

#include "inflate.hpp"

#include <array>

namespace cgd {

namespace {

constexpr std::size_t MOST_LETTERS = 64 << 20;  // of all texts
constexpr std::uint32_t MOST_FRAMES = 0x80000000;

struct Least {
    Bytes name;
    std::size_t bytes;
};

constexpr std::array<Least, 7> LEAST = {
    {{"gAMA", 4}, {"cHRM", 32}, {"sRGB", 1}, {"pHYs", 9}, {"acTL", 8}, {"fcTL", 26}, {"IHDR", 13}}};

bool exists(int depth, int colour) {
    const bool whole = depth == 8 || depth == 16, part = depth == 1 || depth == 2 || depth == 4;
    if (colour == 0) return whole || part;
    return colour == 3 ? part || depth == 8 : whole && (colour == 2 || colour == 4 || colour == 6);
}

// The part before the first zero byte; the rest behind it remains in `content`. nullopt without a zero byte.
std::optional<Bytes> cut(Bytes &content) {
    const std::size_t end = content.find('\0');
    if (end == Bytes::npos) return std::nullopt;
    const Bytes part = content.substr(0, end);
    content.remove_prefix(end + 1);
    return part;
}

// The length of a sequence of UTF-8 by its first byte; 0 for a byte that begins none.
std::size_t sequence(std::uint8_t first) {
    if (first < 0x80) return 1;
    if (first >= 0xC2 && first < 0xE0) return 2;
    if (first >= 0xE0 && first < 0xF0) return 3;
    return first >= 0xF0 && first < 0xF5 ? 4 : 0;
}

// The letters of a text in UTF-8; nullopt for other bytes.
std::optional<std::size_t> letters_of(Bytes text) {
    std::size_t letters = 0;
    for (std::size_t place = 0; place < text.size(); ++letters) {
        const std::uint8_t first = byte_at(text, place);
        const std::size_t length = sequence(first);
        if (length == 0 || place + length > text.size()) return std::nullopt;
        for (std::size_t i = 1; i < length; ++i) {
            const std::uint8_t next = byte_at(text, place + i);
            const std::uint8_t least = i > 1 ? 0x80 : first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
            const std::uint8_t most = i > 1 ? 0xBF : first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
            if (next < least || next > most) return std::nullopt;
        }
        place += length;
    }
    return letters;
}

}  // namespace

void PngChunks::read(Bytes name, Bytes content) {
    for (const Least &least : LEAST)
        if (name == least.name && content.size() < least.bytes)
            throw Damaged("its chunk " + std::string(name) + " is too short");
    if (name == "IHDR") read_header(content);
    if (name == "PLTE" && has_mode && header.colour == 3) palette = content;
    if (name == "tRNS" && has_mode && header.colour < 4) transparency = content;
    if (name == "iCCP") read_profile(content);
    if (name == "tEXt") read_text(content);
    if (name == "zTXt") read_compressed_text(content);
    if (name == "iTXt") read_international_text(content);
    if (name == "eXIf") metadata.exif = std::string("Exif\0\0", 6).append(content);
    if (name == "acTL") read_animation(content);
    if (name == "fcTL") read_frame(content);
}

void PngChunks::read_header(Bytes content) {
    header.width = big32(content, 0);
    header.height = big32(content, 4);
    if (exists(byte_at(content, 8), byte_at(content, 9))) {
        has_mode = true;
        header.depth = byte_at(content, 8);
        header.colour = byte_at(content, 9);
    }
    header.interlaced = header.interlaced || byte_at(content, 12) != 0;
    if (byte_at(content, 11) != 0) throw Damaged("its filters are unknown");
}

void PngChunks::read_profile(Bytes content) {
    const std::size_t end = content.find('\0');
    const std::size_t method = end == Bytes::npos ? 0 : end + 1;  // Pillow takes the first byte if there is no end
    if (byte_at(content, method) != 0) throw Damaged("the compression of its colour profile is unknown");
    inflated_text(content.substr(method + 1));
}

void PngChunks::keep_text(Bytes keyword, const std::string &text, std::size_t letters) {
    if (keyword == "exif") metadata.exif = "text";  // which is no EXIF block: Pillow fails at it
    if (keyword == "Raw profile type exif") metadata.raw_profile = text;
    if (keyword == "XML:com.adobe.xmp") metadata.xmp = text;
    text_letters_ += letters;
    if (text_letters_ > MOST_LETTERS) throw Damaged("its texts are too long");
}

void PngChunks::read_text(Bytes content) {
    const std::optional<Bytes> found = cut(content);
    const Bytes keyword = found.value_or(content), text = found ? content : Bytes();
    if (keyword.empty()) return;
    keep_text(keyword, std::string(text), text.size());
    if (keyword == "exif") metadata.exif = text;
}

void PngChunks::read_compressed_text(Bytes content) {
    const std::optional<Bytes> found = cut(content);
    const Bytes keyword = found.value_or(content), packed = found ? content : Bytes();
    if (!packed.empty() && packed[0] != '\0') throw Damaged("the compression of a text is unknown");
    const std::string text = inflated_text(packed.substr(packed.empty() ? 0 : 1)).value_or("");
    if (!keyword.empty()) keep_text(keyword, text, text.size());
}

void PngChunks::read_international_text(Bytes content) {
    const std::optional<Bytes> keyword = cut(content);
    if (!keyword || content.size() < 2) return;
    const bool packed = content[0] != '\0', known = content[1] == '\0';
    content.remove_prefix(2);
    const std::optional<Bytes> language = cut(content), translated = language ? cut(content) : std::nullopt;
    if (!translated || (packed && !known)) return;
    const std::optional<std::string> text = packed ? inflated_text(content) : std::string(content);
    if (!text) return;
    const std::optional<std::size_t> letters = letters_of(*text);
    if (*keyword == "XML:com.adobe.xmp") metadata.xmp = *text;
    if (letters && letters_of(*language) && letters_of(*translated)) keep_text(*keyword, *text, *letters);
}

void PngChunks::read_animation(Bytes content) {
    const std::uint32_t count = big32(content, 0);
    if (frames)
        frames.reset();  // two of them are invalid, and the file is then an ordinary picture
    else if (count > 0 && count <= MOST_FRAMES)
        frames = count;
}

void PngChunks::read_frame(Bytes content) {
    if (!frame_number_ && big32(content, 0) == 0)
        frame_number_ = 0;
    else
        read_frame_number(content);
    const Area area{big32(content, 12), big32(content, 16), big32(content, 4), big32(content, 8)};
    const auto right = static_cast<std::uint64_t>(area.left) + area.width;
    const auto bottom = static_cast<std::uint64_t>(area.top) + area.height;
    if (right > header.width || bottom > header.height) throw Damaged("a frame of its animation is too large");
    frame = area;
}

void PngChunks::read_frame_number(Bytes number) {
    const std::uint32_t found = big32(number, 0);
    if (!frame_number_ || found == 0 || *frame_number_ != found - 1)
        throw Damaged("the frames of its animation are out of order");
    frame_number_ = found;
}

}  // namespace cgd
