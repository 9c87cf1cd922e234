#include "search.hpp"

#include "machine.hpp"

#include <algorithm>
#include <future>
#include <utility>
#include <vector>

namespace cgd {
namespace {

constexpr std::size_t BLOCK = 128;  // rows that are read at a time: their floats fit the cache of a core
constexpr std::size_t FEW = 4096;   // rows for which a second thread does not pay

struct Neighbour {
    float score;
    std::uint64_t index;
    bool operator<(const Neighbour &other) const {
        return score != other.score ? score > other.score : index < other.index;
    }
};

// The k best of the neighbours that were offered: a heap with the worst of them first.
class Best {
  public:
    explicit Best(std::size_t k) : k_(k) {}

    void offer(const Neighbour &neighbour) {
        if (heap_.size() == k_) {
            if (!(neighbour < heap_.front())) return;
            std::pop_heap(heap_.begin(), heap_.end());
            heap_.pop_back();
        }
        heap_.push_back(neighbour);
        std::push_heap(heap_.begin(), heap_.end());
    }
    const std::vector<Neighbour> &found() const {
        return heap_;
    }

    std::vector<Neighbour> sorted() {
        std::sort_heap(heap_.begin(), heap_.end());
        return std::move(heap_);
    }

  private:
    std::size_t k_;
    std::vector<Neighbour> heap_;
};

// The best of the rows from `begin` to `end`, for each query.
std::vector<Best> best_of(const Rows &rows, std::size_t begin, std::size_t end, const float *queries,
                          std::size_t query_count, std::size_t k) {
    std::vector<Best> best(query_count, Best(k));
    std::vector<float> block(BLOCK * rows.length);
    for (std::size_t start = begin; start < end; start += BLOCK) {
        const std::size_t size = std::min(BLOCK, end - start);
        rows.read(start, size, block.data());
        for (std::size_t query = 0; query < query_count; query++)
            for (std::size_t row = 0; row < size; row++)
                best[query].offer(
                    {dot(queries + query * rows.length, &block[row * rows.length], rows.length), start + row});
    }
    return best;
}

}  // namespace

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)  // it would choose a clone before the sanitizer runs
__attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#endif
float dot(const float *a, const float *b, std::size_t length) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::size_t i = 0; i < length; i++) sum += a[i] * b[i];
    return sum;
}

void nearest(const Rows &rows, const float *queries, std::size_t query_count, std::size_t k, std::uint64_t *indices,
             float *scores) {
    if (!query_count) return;
    const std::size_t threads = rows.count < FEW ? 1 : available_threads();
    std::vector<std::future<std::vector<Best>>> parts;
    for (std::size_t part = 0; part < threads; part++)
        parts.push_back(std::async(threads == 1 ? std::launch::deferred : std::launch::async, best_of, std::cref(rows),
                                   rows.count * part / threads, rows.count * (part + 1) / threads, queries, query_count,
                                   k));
    std::vector<Best> best(query_count, Best(k));
    for (auto &part : parts) {
        const auto found = part.get();
        for (std::size_t query = 0; query < query_count; query++)
            for (const Neighbour &neighbour : found[query].found()) best[query].offer(neighbour);
    }
    for (std::size_t query = 0; query < query_count; query++) {
        std::size_t at = query * k;
        for (const Neighbour &neighbour : best[query].sorted())
            indices[at] = neighbour.index, scores[at++] = neighbour.score;
    }
}

}  // namespace cgd
