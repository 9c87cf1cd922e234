/* The functions of cgd.h: they check arguments and keep the thread's last error. inside.h has the functions that do the
 * rest. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct cgd_engine {
    uint64_t number;
    cgd_facts facts;
};

struct cgd_index {
    uint64_t number;
    cgd_index_facts facts;
};

static _Thread_local char last_error[CGD_MESSAGE];

static cgd_status fail(cgd_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

#ifdef CGD_START
#include CGD_START /* defines start(), start_error, python_lock, release_lock() and take_lock(), as plain.c does */
#endif
#include "shutdown.c"

static atomic_size_t calls_since_open;

static cgd_status leave(cgd_status status) {
    if (own_calls == 1 && watched) unwatch();
    own_calls--;
    running_calls--;
    return status;
}

/* CGD_INVALID_ARGUMENT in a child of fork(), where the threads of the library are missing. */
static cgd_status check_process(void) {
    int nobody = 0, here = getpid();
    atomic_compare_exchange_strong(&process, &nobody, here);
    if (process == here) return CGD_OK;
    return fail(CGD_INVALID_ARGUMENT, "this process was forked from one that used the library; use exec() too.");
}

/* CGD_OK if the implementation can be called; the caller has to leave then. Calls 0, 1, 2, 4, 8, ... since something was
 * opened are watched: other calls hardly construct static objects. A call inside a call belongs to the outer call. */
static cgd_status enter(void) {
    cgd_status status = check_process();
    if (status != CGD_OK) return status;
    running_calls++;
    own_calls++;
    if (ending) return leave(fail(CGD_SHUTTING_DOWN, "the process ends; make no more calls."));
    size_t number = calls_since_open++;
    if (own_calls == 1 && (number & (number - 1)) == 0) watch();
    start();
    return *start_error ? leave(fail(CGD_INTERNAL, "%s", start_error)) : CGD_OK;
}

/* The status of a function of inside.h, which gives a status plus one, or 0 if it did not come to its end. */
static cgd_status finished(int given) {
    if (given > 0) return leave((cgd_status)(given - 1));
    return leave(fail(CGD_INTERNAL, "the library could not do this, for the reason on stderr."));
}

#define INSIDE(call) ({ cgd_status entered = enter(); entered == CGD_OK ? finished(call) : entered; })

#define OPENING_INSIDE(call) \
    ({ calls_since_open = 0; cgd_status opening = INSIDE(call); calls_since_open = 0; opening; })

/* Older headers have smaller structs. */
static cgd_status check_size(size_t size, const char *name) {
    if (size >= sizeof(size_t) && size <= 4096) return CGD_OK;
    return fail(CGD_INVALID_ARGUMENT, "%s has a size of %zu bytes; expected the sizeof of its type.", name, size);
}

static cgd_status check_embed(const cgd_engine *engine, const void *images, size_t count, const float *out,
                              size_t capacity) {
    last_error[0] = '\0';
    if (!engine || !images || !out) return fail(CGD_INVALID_ARGUMENT, "a pointer is NULL; pass engine, images and out.");
    if (count > SIZE_MAX / engine->facts.dim)
        return fail(CGD_INVALID_ARGUMENT, "%zu images cannot be; pass fewer.", count);
    if (capacity < count * engine->facts.dim)
        return fail(CGD_BUFFER_TOO_SMALL, "out holds %zu floats; expected %zu for %zu images.", capacity,
                    count * engine->facts.dim, count);
    return CGD_OK;
}

static cgd_status check_image(const cgd_image *image, size_t i) {
    if (!image->data) return fail(CGD_INVALID_ARGUMENT, "image %zu has no data.", i);
    if (image->format != CGD_RGB8 && image->format != CGD_BGR8)
        return fail(CGD_INVALID_ARGUMENT, "image %zu has format %d; expected CGD_RGB8 or CGD_BGR8.", i,
                    (int)image->format);
    if (!image->width || !image->height || image->stride < 3 * (size_t)image->width)
        return fail(CGD_INVALID_ARGUMENT, "image %zu is %ux%u with a stride of %zu; expected at least %zu bytes.", i,
                    image->width, image->height, image->stride, 3 * (size_t)image->width);
    return CGD_OK;
}

const char *cgd_version(void) {
    return TEXT(CGD_VERSION_MAJOR) "." TEXT(CGD_VERSION_MINOR) "." TEXT(CGD_VERSION_PATCH);
}

