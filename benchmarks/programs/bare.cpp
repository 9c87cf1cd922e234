// OpenVINO's own minimal program, the limit of native.py: load a model, run a batch of black pictures again and again.
//
//     bare MODEL.onnx BATCH SECONDS THREADS SIDE DIM
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <openvino/openvino.hpp>

#include "memory.h"

using Clock = std::chrono::steady_clock;

static double seconds_since(Clock::time_point began) {
    return std::chrono::duration<double>(Clock::now() - began).count();
}

int main(int, char **argv) {
    const auto begin = Clock::now();
    const std::size_t batch = std::size_t(std::atoi(argv[2])), side = std::size_t(std::atoi(argv[5]));
    const std::size_t dim = std::size_t(std::atoi(argv[6]));
    ov::Core core;
    auto model =
        core.compile_model(core.read_model(std::string(argv[1])), "CPU", ov::inference_num_threads(std::atoi(argv[4])),
                           ov::num_streams(1), ov::hint::inference_precision(ov::element::f32));
    auto request = model.create_infer_request();
    std::vector<std::uint8_t> pixels(batch * side * side * 3);
    std::vector<float> descriptors(batch * dim);
    request.set_input_tensor(ov::Tensor(ov::element::u8, {batch, side, side, 3}, pixels.data()));
    request.set_output_tensor(ov::Tensor(ov::element::f32, {batch, dim}, descriptors.data()));
    request.infer();
    const double start = seconds_since(begin);
    const long memory = resident_kilobytes();
    std::size_t images = 0;
    const auto loop = Clock::now();
    for (; seconds_since(loop) < std::atof(argv[3]); images += batch) request.infer();
    std::printf("{\"start\": %.4f, \"kilobytes\": %ld, \"images_per_second\": %.3f}\n", start, memory,
                double(images) / seconds_since(loop));
}
