/* Text that goes on by itself. It is the loop of run.c: draw a token, evaluate it, and so on. */
#include "base/threads.h"
#include "model/session.h"
#include "pyllm.h"

static int ends(const pl_generation *g, int32_t token) {
    for (int64_t i = 0; i < g->n_stop; i++) {
        if (g->stop_ids[i] == token) return 1;
    }
    return 0;
}

/* One token more, and its logits if there is time for the next; whether there are. */
static int step(pl_session *s, pl_generation *g, double until, int32_t threads) {
    pl_error err;
    int64_t n = g->n_text + g->drawn;
    int32_t *token = g->text + n;
    if (pl_sample(g->sampler, g->logits, s->model->config.vocab_size, g->text, n, NULL, token, &err) != PL_OK) return 0;
    g->drawn++;
    if (g->drawn == g->most || ends(g, *token) || pl_seconds() >= until) return 0;
    pl_run run = {.session = s, .tokens = token, .n = 1, .n_logits = 1, .logits = g->logits};
    return pl_eval(s->model, &run, 1, threads, NULL, NULL, &err) == PL_OK;
}

void pl_generate(pl_session *session, pl_generation *generation, int32_t threads) {
    const double until = pl_seconds() + generation->seconds;
    generation->drawn = 0;
    while (generation->drawn < generation->most && step(session, generation, until, threads)) {}
}
