/*
 * cgd: image-retrieval descriptors from .cgd engines.
 *
 *     cgd_engine *engine;
 *     if (cgd_engine_open("model-int8.cgd", NULL, &engine) != CGD_OK)
 *         return fprintf(stderr, "%s\n", cgd_last_error()), 1;
 *     float *descriptor = malloc(cgd_engine_dim(engine) * sizeof *descriptor);
 *     cgd_image image = {pixels, width, height, 3 * width, CGD_RGB8};
 *     if (cgd_embed(engine, &image, 1, descriptor, cgd_engine_dim(engine)) != CGD_OK)
 *         fprintf(stderr, "%s\n", cgd_last_error());
 *     cgd_engine_close(engine);
 *
 * Every function may be called from any thread, and all threads may share an engine or an index. Close it after every
 * other call with it has returned. Single images that several threads embed at the same time are computed together.
 * A child of fork() may call the library only if its parent has not.
 *
 * The library leaves the signal handlers and the locale of the process alone. exit() and a return from main wait for
 * running calls and submitted images; done is called before objects are destroyed that existed when its image was
 * submitted. Later calls return CGD_SHUTTING_DOWN and do nothing, and the close functions only free memory;
 * cgd_ticket_wait still returns the status of the image.
 */
#ifndef CGD_H
#define CGD_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CGD_VERSION_MAJOR 0
#define CGD_VERSION_MINOR 1
#define CGD_VERSION_PATCH 0

#if defined(__GNUC__)
#define CGD_API __attribute__((visibility("default")))
#else
#define CGD_API
#endif

/* types: begin */
/* A value keeps its meaning for ever, and none is used again. */
typedef enum cgd_status {
    CGD_OK = 0,
    CGD_INVALID_ARGUMENT = 1,   /* a null pointer, a count or a format that cannot be */
    CGD_BUFFER_TOO_SMALL = 2,   /* out holds fewer floats than there are results */
    CGD_BAD_INPUT = 3,          /* an image cannot be used */
    CGD_BAD_ENGINE = 4,         /* the file is missing, damaged, or made for another machine */
    CGD_MISSING_DEPENDENCY = 5, /* what runs this engine is not installed */
    CGD_OVERLOADED = 6,         /* too many images wait: try again, or shed the request */
    CGD_SHUTTING_DOWN = 7,      /* the process ends: make no more calls */
    CGD_BAD_INDEX = 8,          /* the file is missing, damaged, or of another space than the engine */
    CGD_TIMED_OUT = 9,          /* the timeout passed before the image was computed */
    CGD_CANCELLED = 10,         /* the caller freed the ticket before the image was computed */
    CGD_PENDING = 11,           /* the image is not done: wait again */
    CGD_INTERNAL = 99           /* a bug, or the library could not start */
} cgd_status;

typedef enum cgd_format {
    CGD_RGB8 = 1, /* three bytes a pixel */
    CGD_BGR8 = 2
} cgd_format;

/* Pixels of any size, upright. The library reads them until the call returns, or a submitted image is done. */
typedef struct cgd_image {
    const uint8_t *data;
    uint32_t width;
    uint32_t height;
    size_t stride; /* bytes from one row to the next, at least 3 * width */
    cgd_format format;
} cgd_image;

/* Fill with cgd_options_init, then change what you want to. */
typedef struct cgd_options {
    size_t size;           /* sizeof(cgd_options) of the caller's header */
    const char *device;    /* "cpu" or "cuda"; NULL: what the engine was built for */
    uint32_t threads;      /* 0: what was found to be fastest here, else every core allowed */
    uint32_t streams;      /* batches at the same time; 0: 1 on the CPU, 2 on CUDA */
    uint32_t max_batch;    /* images of a full batch; 0: the engine's choice */
    uint32_t max_queue;    /* single images that are decoded or wait */
    double max_delay_ms;   /* how long one waits for others */
} cgd_options;

/* The library calls it once for a submitted image, in a thread of its own or inside cgd_ticket_free, and never inside
 * cgd_submit. The next images may wait for its return. So it may not call a function that waits for images (cgd_embed,
 * cgd_embed_encoded, cgd_self_test, cgd_ticket_wait, cgd_ticket_free, cgd_engine_close), nor exit(). */
