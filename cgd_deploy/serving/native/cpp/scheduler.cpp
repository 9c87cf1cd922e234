#include "scheduler.hpp"

#include "signals.hpp"

#include <algorithm>
#include <cstring>

namespace cgd {
namespace {

double seconds_since(Clock::time_point began) {
    return std::chrono::duration<double>(Clock::now() - began).count();
}

Failure failure_of(const std::exception &error) {
    const auto *failure = dynamic_cast<const Failure *>(&error);
    return failure ? *failure : Failure(CGD_INTERNAL, error.what());
}

}  // namespace

Scheduler::Scheduler(Backend &backend, const Sizes &sizes, const Policy &policy)
    : backend_(backend), sizes_(sizes), queue_(policy) {
    const NoSignals guard;
    try {
        for (std::size_t i = 0; i < sizes.workers; i++) workers_.emplace_back([this] { compute_until_closed(); });
    } catch (...) {  // the system may refuse a thread
        close();
        throw;
    }
}

Scheduler::~Scheduler() {
    close();
}

void Scheduler::close() {
    queue_.close();
    for (auto *threads : {&decoders_, &workers_})
        for (std::thread &thread : *threads) thread.join();
}

void Scheduler::submit(RequestPtr request) {
    if (request->prepare) start_decoder();
    queue_.admit(std::move(request));
}

void Scheduler::start_decoder() {
    const std::lock_guard lock(mutex_);
    if (decoders_.size() >= sizes_.decoders) return;
    const NoSignals guard;
    decoders_.emplace_back([this] {
        while (decode_next()) {
        }
    });
}

void Scheduler::compute_until_closed() {
    std::vector<std::uint8_t> pixels;
    std::vector<float> rows;
    while (compute_next(pixels, rows)) {
    }
}

bool Scheduler::decode_next() {
    RequestPtr request = queue_.next_undecoded();
    if (!request) return false;
    const auto began = Clock::now();
    try {
        if (request->is_late()) throw Failure(CGD_TIMED_OUT, "");  // the queue has the sentence
        request->own_pixels.resize(sizes_.image_bytes);
        request->prepare(request->own_pixels.data());
        request->pixels = request->own_pixels.data();
        queue_.decoded(std::move(request), seconds_since(began));
    } catch (const std::exception &error) {
        queue_.failed(std::move(request), failure_of(error), seconds_since(began));
    }
    return true;
}

bool Scheduler::compute_next(std::vector<std::uint8_t> &pixels, std::vector<float> &rows) {
    const std::vector<RequestPtr> batch = queue_.next_batch();
    if (batch.empty()) return false;
    const auto began = Clock::now();
    Failure outcome(CGD_OK, "");
    try {
        compute(batch, pixels, rows);
    } catch (const std::exception &error) {
        outcome = failure_of(error);
    }
    queue_.finished(batch, outcome.status, seconds_since(began));
    for (const RequestPtr &request : batch) request->done(outcome.status, outcome.what());
    return true;
}

void Scheduler::compute(const std::vector<RequestPtr> &batch, std::vector<std::uint8_t> &pixels,
                        std::vector<float> &rows) {
    if (batch.size() == 1) return backend_.run(batch[0]->pixels, 1, batch[0]->out);
    pixels.resize(batch.size() * sizes_.image_bytes);
    rows.resize(batch.size() * sizes_.dim);
    for (std::size_t i = 0; i < batch.size(); i++)
        std::memcpy(&pixels[i * sizes_.image_bytes], batch[i]->pixels, sizes_.image_bytes);
    backend_.run(pixels.data(), batch.size(), rows.data());
    for (std::size_t i = 0; i < batch.size(); i++) std::copy_n(&rows[i * sizes_.dim], sizes_.dim, batch[i]->out);
}

}  // namespace cgd
