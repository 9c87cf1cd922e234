// Resamples 8-bit RGB pixels along one axis, with the weights and the rounding of Pillow.
#ifndef CGD_RESAMPLE_HPP
#define CGD_RESAMPLE_HPP

#include "resize.hpp"

#include <cstdint>
#include <vector>

namespace cgd {

// The weights of a part of an axis: output i is the sum of weights(i)[k] * input[first(i) + k].
class Axis {
  public:
    // The axis has `from` pixels before the resize and `to` after it. Only `count` outputs from `start` on are wanted.
    Axis(std::uint32_t from, std::uint32_t to, Filter filter, std::uint32_t start, std::uint32_t count);

    std::uint32_t size() const { return static_cast<std::uint32_t>(first_.size()); }
    std::uint32_t first(std::uint32_t output) const { return first_[output]; }
    std::uint32_t taps(std::uint32_t output) const { return taps_[output]; }
    const std::int32_t *weights(std::uint32_t output) const { return &weights_[output * most_taps_]; }
    // The inputs that are used: from `first(0)` to before `end`.
    std::uint32_t end() const { return first_.back() + taps_.back(); }

  private:
    std::size_t most_taps_ = 0;
    std::vector<std::uint32_t> first_, taps_;
    std::vector<std::int32_t> weights_;
};

// Write axis.size() pixels of one row. `row` begins at the first pixel that the axis uses.
void resample_row(const std::uint8_t *row, const Axis &axis, std::uint8_t *out);

// Write output row `output` of `axis`, `bytes` wide, from rows that lie `stride` bytes apart. `rows` is the first row
// that the axis uses.
void resample_column(const std::uint8_t *rows, std::size_t stride, const Axis &axis, std::uint32_t output,
                     std::size_t bytes, std::uint8_t *out);

}  // namespace cgd

#endif
