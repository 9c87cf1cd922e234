// Fits pixels to the model's input, as the `resize` of its spec says. Equals Pillow's resize to the bit.
#ifndef CGD_RESIZE_HPP
#define CGD_RESIZE_HPP

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace cgd {

enum class Filter { bilinear, bicubic, lanczos, box };

struct Size {
    std::uint32_t height, width;  // pixels
    std::uint64_t pixels() const { return static_cast<std::uint64_t>(height) * width; }
    bool operator==(const Size &other) const { return height == other.height && width == other.width; }
};

// A resize, and possibly a crop: without `shorter` to the input size, which may change the aspect ratio. With it, the
// shorter side gets this many pixels, and the input is cut out of the centre.
struct ResizeRule {
    Filter filter = Filter::bilinear;
    std::optional<std::uint32_t> shorter;

    // Read "pillow-FILTER" or "pillow-FILTER-shorter-PIXELS". Throws Failure(CGD_BAD_ENGINE).
    static ResizeRule parse(const std::string &text);

    // The size of a picture after the resize and before the crop.
    Size resized(Size picture, Size input) const;
};

// Pixels of the caller, three bytes each. `stride` is the number of bytes from one row to the next.
struct View {
    const std::uint8_t *data;
    std::uint32_t width, height;
    std::size_t stride;
    bool bgr;
};

// Write the model's input, RGB [height][width][3]. A view of this size is copied.
// Throws Failure(CGD_BAD_INPUT) for sides below 8 pixels and for more pixels than the limit, also after the resize.
void fit(const View &view, const ResizeRule &rule, std::uint32_t height, std::uint32_t width, std::uint8_t *out);

// The same, but a view of the input's size is resized and cropped like any other, as encoded files are.
void fit_always(const View &view, const ResizeRule &rule, std::uint32_t height, std::uint32_t width, std::uint8_t *out);

// Throw Failure(CGD_BAD_INPUT) if a picture is too small or has more pixels than the limit.
void check_sides(Size size);

}  // namespace cgd

#endif
