/* The end of the process: exit() destroys static objects of the backends, so it first waits for running calls. Later
 * calls are refused. cgd.c includes this file. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

int __cxa_atexit(void (*handler)(void *), void *argument, void *owner);
void __cxa_finalize(void *owner);

static atomic_int process, running_calls, watched_calls, ending;
static _Thread_local int own_calls, watched, moving;

static void wait_a_millisecond(void) { nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); }

/* Refuse further calls and wait for the running ones. A signal handler may call exit() inside a call, which cannot be
 * waited for; a child of fork() has none of the threads. */
static void shut_down(void) {
    if (process != getpid()) return;
    python_lock released = release_lock();
    ending = 1;
    while (running_calls > own_calls) wait_a_millisecond();
    take_lock(released);
}

static void at_exit(void *unused) {
    (void)unused;
    if (!moving) shut_down();
}

/* exit() runs the last registered handler first. Each static object registers its destructor when it is constructed, so
 * shut_down has to move to the end again: __cxa_finalize calls and removes the handlers of an owner. */
static void move_to_end(char *owner) {
    if (ending) return;
    moving = 1;
    __cxa_finalize(owner);
    __cxa_atexit(at_exit, NULL, owner);
    moving = 0;
}

static char last, spare;

static void register_last(void) { move_to_end(&last); }

/* The spare handler is there if another thread calls exit() while the last one moves. In glibc each of its moves leaves a
 * hole in the table of handlers, so it does not move for every image. */
static void register_both(void) {
    move_to_end(&spare);
    move_to_end(&last);
}

static void *stay_last(void *unused) {
    (void)unused;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL); /* handlers of the host run in threads of the host */
    for (; watched_calls; wait_a_millisecond()) register_last();
    return NULL;
}

/* Another thread may call exit() while this thread's call constructs static objects. */
static void watch(void) {
    pthread_t thread;
    watched = 1;
    register_both();
    if (watched_calls++ == 0 && !pthread_create(&thread, NULL, stay_last, NULL)) pthread_detach(thread);
}

static void unwatch(void) {
    watched = 0;
    register_both();
    watched_calls--;
}
