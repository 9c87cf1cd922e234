#include "npy.hpp"

#include <limits>
#include <sstream>
#include <stdexcept>

namespace cgd {
namespace {

constexpr std::string_view MAGIC = "\x93NUMPY";
constexpr std::size_t LONGEST_HEADER = 10'000;  // as NumPy
constexpr std::size_t LONGEST_NUMBER = 18;

[[noreturn]] void refuse(const std::string &what) {
    throw std::invalid_argument(what);
}

// The text of the header, and where the data begins.
std::pair<std::string, std::size_t> header_of(std::string_view file) {
    if (file.size() < 12 || file.substr(0, MAGIC.size()) != MAGIC) refuse("without the header of a .npy file");
    const auto byte = [&](std::size_t at) { return std::size_t(std::uint8_t(file[at])); };
    const bool is_short = byte(6) == 1;
    const std::size_t start = is_short ? 10 : 12;
    const std::size_t length = byte(8) | byte(9) << 8 | (is_short ? 0 : byte(10) << 16 | byte(11) << 24);
    if (byte(6) < 1 || byte(6) > 3 || length > LONGEST_HEADER || length > file.size() - start)
        refuse("without the header of a .npy file");
    return {std::string(file.substr(start, length)), start + length};
}

// The text between `before` and the next `after`.
std::string between(const std::string &header, std::string_view before, std::string_view after) {
    const std::size_t start = header.find(before);
    const std::size_t end = start == std::string::npos ? start : header.find(after, start + before.size());
    if (end == std::string::npos) refuse("without the header of a .npy file");
    return header.substr(start + before.size(), end - start - before.size());
}

std::vector<std::size_t> shape_of(const std::string &header) {
    std::vector<std::size_t> shape;
    std::istringstream text(between(header, "'shape': (", ")"));
    for (std::string side; std::getline(text, side, ',');) {
        side.erase(0, side.find_first_not_of(' '));
        if (side.empty()) continue;  // after the last comma
        if (side.size() > LONGEST_NUMBER || side.find_first_not_of("0123456789") != std::string::npos)
            refuse("the shape " + side);
        shape.push_back(std::stoull(side));
    }
    return shape;
}

std::string type_of(const std::string &header) {
    const std::string type = between(header, "'descr': '", "'");
    if (type.size() != 3 || std::string_view("<|=").find(type[0]) == std::string_view::npos ||
        std::string_view("1248").find(type[2]) == std::string_view::npos)
        refuse("the type " + type);
    return type;
}

std::size_t times(std::size_t a, std::size_t b) {
    if (b && a > std::numeric_limits<std::size_t>::max() / b) refuse("a shape that is too large");
    return a * b;
}

}  // namespace

std::size_t Array::item_size() const {
    return std::size_t(type.back() - '0');
}

std::size_t Array::values() const {
    std::size_t count = 1;
    for (const std::size_t side : shape) count = times(count, side);
    return count;
}

Array read_npy(std::string_view file) {
    const auto [header, start] = header_of(file);
    Array array{type_of(header), shape_of(header), reinterpret_cast<const std::uint8_t *>(file.data()) + start};
    if (between(header, "'fortran_order': ", ",") != "False") refuse("an array in Fortran's order");
    if (times(array.values(), array.item_size()) != file.size() - start)
        refuse(std::to_string(file.size() - start) + " bytes, which its shape does not have");
    return array;
}

}  // namespace cgd
