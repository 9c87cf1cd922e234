// ONNX models on OpenVINO. Knows arrays of pixels and descriptors, and no engine file.
#ifndef CGD_BACKEND_HPP
#define CGD_BACKEND_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace cgd {

class Backend {
  public:
    struct Model {
        std::string payload;  // a serialised ONNX model
        bool bf16;            // whether floats are BF16
        std::size_t height, width, dim;
    };

    // `streams` runs at the same time share the `threads`. Throws Failure(CGD_BAD_ENGINE) for a model that OpenVINO
    // cannot compile, or whose input or output has another size.
    Backend(Model model, std::size_t threads, std::size_t streams);
    ~Backend();

    // uint8 [count, height, width, 3] -> float [count, dim]. Any number of threads call it.
    void run(const std::uint8_t *images, std::size_t count, float *descriptors);

    // The same in as many parts as there are streams, which run at the same time.
    void run_in_parts(const std::uint8_t *images, std::size_t count, float *descriptors);

  private:
    class Compiled;
    std::unique_ptr<Compiled> compiled_;
    std::size_t streams_;
};

}  // namespace cgd

#endif
