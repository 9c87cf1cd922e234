#include "resize.hpp"

#include "failure.hpp"
#include "limits.hpp"
#include "resample.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <vector>

namespace cgd {

namespace {

constexpr std::uint32_t LEAST_SIDE = 8;
constexpr std::uint32_t LONGEST_SIDE = 1 << 13;
constexpr std::array<const char *, 4> FILTERS = {"bilinear", "bicubic", "lanczos", "box"};  // in the order of Filter

std::string by(std::uint32_t width, std::uint32_t height) {
    return std::to_string(width) + "x" + std::to_string(height);
}

// One to six digits without a zero before them.
bool is_number(const std::string &digits) {
    const bool only = std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
    return !digits.empty() && digits.size() <= 6 && only && digits[0] != '0';
}

std::uint32_t shorter_side(const std::string &digits, const std::string &rule) {
    const auto side = static_cast<std::uint32_t>(std::stoul(digits));
    if (side > LONGEST_SIDE)
        throw Failure(CGD_BAD_ENGINE, "the shorter side of resize='" + rule + "' must be 1 to " +
                                          std::to_string(LONGEST_SIDE) + " pixels.");
    return side;
}

// Where a part lies in the centre of a whole; half a pixel is rounded to the even place.
std::uint32_t centre(std::uint32_t whole, std::uint32_t part) {
    const std::uint32_t half = (whole - part) / 2;
    return half + ((whole - part) & half & 1);
}

void copy_rows(const std::uint8_t *from, std::size_t stride, Size size, std::uint8_t *out) {
    const std::size_t bytes = 3 * static_cast<std::size_t>(size.width);
    for (std::uint32_t y = 0; y < size.height; ++y) std::memcpy(out + y * bytes, from + y * stride, bytes);
}

void swap_red_and_blue(std::uint8_t *pixels, Size size) {
    std::uint8_t *end = pixels + 3 * static_cast<std::size_t>(size.height) * size.width;
    for (; pixels != end; pixels += 3) std::swap(pixels[0], pixels[2]);
}

// Pixels that lie `stride` bytes from one row to the next.
struct Rows {
    const std::uint8_t *data;
    std::size_t stride;
};

void narrow(Rows rows, std::uint32_t height, const Axis &across, std::uint8_t *out) {
    const std::size_t bytes = 3 * static_cast<std::size_t>(across.size());
    for (std::uint32_t y = 0; y < height; ++y) resample_row(rows.data + y * rows.stride, across, out + y * bytes);
}

void flatten(Rows rows, std::size_t bytes, const Axis &down, std::uint8_t *out) {
    for (std::uint32_t y = 0; y < down.size(); ++y)
        resample_column(rows.data, rows.stride, down, y, bytes, out + y * bytes);
}

// Whether Pillow 13 resamples the columns before the rows, which rounds differently. Earlier releases never do.
bool columns_first(Size from, Size to) {
    const auto lost = [](std::int64_t before, std::int64_t after) { return before - after; };
    return from.height > to.height && lost(from.height, to.height) > 2 * lost(from.width, to.width);
}

// The part of a resize to `whole` that lies in its centre. As in Pillow, a side that keeps its size is left alone.
void resample(const View &view, Filter filter, Size whole, Size input, std::uint8_t *out) {
    const std::uint32_t top = centre(whole.height, input.height), left = centre(whole.width, input.width);
    const bool rows = view.width != whole.width, columns = view.height != whole.height;
    const Axis across(view.width, whole.width, filter, left, input.width);
    const Axis down(view.height, whole.height, filter, top, input.height);
    const std::uint32_t first_x = rows ? across.first(0) : left, first_y = columns ? down.first(0) : top;
    const Rows source{view.data + first_y * view.stride + 3 * static_cast<std::size_t>(first_x), view.stride};
    const std::size_t bytes = 3 * static_cast<std::size_t>(input.width);
    if (!rows && !columns) return copy_rows(source.data, source.stride, input, out);
    if (!columns) return narrow(source, input.height, across, out);
    if (!rows) return flatten(source, bytes, down, out);
    std::vector<std::uint8_t> between;
    if (columns_first({view.height, view.width}, whole)) {
        const std::size_t wide = 3 * static_cast<std::size_t>(across.end() - first_x);
        between.resize(input.height * wide);
        flatten(source, wide, down, between.data());
        return narrow({between.data(), wide}, input.height, across, out);
    }
    between.resize((down.end() - first_y) * bytes);
    narrow(source, down.end() - first_y, across, between.data());
    flatten({between.data(), bytes}, bytes, down, out);
}

}  // namespace

ResizeRule ResizeRule::parse(const std::string &text) {
    for (std::size_t filter = 0; filter < FILTERS.size(); ++filter) {
        const std::string stretched = std::string("pillow-") + FILTERS[filter], kept = stretched + "-shorter-";
        const ResizeRule rule{static_cast<Filter>(filter), {}};
        if (text == stretched) return rule;
        const std::string digits = text.substr(0, kept.size()) == kept ? text.substr(kept.size()) : "";
        if (is_number(digits)) return {rule.filter, shorter_side(digits, text)};
    }
    throw Failure(CGD_BAD_ENGINE,
                  "resize='" + text.substr(0, 60) +
                      "' is unknown; this release knows pillow-FILTER and pillow-FILTER-shorter-PIXELS, where FILTER "
                      "is bilinear, bicubic, lanczos, box.");
}

Size ResizeRule::resized(Size picture, Size input) const {
    if (!shorter) return input;
    const double product = static_cast<double>(*shorter) * std::max(picture.height, picture.width);
    constexpr double most = std::numeric_limits<std::uint32_t>::max();  // far above every limit of pixels
    const auto longer = static_cast<std::uint32_t>(std::min(product / std::min(picture.height, picture.width), most));
    return picture.height <= picture.width ? Size{*shorter, longer} : Size{longer, *shorter};
}

void check_sides(Size size) {
    const std::string sides = by(size.width, size.height);
    if (std::min(size.width, size.height) < LEAST_SIDE)
        throw Failure(CGD_BAD_INPUT, "the picture is " + sides + " pixels; expected 8x8 or more.");
    check_size("the picture (" + sides + ")", size.pixels(), "pixels", CGD_BAD_INPUT);
}

void fit(const View &view, const ResizeRule &rule, std::uint32_t height, std::uint32_t width, std::uint8_t *out) {
    const Size input{height, width};
    if (!(Size{view.height, view.width} == input)) return fit_always(view, rule, height, width, out);
    copy_rows(view.data, view.stride, input, out);
    if (view.bgr) swap_red_and_blue(out, input);
}

void fit_always(const View &view, const ResizeRule &rule, std::uint32_t height, std::uint32_t width,
                std::uint8_t *out) {
    const Size input{height, width}, picture{view.height, view.width};
    check_sides(picture);
    const Size whole = rule.resized(picture, input);
    if (rule.shorter)
        check_size("the picture, resized to " + by(whole.width, whole.height) + ",", whole.pixels(), "pixels",
                   CGD_BAD_INPUT);
    if (whole.height < height || whole.width < width)
        throw Failure(CGD_BAD_ENGINE, "the spec resizes to " + by(whole.width, whole.height) +
                                          " pixels and crops " + by(width, height) + "; export the model again.");
    resample(view, rule.filter, whole, input, out);
    if (view.bgr) swap_red_and_blue(out, input);
}

}  // namespace cgd
