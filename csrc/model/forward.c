/* The forward pass (law 3): one function for one token or many, one sequence or several. Every thread of the region
 * runs these functions and takes its share of rows, tokens or heads; a barrier stands wherever one step reads what
 * another thread wrote in the step before. */
#include "model/forward.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "base/memory.h"

/* A token of the batch: whose it is and where it stands. */
typedef struct row {
    pl_session *session;
    int64_t position;
    int32_t token;
} row;

/* One evaluation, as all threads see it. */
typedef struct pass {
    const pl_model *model;
    const pl_config *config;
    const pl_kernels *kernels;
    pl_scratch *scratch;
    const pl_run *runs;
    int32_t n_runs;
    row *rows; /* (n): the tokens of all runs, one run after another */
    int64_t n;
    float **logits;  /* (n_logits): where each wanted row of logits goes */
    int64_t *wanted; /* (n_logits): its token's index in rows */
    int64_t n_logits;
    pl_poll_fn poll;
    void *context;
    double polled; /* when poll was last asked */
    int32_t stop;  /* written by thread 0 before a barrier, read by all after it */
} pass;

enum { POLL_MILLISECONDS = 20 };

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* x = embedding[token], and the rotation of each position: (cos, sin) of position * frequency. */
static void embed(const pass *p, const pl_worker *w) {
    int64_t begin, end, dim = pl_pad(p->config->dim), half = p->config->rope_dims / 2;
    pl_share(w, p->n, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        pl_matrix_row(&p->model->embedding, p->rows[i].token, p->scratch->x + i * dim);
        float *cos_sin = p->scratch->cos_sin + i * pl_pad(p->config->rope_dims);
        for (int64_t j = 0; j < half; j++) {
            double s, c;
            pl_sincos((double)((float)p->rows[i].position * p->model->rope_frequencies[j]), &s, &c);
            cos_sin[2 * j] = (float)c;
            cos_sin[2 * j + 1] = (float)s;
        }
    }
    pl_barrier_wait(w);
}

/* Which tokens of n a worker prepares for the next product, and in which columns of the activation buffer: token i in
 * column i + shift. Many tokens are shared out, and a barrier follows. A lone token every thread prepares for itself,
 * in a column of its own: that is cheaper than to wait for another. */
typedef struct share { int64_t begin, end, shift; } share;

static share share_of(const pl_worker *w, int64_t n) {
    share s = {0, 1, w->index};
    if (n == 1) return s;
    s.shift = 0;
    pl_share(w, n, 1, &s.begin, &s.end);
    return s;
}

static void shared_out(const pl_worker *w, int64_t n) {
    if (n != 1) pl_barrier_wait(w);
}

/* Planes that a layer's matrix wants its input in: none if its weights are floats. */
static int32_t planes(const pass *p, const pl_matrix *m) {
    return pl_packings[m->packing].floats ? 0 : p->config->planes;
}

/* Column c of the activation buffer, and its quantised form where a reader wants that (planes > 0). */
static float *column(const pass *p, int64_t c) { return p->scratch->acts.f + c * p->scratch->acts.ld; }

static void quantize(const pass *p, int64_t c, int64_t k, int32_t planes) {
    if (planes > 0) pl_acts_quantize(p->kernels, &p->scratch->acts, c, k, planes);
}

/* acts = rmsnorm(x[index[i]]) for n tokens (index NULL: all, in order), ready for the matrices that read it. */
static void norm(const pass *p, const pl_worker *w, const float *weight, const int64_t *index, int64_t n,
                 int32_t planes) {
    int64_t dim = p->config->dim;
    share s = share_of(w, n);
    for (int64_t i = s.begin; i < s.end; i++) {
        const float *x = p->scratch->x + (index ? index[i] : i) * pl_pad(dim);
        p->kernels->rmsnorm(x, weight, dim, p->config->norm_eps, column(p, i + s.shift));
        quantize(p, i + s.shift, dim, planes);
    }
    shared_out(w, n);
}

/* acts = attention's output */
static void attended(const pass *p, const pl_worker *w, int32_t planes) {
    int64_t width = (int64_t)p->config->n_heads * p->config->head_dim;
    share s = share_of(w, p->n);
    for (int64_t i = s.begin; i < s.end; i++) {
        memcpy(column(p, i + s.shift), p->scratch->q + i * pl_pad(width), (size_t)width * sizeof(float));
        quantize(p, i + s.shift, width, planes);
    }
    shared_out(w, p->n);
}

