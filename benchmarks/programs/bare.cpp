// OpenVINO's own minimal program, the limit of native.py: load a model and describe one picture.
//
//     bare MODEL.onnx THREADS SIDE DIM
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "alone.hpp"
#include "memory.h"

int main(int, char **argv) {
    const auto began = std::chrono::steady_clock::now();
    Alone alone(argv[1], std::atoi(argv[2]), 1, std::size_t(std::atoi(argv[3])), std::size_t(std::atoi(argv[4])));
    alone.run();
    const std::chrono::duration<double> start = std::chrono::steady_clock::now() - began;
    std::printf("{\"start\": %.4f, \"kilobytes\": %ld}\n", start.count(), resident_kilobytes());
}
