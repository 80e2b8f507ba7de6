/* What comes before a forward pass and after it: the tokens of all runs in one list, and room for them. */
#include "base/error.h"
#include "base/memory.h"
#include "model/pass.h"

/* Heads times chunks of a lone token. */
static int64_t parts_of(const pl_config *c, const pl_run *run) {
    return (run->session->position / PL_CHUNK + 1) * c->n_heads;
}

static void count(pl_pass *p) {
    for (int32_t r = 0; r < p->n_runs; r++) {
        const pl_run *run = &p->runs[r];
        p->n += run->n;
        p->n_answers += run->n_logits;
        if (run->logits) p->n_logits += run->n_logits;
        if (run->n != 1) continue;
        p->n_alone++;
        p->n_parts += parts_of(p->config, run);
    }
}

static void list_rows(pl_pass *p) {
    int64_t i = 0, part = 0;
    for (int32_t r = 0; r < p->n_runs; r++) {
        const pl_run *run = &p->runs[r];
        int64_t position = run->session->position, length = position + run->n;
        for (int64_t t = 0; t < run->n; t++, i++) {
            p->rows[i] = (pl_row){run->session, position + t, length, run->tokens[t], run->n == 1 ? part : -1};
        }
        if (run->n == 1) part += parts_of(p->config, run);
    }
}

/* Those that have logits, or those that have none, from answer m on; how many there are then. */
static int64_t list_answers(pl_pass *p, int with_logits, int64_t m) {
    int64_t end = 0;
    for (int32_t r = 0; r < p->n_runs; r++) {
        const pl_run *run = &p->runs[r];
        end += run->n;
        if ((run->logits != NULL) != with_logits) continue;
        for (int64_t j = 0; j < run->n_logits; j++, m++) {
            p->answers[m] = (pl_answer){end - run->n_logits + j, NULL};
            if (run->states) p->answers[m].state = run->states + j * p->config->dim;
            if (with_logits) p->logits[m] = run->logits + j * p->config->vocab_size;
        }
    }
    return m;
}

/* The largest rank of all adapters, padded; 0 where there are none. */
static int64_t rank_of(const pl_pass *p) {
    int64_t rank = 0;
    for (int32_t r = 0; r < p->n_runs; r++) {
        const pl_adaptations *a = &p->runs[r].session->adaptations;
        for (int32_t i = 0; i < a->n; i++) rank = a->list[i].adapter->rank > rank ? a->list[i].adapter->rank : rank;
    }
    return pl_pad(rank);
}

int32_t pl_forward(pl_model *model, pl_scratch *scratch, const pl_run *runs, int32_t n_runs, int32_t threads,
                   pl_poll_fn poll, void *context, pl_error *err) {
    pl_pass p = {.model = model,
                 .config = &model->config,
                 .kernels = pl_kernels_current(),
                 .scratch = scratch,
                 .runs = runs,
                 .n_runs = n_runs,
                 .poll = poll,
                 .context = context,
                 .polled = pl_seconds()};
    count(&p);
    p.rank = rank_of(&p);
    int32_t status = pl_scratch_reserve(p.scratch, model, p.n, p.n_parts, threads, err);
    if (status != PL_OK) return status;
    p.rows = pl_alloc((size_t)p.n, sizeof *p.rows);
    p.answers = pl_alloc((size_t)p.n_answers, sizeof *p.answers);
    p.logits = pl_alloc((size_t)p.n_logits, sizeof *p.logits);
    if (p.rank > 0) p.low_rank = pl_alloc((size_t)threads * PL_ADAPTED * (size_t)p.rank, sizeof *p.low_rank);
    if (p.rows && p.answers && p.logits && (p.low_rank || p.rank == 0)) {
        list_rows(&p);
        list_answers(&p, 0, list_answers(&p, 1, 0));
        pl_parallel(threads, pl_transformer, &p);
        if (p.stop[0] || p.stop[1]) status = pl_fail(err, PL_INTERRUPTED, "stopped");
    } else {
        status = pl_fail(err, PL_MEMORY, "no memory for a batch of %lld tokens", (long long)p.n);
    }
    pl_free(p.rows);
    pl_free(p.answers);
    pl_free(p.logits);
    pl_free(p.low_rank);
    return status;
}
