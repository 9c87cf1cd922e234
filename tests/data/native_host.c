/* A host of libcgd that ends in the way that MODE names; tests/test_native_host.py runs it.
 *
 *     host ENGINE MODE [MILLISECONDS]
 */
#define _GNU_SOURCE
#include <cgd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static cgd_engine *engine;
static const char *path;
static volatile sig_atomic_t stopped;

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, cgd_last_error());
    _exit(9);
}

static void pause_ms(long ms) { nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL); }

static void open_engine(void) {
    if (cgd_engine_open(path, NULL, &engine) != CGD_OK) fail("open");
}

/* A single image goes through the queue, two are a batch of this thread. */
static cgd_status embed(size_t count) {
    static uint8_t pixels[64 * 64 * 3];
    cgd_image images[2] = {{pixels, 64, 64, 64 * 3, CGD_RGB8}, {pixels, 64, 64, 64 * 3, CGD_RGB8}};
    float out[2 * 4096];
    return cgd_embed(engine, images, count, out, 2 * 4096);
}

static void *embed_until_the_end(void *count) {
    cgd_status status;
    do status = embed((size_t)count);
    while (status == CGD_OK);
    if (status != CGD_SHUTTING_DOWN) fail("embed");
    for (;;) embed((size_t)count); /* stays refused */
}

static void *open_and_embed(void *count) {
    cgd_status status = cgd_engine_open(path, NULL, &engine);
    if (status == CGD_OK) return embed_until_the_end(count);
    if (status != CGD_SHUTTING_DOWN) fail("open");
    return NULL;
}

static void *exit_soon(void *ms) {
    pause_ms((long)ms);
    exit(0);
}

static void start(void *(*run)(void *), void *argument) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, argument) || pthread_detach(thread)) _exit(8);
}

static void start_two(void *(*run)(void *)) {
    start(run, (void *)1);
    start(run, (void *)2);
}

static void close_engine(void) {
    cgd_engine_close(engine);
    puts("closed");
}

static void stop(int number) {
    (void)number;
    stopped = 1;
}

static void embed_until_stopped(void) {
    puts("ready");
    fflush(stdout);
    while (!stopped)
        if (embed(1) != CGD_OK) fail("embed");
    puts("stopped");
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    path = argv[1];
    const char *mode = argv[2];
    long ms = argc > 3 ? atol(argv[3]) : 0;
    if (!strcmp(mode, "open-elsewhere")) {
        start(open_and_embed, (void *)1);
        pause_ms(ms);
        return 0;
    }
    if (!strcmp(mode, "close-last")) atexit(close_engine);
    if (!strcmp(mode, "handler")) signal(SIGINT, stop);
    struct sigaction before[NSIG], after;
    for (int number = 1; number < NSIG; number++) sigaction(number, NULL, &before[number]);
    open_engine();
    if (embed(1) != CGD_OK) fail("embed");
    for (int number = 1; number < NSIG; number++)
        if (!sigaction(number, NULL, &after) && after.sa_handler != before[number].sa_handler)
            return fprintf(stderr, "signal %d has another handler\n", number), 7;
    if (!strcmp(mode, "close-first")) atexit(close_engine);
    if (!strcmp(mode, "signal") || !strcmp(mode, "handler")) {
        embed_until_stopped();
        cgd_engine_close(engine);
        return 0;
    }
    if (!strcmp(mode, "fork")) {
        pid_t child = fork();
        start_two(embed_until_the_end);
        if (!child) pause_ms(ms);
        pause_ms(ms);
        return 0;
    }
    start_two(embed_until_the_end);
    pause_ms(ms);
    if (!strcmp(mode, "_exit")) _exit(0);
    if (!strcmp(mode, "exit-elsewhere")) {
        start(exit_soon, (void *)ms);
        embed_until_the_end((void *)1);
    }
    return 0;
}