const char *cgd_status_string(cgd_status status) {
    switch (status) {
        case CGD_OK: return "CGD_OK";
        case CGD_INVALID_ARGUMENT: return "CGD_INVALID_ARGUMENT";
        case CGD_BUFFER_TOO_SMALL: return "CGD_BUFFER_TOO_SMALL";
        case CGD_BAD_INPUT: return "CGD_BAD_INPUT";
        case CGD_BAD_ENGINE: return "CGD_BAD_ENGINE";
        case CGD_MISSING_DEPENDENCY: return "CGD_MISSING_DEPENDENCY";
        case CGD_OVERLOADED: return "CGD_OVERLOADED";
        case CGD_SHUTTING_DOWN: return "CGD_SHUTTING_DOWN";
        case CGD_BAD_INDEX: return "CGD_BAD_INDEX";
        case CGD_TIMED_OUT: return "CGD_TIMED_OUT";
        case CGD_CANCELLED: return "CGD_CANCELLED";
        case CGD_PENDING: return "CGD_PENDING";
        case CGD_INTERNAL: return "CGD_INTERNAL";
    }
    return "unknown status";
}

const char *cgd_last_error(void) { return last_error; }

void cgd_options_init(cgd_options *options) {
    if (!options) return;
    memset(options, 0, sizeof *options);
    options->size = sizeof *options;
    options->max_queue = 256;
    options->max_delay_ms = 2.0;
}

cgd_status cgd_engine_open(const char *path, const cgd_options *options, cgd_engine **engine) {
    cgd_options chosen;
    last_error[0] = '\0';
    if (engine) *engine = NULL;
    if (!engine || !path) return fail(CGD_INVALID_ARGUMENT, "a pointer is NULL; pass path and engine.");
    if (options && check_size(options->size, "options") != CGD_OK) return CGD_INVALID_ARGUMENT;
    cgd_options_init(&chosen);
    if (options) memcpy(&chosen, options, options->size < sizeof chosen ? options->size : sizeof chosen);
    cgd_engine *opened = calloc(1, sizeof *opened);
    if (!opened) return fail(CGD_INTERNAL, "there is no memory left.");
    cgd_status status = OPENING_INSIDE(inside_open(path, &chosen, &opened->number, &opened->facts, last_error));
    if (status == CGD_OK)
        *engine = opened;
    else
        free(opened);
    return status;
}

void cgd_engine_close(cgd_engine *engine) {
    last_error[0] = '\0';
    if (!engine) return;
    INSIDE(inside_close(engine->number, last_error));
    free(engine);
}

size_t cgd_engine_dim(const cgd_engine *engine) { return engine ? engine->facts.dim : 0; }

void cgd_engine_input_size(const cgd_engine *engine, uint32_t *width, uint32_t *height) {
    if (width) *width = engine ? engine->facts.width : 0;
    if (height) *height = engine ? engine->facts.height : 0;
}

const char *cgd_engine_space_id(const cgd_engine *engine) { return engine ? engine->facts.space_id : ""; }

cgd_status cgd_self_test(cgd_engine *engine, float *cosine) {
    float ignored;
    last_error[0] = '\0';
    if (!engine) return fail(CGD_INVALID_ARGUMENT, "the engine is NULL; open one first.");
    return INSIDE(inside_self_test(engine->number, cosine ? cosine : &ignored, last_error));
}

cgd_status cgd_embed(cgd_engine *engine, const cgd_image *images, size_t count, float *out, size_t capacity) {
    cgd_status status = check_embed(engine, images, count, out, capacity);
    for (size_t i = 0; status == CGD_OK && i < count; i++) status = check_image(&images[i], i);
    return status == CGD_OK ? INSIDE(inside_embed(engine->number, images, count, out, last_error)) : status;
}

cgd_status cgd_embed_encoded(cgd_engine *engine, const void *const *files, const size_t *sizes, size_t count,
                             float *out, size_t capacity) {
    cgd_status status = check_embed(engine, files, count, out, capacity);
    if (status == CGD_OK && !sizes) status = fail(CGD_INVALID_ARGUMENT, "a pointer is NULL; pass sizes.");
    for (size_t i = 0; status == CGD_OK && i < count; i++)
        if (!files[i]) status = fail(CGD_INVALID_ARGUMENT, "file %zu has no data.", i);
    return status == CGD_OK ? INSIDE(inside_embed_encoded(engine->number, files, sizes, count, out, last_error))
                            : status;
}

#include "ticket.c"

cgd_status cgd_engine_stats(const cgd_engine *engine, cgd_stats *stats) {
    cgd_stats all = {0};
    last_error[0] = '\0';
    if (!engine || !stats) return fail(CGD_INVALID_ARGUMENT, "a pointer is NULL; pass engine and stats.");
    if (check_size(stats->size, "stats") != CGD_OK) return CGD_INVALID_ARGUMENT;
    cgd_status status = INSIDE(inside_stats(engine->number, &all, last_error));
    all.size = stats->size;
    if (status == CGD_OK) memcpy(stats, &all, all.size < sizeof all ? all.size : sizeof all);
    return status;
}

