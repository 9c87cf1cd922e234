// Galleries on disk: descriptors in a .npy file, their pictures and form in the .npy.json beside it. index.py and
// compact.py explain every field.
#ifndef CGD_INDEX_HPP
#define CGD_INDEX_HPP

#include "file.hpp"
#include "npy.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace cgd {

class Index {
  public:
    // Throws Failure(CGD_BAD_INDEX) for an index that is missing, damaged, or of a form that this library does not
    // read.
    explicit Index(const std::string &path);

    std::size_t size() const {
        return stored_.rows();
    }
    std::size_t dim() const {
        return dim_;
    }
    const std::string &space_id() const {
        return space_id_;
    }
    const std::string &path(std::size_t i) const {
        return paths_[i];
    }

    // The k nearest pictures of each query, [count, k], best first. Queries are [count, dim], from an engine of the
    // space `asking`. Throws Failure(CGD_BAD_INDEX) for another space, and for a query that is not finite.
    void search(const std::string &asking, const float *queries, std::size_t count, std::size_t k,
                std::uint64_t *indices, float *scores) const;

  private:
    struct Facts;
    explicit Index(const std::string &path, const Facts &facts);
    static Facts read_facts(const std::string &path);

    std::vector<float> projected(const float *queries, std::size_t count) const;
    void restore(std::size_t start, std::size_t count, float *out) const;

    std::string space_id_, dtype_;
    std::vector<std::string> paths_;
    std::size_t dim_, length_;
    std::vector<float> projection_;  // [1 + length, dim]: the mean, then the components of a PCA; empty without
    Mapping mapping_;
    Array stored_;
};

}  // namespace cgd

#endif
