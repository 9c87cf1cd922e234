// Decompresses the rows of a PNG file and undoes their filters.
#ifndef CGD_PNG_ROWS_HPP
#define CGD_PNG_ROWS_HPP

#include "inflate.hpp"
#include "png_chunks.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cgd {

// Samples as the file stores them, [height][width][bytes]: depths below 8 bits have a byte each, and 16 bits have two,
// the high byte first. Black where the file has no rows.
struct Samples {
    std::size_t width, height, bytes;
    std::vector<std::uint8_t> content;
};

class PngRows {
  public:
    // Rows of `area` go to `samples`.
    PngRows(const PngHeader &header, Area area, Samples &samples);

    // Read a block of compressed data. Returns whether the last row was read. Throws Damaged.
    bool read(Bytes block);

  private:
    void begin_pass();
    void next_row();
    void undo_filter();
    void store();

    PngHeader header_;
    Area area_;
    Samples &samples_;
    Inflater inflater_;
    std::vector<std::uint8_t> row_, above_;  // the filter, then the bytes of a row
    std::size_t pass_ = 0, y_ = 0, columns_ = 0, bytes_ = 0, filled_ = 0;
};

}  // namespace cgd

#endif
