// Arrays in NumPy's .npy format, read in place.
#ifndef CGD_NPY_HPP
#define CGD_NPY_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cgd {

struct Array {
    std::string type;  // NumPy's name with one byte for the order, e.g. "<f4"
    std::vector<std::size_t> shape;
    const std::uint8_t *data;

    std::size_t rows() const {
        return shape.empty() ? 0 : shape[0];
    }
    std::size_t values() const;     // of all rows
    std::size_t item_size() const;  // bytes of a value
};

// The array in `file`, in C order; its data lies in `file`. Throws std::invalid_argument unless the file is whole.
Array read_npy(std::string_view file);

}  // namespace cgd

#endif
