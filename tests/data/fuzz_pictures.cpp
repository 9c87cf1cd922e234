// A libFuzzer target: any bytes decode and fit, or are refused with one sentence.
//
//     cd cgd_deploy/serving/native
//     clang++ -std=c++17 -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude -Icpp
//         ../../../tests/data/fuzz_pictures.cpp cpp/{limits,formats,resize,resample,exif,decode,jpeg,jpeg_header}.cpp
//         cpp/{inflate,png,png_chunks,png_rows,png_colour}.cpp -ljpeg -lz -o fuzz_pictures
//     ./fuzz_pictures -max_len=65536 -timeout=20 CORPUS
#include "decode.hpp"
#include "failure.hpp"
#include "limits.hpp"
#include "resize.hpp"

#include <array>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <zlib.h>

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t *bytes, std::size_t size, std::size_t most);

namespace {

std::size_t big32(const std::uint8_t *bytes) {
    return std::size_t{bytes[0]} << 24 | std::size_t{bytes[1]} << 16 | std::size_t{bytes[2]} << 8 | bytes[3];
}

// Give the chunks of a PNG file their right checksums.
void sum_chunks(std::uint8_t *bytes, std::size_t size) {
    std::size_t place = 8;
    while (place + 12 <= size && big32(bytes + place) <= size - place - 12) {
        const std::size_t end = place + 8 + big32(bytes + place);
        const uLong sum = crc32(0, bytes + place + 4, static_cast<uInt>(end - place - 4));
        for (std::size_t i = 0; i < 4; ++i) bytes[end + i] = static_cast<std::uint8_t>(sum >> (24 - 8 * i));
        place = end + 4;
    }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    cgd::set_limit("pixels", "300000");
    return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t *bytes, std::size_t size, std::size_t most, unsigned seed) {
    const std::size_t mutated = LLVMFuzzerMutate(bytes, size, most);
    const bool is_png = mutated > 8 && std::memcmp(bytes, "\x89PNG", 4) == 0;
    if (is_png && seed % 4 != 0) sum_chunks(bytes, mutated);
    return mutated;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *bytes, std::size_t size) {
    static const std::array<cgd::ResizeRule, 4> rules = {
        {cgd::ResizeRule::parse("pillow-bilinear"), cgd::ResizeRule::parse("pillow-bicubic-shorter-37"),
         cgd::ResizeRule::parse("pillow-lanczos-shorter-32"), cgd::ResizeRule::parse("pillow-box")}};
    constexpr std::uint32_t height = 32, width = 24;
    std::vector<std::uint8_t> input(3 * static_cast<std::size_t>(height) * width);
    try {
        const cgd::Picture picture = cgd::decode(bytes, size);
        const cgd::ResizeRule &rule = rules[size % rules.size()];
        cgd::fit_always(picture.view(), rule, height, width, input.data());
    } catch (const cgd::Failure &failure) {
        const std::string sentence = failure.what();
        if (failure.status != CGD_BAD_INPUT || sentence.empty() || sentence.back() != '.') std::abort();
    }
    return 0;
}
