// Reads PNG files with zlib alone, as Pillow does. libpng refuses files that Pillow reads, for example those whose
// pixels have a wrong checksum.
#include "codecs.hpp"
#include "png_colour.hpp"
#include "png_rows.hpp"
#include "resize.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <utility>

namespace cgd {

namespace {

constexpr std::size_t SIGNATURE = 8;    // bytes
constexpr std::size_t CHECKSUM = 4;     // bytes
constexpr std::size_t BLOCK = 1 << 16;  // bytes that Pillow hands over at a time

struct Chunk {
    Bytes name;
    std::size_t length;
};

bool is_word(char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
}

// The head of a chunk; nullopt where there is none.
std::optional<Chunk> next_chunk(Cursor &file) {
    const Bytes head = file.up_to(8);
    if (head.size() < 8 || !std::all_of(head.begin() + 4, head.end(), is_word)) return std::nullopt;
    return Chunk{head.substr(4), big32(head, 0)};
}

Chunk take_chunk(Cursor &file) {
    const std::optional<Chunk> chunk = next_chunk(file);
    if (!chunk) throw Damaged("a chunk of it is damaged");
    return *chunk;
}

void check_sum(Bytes name, Bytes content, Bytes stored) {
    uLong sum = crc32(0, reinterpret_cast<const Bytef *>(name.data()), static_cast<uInt>(name.size()));
    // crc32 of no bytes at a null pointer would begin anew.
    if (!content.empty())
        sum = crc32(sum, reinterpret_cast<const Bytef *>(content.data()), static_cast<uInt>(content.size()));
    if (stored.size() < CHECKSUM || big32(stored, 0) != sum)
        throw Damaged("the checksum of its chunk " + std::string(name) + " is wrong");
}

class PngFile {
  public:
    explicit PngFile(Bytes file) : cursor_(file) { cursor_.take(SIGNATURE); }

    Picture read() {
        read_to_pixels();
        const PngHeader header = chunks_.header;
        const std::optional<std::string> palette = chunks_.palette;
        check_sides({header.height, header.width});
        if (!has_pixels_) throw Damaged("it has no pixels");
        Samples samples = read_pixels(header);
        read_to_end();
        Picture picture = coloured(header, palette, chunks_.transparency, std::move(samples));
        return turned(std::move(picture), orientation(chunks_.metadata));
    }

  private:
    void read_to_pixels() {
        for (;;) {
            const Chunk chunk = take_chunk(cursor_);
            if (chunk.name == "IEND") break;
            if (begins_pixels(chunk)) {
                has_pixels_ = true;
                break;
            }
            const Bytes content = cursor_.take(chunk.length);
            chunks_.read(chunk.name, content);
            check_sum(chunk.name, content, cursor_.up_to(CHECKSUM));
        }
        if (!chunks_.has_mode || chunks_.header.width == 0 || chunks_.header.height == 0)
            throw Damaged("its header has no size or an unknown colour");
        animated_ = chunks_.frames && (*chunks_.frames > 1 || !chunks_.frame);
    }

    // Whether a chunk holds compressed pixels. They begin at the cursor, and `left_` of them are in this chunk.
    bool begins_pixels(const Chunk &chunk) {
        if (chunk.name != "IDAT" && chunk.name != "fdAT") return false;
        left_ = chunk.length;
        if (chunk.name == "IDAT") return true;
        if (chunk.length < 4) throw Damaged("a frame of its animation is short");
        chunks_.read_frame_number(cursor_.take(4));
        left_ -= 4;
        return true;
    }

    Samples read_pixels(const PngHeader &header) {
        const Area area = chunks_.frame.value_or(Area{0, 0, header.width, header.height});
        if (area.width == 0 || area.height == 0) throw Damaged("a frame of its animation is empty");
        Samples samples{header.width, header.height, std::max<std::size_t>(header.bits() / 8, 1), {}};
        samples.content.resize(samples.width * samples.height * samples.bytes);
        PngRows rows(header, area, samples);
        for (bool done = false; !done;) {
            const Bytes block = next_block();
            if (block.empty()) throw Damaged("the file is truncated");
            done = rows.read(block);
        }
        return samples;
    }

    // Compressed pixels from this chunk or from the next one; none at their end.
    Bytes next_block() {
        while (left_ == 0) {
            cursor_.up_to(CHECKSUM);
            const Chunk chunk = take_chunk(cursor_);
            if (chunk.name == "DDAT")
                left_ = chunk.length;
            else if (!begins_pixels(chunk))
                return {};
        }
        const Bytes block = cursor_.up_to(std::min(left_, BLOCK));
        left_ -= block.size();
        return block;
    }

    // Read the chunks behind the pixels. Pillow checks no checksum there.
    void read_to_end() {
        cursor_.up_to(left_);
        for (;;) {
            cursor_.up_to(CHECKSUM);
            const std::optional<Chunk> chunk = next_chunk(cursor_);
            if (!chunk || chunk->name == "IEND" || (chunk->name == "fcTL" && animated_)) return;
            if (begins_pixels(*chunk))
                cursor_.take(left_);
            else
                chunks_.read(chunk->name, cursor_.take(chunk->length));
        }
    }

    Cursor cursor_;
    PngChunks chunks_;
    bool has_pixels_ = false, animated_ = false;
    std::size_t left_ = 0;
};

bool says_orientation(Bytes name, Bytes content) {
    constexpr Bytes profile{"Raw profile type exif\0", 22}, xmp{"XML:com.adobe.xmp\0", 18};
    if (name != "tEXt" && name != "zTXt" && name != "iTXt") return name == "eXIf";
    return starts_with(content, profile) || starts_with(content, xmp);
}

// The chunks with the pixels of a file, and those with its orientation if `oriented`.
std::string without_metadata(Bytes file, bool oriented) {
    constexpr std::array<Bytes, 5> pixels = {"IHDR", "PLTE", "tRNS", "IDAT", "IEND"};
    std::string kept(file.substr(0, SIGNATURE));
    file.remove_prefix(SIGNATURE);
    while (file.size() >= 8) {
        const Bytes name = file.substr(4, 4), whole = file.substr(0, 8 + CHECKSUM + std::size_t{big32(file, 0)});
        const bool is_pixels = std::find(pixels.begin(), pixels.end(), name) != pixels.end();
        if (is_pixels || (oriented && says_orientation(name, whole.substr(8)))) kept += whole;
        if (name == "IEND") break;
        file.remove_prefix(whole.size());
    }
    return kept;
}

}  // namespace

Picture decode_png(Bytes file) {
    std::optional<Damaged> first;
    try {
        return PngFile(file).read();
    } catch (const Damaged &damage) {
        first = damage;
    }
    for (const bool oriented : {true, false}) {
        try {
            return PngFile(without_metadata(file, oriented)).read();
        } catch (const Damaged &) {
            continue;  // the first reason is told
        }
    }
    throw Damaged(*first);
}

}  // namespace cgd