/* acts = silu(gate) * up */
static void gated(const pass *p, const pl_worker *w, int32_t planes) {
    int64_t hidden = pl_pad(p->config->hidden_dim);
    share s = share_of(w, p->n);
    for (int64_t i = s.begin; i < s.end; i++) {
        const float *gate = p->scratch->gate + i * hidden, *up = p->scratch->up + i * hidden;
        p->kernels->swiglu(gate, up, hidden, column(p, i + s.shift));
        quantize(p, i + s.shift, p->config->hidden_dim, planes);
    }
    shared_out(w, p->n);
}

/* y (n, rows) = W acts, or y += W acts. No barrier: several products may read the same activations. */
static void product(const pass *p, const pl_worker *w, const pl_matrix *matrix, float *y, int32_t add) {
    pl_acts x = pl_acts_view(&p->scratch->acts, share_of(w, p->n).shift, matrix->cols, p->config->planes);
    pl_matmul(p->kernels, w, matrix, &x, p->n, &(pl_output){.base = y, .ld = pl_pad(matrix->rows), .add = add});
}

/* Rotates queries and keys and puts keys and values into the pages; (token, KV head) units. */
static void rotate_and_store(const pass *p, const pl_worker *w, int64_t layer) {
    const pl_config *c = p->config;
    const pl_kv_layout *kv = &p->model->kv;
    int64_t begin, end, group = c->n_heads / c->n_kv_heads, hd = c->head_dim;
    pl_share(w, p->n * c->n_kv_heads, 1, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t i = unit / c->n_kv_heads, head = unit % c->n_kv_heads;
        const row *r = &p->rows[i];
        const float *cos_sin = p->scratch->cos_sin + i * pl_pad(c->rope_dims);
        float *q = p->scratch->q + i * pl_pad(c->n_heads * hd) + head * group * hd;
        float *k = p->scratch->k + i * pl_pad(c->n_kv_heads * hd) + head * hd;
        const float *v = p->scratch->v + i * pl_pad(c->n_kv_heads * hd) + head * hd;
        for (int64_t g = 0; g < group; g++) pl_rope(q + g * hd, cos_sin, c->rope_dims);
        pl_rope(k, cos_sin, c->rope_dims);
        uint8_t *page = r->session->table.pages[r->position / PL_PAGE];
        pl_kv_store(kv, page + pl_kv_unit(kv, layer, head), r->position % PL_PAGE, k, v);
    }
    pl_barrier_wait(w);
}

/* One call of pl_attend: `rows` tokens from i on with head h, or (rows of heads) token i with heads h and up. */
static void attend(const pass *p, const pl_worker *w, int64_t layer, int64_t i, int64_t h, int64_t rows, int heads) {
    const pl_config *c = p->config;
    const pl_kv_layout *kv = &p->model->kv;
    int64_t hd = c->head_dim, ldq = pl_pad(c->n_heads * hd);
    float *q = p->scratch->q + i * ldq + h * hd;
    pl_queries queries = {
        .q = q,
        .ldq = heads ? hd : ldq,
        .rows = rows,
        .first = p->rows[i].position,
        .step = heads ? 0 : 1,
        .out = q, /* in its place: nobody else reads these rows of these heads */
        .ldo = heads ? hd : ldq,
    };
    size_t unit = pl_kv_unit(kv, layer, h / (c->n_heads / c->n_kv_heads));
    pl_attend(p->kernels, kv, p->rows[i].session->table.pages, unit, 1.0f / sqrtf((float)hd), &queries,
              p->scratch->attend + (size_t)w->index * pl_attend_work(kv));
}

/* q = attention of all tokens. A lone token shares each KV head's keys among the group's heads; a run of tokens
 * shares them among up to PL_ROWS tokens of one head. Units go round the threads. */
static void attention(const pass *p, const pl_worker *w, int64_t layer) {
    const pl_config *c = p->config;
    int64_t group = c->n_heads / c->n_kv_heads, unit = 0, i = 0;
    for (int32_t r = 0; r < p->n_runs; i += p->runs[r].n, r++) {
        int64_t n = p->runs[r].n;
        if (n == 1) {
            for (int64_t h = 0; h < c->n_heads;) {
                int64_t left = group - h % group, rows = left < PL_ROWS ? left : PL_ROWS;
                if (unit++ % w->count == w->index) attend(p, w, layer, i, h, rows, 1);
                h += rows;
            }
            continue;
        }
        for (int64_t t = 0; t < n; t += PL_ROWS) {
            for (int64_t h = 0; h < c->n_heads; h++) {
                if (unit++ % w->count != w->index) continue;
                attend(p, w, layer, i + t, h, n - t < PL_ROWS ? n - t : PL_ROWS, 0);
            }
        }
    }
    pl_barrier_wait(w);
}

/* ---- the transformer -------------------------------------------------------------------------------------------- */

