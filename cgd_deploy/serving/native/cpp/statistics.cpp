#include "statistics.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace cgd {

Histogram::Histogram(std::initializer_list<double> bounds) {
    std::fill(std::begin(counts_.bounds), std::end(counts_.bounds), HUGE_VAL);
    std::copy(bounds.begin(), bounds.end(), counts_.bounds);
}

void Histogram::add(double value) {
    counts_.counts[std::lower_bound(std::begin(counts_.bounds), std::end(counts_.bounds), value) - counts_.bounds]++;
    counts_.total += value;
}

Histogram Statistics::seconds() {
    return {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0};
}

void Statistics::ended(cgd_status status) {
    switch (status) {
        case CGD_OK:
            described++;
            break;
        case CGD_OVERLOADED:
            shed++;
            break;
        case CGD_TIMED_OUT:
            expired++;
            break;
        case CGD_BAD_INPUT:
            bad_input++;
            break;
        case CGD_CANCELLED:
            cancelled++;
            break;
        default:
            failed++;
    }
}

cgd_stats Statistics::stats(std::size_t waiting, std::size_t in_flight) const {
    return {sizeof(cgd_stats),
            waiting,
            in_flight,
            described,
            shed,
            expired,
            bad_input,
            failed,
            cancelled,
            batch_sizes.counts(),
            decode_seconds.counts(),
            queue_seconds.counts(),
            compute_seconds.counts()};
}

}  // namespace cgd
