#include "exif.hpp"

#include "bytes.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstring>
#include <set>

namespace cgd {

namespace {

constexpr std::uint32_t ORIENTATION = 0x0112;
constexpr Bytes PREFIX{"Exif\0\0", 6};
constexpr Bytes SPACES = " \t\n\r\v\f";
constexpr std::array<std::size_t, 17> UNITS = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};  // bytes, by type

constexpr std::uint64_t SHORT = 3, LONG = 4, RATIONAL = 5, FLOAT = 11, DOUBLE = 12, IFD = 13, LONG8 = 16;
constexpr std::uint64_t SIGNED_BYTE = 6, SIGNED_SHORT = 8, SIGNED_LONG = 9, SIGNED_RATIONAL = 10;

// Whole numbers of a block in its own byte order.
class Numbers {
  public:
    explicit Numbers(Bytes block) : block_(block), little_(starts_with(block, "II")) {
        constexpr std::array<Bytes, 5> starts = {
            {{"MM\0*", 4}, {"II*\0", 4}, {"MM*\0", 4}, {"II\0*", 4}, {"MM\0+", 4}}};
        const auto fits = [&](Bytes start) { return starts_with(block, start); };
        if (std::none_of(starts.begin(), starts.end(), fits)) throw Damaged("its EXIF block has an unknown header");
    }

    std::uint64_t at(std::size_t place, std::size_t bytes) const { return of(block_.substr(place, bytes), bytes); }

    std::uint64_t of(Bytes content, std::size_t bytes) const {
        std::uint64_t number = 0;
        for (std::size_t i = 0; i < bytes; ++i) number = number << 8 | byte_at(content, little_ ? bytes - 1 - i : i);
        return number;
    }

  private:
    Bytes block_;
    bool little_;
};

template <typename Real, typename Bits>
double real(std::uint64_t number) {
    const Bits bits = static_cast<Bits>(number);
    Real value;
    std::memcpy(&value, &bits, sizeof value);
    return static_cast<double>(value);
}

double divided(double numerator, double denominator) { return denominator == 0 ? NAN : numerator / denominator; }

// The first value of a tag. NaN for texts and bytes, which no orientation equals.
double first_value(const Numbers &numbers, std::uint64_t type, Bytes content) {
    const auto number = [&](std::size_t place, std::size_t bytes) { return numbers.of(content.substr(place), bytes); };
    const auto whole = [&](std::size_t place) { return static_cast<double>(number(place, 4)); };
    const auto integer = [&](std::size_t place) { return static_cast<std::int32_t>(number(place, 4)); };
    switch (type) {
        case SHORT: return static_cast<double>(number(0, 2));
        case LONG:
        case IFD: return whole(0);
        case RATIONAL: return divided(whole(0), whole(4));
        case SIGNED_BYTE: return static_cast<std::int8_t>(number(0, 1));
        case SIGNED_SHORT: return static_cast<std::int16_t>(number(0, 2));
        case SIGNED_LONG: return integer(0);
        case SIGNED_RATIONAL: return divided(integer(0), integer(4));
        case FLOAT: return real<float, std::uint32_t>(number(0, 4));
        case DOUBLE: return real<double, std::uint64_t>(number(0, 8));
        case LONG8: return static_cast<double>(number(0, 8));
        default: return NAN;
    }
}

// The content of a tag whose entry begins at `entry`; nullopt for a tag that is passed over.
// `far` counts the bytes of contents that lie outside of their entries.
std::optional<Bytes> content_of(Bytes block, const Numbers &numbers, std::size_t entry, std::uint64_t &far) {
    const auto type = numbers.at(entry + 2, 2);
    if (type >= UNITS.size() || UNITS[type] == 0) return std::nullopt;
    const std::uint64_t size = numbers.at(entry + 4, 4) * UNITS[type];
    if (size == 0) return std::nullopt;
    if (size <= 4) return block.substr(entry + 8, size);
    far += size;
    if (far > block.size()) return std::nullopt;
    const std::uint64_t place = numbers.at(entry + 8, 4);
    if (place + size > block.size()) throw Damaged("a tag lies outside of its EXIF block");
    return block.substr(place, size);
}

// The orientation in the first directory of a block; nullopt if there is none.
std::optional<double> stored_orientation(Bytes block) {
    for (int i = 0; i < 2 && starts_with(block, PREFIX); ++i) block.remove_prefix(PREFIX.size());
    if (block.empty()) return std::nullopt;
    const Numbers numbers(block);
    const std::uint64_t start = numbers.at(4, 4);
    if (start + 2 > block.size()) return std::nullopt;
    const std::uint64_t count = numbers.at(start, 2);
    std::set<std::uint64_t> seen;
    std::uint64_t far = 0;
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t entry = start + 2 + 12 * i;
        if (entry + 12 > block.size()) return std::nullopt;
        const std::uint64_t tag = numbers.at(entry, 2), type = numbers.at(entry + 2, 2);
        if (seen.count(tag) != 0) continue;
        std::optional<Bytes> content;
        try {
            content = content_of(block, numbers, entry, far);
        } catch (const Damaged &) {
            return std::nullopt;  // Pillow keeps the tags before this one
        }
        if (!content) continue;
        seen.insert(tag);
        if (tag == ORIENTATION) return first_value(numbers, type, *content);
    }
    return std::nullopt;
}

// The bytes that the fourth and later lines of a text spell in hexadecimal digits.
std::string profile_bytes(const std::string &text) {
    std::string digits, bytes;
    int line = 0;
    for (const char c : text) {
        if (c == '\n')
            ++line;
        else if (line >= 3)
            digits += c;
    }
    for (std::size_t i = 0; i < digits.size();) {
        const auto digit = [&](std::size_t place) { return std::isxdigit(byte_at(digits, place)) != 0; };
        if (SPACES.find(digits[i]) != Bytes::npos) {
            ++i;
            continue;
        }
        if (!digit(i) || !digit(i + 1)) throw Damaged("its EXIF text holds no hexadecimal digits");
        bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
        i += 2;
    }
    return bytes;
}

std::optional<double> xmp_orientation(Bytes xmp) {
    constexpr Bytes name = "tiff:Orientation";
    for (std::size_t at = xmp.find(name); at != Bytes::npos; at = xmp.find(name, at + 1)) {
        Bytes rest = xmp.substr(at + name.size());
        if (starts_with(rest, "=\""))
            rest.remove_prefix(2);
        else if (starts_with(rest, ">"))
            rest.remove_prefix(1);
        else
            continue;
        if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
    }
    return std::nullopt;
}

}  // namespace

int orientation(const Metadata &metadata) {
    std::optional<double> stored;
    try {
        if (metadata.exif)
            stored = stored_orientation(*metadata.exif);
        else if (metadata.raw_profile)
            stored = stored_orientation(profile_bytes(*metadata.raw_profile));
    } catch (const Damaged &) {
        return 1;
    }
    if (!stored) stored = xmp_orientation(metadata.xmp);
    const double value = stored.value_or(1.0);
    return value >= 2 && value <= 8 && std::floor(value) == value ? static_cast<int>(value) : 1;
}

}  // namespace cgd