/* x += wo attention(rope(wq n), rope(wk n), wv n), n = norm(x) */
static void attention_block(const pass *p, const pl_worker *w, const pl_layer *l, int64_t layer) {
    pl_scratch *s = p->scratch;
    norm(p, w, l->attention_norm, NULL, p->n, planes(p, &l->wq) | planes(p, &l->wk) | planes(p, &l->wv));
    product(p, w, &l->wq, s->q, 0);
    product(p, w, &l->wk, s->k, 0);
    product(p, w, &l->wv, s->v, 0);
    pl_barrier_wait(w);
    rotate_and_store(p, w, layer);
    attention(p, w, layer);
    attended(p, w, planes(p, &l->wo));
    product(p, w, &l->wo, s->x, 1);
    pl_barrier_wait(w);
}

/* x += down (silu(gate n) * (up n)), n = norm(x) */
static void feed_forward_block(const pass *p, const pl_worker *w, const pl_layer *l) {
    pl_scratch *s = p->scratch;
    norm(p, w, l->ffn_norm, NULL, p->n, planes(p, &l->gate) | planes(p, &l->up));
    product(p, w, &l->gate, s->gate, 0);
    product(p, w, &l->up, s->up, 0);
    pl_barrier_wait(w);
    gated(p, w, planes(p, &l->down));
    product(p, w, &l->down, s->x, 1);
    pl_barrier_wait(w);
}

/* logits = head norm(x), for the rows that are wanted. Its input has both planes whatever the precision: the head
 * moves the answer most, and costs its time for one token only. */
static void head(const pass *p, const pl_worker *w) {
    const pl_matrix *matrix = pl_model_head(p->model);
    norm(p, w, p->model->final_norm, p->wanted, p->n_logits, planes(p, matrix) ? 2 : 0);
    pl_acts x = pl_acts_view(&p->scratch->acts, share_of(w, p->n_logits).shift, matrix->cols, 2);
    pl_matmul(p->kernels, w, matrix, &x, p->n_logits, &(pl_output){.columns = p->logits});
}

/* Thread 0 asks whether to go on; the next barrier tells the others. */
static void ask(pass *p, const pl_worker *w) {
    if (w->index != 0 || p->poll == NULL) return;
    double now = pl_seconds();
    if (now - p->polled < POLL_MILLISECONDS * 1e-3) return;
    p->stop = p->poll(p->context);
    p->polled = pl_seconds();
}

static void transformer(void *argument, const pl_worker *w) {
    pass *p = argument;
    embed(p, w);
    for (int64_t layer = 0; layer < p->config->n_layers; layer++) {
        const pl_layer *l = &p->model->layers[layer];
        attention_block(p, w, l, layer);
        ask(p, w);
        feed_forward_block(p, w, l);
        if (p->stop) return;
    }
    head(p, w);
}

/* ---- setting up ------------------------------------------------------------------------------------------------- */

static void list_rows(pass *p) {
    int64_t i = 0, m = 0;
    for (int32_t r = 0; r < p->n_runs; r++) {
        const pl_run *run = &p->runs[r];
        for (int64_t t = 0; t < run->n; t++, i++) {
            p->rows[i] = (row){run->session, run->session->position + t, run->tokens[t]};
            int64_t wanted = t - (run->n - run->n_logits);
            if (wanted < 0) continue;
            p->wanted[m] = i;
            p->logits[m++] = run->logits + wanted * p->config->vocab_size;
        }
    }
}

int32_t pl_forward(pl_model *model, const pl_run *runs, int32_t n_runs, int32_t threads, pl_poll_fn poll, void *context,
                   pl_error *err) {
    pass p = {.model = model,
              .config = &model->config,
              .kernels = pl_kernels_current(),
              .scratch = &runs[0].session->scratch,
              .runs = runs,
              .n_runs = n_runs,
              .poll = poll,
              .context = context,
              .polled = pl_seconds()};
    for (int32_t r = 0; r < n_runs; r++) p.n += runs[r].n, p.n_logits += runs[r].n_logits;
    int32_t status = pl_scratch_reserve(p.scratch, model, p.n, threads, err);
    if (status != PL_OK) return status;
    p.rows = pl_alloc((size_t)p.n, sizeof *p.rows);
    p.wanted = pl_alloc((size_t)p.n_logits, sizeof *p.wanted);
    p.logits = pl_alloc((size_t)p.n_logits, sizeof *p.logits);
    if (p.rows && p.wanted && p.logits) {
        list_rows(&p);
        pl_parallel(threads, transformer, &p);
        if (p.stop) status = pl_fail(err, PL_INTERRUPTED, "stopped");
    } else {
        status = pl_fail(err, PL_MEMORY, "no memory for a batch of %lld tokens", (long long)p.n);
    }
    pl_free(p.rows);
    pl_free(p.wanted);
    pl_free(p.logits);
    return status;
}
