/* Attention in a pass. Lone tokens, one of each sequence, are cut into chunks of positions, since each thread should
 * read a part of the cache; runs of several tokens are cut into tokens and heads. */
#include <math.h>
#include <string.h>

#include "model/pass.h"

/* ---- where things are -------------------------------------------------------------------------------------------- */

static int64_t group_of(const pl_config *c) { return c->n_heads / c->n_kv_heads; }

/* Where head h of token i begins in scratch->q; KV head h in scratch->k and v. */
static float *query(const pl_pass *p, int64_t i, int64_t h) {
    const pl_config *c = p->config;
    return p->scratch->q + i * pl_pad((int64_t)c->n_heads * c->head_dim) + h * c->head_dim;
}

static int64_t key_index(const pl_config *c, int64_t i, int64_t h) {
    return i * pl_pad((int64_t)c->n_kv_heads * c->head_dim) + h * c->head_dim;
}

static pl_kv_view view_of(const pl_pass *p, int64_t i, int64_t layer, int64_t kv_head) {
    const pl_kv_layout *kv = &p->model->kv;
    return (pl_kv_view){kv, p->rows[i].session->table.pages, pl_kv_unit(kv, layer, kv_head)};
}

/* A worker's own room for attention: pl_scratch_attend. The last of it holds a head while it is normalised. */
static float *room_of(const pl_pass *p, const pl_worker *w) {
    return p->scratch->attend + (size_t)w->index * (size_t)pl_pad(pl_scratch_attend(&p->model->kv));
}

static float *room_for_queries(const pl_pass *p, const pl_worker *w) {
    return room_of(p, w) + pl_scratch_queries(&p->model->kv);
}

static float *room_for_head(const pl_pass *p, const pl_worker *w) {
    return room_of(p, w) + pl_scratch_attend(&p->model->kv) - p->model->kv.d16;
}

static pl_attended part_of(const pl_pass *p, int64_t part) {
    pl_attended all = p->scratch->parts;
    return (pl_attended){all.max + part, all.sum + part, all.values + part * p->model->kv.d16};
}

/* ---- what a layer sees, and how ---------------------------------------------------------------------------------- */

enum { FAR = PL_LONGEST_CONTEXT };

static pl_sight sight_of(const pl_pass *p, const pl_layer *l, const pl_row *r) {
    int64_t window = l->config.window, length = r->length;
    if (p->config->causal) return (pl_sight){window > 0 ? window - 1 : FAR, 0, length};
    return (pl_sight){window > 0 ? window / 2 : FAR, window > 0 ? window / 2 : FAR, length};
}

/* The chunks [begin, end) that a position sees some of. */
typedef struct chunks { int64_t begin, end; } chunks;

static chunks chunks_of(const pl_sight *sight, int64_t first, int64_t last) {
    return (chunks){pl_sight_begin(sight, first) / PL_CHUNK, (pl_sight_end(sight, last) - 1) / PL_CHUNK + 1};
}

static pl_scoring scoring_of(const pl_config *c) {
    float scale = c->attention_scale > 0 ? c->attention_scale : 1.0f / sqrtf((float)c->head_dim);
    return (pl_scoring){scale, c->attention_softcap};
}

static const float *sink_of(const pl_layer *l, int64_t h) { return l->sinks ? l->sinks + h : NULL; }

/* ---- queries and keys -------------------------------------------------------------------------------------------- */

/* Normalises `n` values in place, by way of `room` (d16), whose padding is zeros as kernels want it. */
static void normalise_in(const pl_pass *p, float *room, float *x, const float *weight, int64_t n) {
    memcpy(room, x, (size_t)n * sizeof *room);
    memset(room + n, 0, (size_t)(pl_pad(n) - n) * sizeof *room);
    pl_normalise(p, &(pl_norm){(float *)weight, NULL}, room, n, room);
    memcpy(x, room, (size_t)n * sizeof *room);
}

/* Normalises and rotates head h of token i's queries or keys; weight: of all such heads. */
static void turn(const pl_pass *p, const pl_worker *w, const pl_layer *l, int64_t i, float *head, const float *weight,
                 int64_t h) {
    const pl_config *c = p->config;
    if (c->qk_norm == PL_QK_NORM_EACH) weight += h * c->head_dim;
    if (c->qk_norm == PL_QK_NORM_HEAD || c->qk_norm == PL_QK_NORM_EACH) {
        normalise_in(p, room_for_head(p, w), head, weight, c->head_dim);
    }
    if (l->config.rope != PL_ROPE_NONE) pl_rope(head, pl_cos_sin(p->scratch, c, i, l->config.rope), c->rope_dims);
}

