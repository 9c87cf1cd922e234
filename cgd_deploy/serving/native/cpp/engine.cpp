#include "engine.hpp"

#include "decode.hpp"
#include "failure.hpp"
#include "log.hpp"
#include "machine.hpp"
#include "resize.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <sstream>

namespace cgd {
namespace {

constexpr double SELF_TEST_COSINE = 0.999;
constexpr std::size_t CPU_BATCH = 8;  // larger batches are no faster on a CPU, and each picture waits longer
constexpr std::uint32_t MOST_THREADS = 1 << 16;
constexpr double LONGEST_DELAY_MS = 1e12;  // more would not fit a clock
constexpr const char *OTHER_LIBRARY = "`cgd-deploy install-native --embed-python`";

[[noreturn]] void refuse(const std::string &sentence) {
    throw Failure(CGD_BAD_ENGINE, sentence);
}

bool has(const std::vector<std::string> &names, const char *name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

void check_runs_here(const EngineFile &file, const cgd_options &options) {
    const Manifest &manifest = file.manifest;
    const std::string device = options.device ? options.device : "cpu";
    if (manifest.backend != "openvino")
        refuse(file.path + " is for backend '" + manifest.backend.substr(0, 60) +
               "', and this library runs openvino; use the library of " + OTHER_LIBRARY +
               ", or build an engine with `cgd-deploy build-engine --backend openvino`.");
    if (device != "cpu")
        refuse(file.path + " is for openvino, which runs on cpu, not on '" + device.substr(0, 60) +
               "'; use the library of " + OTHER_LIBRARY + " for engines on cuda.");
    if (manifest.precision == "tf32" || manifest.precision == "fp16")
        refuse(file.path + " is " + manifest.precision +
               ", which a CPU does not compute; build an engine with "
               "`cgd-deploy build-engine --fp32 --backend openvino`.");
    const auto sets = instruction_sets();
    if (manifest.needs_bf16() && !has(sets, "amx_bf16") && !has(sets, "avx512_bf16"))
        refuse(file.path +
               " computes in BF16, which needs a CPU with AVX512-BF16 or AMX-BF16; build an engine for this CPU with "
               "`cgd-deploy build-engine " +
               (manifest.precision == "bf16" ? "--int8` or `--fp32" : "--int8 --int8-float fp32") + "`.");
}

void check_options(const cgd_options &options) {
    const auto refuse_value = [](const char *name, double value, const char *expected) {
        std::ostringstream told;
        told << name << "=" << value << " cannot be used; expected " << expected << ".";
        throw Failure(CGD_BAD_INPUT, told.str());
    };
    if (options.threads > MOST_THREADS) refuse_value("threads", options.threads, "at most 65536");
    if (options.max_queue < 1) refuse_value("max_queue", options.max_queue, "at least 1");
    if (!(options.max_delay_ms >= 0 && options.max_delay_ms < HUGE_VAL))
        refuse_value("max_delay_ms", options.max_delay_ms, "0 or more milliseconds");
}

// INT8 that was built on another CPU, or that this CPU sums in 16 bits, has to pass the self-test.
bool is_proven_here(const Manifest &manifest) {
    if (manifest.precision != "int8") return true;
    std::string here;
    for (const std::string &set : instruction_sets()) here += (here.empty() ? "" : " ") + set;
    return here == manifest.builders_instruction_sets && has_fast_int8();
}

std::string repair(const Manifest &manifest) {
    if (manifest.precision != "int8" || has_fast_int8()) return "build it again on this machine";
    return "this CPU has no VNNI, AMX or i8mm, so sums of INT8 products saturate: build it again with "
           "`cgd-deploy build-engine --int8 --reduced-range`";
}

View view_of(const cgd_image &image) {
    return {image.data, image.width, image.height, image.stride, image.format == CGD_BGR8};
}

void prepare(const cgd_image &image, const Spec &spec, std::uint8_t *pixels) {
    fit(view_of(image), spec.rule, spec.height, spec.width, pixels);
}

void prepare(const Encoded &file, const Spec &spec, std::uint8_t *pixels) {
    const Picture picture = decode(file.bytes, file.size);
    fit_always(picture.view(), spec.rule, spec.height, spec.width, pixels);
}

// Whether the backend can read the pixels in place.
bool is_ready(const cgd_image &image, const Spec &spec) {
    return image.width == spec.width && image.height == spec.height && image.format == CGD_RGB8 &&
           image.stride == 3 * std::size_t(image.width);
}

long milliseconds_since(Clock::time_point began) {
    return std::lround(std::chrono::duration<double, std::milli>(Clock::now() - began).count());
}

}  // namespace

Engine::Engine(const std::string &path, const cgd_options &options) : file_(read_engine(path)) {
    check_options(options);
    check_runs_here(file_, options);
    if (!file_.untuned.empty()) write_log(CGD_LOG_WARNING, file_.untuned);
    const std::size_t cores = available_threads();
    const std::size_t threads = options.threads ? options.threads : file_.latency ? file_.latency->threads : cores;
    const std::size_t streams = options.streams ? options.streams : 1;
    if (streams > threads)
        throw Failure(CGD_BAD_INPUT, "streams=" + std::to_string(streams) + " cannot share threads=" +
                                         std::to_string(threads) + "; ask for no more streams than threads.");
    const auto began = Clock::now();
    backend_ = std::make_unique<Backend>(
        Backend::Model{std::move(file_.payload), file_.manifest.needs_bf16(), spec().height, spec().width, spec().dim},
        threads, streams);
    write_log(CGD_LOG_DEBUG,
              path + ": openvino took " + std::to_string(milliseconds_since(began)) + " ms to load the model");
    if (!is_proven_here(file_.manifest)) self_test();
    const std::size_t asked = options.max_batch  ? options.max_batch
                              : file_.throughput ? file_.throughput->batch
                                                 : CPU_BATCH;
    const auto delay = std::chrono::duration<double, std::milli>(std::min(options.max_delay_ms, LONGEST_DELAY_MS));
    scheduler_ = std::make_unique<Scheduler>(
        *backend_,
        Scheduler::Sizes{spec().image_bytes(), spec().dim, streams, options.threads ? options.threads : cores},
        Policy{options.max_queue, std::min(asked, file_.manifest.max_batch),
               std::chrono::duration_cast<Clock::duration>(delay), streams});
    write_log(CGD_LOG_INFO, "loaded " + path + ": backend=openvino precision=" + file_.manifest.precision +
                                " device=cpu threads=" + std::to_string(threads) +
                                " streams=" + std::to_string(streams) + " space_id=" + spec().space_id);
}

Engine::~Engine() {
    scheduler_.reset();
    write_log(CGD_LOG_INFO, "closed " + file_.path);
}

template <typename Picture>
void Engine::embed_any(const Picture *pictures, std::size_t count, float *out) {
    if (count == 1) {
        // Shared, because a thread of the engine may still be in set_value when this one goes on.
        const auto described = std::make_shared<std::promise<void>>();
        std::future<void> done = described->get_future();
        submit(pictures[0], std::make_unique<Request>(out, [described](cgd_status status, const std::string &sentence) {
                   if (status == CGD_OK) return described->set_value();
                   described->set_exception(std::make_exception_ptr(Failure(status, sentence)));
               }));
        return done.get();
    }
    std::vector<std::uint8_t> pixels(count * spec().image_bytes());
    for (std::size_t i = 0; i < count; i++) prepare(pictures[i], spec(), &pixels[i * spec().image_bytes()]);
    run(pixels.data(), count, out);
}

void Engine::embed(const cgd_image *images, std::size_t count, float *out) {
    embed_any(images, count, out);
}

void Engine::embed(const Encoded *files, std::size_t count, float *out) {
    embed_any(files, count, out);
}

void Engine::run(const std::uint8_t *pixels, std::size_t count, float *out) {
    const std::size_t most = file_.manifest.max_batch;
    for (std::size_t start = 0; start < count; start += most)
        backend_->run_in_parts(pixels + start * spec().image_bytes(), std::min(most, count - start),
                               out + start * spec().dim);
}

void Engine::submit(const cgd_image &image, RequestPtr request) {
    if (is_ready(image, spec()))
        request->pixels = image.data;
    else
        request->prepare = [this, image](std::uint8_t *pixels) { prepare(image, spec(), pixels); };
    scheduler_->submit(std::move(request));
}

void Engine::submit(const Encoded &file, RequestPtr request) {
    request->prepare = [this, file](std::uint8_t *pixels) { prepare(file, spec(), pixels); };
    scheduler_->submit(std::move(request));
}

float Engine::self_test() {
    const std::size_t dim = spec().dim, count = file_.golden_count();
    std::vector<float> rows(count * dim);
    run(file_.golden_images.data(), count, rows.data());
    float smallest = 1;
    for (std::size_t i = 0; i < count; i++) {
        float cosine = 0;
        for (std::size_t j = i * dim; j < (i + 1) * dim; j++) cosine += rows[j] * file_.golden_descriptors[j];
        smallest = std::isnan(cosine) ? cosine : std::min(smallest, cosine);
        if (std::isnan(smallest)) break;
    }
    if (smallest >= SELF_TEST_COSINE) return smallest;
    std::ostringstream told;
    told.precision(4);
    told << file_.path << " gives other descriptors than when it was built (cosine " << smallest << " < "
         << SELF_TEST_COSINE << "); " << repair(file_.manifest) << ".";
    refuse(told.str());
}

}  // namespace cgd