typedef void (*cgd_done)(void *context, cgd_status status, const char *message);

/* How cgd_submit computes an image. Fill with cgd_request_init, then change what you want to. */
typedef struct cgd_request {
    size_t size;       /* sizeof(cgd_request) of the caller's header */
    double timeout_ms; /* after this time the image is not computed, and has CGD_TIMED_OUT; 0: no limit */
    cgd_done done;     /* called when the image is done; may be NULL */
    void *context;     /* the first argument of done */
} cgd_request;

enum { CGD_BINS = 16 };

/* How often values fell between bounds. */
typedef struct cgd_histogram {
    double bounds[CGD_BINS];   /* ascending; the last and the unused ones are infinite */
    uint64_t counts[CGD_BINS]; /* values up to each bound and above the bound before it */
    double total;              /* sum of all values */
} cgd_histogram;

/* What happened to the single images of an engine. Set size before the call. */
typedef struct cgd_stats {
    size_t size;        /* sizeof(cgd_stats) of the caller's header */
    uint64_t waiting;   /* images in the queue now: they wait for a decoder, are decoded, or wait for a batch */
    uint64_t in_flight; /* batches that are being computed now */
    uint64_t described; /* images by outcome */
    uint64_t shed;      /* the queue was full */
    uint64_t expired;   /* the timeout passed */
    uint64_t bad_input; /* the image could not be used */
    uint64_t failed;    /* the batch failed */
    uint64_t cancelled;
    cgd_histogram batch_sizes;     /* images of each batch */
    cgd_histogram decode_seconds;  /* of an image */
    cgd_histogram queue_seconds;   /* that an image waited for a decoder and for its batch */
    cgd_histogram compute_seconds; /* of a batch */
} cgd_stats;

typedef enum cgd_log_level {
    CGD_LOG_DEBUG = 1,
    CGD_LOG_INFO = 2,
    CGD_LOG_WARNING = 3,
    CGD_LOG_ERROR = 4
} cgd_log_level;

/* Gets one line without its end. Any thread of the process may call it, one at a time. It may not call the library. */
typedef void (*cgd_log)(void *context, cgd_log_level level, const char *message);

typedef struct cgd_engine cgd_engine;
typedef struct cgd_index cgd_index;
typedef struct cgd_ticket cgd_ticket;
/* types: end */

/* "0.1.0", of the library; the macros above are of the header. */
CGD_API const char *cgd_version(void);

/* The name of a status, e.g. "CGD_OVERLOADED"; never NULL. */
CGD_API const char *cgd_status_string(cgd_status status);

/* One sentence on the last call of this thread, "" if that succeeded; valid until the thread's next call. */
CGD_API const char *cgd_last_error(void);

CGD_API void cgd_options_init(cgd_options *options);

/* Load an engine; options may be NULL. On failure *engine is NULL. */
CGD_API cgd_status cgd_engine_open(const char *path, const cgd_options *options, cgd_engine **engine);

/* Free an engine; NULL does nothing. Submitted images are computed first. Tickets may be used and freed later. */
CGD_API void cgd_engine_close(cgd_engine *engine);

/* Floats of a descriptor. */
CGD_API size_t cgd_engine_dim(const cgd_engine *engine);

/* Images of this size are taken as they are. Images of other sizes, and files of every size, are resized as the model's
 * spec says, and cropped if it says so. */
CGD_API void cgd_engine_input_size(const cgd_engine *engine, uint32_t *width, uint32_t *height);

/* Descriptors may be compared if and only if their engines have the same; valid until close. */
CGD_API const char *cgd_engine_space_id(const cgd_engine *engine);

/* Replay the images kept in the engine; the smallest cosine with their descriptors goes to *cosine, which may be NULL.
 * CGD_BAD_ENGINE below 0.999. */
CGD_API cgd_status cgd_self_test(cgd_engine *engine, float *cosine);

/* Describe count images: unit vectors, one after another, in out, which has room for capacity floats.
 * On failure out is unchanged or partly written. */
CGD_API cgd_status cgd_embed(cgd_engine *engine, const cgd_image *images, size_t count, float *out, size_t capacity);

