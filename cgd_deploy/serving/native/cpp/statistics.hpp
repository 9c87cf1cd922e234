// Counts what happens to single images, and how long each stage takes. statistics.py has the same bounds.
#ifndef CGD_STATISTICS_HPP
#define CGD_STATISTICS_HPP

#include <cgd.h>

#include <chrono>
#include <cstddef>
#include <initializer_list>

namespace cgd {

using Clock = std::chrono::steady_clock;

class Histogram {
  public:
    Histogram(std::initializer_list<double> bounds);
    void add(double value);
    const cgd_histogram &counts() const {
        return counts_;
    }

  private:
    cgd_histogram counts_{};
};

struct Statistics {
    std::uint64_t described = 0, shed = 0, expired = 0, bad_input = 0, failed = 0, cancelled = 0;
    Histogram batch_sizes{1, 2, 4, 8, 16, 32, 64, 128};
    Histogram decode_seconds = seconds(), queue_seconds = seconds(), compute_seconds = seconds();

    // Count an image that ended with this status.
    void ended(cgd_status status);
    cgd_stats stats(std::size_t waiting, std::size_t in_flight) const;

  private:
    static Histogram seconds();
};

}  // namespace cgd

#endif
