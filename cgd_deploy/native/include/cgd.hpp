// cgd.h for C++17: engines that close themselves, errors that are thrown. Header only, on the C functions alone.
#ifndef CGD_HPP
#define CGD_HPP

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cgd.h"

namespace cgd {

class Error : public std::runtime_error {
  public:
    Error(cgd_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    cgd_status status() const noexcept { return status_; }

  private:
    cgd_status status_;
};

inline void check(cgd_status status) {
    if (status != CGD_OK) throw Error(status, cgd_last_error());
}

struct Options : cgd_options {
    Options() : cgd_options() { cgd_options_init(this); }
};

class Engine {
  public:
    explicit Engine(const std::string &path, const Options &options = Options()) {
        cgd_engine *opened = nullptr;
        check(cgd_engine_open(path.c_str(), &options, &opened));
        engine_.reset(opened);
    }

    std::size_t dim() const noexcept { return cgd_engine_dim(engine_.get()); }
    std::string space_id() const { return cgd_engine_space_id(engine_.get()); }

    std::uint32_t width() const noexcept { return input_size().first; }
    std::uint32_t height() const noexcept { return input_size().second; }

    // Rows of dim() floats, one for each image.
    std::vector<float> embed(const cgd_image *images, std::size_t count) const {
        std::vector<float> rows(count * dim());
        check(cgd_embed(engine_.get(), images, count, rows.data(), rows.size()));
        return rows;
    }
    std::vector<float> embed(const cgd_image &image) const { return embed(&image, 1); }

    // The descriptor of a JPEG or PNG file in memory.
    std::vector<float> embed_encoded(const void *file, std::size_t size) const {
        std::vector<float> row(dim());
        check(cgd_embed_encoded(engine_.get(), &file, &size, 1, row.data(), row.size()));
        return row;
    }

    float self_test() const {
        float cosine = 0;
        check(cgd_self_test(engine_.get(), &cosine));
        return cosine;
    }

  private:
    std::pair<std::uint32_t, std::uint32_t> input_size() const noexcept {
        std::pair<std::uint32_t, std::uint32_t> size;
        cgd_engine_input_size(engine_.get(), &size.first, &size.second);
        return size;
    }

    struct Close {
        void operator()(cgd_engine *engine) const noexcept { cgd_engine_close(engine); }
    };
    std::unique_ptr<cgd_engine, Close> engine_;
};

}  // namespace cgd

#endif
