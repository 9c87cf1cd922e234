// A model in OpenVINO alone, with the settings of the library, and its batch of grey pictures.
#include <cstdint>
#include <openvino/openvino.hpp>
#include <string>
#include <vector>

class Alone {
  public:
    Alone(const std::string &model, int threads, std::size_t batch, std::size_t side, std::size_t dim)
        : pixels(batch * side * side * 3, 7), descriptors_(batch * dim) {
        compiled_ = core_.compile_model(core_.read_model(model), "CPU", ov::inference_num_threads(threads),
                                        ov::num_streams(1), ov::hint::inference_precision(ov::element::f32));
        request_ = compiled_.create_infer_request();
        request_.set_input_tensor(ov::Tensor(ov::element::u8, {batch, side, side, 3}, pixels.data()));
        request_.set_output_tensor(ov::Tensor(ov::element::f32, {batch, dim}, descriptors_.data()));
    }
    void run() {
        request_.infer();
    }

    std::vector<std::uint8_t> pixels;

  private:
    std::vector<float> descriptors_;
    ov::Core core_;
    ov::CompiledModel compiled_;
    ov::InferRequest request_;
};
