#include "ops/attention.h"

#include <math.h>
#include <string.h>

#include "base/math.h"
#include "ops/matmul.h"

/* ---- queries ---------------------------------------------------------------------------------------------------- */

enum { QUERY_PLANES = 2 };

static int64_t query_blocks(const pl_kv_layout *l) { return l->type == PL_TYPE_Q8_0 ? l->width / PL_BLOCK : 0; }

int64_t pl_query_room(const pl_kv_layout *l) {
    int64_t blocks = query_blocks(l) * (int64_t)sizeof(pl_act_block);
    int64_t row = query_blocks(l) > 0 ? blocks + pl_acts_ldq(l->width, QUERY_PLANES) : 0;
    return PL_ROWS * row / (int64_t)sizeof(float);
}

/* One query's blocks, the last of them filled up with zeros. */
static void quantize_query(const pl_kernels *kernels, const pl_kv_layout *l, const float *x, int8_t *q,
                           pl_act_block *blocks) {
    int64_t whole = l->head_dim / PL_BLOCK * PL_BLOCK;
    float rest[PL_BLOCK] = {0};
    kernels->quantize(x, whole, QUERY_PLANES, q, blocks);
    if (whole == l->head_dim) return;
    memcpy(rest, x + whole, (size_t)(l->head_dim - whole) * sizeof *rest);
    kernels->quantize(rest, PL_BLOCK, QUERY_PLANES, q + whole * QUERY_PLANES, blocks + whole / PL_BLOCK);
}

pl_acts pl_query_acts(const pl_kernels *kernels, const pl_kv_layout *l, const float *q, int64_t ld, int64_t rows,
                      float *room) {
    int64_t ldq = pl_acts_ldq(l->width, QUERY_PLANES), blocks = query_blocks(l);
    if (blocks == 0) return (pl_acts){.f = q, .ld = ld, .k = l->head_dim};
    pl_act_block *common = (pl_act_block *)room;
    int8_t *codes = (int8_t *)(common + PL_ROWS * blocks);
    for (int64_t r = 0; r < rows; r++) quantize_query(kernels, l, q + r * ld, codes + r * ldq, common + r * blocks);
    return (pl_acts){.q = codes, .ldq = ldq, .blocks = common, .k = l->width, .planes = QUERY_PLANES};
}

/* ---- one chunk -------------------------------------------------------------------------------------------------- */

/* Everything one call works with. */
typedef struct attention {
    const pl_kernels *kernels;
    const pl_kv_view *kv;
    const pl_sight *sight;
    const pl_queries *queries;
    int64_t start;
    float *scores; /* (rows, PL_CHUNK) */
    float *values; /* (rows, d16) */
} attention;

/* Positions [begin, end) of the chunk; none where begin >= end. */
typedef struct span { int64_t begin, end; } span;

/* What row r sees of the chunk. */
static span visible(const attention *a, int64_t r) {
    int64_t position = a->queries->first + r * a->queries->step;
    int64_t begin = pl_sight_begin(a->sight, position) - a->start, end = pl_sight_end(a->sight, position) - a->start;
    return (span){begin < 0 ? 0 : begin, end > PL_CHUNK ? PL_CHUNK : end};
}

/* Where the keys and the values of page i lie. */
static const uint8_t *keys_of(const attention *a, int64_t i) { return a->kv->pages[i] + a->kv->unit; }

static const uint8_t *values_of(const attention *a, int64_t i) { return keys_of(a, i) + a->kv->layout->key_bytes; }

/* From what is read to what is read next, of which as much is fetched meanwhile: no page is long enough for the
 * hardware to notice that it is read from end to end. */
static int64_t distance(const uint8_t *from, const uint8_t *next) {
    return (int64_t)((uintptr_t)next - (uintptr_t)from);
}

/* scores (rows, PL_CHUNK) = q . k over the strips of the pages that any row sees, a page at a time. */
static void score(const attention *a, span seen) {
    const pl_kv_layout *l = a->kv->layout;
    pl_acts x = a->queries->acts;
    int64_t first = a->start / PL_PAGE + seen.begin / PL_PAGE;
    for (int64_t t = seen.begin / PL_PAGE * PL_PAGE; t < seen.end; t += PL_PAGE) {
        int64_t left = (seen.end - t + PL_STRIP - 1) / PL_STRIP, strips = PL_PAGE / PL_STRIP;
        int64_t page = (a->start + t) / PL_PAGE;
        x.ahead = distance(keys_of(a, page), t + PL_PAGE < seen.end ? keys_of(a, page + 1) : values_of(a, first));
        pl_matmul_of(a->kernels, l->packing)(keys_of(a, page), left < strips ? left : strips, &x, 0, a->queries->rows,
                                             a->scores + t, PL_CHUNK, 0);
    }
}

/* What is read after the values of a page: those of the next in the chunk, or the next chunk's keys. */
static const uint8_t *after_values(const attention *a, int64_t page) {
    if (page * PL_PAGE + PL_PAGE > a->queries->first) return values_of(a, page); /* the last there is */
    return (page + 1) * PL_PAGE % PL_CHUNK == 0 ? keys_of(a, page + 1) : values_of(a, page + 1);
}

