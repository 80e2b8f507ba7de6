#include "model/scratch.h"

#include "base/error.h"
#include "base/memory.h"

static float *floats(int64_t rows, int64_t width) {
    return pl_alloc((size_t)rows * (size_t)pl_pad(width), sizeof(float));
}

static int64_t widest_input(const pl_config *c) {
    int64_t widest = c->dim > c->hidden_dim ? c->dim : c->hidden_dim, q = (int64_t)c->n_heads * c->head_dim;
    return q > widest ? q : widest;
}

int32_t pl_scratch_reserve(pl_scratch *s, const pl_model *m, int64_t tokens, int32_t threads, pl_error *err) {
    if (tokens <= s->tokens && threads <= s->threads) return PL_OK;
    if (tokens < s->tokens) tokens = s->tokens;
    pl_scratch_free(s);
    const pl_config *c = &m->config;
    s->tokens = tokens;
    s->threads = threads;
    s->x = floats(tokens, c->dim);
    s->q = floats(tokens, (int64_t)c->n_heads * c->head_dim);
    s->k = floats(tokens, (int64_t)c->n_kv_heads * c->head_dim);
    s->v = floats(tokens, (int64_t)c->n_kv_heads * c->head_dim);
    s->gate = floats(tokens, c->hidden_dim);
    s->up = floats(tokens, c->hidden_dim);
    s->cos_sin = floats(tokens, c->rope_dims);
    s->attend = pl_alloc((size_t)threads * pl_attend_work(&m->kv), sizeof(float));
    int32_t status = pl_act_buffer_init(&s->acts, tokens > threads ? tokens : threads, widest_input(c), err);
    int complete = s->x && s->q && s->k && s->v && s->gate && s->up && s->cos_sin && s->attend;
    if (status == PL_OK && complete) return PL_OK;
    pl_scratch_free(s);
    return pl_fail(err, PL_MEMORY, "no memory for the activations of %lld tokens", (long long)tokens);
}

void pl_scratch_free(pl_scratch *s) {
    pl_free(s->x);
    pl_free(s->q);
    pl_free(s->k);
    pl_free(s->v);
    pl_free(s->gate);
    pl_free(s->up);
    pl_free(s->cos_sin);
    pl_free(s->attend);
    pl_act_buffer_free(&s->acts);
    *s = (pl_scratch){0};
}