/* Puts token i's key of a KV head, turned, and the value into the page. */
static void store(const pl_pass *p, const pl_worker *w, const pl_layer *l, int64_t layer, int64_t i, int64_t h) {
    const pl_row *r = &p->rows[i];
    const pl_kv_layout *kv = &p->model->kv;
    float *k = p->scratch->k + key_index(p->config, i, h);
    const float *v = p->scratch->v + key_index(p->config, i, h);
    turn(p, w, l, i, k, l->k_norm, h);
    uint8_t *page = r->session->table.pages[r->position / PL_PAGE];
    pl_kv_store(p->kernels, kv, page + pl_kv_unit(kv, layer, h), r->position % PL_PAGE, k, v);
}

/* Queries and keys that are normalised as one vector each. */
static void normalise_wide(const pl_pass *p, const pl_worker *w, const pl_layer *l) {
    const pl_config *c = p->config;
    if (c->qk_norm != PL_QK_NORM_WIDE) return;
    int64_t begin, end, q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    pl_share(w, p->n, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        float *queries = query(p, i, 0), *keys = p->scratch->k + key_index(c, i, 0);
        pl_normalise(p, &(pl_norm){l->q_norm, NULL}, queries, q, queries);
        pl_normalise(p, &(pl_norm){l->k_norm, NULL}, keys, kv, keys);
    }
    pl_barrier_wait(w);
}