/* values += p v for rows [row, row + rows) and positions [begin, end) of the chunk. */
static void weigh(const attention *a, int64_t begin, int64_t end, int64_t row, int64_t rows) {
    const pl_kv_layout *l = a->kv->layout;
    const int lone = a->queries->step == 0; /* one position's rows do little with each byte */
    for (int64_t t = begin; t < end;) {
        int64_t page = (a->start + t) / PL_PAGE, slot = (a->start + t) % PL_PAGE;
        int64_t n = PL_PAGE - slot < end - t ? PL_PAGE - slot : end - t;
        int64_t next = lone ? distance(values_of(a, page), after_values(a, page)) : 0;
        const void *v = values_of(a, page) + (size_t)slot * l->value_bytes;
        const float *p = a->scores + row * PL_CHUNK + t;
        float *values = a->values + row * l->d16;
        switch (l->type) {
            case PL_TYPE_F16: a->kernels->weigh_f16(v, n, l->d16, next, p, PL_CHUNK, rows, values); break;
            case PL_TYPE_F32: a->kernels->weigh_f32(v, n, l->d16, next, p, PL_CHUNK, rows, values); break;
            default: a->kernels->weigh_q8_0(v, n, l->d16, next, p, PL_CHUNK, rows, values); break;
        }
        t += n;
    }
}

/* s = e^(score - m) over what a row sees, zeros in what else there is of its strips; the sum of them. Whole strips, so
 * that a position's lane is the same wherever a window begins. */
static float weights(const attention *a, pl_scoring scoring, span seen, float *s, float *max) {
    int64_t begin = seen.begin / PL_STRIP * PL_STRIP, n16 = pl_pad(seen.end - begin);
    float scale = scoring.scale;
    if (scoring.cap > 0) {
        a->kernels->softcap(s + seen.begin, seen.end - seen.begin, scale, scoring.cap);
        scale = 1.0f;
    }
    for (int64_t t = begin; t < seen.begin; t++) s[t] = -INFINITY;
    for (int64_t t = seen.end; t < begin + n16; t++) s[t] = -INFINITY;
    return a->kernels->softmax(s + begin, n16, scale, max);
}

/* What all rows see, and what any of them does. Neither end lies further back for a later row. */
static span seen_by_all(const attention *a) {
    return (span){visible(a, a->queries->rows - 1).begin, visible(a, 0).end};
}

static span seen_by_any(const attention *a) {
    return (span){visible(a, 0).begin, visible(a, a->queries->rows - 1).end};
}

void pl_attend_chunk(const pl_kernels *kernels, const pl_kv_view *kv, pl_scoring scoring, const pl_sight *sight,
                     const pl_queries *q, int64_t start, float *work, pl_attended out) {
    attention a = {kernels, kv, sight, q, start, work, out.values};
    score(&a, seen_by_any(&a));
    for (int64_t r = 0; r < q->rows; r++) {
        span seen = visible(&a, r);
        out.max[r] = -INFINITY;
        out.sum[r] = seen.begin < seen.end ? weights(&a, scoring, seen, work + r * PL_CHUNK, &out.max[r]) : 0.0f;
    }
    memset(out.values, 0, (size_t)(q->rows * kv->layout->d16) * sizeof *out.values);
    span common = seen_by_all(&a);
    if (common.begin > common.end) common.begin = common.end = PL_CHUNK; /* there is no such thing */
    for (int64_t r = 0; r < q->rows; r++) {
        span seen = visible(&a, r);
        weigh(&a, seen.begin, seen.end < common.begin ? seen.end : common.begin, r, 1);
    }
    weigh(&a, common.begin, common.end, 0, q->rows);
    for (int64_t r = 0; r < q->rows; r++) weigh(&a, common.end, visible(&a, r).end, r, 1);
}

/* ---- all chunks ------------------------------------------------------------------------------------------------- */

void pl_attend_fold(int64_t rows, int64_t d16, pl_attended so_far, pl_attended chunk) {
    for (int64_t r = 0; r < rows; r++) {
        float *values = so_far.values + r * d16;
        const float *more = chunk.values + r * d16;
        if (chunk.sum[r] == 0) continue; /* sees none of it: others have at least their largest score, exp(0) */
        if (so_far.sum[r] == 0) {        /* the first that it sees */
            so_far.max[r] = chunk.max[r];
            so_far.sum[r] = chunk.sum[r];
            memcpy(values, more, (size_t)d16 * sizeof *values);
            continue;
        }
        float top = chunk.max[r] > so_far.max[r] ? chunk.max[r] : so_far.max[r];
        float old = pl_expf(so_far.max[r] - top), new = pl_expf(chunk.max[r] - top);
        so_far.max[r] = top;
        so_far.sum[r] = so_far.sum[r] * old + chunk.sum[r] * new;
        for (int64_t d = 0; d < d16; d++) values[d] = values[d] * old + more[d] * new;
    }
}

void pl_attend_finish(const pl_kv_layout *layout, pl_attended all, int64_t r, const float *sink, float *out) {
    float inverse = 1.0f / all.sum[r];
    const float *values = all.values + r * layout->d16;
    if (sink != NULL) { /* as a chunk of its own that comes last */
        float top = *sink > all.max[r] ? *sink : all.max[r], old = pl_expf(all.max[r] - top);
        inverse = old / (all.sum[r] * old + pl_expf(*sink - top));
    }
    for (int64_t d = 0; d < layout->head_dim; d++) out[d] = values[d] * inverse;
}
