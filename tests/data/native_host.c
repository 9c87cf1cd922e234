/* A program that uses libcgd and ends in the way that MODE names; test_native_host.py runs it.
 *
 *     host ENGINE MODE [MILLISECONDS]
 */
#define _POSIX_C_SOURCE 200809L
#include <cgd.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SIDE = 64, MOST = 4096, SIGNALS = 64 };

static cgd_engine *engine;
static const char *path;
static volatile sig_atomic_t stopped;

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, cgd_last_error());
    _exit(9);
}

static void expect(cgd_status found, cgd_status expected, const char *what) {
    if (found != expected) fail(what);
}

static void wait_ms(long ms) {
    const struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* A single image goes through the engine's queue; two images are a batch of this thread. */
static cgd_status embed(size_t count) {
    static uint8_t pixels[SIDE * SIDE * 3];
    const cgd_image image = {pixels, SIDE, SIDE, SIDE * 3, CGD_RGB8}, images[2] = {image, image};
    float out[2 * MOST];
    return cgd_embed(engine, images, count, out, 2 * MOST);
}

static void *embed_until_the_end(void *count) {
    cgd_status status;
    do status = embed((size_t)count);
    while (status == CGD_OK);
    expect(status, CGD_SHUTTING_DOWN, "embed");
    while (embed((size_t)count) == CGD_SHUTTING_DOWN) continue;
    fail("embed after the end");
    return NULL;
}

static void *open_and_embed(void *count) {
    cgd_status status = cgd_engine_open(path, NULL, &engine);
    if (status == CGD_OK) return embed_until_the_end(count);
    expect(status, CGD_SHUTTING_DOWN, "open");
    return NULL;
}

static void *exit_later(void *ms) {
    wait_ms((long)ms);
    exit(0);
}

static void start(void *(*run)(void *), void *argument) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, argument) || pthread_detach(thread)) _exit(8);
}

static void close_engine(void) {
    cgd_engine_close(engine);
    puts("closed");
}

static void stop(int number) {
    (void)number;
    stopped = 1;
}

static void read_handlers(struct sigaction *handlers) {
    memset(handlers, 0, SIGNALS * sizeof *handlers);
    for (int number = 1; number < SIGNALS; number++) sigaction(number, NULL, &handlers[number]);
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    path = argv[1];
    const char *mode = argv[2];
    const long ms = argc > 3 ? atol(argv[3]) : 0;
#define IS(name) (strcmp(mode, name) == 0)
    if (IS("open elsewhere")) {
        start(open_and_embed, (void *)1);
        wait_ms(ms);
        return 0;
    }
    if (IS("close after the library ended")) atexit(close_engine);
    if (IS("own handler")) signal(SIGINT, stop);
    struct sigaction before[SIGNALS], after[SIGNALS];
    read_handlers(before);
    expect(cgd_engine_open(path, NULL, &engine), CGD_OK, "open");
    expect(embed(1), CGD_OK, "embed");
    if (strcmp(setlocale(LC_ALL, NULL), "C")) return fputs("the locale changed\n", stderr), 7;
    read_handlers(after);
    for (int number = 1; number < SIGNALS; number++)
        if (before[number].sa_handler != after[number].sa_handler)
            return fprintf(stderr, "the handler of signal %d changed\n", number), 7;
    if (IS("close before the library ends")) return atexit(close_engine);
    if (IS("close after the library ended")) return 0;
    if (IS("no handler") || IS("own handler")) {
        puts("ready");
        fflush(stdout);
        while (!stopped) expect(embed(1), CGD_OK, "embed");
        puts("stopped");
        close_engine();
        return 0;
    }
    start(embed_until_the_end, (void *)1);
    start(embed_until_the_end, (void *)2);
    wait_ms(ms);
    if (IS("fork")) {
        pid_t child = fork();
        if (child == 0) {
            expect(embed(1), CGD_INVALID_ARGUMENT, "embed in a child");
            close_engine();
            fflush(stdout);
            _exit(0); /* not exit: in glibc its lock stays locked if another thread held it during the fork */
        }
        int status = 6;
        waitpid(child, &status, 0);
        return status;
    }
    if (IS("_exit")) _exit(0);
    if (IS("exit elsewhere")) {
        start(exit_later, (void *)ms);
        embed_until_the_end((void *)1);
    }
    return 0;
}