/* Queries and keys of runs of several tokens, which see each other: (token, KV head) units. */
static void turn_and_store(const pl_pass *p, const pl_worker *w, const pl_layer *l, int64_t layer) {
    if (p->n_alone == p->n) return;
    int64_t begin, end, group = group_of(p->config), heads = p->config->n_kv_heads;
    pl_share(w, p->n * heads, 1, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t i = unit / heads, h = unit % heads;
        if (p->rows[i].part >= 0) continue;
        for (int64_t g = h * group; g < (h + 1) * group; g++) turn(p, w, l, i, query(p, i, g), l->q_norm, g);
        store(p, w, l, layer, i, h);
    }
    pl_barrier_wait(w);
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

/* One chunk of a lone token's attention with a KV head: all heads of the group at once, whose queries it turns for
 * itself. The chunk that the token stands in sees its key first, and stores it. */
static void attend_alone(const pl_pass *p, const pl_worker *w, const pl_layer *l, int64_t layer, int64_t i,
                         int64_t kv_head, int64_t chunk) {
    const pl_config *c = p->config;
    const pl_row *r = &p->rows[i];
    int64_t group = group_of(c), hd = c->head_dim, first = kv_head * group;
    float *work = room_of(p, w), *q = work + PL_ATTEND_WORK;
    if (chunk == r->position / PL_CHUNK) store(p, w, l, layer, i, kv_head);
    pl_sight sight = sight_of(p, l, r);
    pl_kv_view kv = view_of(p, i, layer, kv_head);
    for (int64_t g = 0; g < group; g += PL_ROWS) {
        int64_t rows = group - g < PL_ROWS ? group - g : PL_ROWS;
        memcpy(q, query(p, i, first + g), (size_t)(rows * hd) * sizeof *q);
        for (int64_t j = 0; j < rows; j++) turn(p, w, l, i, q + j * hd, l->q_norm, first + g + j);
        pl_acts acts = pl_query_acts(p->kernels, kv.layout, q, hd, rows, room_for_queries(p, w));
        pl_queries queries = {.acts = acts, .rows = rows, .first = r->position, .step = 0};
        pl_attended out = part_of(p, r->part + chunk * c->n_heads + first + g);
        pl_attend_chunk(p->kernels, &kv, scoring_of(c), &sight, &queries, chunk * PL_CHUNK, work, out);
    }
}

/* The attention of up to PL_ROWS consecutive tokens with head h, which takes their queries' place. */
static void attend_tokens(const pl_pass *p, const pl_worker *w, const pl_layer *l, int64_t layer, int64_t i, int64_t n,
                          int64_t h) {
    const pl_config *c = p->config;
    int64_t d16 = p->model->kv.d16, ldq = pl_pad((int64_t)c->n_heads * c->head_dim);
    float *work = room_of(p, w), *so_far = work + PL_ATTEND_WORK, *more = so_far + PL_ROWS * (d16 + 2);
    pl_attended all = {so_far, so_far + PL_ROWS, so_far + 2 * PL_ROWS};
    pl_attended one = {more, more + PL_ROWS, more + 2 * PL_ROWS};
    pl_kv_view kv = view_of(p, i, layer, h / group_of(c));
    pl_acts acts = pl_query_acts(p->kernels, kv.layout, query(p, i, h), ldq, n, room_for_queries(p, w));
    pl_queries queries = {.acts = acts, .rows = n, .first = p->rows[i].position, .step = 1};
    pl_sight sight = sight_of(p, l, &p->rows[i]);
    chunks seen = chunks_of(&sight, p->rows[i].position, p->rows[i + n - 1].position);
    for (int64_t chunk = seen.begin; chunk < seen.end; chunk++) {
        pl_attended out = chunk == seen.begin ? all : one;
        pl_attend_chunk(p->kernels, &kv, scoring_of(c), &sight, &queries, chunk * PL_CHUNK, work, out);
        if (chunk > seen.begin) pl_attend_fold(n, d16, all, one);
    }
    for (int64_t t = 0; t < n; t++) pl_attend_finish(&p->model->kv, all, t, sink_of(l, h), query(p, i + t, h));
}

static chunks chunks_of_lone(const pl_pass *p, const pl_layer *l, int64_t i) {
    pl_sight sight = sight_of(p, l, &p->rows[i]);
    return chunks_of(&sight, p->rows[i].position, p->rows[i].position);
}

/* Units of a KV head and a chunk that lone tokens make. */
static int64_t lone_units(const pl_pass *p, const pl_layer *l) {
    int64_t units = 0, i = 0;
    for (int32_t r = 0; r < p->n_runs; i += p->runs[r].n, r++) {
        if (p->runs[r].n != 1) continue;
        chunks seen = chunks_of_lone(p, l, i);
        units += p->config->n_kv_heads * (seen.end - seen.begin);
    }
    return units;
}

/* Lone tokens: units in the order in which pages are read, an equal share for each thread. */
static void attention_alone(const pl_pass *p, const pl_worker *w, const pl_layer *l, int64_t layer) {
    int64_t unit = 0, i = 0, begin, end;
    pl_share(w, lone_units(p, l), 1, &begin, &end);
    for (int32_t r = 0; r < p->n_runs && unit < end; i += p->runs[r].n, r++) {
        if (p->runs[r].n != 1) continue;
        chunks seen = chunks_of_lone(p, l, i);
        int64_t each = seen.end - seen.begin, last = unit + p->config->n_kv_heads * each;
        for (int64_t j = unit < begin ? begin : unit; j < end && j < last; j++) {
            attend_alone(p, w, l, layer, i, (j - unit) / each, seen.begin + (j - unit) % each);
        }
        unit = last;
    }
}

/* Runs of several tokens: units of a head and PL_ROWS tokens, which go round the threads, since later ones see more. */
static void attention_of_runs(const pl_pass *p, const pl_worker *w, const pl_layer *l, int64_t layer) {
    int64_t heads = p->config->n_heads, unit = 0, i = 0;
    for (int32_t r = 0; r < p->n_runs; i += p->runs[r].n, r++) {
        int64_t n = p->runs[r].n;
        for (int64_t t = 0; t < n && n > 1; t += PL_ROWS) {
            for (int64_t h = 0; h < heads; h++) {
                if (unit++ % w->count != w->index) continue;
                attend_tokens(p, w, l, layer, i + t, n - t < PL_ROWS ? n - t : PL_ROWS, h);
            }
        }
    }
}

/* The attention of lone token i from its chunks, out (heads * head_dim). Where every thread wants it for itself, none
 * may change the parts. */
static void combine(const pl_pass *p, const pl_worker *w, const pl_layer *l, int64_t i, float *out) {
    const pl_config *c = p->config;
    int64_t d16 = p->model->kv.d16;
    float *room = room_of(p, w);
    pl_attended all = {room, room + 1, room + 2};
    chunks seen = chunks_of_lone(p, l, i);
    for (int64_t h = 0; h < c->n_heads; h++) {
        *all.sum = 0;
        for (int64_t chunk = seen.begin; chunk < seen.end; chunk++) {
            pl_attend_fold(1, d16, all, part_of(p, p->rows[i].part + chunk * c->n_heads + h));
        }
        pl_attend_finish(&p->model->kv, all, 0, sink_of(l, h), out + h * c->head_dim);
    }
}

/* acts = attention's output */
static void attended(const pl_pass *p, const pl_worker *w, const pl_layer *l) {
    int64_t width = (int64_t)p->config->n_heads * p->config->head_dim;
    pl_token_share s = pl_share_tokens(w, p->n);
    for (int64_t i = s.begin; i < s.end; i++) {
        int lone = p->rows[i].part >= 0;
        float *out = lone ? pl_column(p, i + s.shift) : query(p, i, 0);
        if (lone) combine(p, w, l, i, out);
        pl_make_column(p, &p->scratch->acts, i + s.shift, out, width, pl_planes(p, &l->wo));
    }
    pl_tokens_shared(w, p->n);
}

void pl_attention(const pl_pass *p, const pl_worker *w, const pl_layer *l, int64_t layer) {
    normalise_wide(p, w, l);
    turn_and_store(p, w, l, layer);
    attention_of_runs(p, w, l, layer);
    attention_alone(p, w, l, layer);
    pl_barrier_wait(w);
    attended(p, w, l);
}
