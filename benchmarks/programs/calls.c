/* Calls of libcgd, one after another, for native.py: what a call takes beyond the inference that the library measured.
 *
 *     calls ENGINE SECONDS
 */
#define _POSIX_C_SOURCE 200809L
#include <cgd.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "memory.h"

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static double computed(cgd_engine *engine) {
    cgd_stats stats;
    stats.size = sizeof stats;
    cgd_engine_stats(engine, &stats);
    return stats.compute_seconds.total;
}

int main(int argc, char **argv) {
    const double begin = now();
    uint32_t width, height;
    cgd_engine *engine;
    cgd_options options;
    cgd_options_init(&options);
    options.max_batch = 1;
    if (argc != 3 || cgd_engine_open(argv[1], &options, &engine) != CGD_OK)
        return fprintf(stderr, "%s\n", cgd_last_error()), 1;
    cgd_engine_input_size(engine, &width, &height);
    const size_t dim = cgd_engine_dim(engine);
    const cgd_image image = {calloc(3, (size_t)width * height), width, height, 3 * (size_t)width, CGD_RGB8};
    float *descriptor = malloc(dim * sizeof *descriptor);
    if (cgd_embed(engine, &image, 1, descriptor, dim) != CGD_OK) return fprintf(stderr, "%s\n", cgd_last_error()), 1;
    const double start = now() - begin, before = computed(engine), loop = now();
    const long memory = resident_kilobytes();
    size_t calls = 0;
    for (; now() - loop < atof(argv[2]); calls++) cgd_embed(engine, &image, 1, descriptor, dim);
    const double beyond = calls ? (now() - loop - (computed(engine) - before)) / (double)calls : 0;
    printf("{\"start\": %.4f, \"kilobytes\": %ld, \"beyond_microseconds\": %.2f}\n", start, memory, 1e6 * beyond);
    cgd_engine_close(engine);
    return 0;
}
