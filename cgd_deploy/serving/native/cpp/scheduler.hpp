// The threads of an engine. Some decode images, and some compute batches. The queue gives them their work.
#ifndef CGD_SCHEDULER_HPP
#define CGD_SCHEDULER_HPP

#include "backend.hpp"
#include "queue.hpp"

#include <mutex>
#include <thread>
#include <vector>

namespace cgd {

class Scheduler {
  public:
    struct Sizes {
        std::size_t image_bytes, dim, workers, decoders;
    };

    // Starts the workers. Each image to decode starts one more decoder, up to their number.
    Scheduler(Backend &backend, const Sizes &sizes, const Policy &policy);
    ~Scheduler();  // computes the images in the queue first
    Scheduler(const Scheduler &) = delete;
    Scheduler &operator=(const Scheduler &) = delete;

    // Throws Failure(CGD_OVERLOADED) if the queue is full.
    void submit(RequestPtr request);
    void cancel(const void *ticket) {
        queue_.cancel(ticket);
    }
    cgd_stats stats() {
        return queue_.stats();
    }

  private:
    void close();
    bool decode_next();
    void compute_until_closed();
    bool compute_next(std::vector<std::uint8_t> &pixels, std::vector<float> &rows);
    void compute(const std::vector<RequestPtr> &batch, std::vector<std::uint8_t> &pixels, std::vector<float> &rows);
    void start_decoder();

    Backend &backend_;
    const Sizes sizes_;
    Queue queue_;
    std::mutex mutex_;  // of decoders_
    std::vector<std::thread> workers_, decoders_;
};

}  // namespace cgd

#endif
