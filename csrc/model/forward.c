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
    int64_t part; /* of a lone token: its first in scratch->parts, chunk by chunk, a row for each head; else -1 */
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
    int64_t n_parts; /* heads times chunks of lone tokens: runs of one token */
    int64_t n_alone; /* how many there are */
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

static float *column(const pass *p, int64_t c) { return pl_acts_column(&p->scratch->acts, c); }

static void set_column(const pass *p, int64_t c, const float *x, int64_t k, int32_t planes) {
    pl_acts_set(p->kernels, &p->scratch->acts, c, x, k, planes);
}

/* acts = rmsnorm(x[index[i]]) for n tokens (index NULL: all, in order), ready for the matrices that read it. */
static void norm(const pass *p, const pl_worker *w, const float *weight, const int64_t *index, int64_t n,
                 int32_t planes) {
    int64_t dim = p->config->dim;
    share s = share_of(w, n);
    for (int64_t i = s.begin; i < s.end; i++) {
        const float *x = p->scratch->x + (index ? index[i] : i) * pl_pad(dim);
        float *out = column(p, i + s.shift);
        p->kernels->rmsnorm(x, weight, dim, p->config->norm_eps, out);
        set_column(p, i + s.shift, out, dim, planes);
    }
    shared_out(w, n);
}

/* acts = silu(gate) * up */
static void gated(const pass *p, const pl_worker *w, int32_t planes) {
    int64_t hidden = pl_pad(p->config->hidden_dim);
    share s = share_of(w, p->n);
    for (int64_t i = s.begin; i < s.end; i++) {
        const float *gate = p->scratch->gate + i * hidden, *up = p->scratch->up + i * hidden;
        float *out = column(p, i + s.shift);
        p->kernels->swiglu(gate, up, hidden, out);
        set_column(p, i + s.shift, out, p->config->hidden_dim, planes);
    }
    shared_out(w, p->n);
}

