// Engine: describes pictures. It gathers the single pictures of several threads into batches.
#ifndef CGD_ENGINE_HPP
#define CGD_ENGINE_HPP

#include "backend.hpp"
#include "enginefile.hpp"
#include "scheduler.hpp"

#include <memory>
#include <string>

namespace cgd {

struct Encoded {
    const std::uint8_t *bytes;
    std::size_t size;
};

class Engine {
  public:
    // Throws Failure(CGD_BAD_ENGINE) for a file that is damaged or not for this machine or this library.
    Engine(const std::string &path, const cgd_options &options);
    ~Engine();  // computes the images in the queue first

    const Spec &spec() const {
        return file_.manifest.spec;
    }

    // A single picture joins the pictures of other threads. Several pictures are one batch. `out` gets `count` rows of dim floats. Throws
    // Failure(CGD_OVERLOADED), and Failure(CGD_BAD_INPUT) for a picture that cannot be used.
    void embed(const cgd_image *images, std::size_t count, float *out);
    void embed(const Encoded *files, std::size_t count, float *out);

    // Begin to describe a picture. Throws Failure(CGD_OVERLOADED).
    void submit(const cgd_image &image, RequestPtr request);
    void submit(const Encoded &file, RequestPtr request);
    void cancel(const void *ticket) {
        scheduler_->cancel(ticket);
    }
    cgd_stats stats() {
        return scheduler_->stats();
    }

    // The smallest cosine of the golden pictures with their descriptors. Throws Failure(CGD_BAD_ENGINE) below 0.999.
    float self_test();

  private:
    template <typename Picture>
    void embed_any(const Picture *pictures, std::size_t count, float *out);
    void run(const std::uint8_t *pixels, std::size_t count, float *out);

    EngineFile file_;
    std::unique_ptr<Backend> backend_;
    std::unique_ptr<Scheduler> scheduler_;
};

}  // namespace cgd

#endif
