#include "decode.hpp"

#include "codecs.hpp"
#include "failure.hpp"
#include "formats.hpp"
#include "limits.hpp"

#include <algorithm>
#include <string>

namespace cgd {

namespace {

std::string undecodable(const std::string &reason) {
    return "the picture cannot be decoded (" + reason + "); replace or remove the file.";
}

// Refuse a format that is not allowed, or that this library does not read.
void check_format(const std::string &format) {
    const std::vector<std::string> allowed = limits().formats;
    if (format.empty() || std::find(allowed.begin(), allowed.end(), format) == allowed.end()) {
        std::string names;
        for (const std::string &name : allowed) names += (names.empty() ? "" : ", ") + name;
        throw Failure(CGD_BAD_INPUT, undecodable("no picture in one of the formats " + names));
    }
    if (format != "JPEG" && format != "PNG")
        throw Failure(CGD_BAD_INPUT, "the picture is a " + format +
                                         " file, and this library reads JPEG and PNG; convert the picture, or use the "
                                         "library that `cgd-deploy install-native --embed-python` installs.");
}

}  // namespace

Picture turned(Picture picture, int orientation) {
    if (orientation == 1) return picture;
    const std::size_t width = picture.width, height = picture.height, row = 3 * width;
    const bool sideways = orientation >= 5;
    const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    Picture result{sideways ? picture.height : picture.width, sideways ? picture.width : picture.height, {}};
    result.rgb.resize(picture.rgb.size());
    const auto source = [&](std::size_t x, std::size_t y) {
        return &picture.rgb[(from_below ? height - 1 - y : y) * row + 3 * (from_right ? width - 1 - x : x)];
    };
    std::uint8_t *out = result.rgb.data();
    for (std::size_t y = 0; y < result.height; ++y)
        for (std::size_t x = 0; x < result.width; ++x, out += 3)
            std::copy_n(sideways ? source(y, x) : source(x, y), 3, out);
    return result;
}

Picture decode(const std::uint8_t *bytes, std::size_t size) {
    const Bytes file(reinterpret_cast<const char *>(bytes), size);
    check_size("the picture", size, "picture_bytes", CGD_BAD_INPUT);
    const std::string format = format_of(file);
    check_format(format);
    try {
        return format == "JPEG" ? decode_jpeg(file) : decode_png(file);
    } catch (const Damaged &damage) {
        throw Failure(CGD_BAD_INPUT, undecodable(damage.what()));
    }
}

}  // namespace cgd
