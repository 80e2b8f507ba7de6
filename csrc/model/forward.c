/* The forward pass (law 3): one function for one token or many, one sequence or several. See pass.h for how threads
 * share it. */
#include <string.h>

#include "base/math.h"
#include "model/pass.h"

enum { POLL_MILLISECONDS = 20 };

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* Where this worker finds token i's place in the residual stream: of a lone token each has a copy of its own. */
static float *stream(const pl_pass *p, const pl_worker *w, int64_t i) {
    return p->scratch->x + (p->n == 1 ? w->index : i) * pl_pad(p->config->dim);
}

/* (cos, sin) of position * frequency, times scale: (half, 2). */
static void angles(const float *frequencies, int64_t half, float scale, int64_t position, float *cos_sin) {
    for (int64_t j = 0; j < half; j++) {
        double sine, cosine;
        pl_sincos((double)((float)position * frequencies[j]), &sine, &cosine);
        cos_sin[2 * j] = (float)cosine * scale;
        cos_sin[2 * j + 1] = (float)sine * scale;
    }
}

/* The rotations that layers may ask for at each position. Read after a barrier. */
static void prepare_rotations(const pl_pass *p, const pl_worker *w) {
    const pl_config *c = p->config;
    int64_t begin, end, half = c->rope_dims / 2;
    pl_share(w, p->n, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const pl_row *r = &p->rows[i];
        const float *main = r->session->long_rope ? p->model->rope_long : p->model->rope_main;
        angles(main, half, c->rope_scale, r->position, pl_cos_sin(p->scratch, c, i, PL_ROPE_MAIN));
        if (p->model->rope_local == NULL) continue;
        angles(p->model->rope_local, half, 1.0f, r->position, pl_cos_sin(p->scratch, c, i, PL_ROPE_LOCAL));
    }
}

/* x = norm(scale * embedding[token] + position_embedding[position]) */
static void embed(const pl_pass *p, const pl_worker *w) {
    const pl_model *m = p->model;
    int64_t dim = p->config->dim;
    pl_token_share s = pl_share_tokens(w, p->n);
    for (int64_t i = s.begin; i < s.end; i++) {
        float *x = stream(p, w, i), *more = pl_column(p, i + s.shift);
        pl_matrix_row(&m->embedding.matrix, p->rows[i].token, x);
        pl_scale(x, p->config->embedding_scale, dim);
        if (pl_is_bound(&m->position_embedding)) {
            pl_matrix_row(&m->position_embedding.matrix, p->rows[i].position, more);
            pl_add(x, more, dim);
        }
        if (m->embedding_norm.weight) pl_normalise(p, &m->embedding_norm, x, dim, x);
    }
}

float *pl_normalise(const pl_pass *p, const pl_norm *norm, const float *x, int64_t n, float *out) {
    if (p->config->norm == PL_NORM_LAYER) {
        pl_centre(x, n, out);
        x = out;
    }
    p->kernels->rmsnorm(x, norm->weight, n, p->config->norm_eps, out);
    if (norm->bias != NULL) pl_add(out, norm->bias, n);
    return out;
}

void pl_make_column(const pl_pass *p, pl_act_buffer *acts, int64_t c, const float *x, int64_t k, int32_t planes) {
    float *column = pl_acts_column(acts, c);
    pl_acts_set(p->kernels, acts, c, x, k, planes);
    if (planes > 0 && p->low_rank != NULL && x != column) memcpy(column, x, (size_t)k * sizeof *column);
    if (planes == 0) memset(column + k, 0, (size_t)(pl_pad(k) - k) * sizeof *column);
}

static void normalise_or_copy(const pl_pass *p, const pl_norm *norm, const float *x, float *out) {
    if (norm->weight != NULL) {
        pl_normalise(p, norm, x, p->config->dim, out);
    } else {
        memcpy(out, x, (size_t)p->config->dim * sizeof *out);
    }
}

/* acts = norm(x), or x where there is no norm, ready for the matrices that read it. */
static void norm(const pl_pass *p, const pl_worker *w, const pl_norm *norm, int32_t planes) {
    int64_t dim = p->config->dim;
    pl_token_share s = pl_share_tokens(w, p->n);
    for (int64_t i = s.begin; i < s.end; i++) {
        float *out = pl_column(p, i + s.shift);
        normalise_or_copy(p, norm, stream(p, w, i), out);
        pl_make_column(p, &p->scratch->acts, i + s.shift, out, dim, planes);
    }
    pl_tokens_shared(w, p->n);
}