cgd_status cgd_set_log(cgd_log log, void *context, cgd_log_level least) {
    last_error[0] = '\0';
    if (log && (least < CGD_LOG_DEBUG || least > CGD_LOG_ERROR))
        return fail(CGD_INVALID_ARGUMENT, "least is %d; expected CGD_LOG_DEBUG to CGD_LOG_ERROR.", (int)least);
    return INSIDE(inside_set_log(log, context, least, last_error));
}

cgd_status cgd_search(const float *queries, size_t query_count, size_t query_stride, const float *gallery,
                      size_t gallery_count, size_t gallery_stride, size_t dim, size_t k, uint64_t *indices,
                      float *scores) {
    size_t row = dim * sizeof(float);
    last_error[0] = '\0';
    if (!queries || !gallery || !indices || !scores)
        return fail(CGD_INVALID_ARGUMENT, "a pointer is NULL; pass queries, gallery, indices and scores.");
    if (!query_stride) query_stride = row;
    if (!gallery_stride) gallery_stride = row;
    if (!dim || !k || k > gallery_count || query_stride < row || gallery_stride < row ||
        query_stride % sizeof(float) || gallery_stride % sizeof(float))
        return fail(CGD_INVALID_ARGUMENT,
                    "dim is %zu, k %zu of %zu rows, the strides %zu and %zu; expected k of 1 to the gallery's rows, and "
                    "strides of whole floats that hold a row.",
                    dim, k, gallery_count, query_stride, gallery_stride);
    const cgd_rows asked = {queries, query_count, query_stride}, searched = {gallery, gallery_count, gallery_stride};
    const cgd_found found = {indices, scores};
    return INSIDE(inside_search(&asked, &searched, dim, k, &found, last_error));
}

cgd_status cgd_set_limit(const char *name, const char *value) {
    last_error[0] = '\0';
    if (!name || !value) return fail(CGD_INVALID_ARGUMENT, "a pointer is NULL; pass name and value.");
    return INSIDE(inside_set_limit(name, value, last_error));
}

cgd_status cgd_index_open(const char *path, cgd_index **index) {
    last_error[0] = '\0';
    if (index) *index = NULL;
    if (!index || !path) return fail(CGD_INVALID_ARGUMENT, "a pointer is NULL; pass path and index.");
    cgd_index *opened = calloc(1, sizeof *opened);
    if (!opened) return fail(CGD_INTERNAL, "there is no memory left.");
    cgd_status status = OPENING_INSIDE(inside_index_open(path, &opened->number, &opened->facts, last_error));
    if (status == CGD_OK)
        *index = opened;
    else
        free(opened);
    return status;
}

void cgd_index_close(cgd_index *index) {
    last_error[0] = '\0';
    if (!index) return;
    INSIDE(inside_index_close(index->number, last_error));
    free(index->facts.texts);
    free(index);
}

size_t cgd_index_size(const cgd_index *index) { return index ? index->facts.size : 0; }

size_t cgd_index_dim(const cgd_index *index) { return index ? index->facts.dim : 0; }

const char *cgd_index_space_id(const cgd_index *index) { return index ? index->facts.texts[0] : ""; }

const char *cgd_index_path(const cgd_index *index, size_t i) {
    return index && i < index->facts.size ? index->facts.texts[1 + i] : NULL;
}

cgd_status cgd_index_search(const cgd_index *index, const cgd_engine *engine, const float *queries, size_t query_count,
                            size_t k, uint64_t *indices, float *scores) {
    last_error[0] = '\0';
    if (!index || !engine) return fail(CGD_INVALID_ARGUMENT, "a pointer is NULL; pass index and engine.");
    if (!k || k > index->facts.size)
        return fail(CGD_INVALID_ARGUMENT, "k is %zu; expected 1 to %zu, the size of the index.", k, index->facts.size);
    if (query_count && (!queries || !indices || !scores))
        return fail(CGD_INVALID_ARGUMENT, "a pointer is NULL; pass queries, indices and scores.");
    if (query_count > SIZE_MAX / sizeof(uint64_t) / (engine->facts.dim > k ? engine->facts.dim : k))
        return fail(CGD_INVALID_ARGUMENT, "%zu queries cannot be; pass fewer.", query_count);
    const cgd_rows asked = {queries, query_count, 0};
    const cgd_found found = {indices, scores};
    return INSIDE(inside_index_search(index->number, engine->number, &asked, k, &found, last_error));
}
