/* One evaluation, as the files that make it up see it. forward.c holds the transformer, attend.c and experts.c its two
 * larger parts, batch.c what comes before and after.
 *
 * Every thread of the region runs these functions and takes its share of rows, tokens or heads; a barrier stands
 * wherever one step reads what another thread wrote in the step before. */
#ifndef PL_MODEL_PASS_H
#define PL_MODEL_PASS_H

#include "model/forward.h"

/* A token of the batch: whose it is and where it stands. */
typedef struct pl_row {
    pl_session *session;
    int64_t position, length; /* of its sequence, with this run */
    int32_t token;
    int64_t part; /* of a lone token: its first in scratch->parts, chunk by chunk, a row for each head; else -1 */
} pl_row;

/* A row of the answer: the token it belongs to, and where it goes. */
typedef struct pl_answer {
    int64_t row;
    float *state; /* (dim) or NULL */
} pl_answer;

typedef struct pl_pass {
    const pl_model *model;
    const pl_config *config;
    const pl_kernels *kernels;
    pl_scratch *scratch;
    const pl_run *runs;
    int32_t n_runs;
    pl_row *rows; /* (n): the tokens of all runs, one run after another */
    int64_t n;
    int64_t n_parts;    /* heads times chunks of lone tokens: runs of one token */
    int64_t n_alone;    /* how many there are */
    pl_answer *answers; /* (n_answers), those that have logits first */
    int64_t n_answers;
    float **logits; /* (n_logits): where each row of logits goes */
    int64_t n_logits;
    float *low_rank; /* (threads, PL_ADAPTED * rank) where sessions have adapters: each thread's own; else NULL */
    int64_t rank;    /* the largest, padded */
    pl_poll_fn poll;
    void *context;
    double polled;   /* when poll was last asked */
    int32_t stop[2]; /* before a layer's halves: written by thread 0 before a barrier, read by all after it */
} pl_pass;

enum { PL_ADAPTED = 16 }; /* columns that an adapter's matrices multiply at once */

/* ---- sharing out tokens ----------------------------------------------------------------------------------------- */

/* Which tokens of n a worker works on, and in which columns of the activation buffer: token i in column i + shift.
 * Many tokens are shared out, and a barrier follows where others read what becomes of them. A lone token every thread
 * prepares for itself, in a column of its own: that is cheaper than to wait for another. */
typedef struct pl_token_share { int64_t begin, end, shift; } pl_token_share;

static inline pl_token_share pl_share_tokens(const pl_worker *w, int64_t n) {
    pl_token_share s = {0, 1, w->index};
    if (n == 1) return s;
    s.shift = 0;
    pl_share(w, n, 1, &s.begin, &s.end);
    return s;
}

static inline void pl_tokens_shared(const pl_worker *w, int64_t n) {
    if (n != 1) pl_barrier_wait(w);
}

/* ---- activations and products ------------------------------------------------------------------------------------ */

/* Planes that a layer's matrix wants its input in: none if its weights are floats, or if it is absent. */
static inline int32_t pl_planes(const pl_pass *p, const pl_linear *l) {
    return pl_packings[l->matrix.packing].floats ? 0 : p->config->planes;
}

static inline float *pl_column(const pl_pass *p, int64_t c) { return pl_acts_column(&p->scratch->acts, c); }

/* What the matrices of a layer read of width k: n tokens' columns. */
static inline pl_acts pl_input(const pl_pass *p, const pl_worker *w, int64_t k) {
    return pl_acts_view(&p->scratch->acts, pl_share_tokens(w, p->n).shift, k, p->config->planes);
}

/* y (n, rows) = W x + b with what the adapters of each column's session add, or that added to it: the worker's share of
 * the rows. Column c is token c, or token tokens[c]. No barrier: several products may read the same activations. */
void pl_product(const pl_pass *p, const pl_worker *w, const pl_linear *linear, const pl_acts *x, const int32_t *tokens,
                int64_t n, float *y, int32_t add);
/* The adapters' part of it. */
void pl_adapt(const pl_pass *p, const pl_worker *w, const pl_linear *linear, const pl_acts *x, const int32_t *tokens,
              int64_t n, float *y);
/* Makes column c of `acts` activation(gate) * up, or activation(up), of the given width. */
void pl_activated(const pl_pass *p, pl_act_buffer *acts, int64_t c, const float *gate, const float *up, int64_t width,
                  int32_t planes);
/* scratch->gate and up = what acts make of a feed-forward layer's first matrices; after a barrier, acts = the input of
 * its last one. */
void pl_hidden(const pl_pass *p, const pl_worker *w, const pl_feed_forward *f);
void pl_hidden_activated(const pl_pass *p, const pl_worker *w, const pl_feed_forward *f);
/* Column c of `acts` from x (k), ready for matrices that want it in `planes`. */
void pl_make_column(const pl_pass *p, pl_act_buffer *acts, int64_t c, const float *x, int64_t k, int32_t planes);
/* out = norm(x), (n), both padded to 16 with zeros; in place or not. Returns out. */
float *pl_normalise(const pl_pass *p, const pl_norm *norm, const float *x, int64_t n, float *out);

/* ---- the parts of a layer ---------------------------------------------------------------------------------------- */

/* acts = attention over what scratch->q, k and v hold; keys and values go into the pages. */
void pl_attention(const pl_pass *p, const pl_worker *w, const pl_layer *l, int64_t layer);
/* The experts' answers to acts, one after another into scratch->experts.out; the shared expert's into y. */
void pl_experts(const pl_pass *p, const pl_worker *w, const pl_layer *l);
/* out (dim) = what the experts make of token i, whose choice lies at i + shift, together. After a barrier. Returns
 * out. */
float *pl_experts_sum(const pl_pass *p, const pl_worker *w, const pl_layer *l, int64_t i, int64_t shift, float *out);
/* The whole, on every thread of a region. */
void pl_transformer(void *pass, const pl_worker *w);

#endif
