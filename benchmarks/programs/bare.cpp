// OpenVINO's own minimal program, the limit of native.py: load a model and describe one black picture.
//
//     bare MODEL.onnx THREADS SIDE DIM
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <openvino/openvino.hpp>

#include "memory.h"

int main(int, char **argv) {
    const auto began = std::chrono::steady_clock::now();
    const std::size_t side = std::size_t(std::atoi(argv[3])), dim = std::size_t(std::atoi(argv[4]));
    ov::Core core;
    auto model =
        core.compile_model(core.read_model(std::string(argv[1])), "CPU", ov::inference_num_threads(std::atoi(argv[2])),
                           ov::num_streams(1), ov::hint::inference_precision(ov::element::f32));
    auto request = model.create_infer_request();
    std::vector<std::uint8_t> pixels(side * side * 3);
    std::vector<float> descriptor(dim);
    request.set_input_tensor(ov::Tensor(ov::element::u8, {1, side, side, 3}, pixels.data()));
    request.set_output_tensor(ov::Tensor(ov::element::f32, {1, dim}, descriptor.data()));
    request.infer();
    const std::chrono::duration<double> start = std::chrono::steady_clock::now() - began;
    std::printf("{\"start\": %.4f, \"kilobytes\": %ld}\n", start.count(), resident_kilobytes());
}
