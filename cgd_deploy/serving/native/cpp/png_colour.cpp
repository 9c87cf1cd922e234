#include "png_colour.hpp"

#include "failure.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace cgd {

namespace {

using Colour = std::array<std::uint8_t, 3>;

constexpr Colour WHITE = {255, 255, 255};
constexpr std::size_t COLOURS = 256;
constexpr std::uint32_t UNUSED_BITS = 4;  // a picture that leaves so many of its 16 bits unused would be almost black

std::uint8_t on_white(std::uint32_t value, std::uint32_t alpha) {
    const std::uint32_t sum = 255 * (255 - alpha) + value * alpha + 128;
    return static_cast<std::uint8_t>((sum + (sum >> 8)) >> 8);
}

// `largest` is the largest value, without its lowest 16 - `bits` bits.
void check_brightness(std::uint32_t largest, std::uint32_t bits) {
    if (largest > 0 && largest < 1U << (bits - UNUSED_BITS))
        throw Failure(CGD_BAD_INPUT,
                      "the picture has values of 16 bits, none of which uses the highest 4, as in pictures of 12 bits "
                      "or fewer; convert it to 8 bits, or to TIFF with the tag SMaxSampleValue.");
}

// The entry that alone is transparent; nullopt if the alphas say more.
std::optional<std::size_t> only_transparent(Bytes alphas) {
    if (!alphas.empty() && alphas.back() == '\n') alphas.remove_suffix(1);  // Pillow's pattern takes a line's end
    const std::size_t place = alphas.find('\0');
    if (place == Bytes::npos) return std::nullopt;
    const auto opaque = [](char alpha) { return alpha == '\xff'; };
    const bool others = std::all_of(alphas.begin(), alphas.begin() + static_cast<std::ptrdiff_t>(place), opaque) &&
                        std::all_of(alphas.begin() + static_cast<std::ptrdiff_t>(place) + 1, alphas.end(), opaque);
    return others ? std::optional(place) : std::nullopt;
}

std::array<std::uint8_t, COLOURS> palette_alphas(Bytes stored) {
    std::array<std::uint8_t, COLOURS> alphas{};
    alphas.fill(255);
    const std::optional<std::size_t> only = only_transparent(stored);
    if ((only ? *only + 1 : stored.size()) > COLOURS) throw Damaged("it has more transparent entries than colours");
    if (only)
        alphas[*only] = 0;
    else
        std::copy(stored.begin(), stored.end(), alphas.begin());
    return alphas;
}

// The colour of every sample of a palette.
std::array<Colour, COLOURS> palette_colours(const std::optional<std::string> &palette,
                                            const std::optional<std::string> &transparency) {
    std::array<Colour, COLOURS> colours{};
    const std::size_t count = palette ? palette->size() / 3 : 0;
    if (count > COLOURS) throw Damaged("its palette is too long");
    if (!palette && !transparency) throw Damaged("it has no palette");
    if (count > 0) std::memcpy(colours.data(), palette->data(), 3 * count);
    if (!transparency) return colours;
    const std::array<std::uint8_t, COLOURS> alphas = palette_alphas(*transparency);
    for (std::size_t i = 0; i < COLOURS; ++i)
        for (std::uint8_t &value : colours[i]) value = on_white(value, alphas[i]);
    return colours;
}

// The colour of every sample of grey of up to 8 bits.
std::array<Colour, COLOURS> grey_colours(int depth, const std::optional<std::string> &transparency) {
    std::array<Colour, COLOURS> colours{};
    const std::uint32_t largest = (1U << depth) - 1, factor = 255 / largest;
    for (std::uint32_t sample = 0; sample <= largest; ++sample)
        colours[sample].fill(static_cast<std::uint8_t>(sample * factor));
    if (!transparency) return colours;
    const std::uint32_t key = big16(*transparency, 0);
    // Pillow keeps the lowest 8 bits of the scaled key, and takes every key of 1 bit but 0 for 1.
    const std::uint32_t value = depth == 1 ? (key > 0 ? 255 : 0) : key * factor & 255;
    for (Colour &colour : colours)
        if (colour[0] == value) colour = WHITE;
    return colours;
}

void look_up(const Samples &samples, const std::array<Colour, COLOURS> &colours, std::uint8_t *out) {
    for (const std::uint8_t sample : samples.content) {
        std::memcpy(out, colours[sample].data(), 3);
        out += 3;
    }
}

// Grey of 16 bits.
void deep_grey(const Samples &samples, const std::optional<std::string> &transparency, std::uint8_t *out) {
    const std::uint32_t none = 1U << 16, key = transparency ? big16(*transparency, 0) : none;
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < samples.content.size(); i += 2, out += 3) {
        const std::uint32_t value = static_cast<std::uint32_t>(samples.content[i]) << 8 | samples.content[i + 1];
        largest = std::max(largest, value);
        std::memset(out, value == key ? 255 : samples.content[i], 3);
    }
    check_brightness(largest, 16);
}

