#include "model/scratch.h"

#include "base/error.h"
#include "base/memory.h"

static float *floats(int64_t rows, int64_t width) {
    return pl_alloc((size_t)rows * (size_t)pl_pad(width), sizeof(float));
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t widest_hidden(const pl_config *c) { return larger(c->hidden_dim, c->shared_dim); }

static int64_t widest_input(const pl_config *c) {
    return larger(larger(c->dim, widest_hidden(c)), (int64_t)c->n_heads * c->head_dim);
}

static int reserve_experts(pl_expert_scratch *s, const pl_config *c, int64_t tokens, int32_t threads, pl_error *err) {
    int64_t pairs = tokens * c->n_experts_used;
    s->router = floats(tokens, c->n_experts);
    s->shared = floats(tokens, 1);
    s->choices = pl_alloc((size_t)larger(tokens, threads) * (size_t)c->n_experts_used, sizeof *s->choices);
    s->ranking = floats(3 * (int64_t)threads, c->n_experts);
    s->plans = pl_alloc((size_t)threads * (size_t)pl_plan_size(c, tokens), sizeof *s->plans);
    s->gate = floats(pairs, c->expert_dim);
    s->up = floats(pairs, c->expert_dim);
    s->out = floats(pairs, c->dim);
    int complete = s->router && s->shared && s->choices && s->ranking && s->plans && s->gate && s->up && s->out;
    return complete && pl_act_buffer_init(&s->acts, pairs, larger(c->dim, c->expert_dim), err) == PL_OK;
}

static int reserve_tokens(pl_scratch *s, const pl_model *m, int64_t tokens, int32_t threads, pl_error *err) {
    const pl_config *c = &m->config;
    int64_t columns = larger(tokens, threads);
    s->tokens = tokens;
    s->threads = threads;
    s->x = floats(columns, c->dim);
    s->y = floats(tokens, c->dim);
    s->q = floats(tokens, (int64_t)c->n_heads * c->head_dim);
    s->k = floats(tokens, (int64_t)c->n_kv_heads * c->head_dim);
    s->v = floats(tokens, (int64_t)c->n_kv_heads * c->head_dim);
    s->gate = floats(tokens, widest_hidden(c));
    s->up = floats(tokens, widest_hidden(c));
    s->cos_sin = floats(2 * tokens, c->rope_dims);
    s->attend = floats(threads, pl_scratch_attend(&m->kv));
    int complete = s->x && s->y && s->q && s->k && s->v && s->gate && s->up && s->cos_sin && s->attend;
    if (!complete || pl_act_buffer_init(&s->acts, columns, widest_input(c), err) != PL_OK) return 0;
    return c->n_experts == 0 || reserve_experts(&s->experts, c, tokens, threads, err);
}

static void free_partials(pl_scratch *s) {
    pl_free(s->parts.max);
    pl_free(s->parts.sum);
    pl_free(s->parts.values);
    s->parts = (pl_attended){0};
    s->partials = 0;
}

static int reserve_partials(pl_scratch *s, const pl_model *m, int64_t partials) {
    free_partials(s);
    s->partials = partials + partials / 2; /* they grow with the position */
    s->parts.max = floats(1, s->partials);
    s->parts.sum = floats(1, s->partials);
    s->parts.values = floats(s->partials, m->kv.d16);
    return s->parts.max && s->parts.sum && s->parts.values;
}

int32_t pl_scratch_reserve(pl_scratch *s, const pl_model *m, int64_t tokens, int64_t partials, int32_t threads,
                           pl_error *err) {
    int enough = tokens <= s->tokens && threads <= s->threads;
    if (!enough) {
        if (tokens < s->tokens) tokens = s->tokens;
        pl_scratch_free(s);
        enough = reserve_tokens(s, m, tokens, threads, err);
    }
    if (enough && (partials <= s->partials || reserve_partials(s, m, partials))) return PL_OK;
    pl_scratch_free(s);
    return pl_fail(err, PL_MEMORY, "no memory for the activations of %lld tokens", (long long)tokens);
}

static void free_experts(pl_expert_scratch *s) {
    pl_free(s->router);
    pl_free(s->shared);
    pl_free(s->choices);
    pl_free(s->ranking);
    pl_free(s->plans);
    pl_free(s->gate);
    pl_free(s->up);
    pl_free(s->out);
    pl_act_buffer_free(&s->acts);
}

void pl_scratch_free(pl_scratch *s) {
    pl_free(s->x);
    pl_free(s->y);
    pl_free(s->q);
    pl_free(s->k);
    pl_free(s->v);
    pl_free(s->gate);
    pl_free(s->up);
    pl_free(s->cos_sin);
    pl_free(s->attend);
    pl_act_buffer_free(&s->acts);
    free_partials(s);
    free_experts(&s->experts);
    *s = (pl_scratch){0};
}

pl_scratch *pl_scratch_borrow(pl_model *m) {
    pl_scratch *idle = atomic_exchange(&m->idle, NULL);
    return idle ? idle : pl_alloc(1, sizeof *idle);
}

void pl_scratch_return(pl_model *m, pl_scratch *s) {
    pl_scratch *other = atomic_exchange(&m->idle, s);
    if (other == NULL) return;
    pl_scratch_free(other);
    pl_free(other);
}
