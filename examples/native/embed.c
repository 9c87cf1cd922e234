/* Describe files from C: each line has its name and the first values of its descriptor, then how alike the first two are.
 *
 *     cc embed.c $(pkg-config --cflags --libs cgd) -o embed && ./embed model-int8.cgd a.jpg b.jpg
 */
#include <cgd.h>
#include <stdio.h>
#include <stdlib.h>

static unsigned char *read_file(const char *path, size_t *size) {
    unsigned char *data = NULL;
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    if (fseek(file, 0, SEEK_END) == 0) {
        long length = ftell(file);
        rewind(file);
        *size = length > 0 ? (size_t)length : 0;
        data = malloc(*size + 1);
        if (data && fread(data, 1, *size, file) != *size) {
            free(data);
            data = NULL;
        }
    }
    fclose(file);
    return data;
}

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, cgd_last_error());
    return 1;
}

int main(int argc, char **argv) {
    if (argc < 3) return fprintf(stderr, "usage: %s ENGINE PICTURE...\n", argv[0]), 2;
    cgd_engine *engine;
    if (cgd_engine_open(argv[1], NULL, &engine) != CGD_OK) return fail(argv[1]);
    size_t dim = cgd_engine_dim(engine), count = (size_t)argc - 2;
    float *descriptors = malloc(count * dim * sizeof *descriptors);
    int failed = descriptors == NULL;
    for (size_t i = 0; i < count && !failed; i++) {
        size_t size = 0;
        unsigned char *data = read_file(argv[i + 2], &size);
        const void *file = data;
        float *row = descriptors + i * dim;
        if (!data)
            failed = fprintf(stderr, "%s cannot be read\n", argv[i + 2]);
        else if (cgd_embed_encoded(engine, &file, &size, 1, row, dim) != CGD_OK)
            failed = fail(argv[i + 2]);
        else
            printf("%s %.9g %.9g %.9g\n", argv[i + 2], row[0], row[1], row[2]);
        free(data);
    }
    if (!failed && count > 1) {
        float cosine = 0;
        for (size_t i = 0; i < dim; i++) cosine += descriptors[i] * descriptors[dim + i];
        printf("cosine %.6f\n", cosine);
    }
    free(descriptors);
    cgd_engine_close(engine);
    return failed != 0;
}
