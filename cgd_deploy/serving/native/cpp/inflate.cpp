#include "inflate.hpp"

#include <algorithm>
#include <new>

namespace cgd {

namespace {

constexpr std::size_t LONGEST_TEXT = 1 << 20;
constexpr std::size_t BLOCK = 1 << 14;

}  // namespace

Inflater::Inflater() {
    if (inflateInit(&stream_) != Z_OK) throw std::bad_alloc();
}

Inflater::~Inflater() { inflateEnd(&stream_); }

void Inflater::give(Bytes input) {
    stream_.next_in = reinterpret_cast<z_const Bytef *>(const_cast<char *>(input.data()));
    stream_.avail_in = static_cast<uInt>(input.size());
}

std::size_t Inflater::read(std::uint8_t *out, std::size_t count) {
    stream_.next_out = out;
    stream_.avail_out = static_cast<uInt>(count);
    const int status = inflate(&stream_, Z_NO_FLUSH);
    if (status == Z_MEM_ERROR) throw std::bad_alloc();
    if (status == Z_NEED_DICT || (status < 0 && status != Z_BUF_ERROR)) throw Damaged("its compressed data is damaged");
    ended_ = status == Z_STREAM_END;
    return count - stream_.avail_out;
}

std::optional<std::string> inflated_text(Bytes input) {
    Inflater inflater;
    inflater.give(input);
    std::string text;
    try {
        while (!inflater.ended() && text.size() < LONGEST_TEXT) {
            const std::size_t before = text.size();
            text.resize(std::min(before + BLOCK, LONGEST_TEXT));
            auto *out = reinterpret_cast<std::uint8_t *>(&text[before]);
            const std::size_t count = inflater.read(out, text.size() - before);
            text.resize(before + count);
            if (count == 0) break;
        }
    } catch (const Damaged &) {
        return std::nullopt;
    }
    if (!inflater.ended() && inflater.left() > 0) throw Damaged("a text of it is longer than 1 MiB");
    return text;
}

}  // namespace cgd
