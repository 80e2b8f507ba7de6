/* Text that goes on by itself. It is the loop of run.c: draw a token, evaluate it, and so on. */
#include <stdatomic.h>

#include "base/threads.h"
#include "model/session.h"
#include "pyllm.h"

/* One token behind the text; whether there is one. */
static int draw(pl_generation *g, int64_t vocab) {
    pl_error err;
    int64_t n = g->n_text + g->drawn;
    if (pl_sample(g->sampler, g->logits, vocab, g->text, n, NULL, g->text + n, &err) != PL_OK) return 0;
    g->drawn++;
    return 1;
}

static int ends(const pl_generation *g, int32_t token) {
    for (int64_t i = 0; i < g->n_stop; i++) {
        if (g->stop_ids[i] == token) return 1;
    }
    return 0;
}

/* One token more, and its logits if there is time for the next; whether there are. */
static int step(pl_session *s, pl_generation *g, double until, int32_t threads) {
    pl_error err;
    if (!draw(g, s->model->config.vocab_size)) return 0;
    const int32_t *token = g->text + g->n_text + g->drawn - 1;
    if (g->drawn == g->most || ends(g, *token) || pl_seconds() >= until) return 0;
    pl_run run = {.session = s, .tokens = token, .n = 1, .n_logits = 1, .logits = g->logits};
    return pl_eval(s->model, &run, 1, threads, NULL, NULL, &err) == PL_OK;
}

void pl_generate(pl_session *session, pl_generation *generation, int32_t threads) {
    const double until = pl_seconds() + generation->seconds;
    generation->drawn = 0;
    while (generation->drawn < generation->most && step(session, generation, until, threads)) {}
}

typedef struct draws {
    pl_generation *const *generations; /* (n) */
    int64_t n, vocab;
    atomic_llong next;
} draws;

static void draw_share(void *argument, const pl_worker *worker) {
    (void)worker;
    draws *d = argument;
    for (int64_t i; (i = atomic_fetch_add(&d->next, 1)) < d->n;) {
        d->generations[i]->drawn = 0;
        draw(d->generations[i], d->vocab);
    }
}

void pl_draw(const pl_model *model, pl_generation *const *generations, int64_t n, int32_t threads) {
    const int64_t worth_sharing = 10000; /* logits */
    draws d = {generations, n, model->config.vocab_size, 0};
    if (n * d.vocab < worth_sharing) threads = 1;
    pl_parallel(threads < n ? threads : (int32_t)n, draw_share, &d);
}
