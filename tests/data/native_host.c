/* A program that uses libcgd and ends in the way that MODE names; test_native_host.py runs it.
 *
 *     host ENGINE MODE [MILLISECONDS]
 */
#define _XOPEN_SOURCE 700
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
static cgd_ticket *ticket;
static float descriptor[MOST];
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

static const uint8_t pixels[SIDE * SIDE * 3];
static const cgd_image image = {pixels, SIDE, SIDE, SIDE * 3, CGD_RGB8};

/* A single image goes through the engine's queue; two images are a batch of this thread. */
static cgd_status embed(size_t count) {
    const cgd_image images[2] = {image, image};
    float out[2 * MOST];
    return cgd_embed(engine, images, count, out, 2 * MOST);
}

/* The context is the descriptor, which nobody writes to any more. */
static void release(void *context, cgd_status status, const char *message) {
    (void)message;
    expect(status, CGD_OK, "done");
    free(context);
}

static cgd_status submit(void) {
    float *out = malloc(MOST * sizeof *out);
    cgd_request request;
    cgd_request_init(&request);
    request.done = release;
    request.context = out;
    const cgd_status status = cgd_submit(engine, &image, &request, out, MOST, NULL);
    if (status != CGD_OK) free(out);
    return status;
}

static void *submit_until_the_end(void *unused) {
    cgd_status status;
    (void)unused;
    do status = submit();
    while (status == CGD_OK || status == CGD_OVERLOADED);
    expect(status, CGD_SHUTTING_DOWN, "submit");
    return NULL;
}

/* Images are done before the handlers of atexit() run that the program had registered before it submitted the images. */
static void say(void *context, cgd_status status, const char *message) {
    printf("%s %s%s\n", (const char *)context, cgd_status_string(status), message);
}

static void see_the_end(void) {
    puts("handler");
    expect(submit(), CGD_SHUTTING_DOWN, "submit after the end");
    expect(cgd_ticket_wait(ticket, -1), CGD_OK, "wait after the end");
    cgd_ticket_free(ticket);
    cgd_engine_close(engine);
}

static int end_with_images(void) {
    cgd_request request;
    cgd_request_init(&request);
    request.done = say;
    for (int i = 0; i < 5; i++) expect(embed(1), CGD_OK, "embed");
    atexit(see_the_end);
    for (int i = 0; i < 2; i++) {
        request.context = i ? "second" : "first";
        expect(cgd_submit(engine, &image, &request, descriptor, MOST, i ? &ticket : NULL), CGD_OK, "submit");
    }
    return 0;
}

static void *embed_until_the_end(void *count) {
    cgd_status status;
    do status = embed((size_t)count);
    while (status == CGD_OK || status == CGD_OVERLOADED);
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

static void stop(int number) {
    (void)number;
    stopped = 1;
}

static void *close_in_a_thread(void *unused) {
    cgd_engine_close(engine);
    return unused;
}

static void raise_after_close_elsewhere(void) {
    struct sigaction on_stack = {.sa_handler = stop, .sa_flags = SA_ONSTACK};
    pthread_t thread;
    if (pthread_create(&thread, NULL, close_in_a_thread, NULL) || pthread_join(thread, NULL)) _exit(8);
    sigaction(SIGINT, &on_stack, NULL);
    raise(SIGINT);
}

static void close_engine(void) {
    cgd_engine_close(engine);
    puts("closed");
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
    cgd_options options;
    cgd_options_init(&options);
    options.max_queue = 16; /* exit() waits for the images in the queue */
    expect(cgd_engine_open(path, &options, &engine), CGD_OK, "open");
    expect(embed(1), CGD_OK, "embed");
    if (strcmp(setlocale(LC_ALL, NULL), "C")) return fputs("the locale changed\n", stderr), 7;
    read_handlers(after);
    for (int number = 1; number < SIGNALS; number++)
        if (before[number].sa_handler != after[number].sa_handler)
            return fprintf(stderr, "the handler of signal %d changed\n", number), 7;
    if (IS("close before the library ends")) return atexit(close_engine);
    if (IS("close after the library ended")) return 0;
    if (IS("images")) return end_with_images();
    if (IS("close elsewhere")) return raise_after_close_elsewhere(), !stopped;
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
    start(submit_until_the_end, NULL);
    wait_ms(ms);
    if (IS("fork")) {
        cgd_status submitted;
        do submitted = cgd_submit(engine, &image, NULL, descriptor, MOST, &ticket);
        while (submitted == CGD_OVERLOADED);
        expect(submitted, CGD_OK, "submit");
        pid_t child = fork();
        if (child == 0) {
            expect(embed(1), CGD_INVALID_ARGUMENT, "embed in a child");
            expect(cgd_ticket_wait(ticket, -1), CGD_INVALID_ARGUMENT, "wait in a child");
            cgd_ticket_free(ticket);
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