void pl_product(const pl_pass *p, const pl_worker *w, const pl_linear *l, const pl_acts *x, const int32_t *tokens,
                int64_t n, float *y, int32_t add) {
    int64_t ld = pl_pad(l->matrix.rows), begin, end;
    pl_matmul(p->kernels, w, &l->matrix, x, n, &(pl_output){.base = y, .ld = ld, .add = add});
    pl_share(w, l->matrix.rows, PL_STRIP, &begin, &end); /* the rows that it has just written itself */
    for (int64_t c = 0; c < n && l->bias != NULL; c++) pl_add(y + c * ld + begin, l->bias + begin, end - begin);
    if (p->low_rank != NULL) pl_adapt(p, w, l, x, tokens, n, y);
}

/* y = W acts + b, or that added to it */
static void product(const pl_pass *p, const pl_worker *w, const pl_linear *l, float *y, int32_t add) {
    pl_acts x = pl_input(p, w, l->matrix.cols);
    pl_product(p, w, l, &x, NULL, p->n, y, add);
}

void pl_activated(const pl_pass *p, pl_act_buffer *acts, int64_t c, const float *gate, const float *up, int64_t width,
                  int32_t planes) {
    const pl_config *config = p->config;
    float *out = pl_acts_column(acts, c);
    if (!config->gated) {
        p->kernels->activate(config->activation, 0, up, NULL, width, out);
    } else if (config->activation == PL_ACTIVATION_SILU) {
        p->kernels->swiglu(gate, up, pl_pad(width), out);
    } else {
        p->kernels->activate(config->activation, config->activation_limit, gate, up, width, out);
    }
    pl_make_column(p, acts, c, out, width, planes);
}

void pl_hidden(const pl_pass *p, const pl_worker *w, const pl_feed_forward *f) {
    if (p->config->gated) product(p, w, &f->gate, p->scratch->gate, 0);
    product(p, w, &f->up, p->scratch->up, 0);
}

void pl_hidden_activated(const pl_pass *p, const pl_worker *w, const pl_feed_forward *f) {
    int64_t width = f->up.matrix.rows, ld = pl_pad(width);
    pl_token_share s = pl_share_tokens(w, p->n);
    for (int64_t i = s.begin; i < s.end; i++) {
        const float *gate = p->scratch->gate + i * ld, *up = p->scratch->up + i * ld;
        pl_activated(p, &p->scratch->acts, i + s.shift, gate, up, width, pl_planes(p, &f->down));
    }
}

/* x += scale * post_norm(y), or x = post_norm(x + scale * y); y is what a block makes of x. No barrier behind it: the
 * next norm shares out tokens in the same way. */
static void join(const pl_pass *p, const pl_worker *w, const pl_norm *post, const pl_layer *experts) {
    int64_t dim = p->config->dim;
    int after = post->weight && p->config->norm_after_sum, before = post->weight && !after;
    pl_token_share s = pl_share_tokens(w, p->n);
    pl_barrier_wait(w);
    for (int64_t i = s.begin; i < s.end; i++) {
        float *x = stream(p, w, i), *room = pl_column(p, i + s.shift), *y = p->scratch->y + i * pl_pad(dim);
        if (experts) y = pl_experts_sum(p, w, experts, i, s.shift, room);
        if (before) y = pl_normalise(p, post, y, dim, room);
        pl_add_scaled(x, y, p->config->residual_scale, dim);
        if (after) pl_normalise(p, post, x, dim, x);
    }
}

/* ---- the transformer -------------------------------------------------------------------------------------------- */

/* y = wo attention(rope(wq n), rope(wk n), wv n), n = norm(x) */
static void attention_block(const pl_pass *p, const pl_worker *w, const pl_layer *l, int64_t layer) {
    pl_scratch *s = p->scratch;
    norm(p, w, &l->attention_norm, pl_planes(p, &l->wq) | pl_planes(p, &l->wk) | pl_planes(p, &l->wv));
    product(p, w, &l->wq, s->q, 0);
    product(p, w, &l->wk, s->k, 0);
    product(p, w, &l->wv, s->v, 0);
    pl_barrier_wait(w);
    pl_attention(p, w, l, layer);
    product(p, w, &l->wo, s->y, 0);
}

/* y = down (activation(gate n) * (up n)), n = norm(x); added to what attention made of x where both read the same. */
static void feed_forward_block(const pl_pass *p, const pl_worker *w, const pl_layer *l) {
    const pl_feed_forward *f = &l->dense;
    const pl_norm *before = p->config->parallel && l->ffn_norm.weight == NULL ? &l->attention_norm : &l->ffn_norm;
    if (l->config.experts) {
        norm(p, w, before, l->quantised_input ? p->config->planes : 0);
        pl_experts(p, w, l);
        return;
    }
    norm(p, w, before, pl_planes(p, &f->gate) | pl_planes(p, &f->up));
    pl_hidden(p, w, f);
    pl_barrier_wait(w);
    pl_hidden_activated(p, w, f);
    pl_tokens_shared(w, p->n);
    product(p, w, &f->down, p->scratch->y, p->config->parallel);
}

