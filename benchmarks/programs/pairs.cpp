// Full batches in turn: one of OpenVINO alone, then one of the library, to which 8 threads each send one picture.
//
//     pairs MODEL.onnx ENGINE SECONDS THREADS SIDE DIM
#include <algorithm>
#include <cgd.hpp>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "alone.hpp"

using Clock = std::chrono::steady_clock;

constexpr std::size_t SENDERS = 8;

static double seconds_since(Clock::time_point began) {
    return std::chrono::duration<double>(Clock::now() - began).count();
}

// Threads that each embed a picture once when they are let go.
class Senders {
  public:
    Senders(const cgd::Engine &engine, const std::vector<std::uint8_t> &pixels) {
        const cgd_image image{pixels.data(), engine.width(), engine.height(), 3 * std::size_t(engine.width()),
                              CGD_RGB8};
        for (std::size_t i = 0; i < SENDERS; i++)
            threads_.emplace_back([this, &engine, image] {
                for (std::size_t round = 1; wait_for(round); round++) {
                    engine.embed(image);
                    count_one();
                }
            });
    }
    ~Senders() {
        let_go(true);
        for (auto &thread : threads_) thread.join();
    }
    void send() {
        let_go(false);
        std::unique_lock lock(mutex_);
        change_.wait(lock, [this] { return done_ == SENDERS * round_; });
    }

  private:
    void let_go(bool last) {
        const std::lock_guard lock(mutex_);
        round_++, over_ = last;
        change_.notify_all();
    }
    bool wait_for(std::size_t round) {
        std::unique_lock lock(mutex_);
        change_.wait(lock, [&] { return round_ >= round; });
        return !over_;
    }
    void count_one() {
        const std::lock_guard lock(mutex_);
        if (++done_ == SENDERS * round_) change_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable change_;
    std::size_t round_ = 0, done_ = 0;
    bool over_ = false;
    std::vector<std::thread> threads_;
};

static double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
    return values[values.size() / 2];
}

int main(int, char **argv) try {
    const std::size_t side = std::size_t(std::atoi(argv[5])), dim = std::size_t(std::atoi(argv[6]));
    Alone openvino(argv[1], std::atoi(argv[4]), SENDERS, side, dim);
    cgd::Options options;
    options.max_batch = SENDERS;
    options.max_delay_ms = 1000;  // every batch is full
    const cgd::Engine engine(argv[2], options);
    Senders senders(engine, openvino.pixels);
    openvino.run(), senders.send();  // the first batches are slower
    std::vector<double> alone, library;
    for (const auto begin = Clock::now(); seconds_since(begin) < std::atof(argv[3]);) {
        auto began = Clock::now();
        openvino.run();
        alone.push_back(seconds_since(began));
        began = Clock::now();
        senders.send();
        library.push_back(seconds_since(began));
    }
    std::printf("{\"batch_ms\": %.4f, \"share\": %.4f}\n", 1e3 * median(library), median(alone) / median(library));
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
