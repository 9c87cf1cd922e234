// The queue of an engine: a bounded number of images that wait for a decoder, are decoded, or wait for a batch. Decides
// which images get a place, and when a batch leaves. Starts no threads. admission.py has the same rules.
#ifndef CGD_QUEUE_HPP
#define CGD_QUEUE_HPP

#include "failure.hpp"
#include "statistics.hpp"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace cgd {

// One image on its way to its descriptor. The caller keeps the pixels and `out` until `done`.
struct Request {
    using Done = std::function<void(cgd_status, const std::string &sentence)>;

    Request(float *out, Done done) : out(out), done(std::move(done)) {}

    std::function<void(std::uint8_t *)> prepare;  // writes the pixels; empty if `pixels` has them already
    const std::uint8_t *pixels = nullptr;         // [height, width, 3]
    float *const out;                             // [dim]
    const Done done;                              // called once
    const void *ticket = nullptr;                 // by which it may be cancelled
    double timeout_ms = 0;                        // after which it is not computed; 0: no limit

    std::vector<std::uint8_t> own_pixels;  // what `prepare` wrote
    const Clock::time_point began = Clock::now();
    Clock::time_point ready = began;  // for its next stage
    double waited = 0;                // seconds
    bool cancelled = false;           // while it was decoded

    void stop_waiting() {
        waited += std::chrono::duration<double>(Clock::now() - ready).count();
    }
    bool is_late() const {
        return timeout_ms > 0 && std::chrono::duration<double, std::milli>(Clock::now() - began).count() >= timeout_ms;
    }
};

using RequestPtr = std::unique_ptr<Request>;

struct Policy {
    std::size_t places;         // the most images in the queue
    std::size_t max_batch;      // images of a full batch, which leaves as soon as a worker is free
    Clock::duration max_delay;  // that the oldest image of a partial batch waits for others
    std::size_t enough;         // batches in flight that keep the backend busy; a partial batch leaves while fewer are
};

class Queue {
  public:
    explicit Queue(const Policy &policy) : policy_(policy) {}

    // Give a request a place. Throws Failure(CGD_OVERLOADED) if every place is taken.
    void admit(RequestPtr request);

    // Wait for a request to decode; null once the queue is closed. The caller then calls `decoded` or `failed`.
    RequestPtr next_undecoded();
    void decoded(RequestPtr request, double seconds);
    void failed(RequestPtr request, const Failure &failure, double seconds);

    // Wait for the next batch, which is in flight until `finished`; empty once the queue is closed and empty.
    std::vector<RequestPtr> next_batch();
    void finished(const std::vector<RequestPtr> &batch, cgd_status status, double seconds);

    // Cancel the image of a ticket unless it is being computed or done.
    void cancel(const void *ticket);

    // Admit no more. Images that are in the queue are still computed.
    void close();

    cgd_stats stats();

  private:
    using Requests = std::deque<RequestPtr>;

    std::size_t waiting() const {
        return undecoded_.size() + decoding_.size() + decoded_.size();
    }
    bool is_over() const {
        return closed_ && waiting() == 0;
    }
    bool may_leave() const;
    void add_decoded(RequestPtr request);
    void leave_decoding(const Request &request);
    std::vector<RequestPtr> take(Requests &late);

    const Policy policy_;
    std::mutex mutex_;
    std::condition_variable decoder_wanted_, worker_wanted_;
    Requests undecoded_, decoded_;
    std::vector<Request *> decoding_;
    std::size_t in_flight_ = 0;
    bool closed_ = false;
    Statistics statistics_;
};

}  // namespace cgd

#endif