/* acts = norm(x) of the tokens that are asked for; copies of it where it is the answer. */
static void final_norm(const pl_pass *p, const pl_worker *w, int32_t planes) {
    int64_t dim = p->config->dim;
    pl_token_share s = pl_share_tokens(w, p->n_answers);
    for (int64_t i = s.begin; i < s.end; i++) {
        const pl_answer *a = &p->answers[i];
        float *out = pl_column(p, i + s.shift);
        normalise_or_copy(p, &p->model->final_norm, stream(p, w, a->row), out);
        if (a->state && (p->n_answers > 1 || w->index == 0)) memcpy(a->state, out, (size_t)dim * sizeof *out);
        pl_make_column(p, &p->scratch->acts, i + s.shift, out, dim, planes);
    }
    pl_tokens_shared(w, p->n_answers);
}

/* logits = cap(scale * (head norm(x) + b)). Its input has both planes whatever the precision: the head moves the answer
 * most, and costs its time for one token only. */
static void head(const pl_pass *p, const pl_worker *w) {
    const pl_matrix *matrix = pl_model_head(p->model);
    const float *bias = p->model->own_head.bias;
    final_norm(p, w, matrix && !pl_packings[matrix->packing].floats ? 2 : 0);
    if (p->n_logits == 0) return;
    int64_t begin, end;
    pl_acts x = pl_acts_view(&p->scratch->acts, pl_share_tokens(w, p->n_answers).shift, matrix->cols, 2);
    pl_matmul(p->kernels, w, matrix, &x, p->n_logits, &(pl_output){.columns = p->logits});
    pl_share(w, matrix->rows, PL_STRIP, &begin, &end); /* the rows that it has just written itself */
    for (int64_t i = 0; i < p->n_logits; i++) {
        float *logits = p->logits[i] + begin, scale = p->config->logit_scale, cap = p->config->logit_softcap;
        if (bias) pl_add(logits, bias + begin, end - begin);
        if (scale != 1 && cap == 0) pl_scale(logits, scale, end - begin);
        if (cap > 0) p->kernels->softcap(logits, end - begin, scale, cap);
    }
}

/* The residual stream as it is after `depth` layers, for the runs that want it: each worker's own share of it. */
static void keep(const pl_pass *p, const pl_worker *w, int64_t depth) {
    int64_t first = 0, dim = p->config->dim;
    pl_token_share s = pl_share_tokens(w, p->n);
    if (p->n == 1 && w->index != 0) return;
    for (int32_t r = 0; r < p->n_runs; first += p->runs[r].n, r++) {
        const pl_run *run = &p->runs[r];
        int64_t begin = s.begin > first ? s.begin : first, end = s.end < first + run->n ? s.end : first + run->n;
        for (int64_t j = 0; j < run->n_hidden; j++) {
            if (run->hidden_layers[j] != depth) continue;
            for (int64_t i = begin; i < end; i++) {
                memcpy(run->hidden + (j * run->n + i - first) * dim, stream(p, w, i), (size_t)dim * sizeof(float));
            }
        }
    }
}

/* Thread 0 asks whether to go on before either half of a layer (0: attention, 1: feed-forward); the next barrier tells
 * the others, and what one half's answer is written to nobody reads before the other's barriers have passed. */
static void ask(pl_pass *p, const pl_worker *w, int32_t half) {
    if (w->index != 0 || p->poll == NULL) return;
    double now = pl_seconds();
    if (now - p->polled < POLL_MILLISECONDS * 1e-3) return;
    p->stop[half] = p->poll(p->context);
    p->polled = pl_seconds();
}

void pl_transformer(void *argument, const pl_worker *w) {
    pl_pass *p = argument;
    prepare_rotations(p, w);
    embed(p, w);
    keep(p, w, 0);
    for (int64_t layer = 0; layer < p->config->n_layers; layer++) {
        const pl_layer *l = &p->model->layers[layer];
        attention_block(p, w, l, layer);
        if (p->config->parallel) {
            pl_tokens_shared(w, p->n); /* wo has read what the next norm writes over */
        } else {
            join(p, w, &l->attention_post_norm, NULL);
        }
        if (p->stop[0]) return;
        ask(p, w, 1);
        feed_forward_block(p, w, l);
        join(p, w, &l->ffn_post_norm, l->config.experts ? l : NULL);
        keep(p, w, layer + 1);
        if (p->stop[1]) return;
        ask(p, w, 0);
    }
    pl_tokens_shared(w, p->n);
    head(p, w);
}
