#include "queue.hpp"

#include <algorithm>
#include <iomanip>
#include <sstream>

namespace cgd {
namespace {

// The failure of an image whose timeout has passed.
Failure late_failure(const Request &request) {
    std::ostringstream told;
    told << std::fixed << std::setprecision(1) << "the picture was not computed within its timeout of "
         << request.timeout_ms << " ms; allow more time, or send fewer pictures at a time.";
    return {CGD_TIMED_OUT, told.str()};
}

constexpr const char *CANCELLED = "the caller freed the ticket before the image was computed.";

}  // namespace

void Queue::admit(RequestPtr request) {
    const std::lock_guard lock(mutex_);
    if (waiting() >= policy_.places) {
        statistics_.ended(CGD_OVERLOADED);
        throw Failure(CGD_OVERLOADED, std::to_string(policy_.places) +
                                          " pictures wait already; send fewer at a time, or try again in a moment.");
    }
    if (request->prepare) {
        undecoded_.push_back(std::move(request));
        decoder_wanted_.notify_one();
    } else {
        add_decoded(std::move(request));
    }
}

void Queue::add_decoded(RequestPtr request) {
    decoded_.push_back(std::move(request));
    if (decoded_.size() % policy_.max_batch <= 1) worker_wanted_.notify_one();  // a batch is full, or begins
}

RequestPtr Queue::next_undecoded() {
    std::unique_lock lock(mutex_);
    decoder_wanted_.wait(lock, [&] { return closed_ || !undecoded_.empty(); });
    if (undecoded_.empty()) return nullptr;
    RequestPtr request = std::move(undecoded_.front());
    undecoded_.pop_front();
    decoding_.push_back(request.get());
    request->stop_waiting();
    return request;
}

void Queue::leave_decoding(const Request &request) {
    decoding_.erase(std::find(decoding_.begin(), decoding_.end(), &request));
    if (is_over()) worker_wanted_.notify_all();
}

void Queue::decoded(RequestPtr request, double seconds) {
    {
        const std::lock_guard lock(mutex_);
        statistics_.decode_seconds.add(seconds);
        if (!request->cancelled) {
            request->ready = Clock::now();
            leave_decoding(*request);
            add_decoded(std::move(request));
            return;
        }
        statistics_.ended(CGD_CANCELLED);
        leave_decoding(*request);
    }
    request->done(CGD_CANCELLED, CANCELLED);
}

void Queue::failed(RequestPtr request, const Failure &failure, double seconds) {
    const Failure told = request->is_late() ? late_failure(*request) : failure;
    const bool cancelled = [&] {
        const std::lock_guard lock(mutex_);
        statistics_.decode_seconds.add(seconds);
        statistics_.ended(request->cancelled ? CGD_CANCELLED : told.status);
        leave_decoding(*request);
        return request->cancelled;
    }();
    if (cancelled) return request->done(CGD_CANCELLED, CANCELLED);
    request->done(told.status, told.what());
}

bool Queue::may_leave() const {
    if (decoded_.empty()) return false;
    if (closed_ || decoded_.size() >= policy_.max_batch) return true;
    return in_flight_ < policy_.enough && Clock::now() - decoded_.front()->ready >= policy_.max_delay;
}

std::vector<RequestPtr> Queue::take(Requests &late) {
    std::vector<RequestPtr> batch;
    while (!decoded_.empty() && batch.size() < policy_.max_batch) {
        RequestPtr request = std::move(decoded_.front());
        decoded_.pop_front();
        if (request->is_late()) {
            statistics_.ended(CGD_TIMED_OUT);
            late.push_back(std::move(request));
        } else {
            request->stop_waiting();
            batch.push_back(std::move(request));
        }
    }
    return batch;
}

std::vector<RequestPtr> Queue::next_batch() {
    for (;;) {
        Requests late;
        std::vector<RequestPtr> batch;
        {
            std::unique_lock lock(mutex_);
            while (!may_leave() && !is_over()) {
                if (decoded_.empty() || in_flight_ >= policy_.enough)
                    worker_wanted_.wait(lock);
                else
                    worker_wanted_.wait_until(lock, decoded_.front()->ready + policy_.max_delay);
            }
            if (is_over()) return {};
            batch = take(late);
            in_flight_ += !batch.empty();
            if (is_over()) worker_wanted_.notify_all();
        }
        for (const RequestPtr &request : late) request->done(CGD_TIMED_OUT, late_failure(*request).what());
        if (!batch.empty()) return batch;
    }
}

void Queue::finished(const std::vector<RequestPtr> &batch, cgd_status status, double seconds) {
    const std::lock_guard lock(mutex_);
    in_flight_--;
    for (const RequestPtr &request : batch) {
        statistics_.ended(status);
        if (status == CGD_OK) statistics_.queue_seconds.add(request->waited);
    }
    if (status == CGD_OK) {
        statistics_.batch_sizes.add(double(batch.size()));
        statistics_.compute_seconds.add(seconds);
    }
    if (!decoded_.empty()) worker_wanted_.notify_one();
}

void Queue::cancel(const void *ticket) {
    RequestPtr found;
    {
        const std::lock_guard lock(mutex_);
        for (Request *request : decoding_)  // its decoder ends it
            if (request->ticket == ticket) request->cancelled = true;
        for (Requests *requests : {&undecoded_, &decoded_}) {
            const auto at = std::find_if(requests->begin(), requests->end(),
                                         [&](const RequestPtr &request) { return request->ticket == ticket; });
            if (at == requests->end()) continue;
            found = std::move(*at);
            requests->erase(at);
            statistics_.ended(CGD_CANCELLED);
        }
        if (is_over()) worker_wanted_.notify_all();
    }
    if (found) found->done(CGD_CANCELLED, CANCELLED);
}

void Queue::close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    decoder_wanted_.notify_all();
    worker_wanted_.notify_all();
}

cgd_stats Queue::stats() {
    const std::lock_guard lock(mutex_);
    return statistics_.stats(waiting(), in_flight_);
}

}  // namespace cgd
