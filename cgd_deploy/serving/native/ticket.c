/* Submitted images. A ticket lives until it is freed, its image is done and the call that made it has returned. cgd.c
 * includes this file. */

struct cgd_ticket {
    atomic_int owners; /* who frees it, the image, and the call that makes it */
    int begun, watched;
    cgd_done done;
    void *context;
    pthread_mutex_t lock; /* guards what follows; Python's lock is never needed with it */
    pthread_cond_t changed;
    int is_done;
    cgd_status status;
    char message[CGD_MESSAGE];
};

/* The caller's pointer is set before another thread can call done. */
static cgd_ticket *new_ticket(const cgd_request *request, cgd_ticket **caller) {
    pthread_condattr_t clock;
    cgd_ticket *ticket = calloc(1, sizeof *ticket);
    if (!ticket) return NULL;
    ticket->owners = 3;
    ticket->done = request->done;
    ticket->context = request->context;
    pthread_mutex_init(&ticket->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&ticket->changed, &clock);
    pthread_condattr_destroy(&clock);
    if (caller) *caller = ticket;
    return ticket;
}

static void disown(cgd_ticket *ticket) {
    if (--ticket->owners) return;
    pthread_cond_destroy(&ticket->changed);
    pthread_mutex_destroy(&ticket->lock);
    free(ticket);
}

/* From here to `ended`, the image counts as a running call, which exit() waits for. */
static void begun(cgd_ticket *ticket) {
    ticket->begun = 1;
    running_calls++;
    own_calls++;
    if (watched) ticket->watched = 1, watched_calls++;
    if (ticket->done) register_last(); /* exit() calls done before it destroys what the host has constructed so far */
}

static void ended(cgd_ticket *ticket) {
    if (ticket->done) register_last();
    if (ticket->watched) {
        register_both();
        watched_calls--;
    }
    if (ticket->begun) running_calls--;
    disown(ticket);
}

/* The implementation calls this once for each image, when it neither reads the pixels nor writes to the caller's memory
 * again. */
void finish_ticket(cgd_ticket *ticket, int status, const char *message) {
    if (ticket->done) ticket->done(ticket->context, (cgd_status)status, message);
    pthread_mutex_lock(&ticket->lock);
    ticket->is_done = 1;
    ticket->status = (cgd_status)status;
    snprintf(ticket->message, sizeof ticket->message, "%s", message);
    pthread_cond_broadcast(&ticket->changed);
    pthread_mutex_unlock(&ticket->lock);
    ended(ticket);
}

static struct timespec after(double ms) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const int64_t nanoseconds = now.tv_nsec + (int64_t)(ms * 1e6);
    return (struct timespec){now.tv_sec + nanoseconds / 1000000000, nanoseconds % 1000000000};
}

/* Whether the image is done within `ms`; a negative number waits for ever. */
static int wait_until_done(cgd_ticket *ticket, double ms) {
    python_lock released = release_lock();
    const int forever = ms < 0 || ms > 1e12;
    const struct timespec end = after(forever ? 0 : ms);
    pthread_mutex_lock(&ticket->lock);
    for (int late = 0; !ticket->is_done && !late;)
        late = forever ? pthread_cond_wait(&ticket->changed, &ticket->lock)
                       : pthread_cond_timedwait(&ticket->changed, &ticket->lock, &end);
    const int is_done = ticket->is_done;
    pthread_mutex_unlock(&ticket->lock);
    take_lock(released);
    return is_done;
}

/* Also fills `chosen`, of which an older header knows less. */
static cgd_status check_submit(const cgd_engine *engine, const void *image, const cgd_request *request,
                               const float *out, size_t capacity, cgd_ticket **ticket, cgd_request *chosen) {
    if (ticket) *ticket = NULL;
    cgd_request_init(chosen);
    cgd_status status = check_embed(engine, image, 1, out, capacity);
    if (status == CGD_OK && request) status = check_size(request->size, "request");
    if (status != CGD_OK) return status;
    if (request) memcpy(chosen, request, request->size < sizeof *chosen ? request->size : sizeof *chosen);
    if (!(chosen->timeout_ms >= 0))
        return fail(CGD_INVALID_ARGUMENT, "timeout_ms is %g; expected 0 or more.", chosen->timeout_ms);
    if (!ticket && !chosen->done)
        return fail(CGD_INVALID_ARGUMENT, "ticket is NULL and the request has no done; pass one of them.");
    return CGD_OK;
}

#define BEGINNING(ticket, call) ({ begun(ticket); int answer = call; own_calls--; answer; })

static cgd_status made(cgd_status status, cgd_ticket *ticket, cgd_ticket **caller) {
    if (status != CGD_OK) {
        if (caller) *caller = NULL;
        ended(ticket);
    }
    if (status != CGD_OK || !caller) disown(ticket);
    disown(ticket);
    return status;
}

void cgd_request_init(cgd_request *request) {
    if (!request) return;
    memset(request, 0, sizeof *request);
    request->size = sizeof *request;
}

cgd_status cgd_submit(cgd_engine *engine, const cgd_image *image, const cgd_request *request, float *out,
                      size_t capacity, cgd_ticket **ticket) {
    cgd_request chosen;
    cgd_status status = check_submit(engine, image, request, out, capacity, ticket, &chosen);
    if (status == CGD_OK) status = check_image(image, 0);
    if (status != CGD_OK) return status;
    const cgd_wanted wanted = {out, chosen.timeout_ms, new_ticket(&chosen, ticket)};
    if (!wanted.ticket) return fail(CGD_INTERNAL, "there is no memory left.");
    status = INSIDE(BEGINNING(wanted.ticket, inside_submit(engine->number, image, &wanted, last_error)));
    return made(status, wanted.ticket, ticket);
}

cgd_status cgd_submit_encoded(cgd_engine *engine, const void *file, size_t size, const cgd_request *request, float *out,
                              size_t capacity, cgd_ticket **ticket) {
    cgd_request chosen;
    cgd_status status = check_submit(engine, file, request, out, capacity, ticket, &chosen);
    if (status != CGD_OK) return status;
    const cgd_wanted wanted = {out, chosen.timeout_ms, new_ticket(&chosen, ticket)};
    if (!wanted.ticket) return fail(CGD_INTERNAL, "there is no memory left.");
    status = INSIDE(BEGINNING(wanted.ticket, inside_submit_encoded(engine->number, file, size, &wanted, last_error)));
    return made(status, wanted.ticket, ticket);
}

/* Needs nothing inside, so it also works while the process ends. */
cgd_status cgd_ticket_wait(cgd_ticket *ticket, double timeout_ms) {
    last_error[0] = '\0';
    if (!ticket || timeout_ms != timeout_ms)
        return fail(CGD_INVALID_ARGUMENT, "ticket is NULL or timeout_ms is no number; pass a ticket and milliseconds.");
    cgd_status status = check_process();
    if (status != CGD_OK) return status;
    if (!wait_until_done(ticket, timeout_ms)) return fail(CGD_PENDING, "the image is not done; wait again.");
    return ticket->status == CGD_OK ? CGD_OK : fail(ticket->status, "%s", ticket->message);
}

/* While the process ends, nothing is cancelled: exit() waits for the image. */
void cgd_ticket_free(cgd_ticket *ticket) {
    last_error[0] = '\0';
    if (!ticket) return;
    if (check_process() == CGD_OK) {
        if (!wait_until_done(ticket, 0)) INSIDE(inside_cancel(ticket, last_error));
        wait_until_done(ticket, -1);
    }
    last_error[0] = '\0';
    disown(ticket);
}