// The transparent colour, by the bytes that Pillow keeps.
Colour key_of(const std::string &transparency, std::size_t bytes) {
    Colour key{};
    for (std::size_t i = 0; i < key.size(); ++i) {
        const std::uint32_t value = big16(transparency, 2 * i);
        key[i] = static_cast<std::uint8_t>(bytes == 2 ? value >> 8 : value);
    }
    return key;
}

// Colour, or grey and alpha, of 8 or 16 bits, of which Pillow keeps the high byte.
template <std::size_t channels, std::size_t bytes>
void colour(const Samples &samples, const std::optional<std::string> &transparency, std::uint8_t *out) {
    constexpr bool alpha = channels != 3;
    constexpr std::size_t second = channels == 2 ? 0 : bytes, size = channels * bytes;
    const bool keyed = transparency && !alpha;
    const Colour key = keyed ? key_of(*transparency, bytes) : WHITE;
    std::uint8_t largest = 0;
    for (std::size_t i = 0; i < samples.content.size(); i += size, out += 3) {
        const std::uint8_t *sample = &samples.content[i];
        const Colour stored = {sample[0], sample[second], sample[2 * second]};
        if (bytes == 2) largest = std::max({largest, stored[0], stored[1], stored[2]});
        const std::uint32_t opacity = alpha ? sample[size - bytes] : keyed && stored == key ? 0 : 255;
        for (std::size_t channel = 0; channel < 3; ++channel) out[channel] = on_white(stored[channel], opacity);
    }
    if (bytes == 2) check_brightness(largest, 8);
}

template <std::size_t bytes>
void any_colour(std::uint32_t channels, const Samples &samples, const std::optional<std::string> &transparency,
                std::uint8_t *out) {
    if (channels == 2) return colour<2, bytes>(samples, transparency, out);
    if (channels == 3) return colour<3, bytes>(samples, transparency, out);
    colour<4, bytes>(samples, transparency, out);
}

}  // namespace

Picture coloured(const PngHeader &header, const std::optional<std::string> &palette,
                 const std::optional<std::string> &transparency, Samples samples) {
    Picture picture{header.width, header.height, {}};
    if (header.colour == 2 && header.depth == 8 && !transparency) {
        picture.rgb = std::move(samples.content);
        return picture;
    }
    picture.rgb.resize(3 * samples.width * samples.height);
    if (header.colour == 3)
        look_up(samples, palette_colours(palette, transparency), picture.rgb.data());
    else if (header.colour == 0 && header.depth <= 8)
        look_up(samples, grey_colours(header.depth, transparency), picture.rgb.data());
    else if (header.colour == 0)
        deep_grey(samples, transparency, picture.rgb.data());
    else if (header.depth == 8)
        any_colour<1>(header.channels(), samples, transparency, picture.rgb.data());
    else
        any_colour<2>(header.channels(), samples, transparency, picture.rgb.data());
    return picture;
}

}  // namespace cgd
