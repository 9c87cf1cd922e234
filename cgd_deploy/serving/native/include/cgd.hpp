// cgd.h for C++17: engines, tickets and indices that close themselves, errors that are thrown. Header only, on the C
// functions alone.
#ifndef CGD_HPP
#define CGD_HPP

#include <algorithm>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
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

// cgd_set_limit: limits the inputs that this process accepts.
inline void set_limit(const std::string &name, const std::string &value) {
    check(cgd_set_limit(name.c_str(), value.c_str()));
}

// cgd_set_log: sends the messages of this level and above to log; nullptr: to nobody.
inline void set_log(cgd_log log, void *context = nullptr, cgd_log_level least = CGD_LOG_INFO) {
    check(cgd_set_log(log, context, least));
}

// A submitted image. The destructor cancels the image, or waits until the image is done.
class Ticket {
  public:
    // Wait until out has the descriptor. Throws an Error if the image failed.
    void wait() const { check(cgd_ticket_wait(ticket_.get(), -1)); }

    // Wait at most this time; false if the image is not done.
    bool wait_for(std::chrono::milliseconds time) const {
        const auto left = std::max(time, std::chrono::milliseconds::zero());
        const cgd_status status = cgd_ticket_wait(ticket_.get(), static_cast<double>(left.count()));
        if (status != CGD_PENDING) check(status);
        return status == CGD_OK;
    }

  private:
    friend class Engine;
    explicit Ticket(cgd_ticket *ticket) : ticket_(ticket) {}

    struct Free {
        void operator()(cgd_ticket *ticket) const noexcept { cgd_ticket_free(ticket); }
    };
    std::unique_ptr<cgd_ticket, Free> ticket_;
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

    // Begin to describe an image, and return at once. Keep the pixels and out, which has room for dim() floats, until
    // the image is done or the ticket is gone. An image that is not computed within the timeout fails; 0: no limit.
    Ticket submit(const cgd_image &image, float *out, std::chrono::milliseconds timeout = {}) const {
        const cgd_request request = requested(timeout);
        cgd_ticket *ticket = nullptr;
        check(cgd_submit(engine_.get(), &image, &request, out, dim(), &ticket));
        return Ticket(ticket);
    }

    // The same for a JPEG or PNG file in memory.
    Ticket submit_encoded(const void *file, std::size_t size, float *out,
                          std::chrono::milliseconds timeout = {}) const {
        const cgd_request request = requested(timeout);
        cgd_ticket *ticket = nullptr;
        check(cgd_submit_encoded(engine_.get(), file, size, &request, out, dim(), &ticket));
        return Ticket(ticket);
    }

    cgd_stats stats() const {
        cgd_stats stats{};
        stats.size = sizeof stats;
        check(cgd_engine_stats(engine_.get(), &stats));
        return stats;
    }

    float self_test() const {
        float cosine = 0;
        check(cgd_self_test(engine_.get(), &cosine));
        return cosine;
    }

    cgd_engine *get() const noexcept { return engine_.get(); }

  private:
    static cgd_request requested(std::chrono::milliseconds timeout) noexcept {
        cgd_request request;
        cgd_request_init(&request);
        request.timeout_ms = static_cast<double>(timeout.count());
        return request;
    }

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

// What an index found: k indices and cosines for each query, the nearest first.
struct Found {
    std::vector<std::uint64_t> indices;
    std::vector<float> scores;
};

class Index {
  public:
    explicit Index(const std::string &path) {
        cgd_index *opened = nullptr;
        check(cgd_index_open(path.c_str(), &opened));
        index_.reset(opened);
    }

    std::size_t size() const noexcept { return cgd_index_size(index_.get()); }
    std::size_t dim() const noexcept { return cgd_index_dim(index_.get()); }
    std::string space_id() const { return cgd_index_space_id(index_.get()); }

    // The file of picture i, which is below size().
    std::string path(std::size_t i) const {
        const char *found = cgd_index_path(index_.get(), i);
        if (!found) throw std::out_of_range("the index has no picture " + std::to_string(i));
        return found;
    }

    // Queries are count rows of dim() floats that the engine made.
    Found search(const Engine &engine, const float *queries, std::size_t count, std::size_t k) const {
        const std::size_t room = count * std::min(k, size());
        Found found{std::vector<std::uint64_t>(room), std::vector<float>(room)};
        check(cgd_index_search(index_.get(), engine.get(), queries, count, k, found.indices.data(),
                               found.scores.data()));
        return found;
    }
    Found search(const Engine &engine, const std::vector<float> &query, std::size_t k) const {
        if (query.size() != engine.dim()) throw Error(CGD_INVALID_ARGUMENT, "query is not a descriptor of the engine.");
        return search(engine, query.data(), 1, k);
    }

  private:
    struct Close {
        void operator()(cgd_index *index) const noexcept { cgd_index_close(index); }
    };
    std::unique_ptr<cgd_index, Close> index_;
};

}  // namespace cgd

#endif
