// How many pictures a second an engine describes for threads that each send one at a time.
//
//     cmake -B build -DCMAKE_PREFIX_PATH=PREFIX && cmake --build build
//     build/throughput model-int8.cgd 8 10     threads, seconds; prints {"images_per_second": ...}
#include <atomic>
#include <chrono>
#include <cgd.hpp>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>

using Clock = std::chrono::steady_clock;

// A picture that differs from thread to thread, at the engine's input size: nothing is decoded or resized.
std::vector<std::uint8_t> picture(const cgd::Engine &engine, unsigned seed) {
    std::vector<std::uint8_t> pixels(3 * std::size_t(engine.width()) * engine.height());
    for (std::size_t i = 0; i < pixels.size(); i++) pixels[i] = std::uint8_t((i * (seed + 1)) >> 4);
    return pixels;
}

int main(int argc, char **argv) try {
    if (argc != 4) return std::fprintf(stderr, "usage: %s ENGINE THREADS SECONDS\n", argv[0]), 2;
    const cgd::Engine engine(argv[1]);
    const int threads = std::atoi(argv[2]);
    const auto work = [&](unsigned seed, Clock::time_point end) {
        const auto pixels = picture(engine, seed);
        const cgd_image image{pixels.data(), engine.width(), engine.height(), 3 * std::size_t(engine.width()), CGD_RGB8};
        std::size_t done = 0;
        for (; Clock::now() < end; done++) engine.embed(image);
        return done;
    };
    work(0, Clock::now() + std::chrono::milliseconds(500));  // warm

    std::atomic<std::size_t> done{0};
    std::atomic<bool> failed{false};
    std::vector<std::thread> pool;
    const auto begin = Clock::now();
    const auto end = begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(std::atof(argv[3])));
    for (int i = 0; i < threads; i++)
        pool.emplace_back([&, i] {
            try {
                done += work(unsigned(i), end);
            } catch (const std::exception &error) {
                std::fprintf(stderr, "%s\n", error.what());
                failed = true;
            }
        });
    for (auto &thread : pool) thread.join();
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    std::printf("{\"images\": %zu, \"seconds\": %.3f, \"images_per_second\": %.3f}\n", done.load(), seconds,
                double(done.load()) / seconds);
    return failed;
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
