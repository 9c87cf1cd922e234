// The functions of inside.h: engines and indices by number, and failures as statuses with their sentences.
#include "../inside.h"

#include "engine.hpp"
#include "failure.hpp"
#include "index.hpp"
#include "limits.hpp"
#include "log.hpp"
#include "search.hpp"

#include <algorithm>
#include <cstring>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <string>
#include <vector>

namespace {

using cgd::Failure;

constexpr const char *CLOSED = "the engine or index was closed by another thread during this call; open it again.";

// Engines or indices by number. A number that was removed is never given again.
template <typename Thing>
class Opened {
  public:
    std::uint64_t add(std::shared_ptr<Thing> thing) {
        const std::lock_guard lock(mutex_);
        things_[++last_] = std::move(thing);
        return last_;
    }
    std::shared_ptr<Thing> get(std::uint64_t number) const {
        const std::lock_guard lock(mutex_);
        const auto found = things_.find(number);
        if (found != things_.end()) return found->second;
        throw Failure(CGD_BAD_ENGINE, CLOSED);
    }
    std::vector<std::shared_ptr<Thing>> all() const {
        const std::lock_guard lock(mutex_);
        std::vector<std::shared_ptr<Thing>> found;
        for (const auto &[number, thing] : things_) found.push_back(thing);
        return found;
    }
    std::shared_ptr<Thing> remove(std::uint64_t number) {
        const std::lock_guard lock(mutex_);
        auto node = things_.extract(number);
        if (node) return node.mapped();
        throw Failure(CGD_BAD_ENGINE, CLOSED);
    }

  private:
    mutable std::mutex mutex_;
    std::map<std::uint64_t, std::shared_ptr<Thing>> things_;
    std::uint64_t last_ = 0;
};

// An engine, and the lock that its calls share: whoever closes it waits for them.
struct Running {
    template <typename... Arguments>
    explicit Running(const Arguments &...arguments) : engine(std::make_unique<cgd::Engine>(arguments...)) {}

    // Call `function` with the engine; false if the engine is being closed. A thread of the engine may call this, so it
    // does not wait for who closes the engine and waits for this thread.
    template <typename Function>
    bool try_call(Function function) {
        const std::shared_lock lock(calls, std::try_to_lock);
        if (!lock || !engine) return false;
        function(*engine);
        return true;
    }
    template <typename Function>
    void call(Function function) {
        if (!try_call(function)) throw Failure(CGD_BAD_ENGINE, CLOSED);
    }
    void close() {
        const std::lock_guard lock(calls);
        engine.reset();
    }

    std::shared_mutex calls;
    std::unique_ptr<cgd::Engine> engine;
};

// Never destroyed: threads of the program may call at its end.
auto &engines = *new Opened<Running>;
auto &indices = *new Opened<cgd::Index>;

void write_sentence(std::string sentence, char *message) {
    std::replace(sentence.begin(), sentence.end(), '\n', ' ');
    const std::size_t size = std::min<std::size_t>(sentence.size(), CGD_MESSAGE - 1);
    std::memcpy(message, sentence.data(), size);
    message[size] = '\0';
}

// The status of `function` plus one. A failure leaves its sentence.
template <typename Function>
int told(char *message, Function function) {
    try {
        function();
        return CGD_OK + 1;
    } catch (const Failure &failure) {
        write_sentence(failure.what(), message);
        return failure.status + 1;
    } catch (const std::bad_alloc &) {
        write_sentence("there is no memory left.", message);
    } catch (const std::exception &error) {
        write_sentence(error.what(), message);
    }
    return CGD_INTERNAL + 1;
}

std::vector<cgd::Encoded> encoded(const void *const *files, const std::size_t *sizes, std::size_t count) {
    std::vector<cgd::Encoded> found;
    for (std::size_t i = 0; i < count; i++) found.push_back({static_cast<const std::uint8_t *>(files[i]), sizes[i]});
    return found;
}

cgd::RequestPtr request_of(const cgd_wanted &wanted) {
    cgd_ticket *const ticket = wanted.ticket;
    auto request = std::make_unique<cgd::Request>(wanted.out, [ticket](cgd_status status, const std::string &sentence) {
        finish_ticket(ticket, status, sentence.c_str());
    });
    request->ticket = ticket;
    request->timeout_ms = wanted.timeout_ms;
    return request;
}

// The space_id and the paths of an index in one block of memory: an array of pointers, then their texts.
const char **texts_of(const cgd::Index &index) {
    const std::size_t count = 1 + index.size();
    const auto text = [&](std::size_t i) -> const std::string & { return i ? index.path(i - 1) : index.space_id(); };
    std::size_t size = count * sizeof(char *);
    for (std::size_t i = 0; i < count; i++) size += text(i).size() + 1;
    auto *const block = static_cast<const char **>(std::malloc(size));
    if (!block) throw std::bad_alloc();
    char *at = reinterpret_cast<char *>(block + count);
    for (std::size_t i = 0; i < count; i++) {
        block[i] = at;
        std::memcpy(at, text(i).c_str(), text(i).size() + 1);
        at += text(i).size() + 1;
    }
    return block;
}

const float *row_of(const cgd_rows &rows, std::size_t row) {
    return reinterpret_cast<const float *>(reinterpret_cast<const char *>(rows.values) + row * rows.stride);
}

void read_rows(const cgd_rows &rows, std::size_t dim, std::size_t start, std::size_t count, float *out) {
    for (std::size_t i = 0; i < count; i++) std::copy_n(row_of(rows, start + i), dim, out + i * dim);
}

}  // namespace