/* y (n, rows) = W acts, or y += W acts. No barrier: several products may read the same activations. */
static void product(const pass *p, const pl_worker *w, const pl_matrix *matrix, float *y, int32_t add) {
    pl_acts x = pl_acts_view(&p->scratch->acts, share_of(w, p->n).shift, matrix->cols, p->config->planes);
    pl_matmul(p->kernels, w, matrix, &x, p->n, &(pl_output){.base = y, .ld = pl_pad(matrix->rows), .add = add});
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

static int64_t group_of(const pl_config *c) { return c->n_heads / c->n_kv_heads; }

/* Where head h of token i begins in scratch->q; KV head h in scratch->k and v. */
static float *query(const pass *p, int64_t i, int64_t h) {
    const pl_config *c = p->config;
    return p->scratch->q + i * pl_pad((int64_t)c->n_heads * c->head_dim) + h * c->head_dim;
}

static int64_t key_index(const pl_config *c, int64_t i, int64_t h) {
    return i * pl_pad((int64_t)c->n_kv_heads * c->head_dim) + h * c->head_dim;
}

static void rotate(const pass *p, int64_t i, float *head) {
    pl_rope(head, p->scratch->cos_sin + i * pl_pad(p->config->rope_dims), p->config->rope_dims);
}

/* Rotates token i's key of a KV head and puts it and the value into the page. */
static void store(const pass *p, int64_t layer, int64_t i, int64_t h) {
    const row *r = &p->rows[i];
    const pl_kv_layout *kv = &p->model->kv;
    float *k = p->scratch->k + key_index(p->config, i, h);
    const float *v = p->scratch->v + key_index(p->config, i, h);
    rotate(p, i, k);
    uint8_t *page = r->session->table.pages[r->position / PL_PAGE];
    pl_kv_store(kv, page + pl_kv_unit(kv, layer, h), r->position % PL_PAGE, k, v);
}

/* Queries and keys of runs of several tokens, which see each other: (token, KV head) units. */
static void rotate_and_store(const pass *p, const pl_worker *w, int64_t layer) {
    if (p->n_alone == p->n) return;
    int64_t begin, end, group = group_of(p->config), heads = p->config->n_kv_heads;
    pl_share(w, p->n * heads, 1, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t i = unit / heads, h = unit % heads;
        if (p->rows[i].part >= 0) continue;
        for (int64_t g = 0; g < group; g++) rotate(p, i, query(p, i, h * group + g));
        store(p, layer, i, h);
    }
    pl_barrier_wait(w);
}

static pl_kv_view view_of(const pass *p, int64_t i, int64_t layer, int64_t kv_head) {
    const pl_kv_layout *kv = &p->model->kv;
    return (pl_kv_view){kv, p->rows[i].session->table.pages, pl_kv_unit(kv, layer, kv_head)};
}

static float score_scale(const pl_config *c) { return 1.0f / sqrtf((float)c->head_dim); }

/* A worker's own room for attention: pl_scratch_attend. */
static float *room_of(const pass *p, const pl_worker *w) {
    return p->scratch->attend + (size_t)w->index * (size_t)pl_pad(pl_scratch_attend(&p->model->kv));
}

static pl_attended part_of(const pass *p, int64_t part) {
    pl_attended all = p->scratch->parts;
    return (pl_attended){all.max + part, all.sum + part, all.values + part * p->model->kv.d16};
}

/* One chunk of a lone token's attention with a KV head: all heads of the group at once, whose queries it rotates for
 * itself. The chunk that the token stands in sees its key first, and stores it. */
static void attend_alone(const pass *p, const pl_worker *w, int64_t layer, int64_t i, int64_t kv_head, int64_t chunk) {
    const pl_config *c = p->config;
    const row *r = &p->rows[i];
    int64_t group = group_of(c), hd = c->head_dim, first = kv_head * group;
    float *work = room_of(p, w), *q = work + PL_ATTEND_WORK;
    if (chunk == r->position / PL_CHUNK) store(p, layer, i, kv_head);
    pl_kv_view kv = view_of(p, i, layer, kv_head);
    for (int64_t g = 0; g < group; g += PL_ROWS) {
        int64_t rows = group - g < PL_ROWS ? group - g : PL_ROWS;
        memcpy(q, query(p, i, first + g), (size_t)(rows * hd) * sizeof *q);
        for (int64_t j = 0; j < rows; j++) rotate(p, i, q + j * hd);
        pl_queries queries = {.q = q, .ldq = hd, .rows = rows, .first = r->position, .step = 0};
        pl_attended out = part_of(p, r->part + chunk * c->n_heads + first + g);
        pl_attend_chunk(p->kernels, &kv, score_scale(c), &queries, chunk * PL_CHUNK, work, out);
    }
}

/* The attention of up to PL_ROWS consecutive tokens with head h, which takes their queries' place. */
static void attend_tokens(const pass *p, const pl_worker *w, int64_t layer, int64_t i, int64_t n, int64_t h) {
    const pl_config *c = p->config;
    int64_t d16 = p->model->kv.d16, ldq = pl_pad((int64_t)c->n_heads * c->head_dim);
    float *work = room_of(p, w), *so_far = work + PL_ATTEND_WORK, *more = so_far + PL_ROWS * (d16 + 2);
    pl_attended all = {so_far, so_far + PL_ROWS, so_far + 2 * PL_ROWS};
    pl_attended chunk = {more, more + PL_ROWS, more + 2 * PL_ROWS};
    pl_queries queries = {.q = query(p, i, h), .ldq = ldq, .rows = n, .first = p->rows[i].position, .step = 1};
    pl_kv_view kv = view_of(p, i, layer, h / group_of(c));
    for (int64_t start = 0; start <= p->rows[i + n - 1].position; start += PL_CHUNK) {
        pl_attend_chunk(p->kernels, &kv, score_scale(c), &queries, start, work, start == 0 ? all : chunk);
        if (start > 0) pl_attend_fold(n, d16, all, chunk);
    }
    for (int64_t t = 0; t < n; t++) pl_attend_finish(&p->model->kv, all, t, query(p, i + t, h));
}

/* Lone tokens: units of a KV head and a chunk, in the order in which pages are read, an equal share for each thread. */
static void attention_alone(const pass *p, const pl_worker *w, int64_t layer) {
    int64_t heads = p->config->n_kv_heads, unit = 0, i = 0, begin, end;
    pl_share(w, p->n_parts / group_of(p->config), 1, &begin, &end);
    for (int32_t r = 0; r < p->n_runs && unit < end; i += p->runs[r].n, r++) {
        if (p->runs[r].n != 1) continue;
        int64_t chunks = p->rows[i].position / PL_CHUNK + 1, last = unit + heads * chunks;
        for (int64_t j = unit < begin ? begin : unit; j < end && j < last; j++) {
            attend_alone(p, w, layer, i, (j - unit) / chunks, (j - unit) % chunks);
        }
        unit = last;
    }
}

/* Runs of several tokens: units of a head and PL_ROWS tokens, which go round the threads, since later ones see more. */
static void attention_of_runs(const pass *p, const pl_worker *w, int64_t layer) {
    int64_t heads = p->config->n_heads, unit = 0, i = 0;
    for (int32_t r = 0; r < p->n_runs; i += p->runs[r].n, r++) {
        int64_t n = p->runs[r].n;
        for (int64_t t = 0; t < n && n > 1; t += PL_ROWS) {
            for (int64_t h = 0; h < heads; h++) {
                if (unit++ % w->count != w->index) continue;
                attend_tokens(p, w, layer, i + t, n - t < PL_ROWS ? n - t : PL_ROWS, h);
            }
        }
    }
}

static void attention(const pass *p, const pl_worker *w, int64_t layer) {
    attention_of_runs(p, w, layer);
    attention_alone(p, w, layer);
    pl_barrier_wait(w);
}

/* The attention of a lone token from its chunks, out (heads * head_dim). Where every thread wants it for itself, none
 * may change the parts. */
static void combine(const pass *p, const pl_worker *w, const row *r, float *out) {
    const pl_config *c = p->config;
    int64_t d16 = p->model->kv.d16;
    float *room = room_of(p, w);
    pl_attended all = {room, room + 1, room + 2};
    for (int64_t h = 0; h < c->n_heads; h++) {
        pl_attended first = part_of(p, r->part + h);
        *all.max = *first.max;
        *all.sum = *first.sum;
        memcpy(all.values, first.values, (size_t)d16 * sizeof *all.values);
        for (int64_t chunk = 1; chunk <= r->position / PL_CHUNK; chunk++) {
            pl_attend_fold(1, d16, all, part_of(p, r->part + chunk * c->n_heads + h));
        }
        pl_attend_finish(&p->model->kv, all, 0, out + h * c->head_dim);
    }
}

/* acts = attention's output */
static void attended(const pass *p, const pl_worker *w, int32_t planes) {
    int64_t width = (int64_t)p->config->n_heads * p->config->head_dim;
    share s = share_of(w, p->n);
    for (int64_t i = s.begin; i < s.end; i++) {
        const row *r = &p->rows[i];
        float *out = r->part >= 0 ? column(p, i + s.shift) : query(p, i, 0);
        if (r->part >= 0) combine(p, w, r, out);
        set_column(p, i + s.shift, out, width, planes);
    }
    shared_out(w, p->n);
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

/* Heads times chunks of a lone token. */
static int64_t parts_of(const pl_config *c, const pl_run *run) {
    return (run->session->position / PL_CHUNK + 1) * c->n_heads;
}

static void count(pass *p) {
    for (int32_t r = 0; r < p->n_runs; r++) {
        const pl_run *run = &p->runs[r];
        p->n += run->n;
        p->n_logits += run->n_logits;
        if (run->n != 1) continue;
        p->n_alone++;
        p->n_parts += parts_of(p->config, run);
    }
}

static void list_rows(pass *p) {
    int64_t i = 0, m = 0, part = 0;
    for (int32_t r = 0; r < p->n_runs; r++) {
        const pl_run *run = &p->runs[r];
        for (int64_t t = 0; t < run->n; t++, i++) {
            p->rows[i] = (row){run->session, run->session->position + t, run->tokens[t], run->n == 1 ? part : -1};
            int64_t wanted = t - (run->n - run->n_logits);
            if (wanted < 0) continue;
            p->wanted[m] = i;
            p->logits[m++] = run->logits + wanted * p->config->vocab_size;
        }
        if (run->n == 1) part += parts_of(p->config, run);
    }
}

int32_t pl_forward(pl_model *model, pl_scratch *scratch, const pl_run *runs, int32_t n_runs, int32_t threads,
                   pl_poll_fn poll, void *context, pl_error *err) {
    pass p = {.model = model,
              .config = &model->config,
              .kernels = pl_kernels_current(),
              .scratch = scratch,
              .runs = runs,
              .n_runs = n_runs,
              .poll = poll,
              .context = context,
              .polled = pl_seconds()};
    count(&p);
    int32_t status = pl_scratch_reserve(p.scratch, model, p.n, p.n_parts, threads, err);
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
