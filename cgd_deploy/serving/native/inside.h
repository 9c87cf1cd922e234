/* What lies behind the functions of cgd.h: the functions that cgd.c calls after it has checked the arguments. The C++
 * library has them in cpp/inside.cpp, the library with Python in embedded.py. */
#ifndef CGD_INSIDE_H
#define CGD_INSIDE_H

#include "include/cgd.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CGD_MESSAGE 1024
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

/* structs: begin */
typedef struct cgd_facts {
    size_t dim;
    uint32_t width;
    uint32_t height;
    char space_id[256];
} cgd_facts;

typedef struct cgd_index_facts {
    size_t size;
    size_t dim;
    const char **texts; /* the space_id, then the paths, in one block of malloc that cgd.c frees */
} cgd_index_facts;

typedef struct cgd_rows {
    const float *values;
    size_t count;
    size_t stride; /* in bytes, 0 for rows without a gap */
} cgd_rows;

typedef struct cgd_found {
    uint64_t *indices;
    float *scores;
} cgd_found;

typedef struct cgd_wanted {
    float *out;
    double timeout_ms; /* 0: no limit */
    cgd_ticket *ticket;
} cgd_wanted;
/* structs: end */

/* Each returns a status plus one, or 0 after an unexpected error. A message has CGD_MESSAGE bytes and gets the sentence
 * of an error. Engines and indices have numbers. */
/* functions: begin */
int inside_open(const char *path, const cgd_options *options, uint64_t *number, cgd_facts *facts, char *message);
int inside_close(uint64_t number, char *message);
int inside_self_test(uint64_t number, float *cosine, char *message);
int inside_embed(uint64_t number, const cgd_image *images, size_t count, float *out, char *message);
int inside_embed_encoded(uint64_t number, const void *const *files, const size_t *sizes, size_t count, float *out,
                         char *message);
int inside_submit(uint64_t number, const cgd_image *image, const cgd_wanted *wanted, char *message);
int inside_submit_encoded(uint64_t number, const void *file, size_t size, const cgd_wanted *wanted, char *message);
int inside_cancel(cgd_ticket *ticket, char *message);
int inside_stats(uint64_t number, cgd_stats *stats, char *message);
int inside_set_log(cgd_log log, void *context, int least, char *message);
int inside_search(const cgd_rows *queries, const cgd_rows *gallery, size_t dim, size_t k, const cgd_found *found,
                  char *message);
int inside_set_limit(const char *name, const char *value, char *message);
int inside_index_open(const char *path, uint64_t *number, cgd_index_facts *facts, char *message);
int inside_index_close(uint64_t number, char *message);
int inside_index_search(uint64_t number, uint64_t engine, const cgd_rows *queries, size_t k, const cgd_found *found,
                        char *message);
/* functions: end */

/* What the implementation calls: once for each submitted image, when it is done with the pixels and `out`. */
void finish_ticket(cgd_ticket *ticket, int status, const char *message);

#ifdef __cplusplus
}
#endif

#endif