int inside_open(const char *path, const cgd_options *options, uint64_t *number, cgd_facts *facts, char *message) {
    return told(message, [&] {
        auto running = std::make_shared<Running>(std::string(path), *options);
        const cgd::Spec &spec = running->engine->spec();
        *facts = {spec.dim, spec.width, spec.height, {}};
        spec.space_id.copy(facts->space_id, sizeof facts->space_id - 1);
        *number = engines.add(std::move(running));
    });
}

int inside_close(uint64_t number, char *message) {
    return told(message, [&] { engines.remove(number)->close(); });
}

int inside_self_test(uint64_t number, float *cosine, char *message) {
    return told(message,
                [&] { engines.get(number)->call([&](cgd::Engine &engine) { *cosine = engine.self_test(); }); });
}

int inside_embed(uint64_t number, const cgd_image *images, size_t count, float *out, char *message) {
    return told(message,
                [&] { engines.get(number)->call([&](cgd::Engine &engine) { engine.embed(images, count, out); }); });
}

int inside_embed_encoded(uint64_t number, const void *const *files, const size_t *sizes, size_t count, float *out,
                         char *message) {
    return told(message, [&] {
        const auto pictures = encoded(files, sizes, count);
        engines.get(number)->call([&](cgd::Engine &engine) { engine.embed(pictures.data(), count, out); });
    });
}

int inside_submit(uint64_t number, const cgd_image *image, const cgd_wanted *wanted, char *message) {
    return told(message, [&] {
        engines.get(number)->call([&](cgd::Engine &engine) { engine.submit(*image, request_of(*wanted)); });
    });
}

int inside_submit_encoded(uint64_t number, const void *file, size_t size, const cgd_wanted *wanted, char *message) {
    return told(message, [&] {
        const cgd::Encoded picture{static_cast<const std::uint8_t *>(file), size};
        engines.get(number)->call([&](cgd::Engine &engine) { engine.submit(picture, request_of(*wanted)); });
    });
}

int inside_cancel(cgd_ticket *ticket, char *message) {
    return told(message, [&] {
        for (const auto &running : engines.all())
            running->try_call([&](cgd::Engine &engine) { engine.cancel(ticket); });
    });
}

int inside_stats(uint64_t number, cgd_stats *stats, char *message) {
    return told(message, [&] { engines.get(number)->call([&](cgd::Engine &engine) { *stats = engine.stats(); }); });
}

int inside_set_log(cgd_log log, void *context, int least, char *message) {
    return told(message, [&] { cgd::set_log(log, context, least); });
}

int inside_search(const cgd_rows *queries, const cgd_rows *gallery, size_t dim, size_t k, const cgd_found *found,
                  char *message) {
    return told(message, [&] {
        std::vector<float> asked(queries->count * dim);
        read_rows(*queries, dim, 0, queries->count, asked.data());
        const cgd::Rows rows{gallery->count, dim, [&](std::size_t start, std::size_t count, float *out) {
                                 read_rows(*gallery, dim, start, count, out);
                             }};
        cgd::nearest(rows, asked.data(), queries->count, k, found->indices, found->scores);
    });
}

int inside_set_limit(const char *name, const char *value, char *message) {
    return told(message, [&] { cgd::set_limit(name, value); });
}

int inside_index_open(const char *path, uint64_t *number, cgd_index_facts *facts, char *message) {
    return told(message, [&] {
        auto index = std::make_shared<cgd::Index>(path);
        *facts = {index->size(), index->dim(), texts_of(*index)};
        *number = indices.add(std::move(index));
    });
}

int inside_index_close(uint64_t number, char *message) {
    return told(message, [&] { indices.remove(number); });
}

int inside_index_search(uint64_t number, uint64_t engine, const cgd_rows *queries, size_t k, const cgd_found *found,
                        char *message) {
    return told(message, [&] {
        const auto index = indices.get(number);
        std::string space_id;
        std::size_t dim = 0;
        engines.get(engine)->call(
            [&](cgd::Engine &asking) { space_id = asking.spec().space_id, dim = asking.spec().dim; });
        if (space_id == index->space_id() && dim != index->dim())
            throw Failure(CGD_BAD_INDEX, "the index and the engine have another number of values; use one model.");
        index->search(space_id, queries->values, queries->count, k, found->indices, found->scores);
    });
}
