#include "png_rows.hpp"

#include <array>
#include <cstdlib>
#include <cstring>

namespace cgd {

namespace {

// The rows and columns of a pass: every `step` from `first` on.
struct Pass {
    std::size_t first_column, first_row, column_step, row_step;
};

constexpr Pass WHOLE = {0, 0, 1, 1};
constexpr std::array<Pass, 7> INTERLACED = {
    {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4}, {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}}};

const Pass &pass_of(const PngHeader &header, std::size_t pass) { return header.interlaced ? INTERLACED[pass] : WHOLE; }

std::uint8_t nearest(int left, int above, int corner) {
    const int to_left = std::abs(above - corner), to_above = std::abs(left - corner);
    const int to_corner = std::abs(left + above - 2 * corner);
    if (to_left <= to_above && to_left <= to_corner) return static_cast<std::uint8_t>(left);
    return static_cast<std::uint8_t>(to_above <= to_corner ? above : corner);
}

}  // namespace

PngRows::PngRows(const PngHeader &header, Area area, Samples &samples)
    : header_(header), area_(area), samples_(samples) {
    const std::size_t most = (static_cast<std::size_t>(area.width) * header.bits() + 7) / 8;
    row_.resize(most + 1);
    above_.resize(most + 1);
    begin_pass();
}

void PngRows::begin_pass() {
    const Pass &pass = pass_of(header_, pass_);
    y_ = pass.first_row;
    columns_ = area_.width > pass.first_column
                   ? (area_.width - pass.first_column + pass.column_step - 1) / pass.column_step
                   : 0;
    bytes_ = (columns_ * header_.bits() + 7) / 8;
}

bool PngRows::read(Bytes block) {
    inflater_.give(block);
    while (inflater_.left() > 0) {
        filled_ += inflater_.read(row_.data() + filled_, bytes_ + 1 - filled_);
        if (filled_ < bytes_ + 1) return false;
        undo_filter();
        store();
        filled_ = 0;
        next_row();
        if (y_ >= area_.height || inflater_.ended()) return true;  // Pillow takes a file that ends after any row
    }
    return false;
}

void PngRows::next_row() {
    y_ += pass_of(header_, pass_).row_step;
    row_.swap(above_);
    while (header_.interlaced && pass_ + 1 < INTERLACED.size() && (y_ >= area_.height || columns_ == 0)) {
        ++pass_;
        begin_pass();
        std::fill(above_.begin(), above_.end(), std::uint8_t{0});
    }
    if (columns_ == 0) y_ = area_.height;
}

void PngRows::undo_filter() {
    const std::size_t pixel = (header_.bits() + 7) / 8;
    std::uint8_t *row = row_.data() + 1;
    const std::uint8_t *above = above_.data() + 1;
    const auto add = [row](std::size_t i, int value) { row[i] = static_cast<std::uint8_t>(row[i] + value); };
    switch (row_[0]) {
        case 0: break;
        case 1:
            for (std::size_t i = pixel; i < bytes_; ++i) add(i, row[i - pixel]);
            break;
        case 2:
            for (std::size_t i = 0; i < bytes_; ++i) add(i, above[i]);
            break;
        case 3:
            for (std::size_t i = 0; i < pixel; ++i) add(i, above[i] / 2);
            for (std::size_t i = pixel; i < bytes_; ++i) add(i, (row[i - pixel] + above[i]) / 2);
            break;
        case 4:
            for (std::size_t i = 0; i < pixel; ++i) add(i, above[i]);
            for (std::size_t i = pixel; i < bytes_; ++i) add(i, nearest(row[i - pixel], above[i], above[i - pixel]));
            break;
        default: throw Damaged("a row has an unknown filter");
    }
}

void PngRows::store() {
    const Pass &pass = pass_of(header_, pass_);
    // Pillow lets an interlaced frame of an animation begin at the corner of the picture.
    const std::size_t top = header_.interlaced ? 0 : area_.top, left = header_.interlaced ? 0 : area_.left;
    const std::size_t start = (top + y_) * samples_.width + left + pass.first_column;
    std::uint8_t *out = &samples_.content[start * samples_.bytes];
    const std::uint8_t *row = row_.data() + 1;
    const std::size_t step = pass.column_step * samples_.bytes, bits = header_.bits();
    if (bits >= 8 && pass.column_step == 1) {
        std::memcpy(out, row, bytes_);
    } else if (bits >= 8) {
        const std::size_t bytes = samples_.bytes;
        for (std::size_t i = 0; i < columns_; ++i, out += step) std::memcpy(out, row + i * bytes, bytes);
    } else {
        const auto mask = static_cast<std::uint8_t>((1U << bits) - 1);
        for (std::size_t i = 0; i < columns_; ++i, out += step)
            *out = static_cast<std::uint8_t>(row[i * bits / 8] >> (8 - bits - i * bits % 8)) & mask;
    }
}

}  // namespace cgd