/* The same for encoded files (JPEG, PNG, ...) in memory. Transparent pixels lie on white. */
CGD_API cgd_status cgd_embed_encoded(cgd_engine *engine, const void *const *files, const size_t *sizes, size_t count,
                                     float *out, size_t capacity);

CGD_API void cgd_request_init(cgd_request *request);

/* Begin to describe one image, and return at once; request may be NULL. The image is computed in a batch with other
 * single images. The descriptor goes to out, which has room for capacity floats. Keep out and the pixels until the
 * image is done: done is called, cgd_ticket_wait returns a status of the image, or cgd_ticket_free returns.
 *
 * *ticket is to be freed, and is set before done is called; ticket may be NULL if the request has a function done.
 * CGD_OVERLOADED if the queue is full; on failure *ticket is NULL, and done is not called. */
CGD_API cgd_status cgd_submit(cgd_engine *engine, const cgd_image *image, const cgd_request *request, float *out,
                              size_t capacity, cgd_ticket **ticket);

/* The same for an encoded file in memory. */
CGD_API cgd_status cgd_submit_encoded(cgd_engine *engine, const void *file, size_t size, const cgd_request *request,
                                      float *out, size_t capacity, cgd_ticket **ticket);

/* Wait for a submitted image and the return of its done, at most timeout_ms; 0 does not wait, a negative number waits
 * for ever. Returns the status of the image, or CGD_PENDING. */
CGD_API cgd_status cgd_ticket_wait(cgd_ticket *ticket, double timeout_ms);

/* Free a ticket; NULL does nothing. An image that is not being computed yet is cancelled: it has CGD_CANCELLED. Waits
 * until the image is done and its done has returned. */
CGD_API void cgd_ticket_free(cgd_ticket *ticket);

/* What happened to the single images of cgd_embed, cgd_embed_encoded and cgd_submit since the engine was opened. */
CGD_API cgd_status cgd_engine_stats(const cgd_engine *engine, cgd_stats *stats);

/* Send the messages of the process of this level and above to log; NULL: to nobody. When the call returns, the function
 * before it is called no more. */
CGD_API cgd_status cgd_set_log(cgd_log log, void *context, cgd_log_level least);

/* The k rows of gallery with the largest inner products with each query, the largest first: [query_count][k] indices
 * and products. Strides are bytes from one row to the next, 0 for dim * sizeof(float). Exact. */
CGD_API cgd_status cgd_search(const float *queries, size_t query_count, size_t query_stride, const float *gallery,
                              size_t gallery_count, size_t gallery_stride, size_t dim, size_t k, uint64_t *indices,
                              float *scores);

/* Limit the inputs that this process accepts, e.g. ("pixels", "25000000") or ("formats", "JPEG,PNG"). Names and values
 * are those of `cgd-deploy --limit NAME=VALUE`. */
CGD_API cgd_status cgd_set_limit(const char *name, const char *value);

/* Read an index that `cgd-deploy embed` wrote: a .npy file, a .parquet file, or a folder of shards. On failure *index
 * is NULL. */
CGD_API cgd_status cgd_index_open(const char *path, cgd_index **index);

/* Free an index; NULL does nothing. */
CGD_API void cgd_index_close(cgd_index *index);

/* Pictures in the index. */
CGD_API size_t cgd_index_size(const cgd_index *index);

/* Floats of a query. */
CGD_API size_t cgd_index_dim(const cgd_index *index);

/* The index answers queries of engines that have the same space; valid until close. */
CGD_API const char *cgd_index_space_id(const cgd_index *index);

/* The file of picture i, NULL if i is not below the size; valid until close. */
CGD_API const char *cgd_index_path(const cgd_index *index, size_t i);

/* The k pictures nearest to each query, the nearest first: [query_count][k] indices and cosines. The engine made the
 * queries, [query_count][dim]; CGD_BAD_INDEX if it has another space than the index. Exact over the descriptors as the
 * index keeps them. */
CGD_API cgd_status cgd_index_search(const cgd_index *index, const cgd_engine *engine, const float *queries,
                                    size_t query_count, size_t k, uint64_t *indices, float *scores);

#ifdef __cplusplus
}
#endif

#endif
