#include "backend.hpp"

#include "failure.hpp"
#include "signals.hpp"

#include <openvino/openvino.hpp>

#include <algorithm>
#include <future>
#include <mutex>
#include <vector>

namespace cgd {
namespace {

std::string last_line(const std::string &text) {
    const std::size_t end = text.find_last_not_of(" \n");
    const std::string trimmed = text.substr(0, end == std::string::npos ? 0 : end + 1);
    const std::size_t start = trimmed.rfind('\n');
    return trimmed.substr(start == std::string::npos ? 0 : start + 1).substr(0, 200);
}

// Whether `shape` is [any number, the sizes of a row].
bool fits(const ov::PartialShape &shape, const ov::Shape &row) {
    ov::PartialShape expected{ov::Dimension::dynamic()};
    expected.insert(expected.end(), row.begin(), row.end());
    return shape.rank().is_static() && shape.same_scheme(expected);
}

// A Core that has loaded the CPU plugin in a thread of its own. The plugin gives the thread that loads it a signal
// stack, and frees that stack when another thread closes the last model. A signal in the first thread would then end
// the host.
ov::Core new_core() {
    const NoSignals guard;
    return std::async(std::launch::async,
                      [] {
                          ov::Core core;
                          core.get_property("CPU", ov::device::full_name);  // the first question loads the plugin
                          return core;
                      })
        .get();
}

}  // namespace

// A compiled model with its idle requests.
class Backend::Compiled {
  public:
    Compiled(const Model &model, std::size_t threads, std::size_t streams)
        : row_{model.height, model.width, 3}, dim_(model.dim) {
        const auto type = model.bf16 ? ov::element::bf16 : ov::element::f32;
        model_ = core_.compile_model(core_.read_model(model.payload, ov::Tensor()), "CPU",
                                     ov::inference_num_threads(int(threads)), ov::num_streams(int(streams)),
                                     ov::hint::inference_precision(type));
        if (model.bf16 && model_.get_property(ov::hint::inference_precision) != ov::element::bf16)
            throw Failure(CGD_BAD_ENGINE,
                          "OpenVINO would compute this BF16 model in FP32 here; build an engine for this CPU with "
                          "`cgd-deploy build-engine --int8` or `--fp32`.");
        if (model_.inputs().size() != 1 || model_.input().get_element_type() != ov::element::u8 ||
            !fits(model_.input().get_partial_shape(), row_) || model_.outputs().size() != 1 ||
            model_.output().get_element_type() != ov::element::f32 ||
            !fits(model_.output().get_partial_shape(), ov::Shape{dim_}))
            throw Failure(CGD_BAD_ENGINE,
                          "the model has another input or output than its spec; build the engine again.");
    }

    ov::InferRequest start(const std::uint8_t *images, std::size_t count, float *descriptors) {
        ov::InferRequest request = idle();
        const ov::Shape shape{count, row_[0], row_[1], row_[2]};
        request.set_input_tensor(ov::Tensor(ov::element::u8, shape, const_cast<std::uint8_t *>(images)));
        request.set_output_tensor(ov::Tensor(ov::element::f32, {count, dim_}, descriptors));
        request.start_async();
        return request;
    }

    void finish(ov::InferRequest &request) {
        request.wait();
        const std::lock_guard lock(mutex_);
        idle_.push_back(request);
    }

    std::size_t image_size() const {
        return row_[0] * row_[1] * row_[2];
    }
    std::size_t dim() const {
        return dim_;
    }

  private:
    ov::InferRequest idle() {
        const std::lock_guard lock(mutex_);
        if (idle_.empty()) return model_.create_infer_request();
        ov::InferRequest request = idle_.back();
        idle_.pop_back();
        return request;
    }

    const ov::Shape row_;
    const std::size_t dim_;
    ov::Core core_ = new_core();
    ov::CompiledModel model_;
    std::mutex mutex_;
    std::vector<ov::InferRequest> idle_;
};

Backend::Backend(Model model, std::size_t threads, std::size_t streams) : streams_(streams) {
    try {
        compiled_ = std::make_unique<Compiled>(model, threads, streams);
    } catch (const ov::Exception &error) {
        throw Failure(CGD_BAD_ENGINE,
                      "OpenVINO cannot load the model (" + last_line(error.what()) + "); build the engine again.");
    }
}

Backend::~Backend() = default;

void Backend::run(const std::uint8_t *images, std::size_t count, float *descriptors) {
    ov::InferRequest request = compiled_->start(images, count, descriptors);
    compiled_->finish(request);
}

void Backend::run_in_parts(const std::uint8_t *images, std::size_t count, float *descriptors) {
    std::vector<ov::InferRequest> running;
    const std::size_t parts = std::min(streams_, count);
    for (std::size_t part = 0, start = 0; part < parts; part++) {
        const std::size_t size = count / parts + (part < count % parts);
        running.push_back(
            compiled_->start(images + start * compiled_->image_size(), size, descriptors + start * compiled_->dim()));
        start += size;
    }
    for (ov::InferRequest &request : running) compiled_->finish(request);
}

}  // namespace cgd
