// Exact nearest neighbours among rows that are read in blocks.
#ifndef CGD_SEARCH_HPP
#define CGD_SEARCH_HPP

#include <cstddef>
#include <cstdint>
#include <functional>

namespace cgd {

// `count` rows of `length` floats. `read` writes rows `start` to `start + n` one after another; threads call it.
struct Rows {
    std::size_t count, length;
    std::function<void(std::size_t start, std::size_t n, float *out)> read;
};

// Writes the k rows with the largest inner products with each query, the largest first; equal products go to the
// smaller number. `queries` is [query_count, length]; `indices` and `scores` are [query_count, k]; k is at most the
// count.
void nearest(const Rows &rows, const float *queries, std::size_t query_count, std::size_t k, std::uint64_t *indices,
             float *scores);

// The inner product of two vectors.
float dot(const float *a, const float *b, std::size_t length);

}  // namespace cgd

#endif
