#include "resample.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace cgd {

namespace {

constexpr int FRACTION_BITS = 22;  // of a weight: 32 bits without 8 for the pixel and 2 for sums beyond 0 and 1
constexpr std::int32_t HALF = 1 << (FRACTION_BITS - 1);
constexpr double PI = 3.14159265358979323846;

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double triangle(double x) { return std::max(1.0 - std::abs(x), 0.0); }

double cubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

double sinc(double x) { return x == 0.0 ? 1.0 : std::sin(x * PI) / (x * PI); }

double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

struct Kernel {
    double (*weight)(double);
    double radius;  // in pixels of the input, or of the output where that is coarser
};

Kernel kernel_of(Filter filter) {
    switch (filter) {
        case Filter::bilinear: return {triangle, 1.0};
        case Filter::bicubic: return {cubic, 2.0};
        case Filter::lanczos: return {lanczos, 3.0};
        case Filter::box: break;
    }
    return {box, 0.5};
}

std::int32_t fixed(double weight) {
    return static_cast<std::int32_t>((weight < 0 ? -0.5 : 0.5) + weight * (1 << FRACTION_BITS));
}

std::uint8_t clipped(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> FRACTION_BITS, 0, 255)); }

constexpr std::size_t BLOCK = 32;  // bytes of a row whose sums are kept in registers

template <std::size_t count>
void sum_column(const std::uint8_t *rows, std::size_t stride, const std::int32_t *weights, std::uint32_t taps,
                std::uint8_t *out) {
    std::array<std::int32_t, count> sums;
    sums.fill(HALF);
    for (std::uint32_t tap = 0; tap < taps; ++tap) {
        const std::uint8_t *row = rows + tap * stride;
        for (std::size_t i = 0; i < count; ++i) sums[i] += row[i] * weights[tap];
    }
    for (std::size_t i = 0; i < count; ++i) out[i] = clipped(sums[i]);
}

}  // namespace

Axis::Axis(std::uint32_t from, std::uint32_t to, Filter filter, std::uint32_t start, std::uint32_t count)
    : first_(count), taps_(count) {
    const Kernel kernel = kernel_of(filter);
    const double scale = static_cast<double>(static_cast<float>(from)) / to;
    const double stretch = std::max(scale, 1.0), radius = kernel.radius * stretch;
    const double shrink = 1.0 / stretch;
    most_taps_ = static_cast<std::size_t>(std::ceil(radius)) * 2 + 1;
    weights_.resize(count * most_taps_);
    std::vector<double> exact(most_taps_);
    for (std::uint32_t i = 0; i < count; ++i) {
        const double centre = (start + i + 0.5) * scale;
        const auto first = static_cast<std::uint32_t>(std::max(centre - radius + 0.5, 0.0));
        const auto end = static_cast<std::uint32_t>(std::min(centre + radius + 0.5, static_cast<double>(from)));
        first_[i] = first;
        taps_[i] = end - first;
        double sum = 0.0;
        for (std::uint32_t tap = 0; tap < taps_[i]; ++tap) {
            exact[tap] = kernel.weight((static_cast<double>(tap) + first - centre + 0.5) * shrink);
            sum += exact[tap];
        }
        for (std::uint32_t tap = 0; tap < taps_[i]; ++tap)
            weights_[i * most_taps_ + tap] = fixed(sum == 0.0 ? exact[tap] : exact[tap] / sum);
    }
}

void resample_row(const std::uint8_t *row, const Axis &axis, std::uint8_t *out) {
    for (std::uint32_t i = 0; i < axis.size(); ++i, out += 3) {
        const std::uint8_t *pixel = row + 3 * static_cast<std::size_t>(axis.first(i) - axis.first(0));
        const std::int32_t *weights = axis.weights(i);
        std::int32_t red = HALF, green = HALF, blue = HALF;
        for (std::uint32_t tap = 0; tap < axis.taps(i); ++tap, pixel += 3) {
            red += pixel[0] * weights[tap];
            green += pixel[1] * weights[tap];
            blue += pixel[2] * weights[tap];
        }
        out[0] = clipped(red);
        out[1] = clipped(green);
        out[2] = clipped(blue);
    }
}

void resample_column(const std::uint8_t *rows, std::size_t stride, const Axis &axis, std::uint32_t output,
                     std::size_t bytes, std::uint8_t *out) {
    rows += (axis.first(output) - axis.first(0)) * stride;
    const std::int32_t *weights = axis.weights(output);
    const std::uint32_t taps = axis.taps(output);
    std::size_t done = 0;
    for (; done + BLOCK <= bytes; done += BLOCK) sum_column<BLOCK>(rows + done, stride, weights, taps, out + done);
    for (; done < bytes; ++done) sum_column<1>(rows + done, stride, weights, taps, out + done);
}

}  // namespace cgd
