/* pl_eval: arguments are checked and pages are reserved here; the forward pass is in forward.c. */
#include "base/error.h"
#include "base/threads.h"
#include "model/forward.h"

static int32_t check_answers(const pl_model *model, const pl_run *run, pl_error *err) {
    int32_t wanted = run->n_logits, somewhere = run->logits != NULL || run->states != NULL;
    if (wanted < 0 || wanted > run->n || (wanted > 0 && !somewhere)) {
        return pl_fail(err, PL_INVALID, "%d logits of %lld tokens; expected 0 to as many, and a place for them", wanted,
                       (long long)run->n);
    }
    if (wanted > 0 && run->logits != NULL && pl_model_head(model) == NULL) {
        return pl_fail(err, PL_UNSUPPORTED, "the model has no head: it gives hidden states, not logits");
    }
    if (run->n_hidden < 0 || (run->n_hidden > 0 && (run->hidden_layers == NULL || run->hidden == NULL))) {
        return pl_fail(err, PL_INVALID,
                       "the residual stream after %d layers; expected a list of them and a place for it",
                       run->n_hidden);
    }
    for (int32_t j = 0; j < run->n_hidden; j++) {
        if (run->hidden_layers[j] >= 0 && run->hidden_layers[j] <= model->config.n_layers) continue;
        return pl_fail(err, PL_INVALID, "layer %d is out of range: the model has 0 (the embedding) to %d",
                       run->hidden_layers[j], model->config.n_layers);
    }
    return PL_OK;
}

/* Whether the session can go on by n tokens. */
static int32_t check_length(const pl_model *model, const pl_session *s, int64_t n, pl_error *err) {
    const pl_config *c = &model->config;
    int64_t limit = s->context_length;
    if (pl_is_bound(&model->position_embedding) && c->context_length < limit) limit = c->context_length;
    if (n > limit - s->position) {
        return pl_fail(err, PL_CONTEXT, "%lld tokens at position %lld exceed the context of %lld", (long long)n,
                       (long long)s->position, (long long)limit);
    }
    if (!c->causal && s->position > 0) {
        return pl_fail(err, PL_INVALID, "the model sees a sequence as a whole: it cannot go on at position %lld",
                       (long long)s->position);
    }
    if (!pl_session_rope_fits(s, n)) {
        return pl_fail(err, PL_INVALID, "RoPE's factors change at %d positions: the sequence must be evaluated again",
                       c->rope_original);
    }
    return PL_OK;
}

static int32_t check_run(const pl_model *model, const pl_run *run, pl_error *err) {
    const pl_session *s = run->session;
    if (s == NULL || s->model != model) return pl_fail(err, PL_INVALID, "the session belongs to another model");
    if (run->n < 1 || run->tokens == NULL) return pl_fail(err, PL_INVALID, "there are no tokens to evaluate");
    for (int64_t i = 0; i < run->n; i++) {
        if (run->tokens[i] >= 0 && run->tokens[i] < model->config.vocab_size) continue;
        return pl_fail(err, PL_INVALID, "token id %d is out of range: the vocabulary has ids 0 to %d", run->tokens[i],
                       model->config.vocab_size - 1);
    }
    int32_t status = check_length(model, s, run->n, err);
    return status == PL_OK ? check_answers(model, run, err) : status;
}

static int32_t check_runs(const pl_model *model, const pl_run *runs, int32_t n_runs, pl_error *err) {
    for (int32_t r = 0; r < n_runs; r++) {
        int32_t status = check_run(model, &runs[r], err);
        if (status != PL_OK) return status;
        for (int32_t other = 0; other < r; other++) {
            if (runs[other].session == runs[r].session) return pl_fail(err, PL_INVALID, "a session stands twice");
        }
    }
    return PL_OK;
}

/* Small steps are done before a second thread has woken up. */
static int32_t useful_threads(const pl_model *model, const pl_run *runs, int32_t n_runs, int32_t threads) {
    const double worth_sharing = 4e6; /* bytes of weights times tokens */
    double work = 0;
    for (int32_t r = 0; r < n_runs; r++) work += (double)runs[r].n * (double)pl_model_token_bytes(model);
    return work < worth_sharing ? 1 : threads;
}

/* Pages that some runs have got where others lack them: they would help nobody. */
static void give_back(pl_model *model, const pl_run *runs, int32_t n_runs) {
    for (int32_t r = 0; r < n_runs; r++) {
        pl_session *s = runs[r].session;
        if (s != NULL && s->model == model) pl_pages_truncate(model, &s->table, s->position);
    }
}

int32_t pl_eval(pl_model *model, const pl_run *runs, int32_t n_runs, int32_t threads, pl_poll_fn poll, void *context,
                pl_error *err) {
    if (n_runs < 1 || threads < 1 || threads > PL_MOST_THREADS) {
        return pl_fail(err, PL_INVALID, "%d sequences on %d threads; expected at least 1, on 1 to %d", n_runs, threads,
                       PL_MOST_THREADS);
    }
    int32_t status = check_runs(model, runs, n_runs, err);
    for (int32_t r = 0; r < n_runs && status == PL_OK; r++) {
        pl_session *s = runs[r].session;
        pl_session_choose_rope(s, runs[r].n);
        status = pl_pages_reserve(model, &s->table, s->position, s->position + runs[r].n, err);
    }
    if (status != PL_OK) {
        give_back(model, runs, n_runs);
        return status;
    }
    pl_scratch *scratch = pl_scratch_borrow(model);
    if (scratch == NULL) return pl_fail(err, PL_MEMORY, "no memory for a forward pass");
    threads = useful_threads(model, runs, n_runs, threads);
    status = pl_forward(model, scratch, runs, n_runs, threads, poll, context, err);
    pl_scratch_return(model, scratch);
    for (int32_t r = 0; r < n_runs && status == PL_OK; r++) runs[r].session->position += runs[r].n;
    return status;
}
