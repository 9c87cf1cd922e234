#include "sha256.hpp"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cgd {
namespace {

using State = std::array<std::uint32_t, 8>;

constexpr std::size_t BLOCK = 64;
constexpr std::array<std::uint32_t, 64> K{
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t rotated(std::uint32_t value, unsigned bits) {
    return value >> bits | value << (32 - bits);
}

std::uint32_t big_endian(const std::uint8_t *bytes) {
    return std::uint32_t(bytes[0]) << 24 | std::uint32_t(bytes[1]) << 16 | std::uint32_t(bytes[2]) << 8 | bytes[3];
}

void add_blocks(State &state, const std::uint8_t *data, std::size_t blocks) {
    for (; blocks--; data += BLOCK) {
        std::array<std::uint32_t, 64> w;
        for (std::size_t t = 0; t < 16; t++) w[t] = big_endian(data + 4 * t);
        for (std::size_t t = 16; t < 64; t++) {
            const std::uint32_t s0 = rotated(w[t - 15], 7) ^ rotated(w[t - 15], 18) ^ w[t - 15] >> 3;
            const std::uint32_t s1 = rotated(w[t - 2], 17) ^ rotated(w[t - 2], 19) ^ w[t - 2] >> 10;
            w[t] = s1 + w[t - 7] + s0 + w[t - 16];
        }
        auto [a, b, c, d, e, f, g, h] = state;
        for (std::size_t t = 0; t < 64; t++) {
            const std::uint32_t sum1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
            const std::uint32_t sum0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
            const std::uint32_t t1 = h + sum1 + ((e & f) ^ (~e & g)) + K[t] + w[t];
            const std::uint32_t t2 = sum0 + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
        }
        const State round{a, b, c, d, e, f, g, h};
        for (std::size_t i = 0; i < 8; i++) state[i] += round[i];
    }
}

#if defined(__x86_64__)

// The instructions keep the state as ABEF and CDGH, and compute four rounds with four words of the message.
__attribute__((target("sha,sse4.1"))) void add_blocks_fast(State &state, const std::uint8_t *data, std::size_t blocks) {
    const __m128i bytes_of_words = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    const __m128i dcba = _mm_loadu_si128(reinterpret_cast<const __m128i *>(state.data()));
    const __m128i hgfe = _mm_loadu_si128(reinterpret_cast<const __m128i *>(state.data() + 4));
    const __m128i cdab = _mm_shuffle_epi32(dcba, 0xb1), efgh = _mm_shuffle_epi32(hgfe, 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
    for (; blocks--; data += BLOCK) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];  // the last 16 words of the message
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i *>(data) + i), bytes_of_words);
#pragma GCC unroll 16  // so that the four parts of the message stay in registers
        for (std::size_t four = 0; four < 16; four++) {
            const __m128i words = w[four % 4];
            __m128i summed = _mm_add_epi32(words, _mm_loadu_si128(reinterpret_cast<const __m128i *>(&K[4 * four])));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, summed);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(summed, 0x0e));
            const __m128i last = w[(four + 3) % 4], before_last = w[(four + 2) % 4];
            __m128i next = _mm_sha256msg1_epu32(words, w[(four + 1) % 4]);
            next = _mm_add_epi32(next, _mm_alignr_epi8(last, before_last, 4));
            w[four % 4] = _mm_sha256msg2_epu32(next, last);
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(state.data()), _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(state.data() + 4), _mm_alignr_epi8(dchg, feba, 8));
}

bool has_instructions() {
    static const bool found = [] {
        unsigned a = 7, b = 0, c = 0, d = 0;
        __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        return (b >> 29 & 1) != 0 && __builtin_cpu_supports("sse4.1");
    }();
    return found;
}

#endif

void update(State &state, const std::uint8_t *data, std::size_t blocks) {
#if defined(__x86_64__)
    if (has_instructions()) return add_blocks_fast(state, data, blocks);
#endif
    add_blocks(state, data, blocks);
}

}  // namespace

void Sha256::add(const void *data, std::size_t size) {
    const auto *bytes = static_cast<const std::uint8_t *>(data);
    const std::size_t kept = length_ % BLOCK;
    length_ += size;
    if (kept) {
        const std::size_t taken = std::min(size, BLOCK - kept);
        std::copy_n(bytes, taken, rest_.begin() + std::ptrdiff_t(kept));
        bytes += taken, size -= taken;
        if (kept + taken < BLOCK) return;
        update(state_, rest_.data(), 1);
    }
    update(state_, bytes, size / BLOCK);
    std::copy_n(bytes + size / BLOCK * BLOCK, size % BLOCK, rest_.begin());
}

std::string Sha256::hex() {
    const std::uint64_t bits = 8 * length_;
    std::array<std::uint8_t, BLOCK + 8> end{0x80};
    const std::size_t zeros = (2 * BLOCK - 9 - length_ % BLOCK) % BLOCK;
    for (std::size_t i = 0; i < 8; i++) end[1 + zeros + i] = std::uint8_t(bits >> (56 - 8 * i));
    add(end.data(), 1 + zeros + 8);
    std::string digits;
    for (const std::uint32_t word : state_)
        for (int shift = 28; shift >= 0; shift -= 4) digits += "0123456789abcdef"[word >> shift & 15];
    return digits;
}

std::string sha256(const void *data, std::size_t size) {
    Sha256 sum;
    sum.add(data, size);
    return sum.hex();
}

}  // namespace cgd
