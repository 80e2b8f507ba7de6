#include "ops/attention.h"

#include <math.h>
#include <string.h>

#include "base/math.h"
#include "quant/f16.h"

/* ---- pages ------------------------------------------------------------------------------------------------------ */

pl_kv_layout pl_kv_layout_of(const pl_config *c) {
    pl_kv_layout l = {.type = c->kv_type, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim};
    l.d4 = (l.head_dim + 3) / 4 * 4;
    l.d16 = (l.head_dim + 15) / 16 * 16;
    l.element = c->kv_type == PL_TYPE_F16 ? sizeof(uint16_t) : sizeof(float);
    l.key_bytes = PL_PAGE * (size_t)l.d4 * l.element;
    l.unit_bytes = l.key_bytes + PL_PAGE * (size_t)l.d16 * l.element;
    l.page_bytes = (size_t)c->n_layers * (size_t)c->n_kv_heads * l.unit_bytes;
    return l;
}

static void put(const pl_kv_layout *l, uint8_t *base, int64_t i, float x) {
    if (l->type == PL_TYPE_F16) {
        ((uint16_t *)base)[i] = pl_f16_from_float(x);
    } else {
        ((float *)base)[i] = x;
    }
}

static float get(const pl_kv_layout *l, const uint8_t *base, int64_t i) {
    return l->type == PL_TYPE_F16 ? pl_float_from_f16(((const uint16_t *)base)[i]) : ((const float *)base)[i];
}

static int64_t key_index(const pl_kv_layout *l, int64_t slot, int64_t d) {
    return (slot / PL_STRIP * l->d4 + d) * PL_STRIP + slot % PL_STRIP;
}

void pl_kv_store(const pl_kv_layout *l, uint8_t *unit, int64_t slot, const float *k, const float *v) {
    for (int64_t d = 0; d < l->head_dim; d++) put(l, unit, key_index(l, slot, d), k[d]);
    for (int64_t d = 0; d < l->head_dim; d++) put(l, unit + l->key_bytes, slot * l->d16 + d, v[d]);
}

void pl_kv_load(const pl_kv_layout *l, const uint8_t *unit, int64_t slot, float *k, float *v) {
    for (int64_t d = 0; d < l->head_dim; d++) k[d] = get(l, unit, key_index(l, slot, d));
    for (int64_t d = 0; d < l->head_dim; d++) v[d] = get(l, unit + l->key_bytes, slot * l->d16 + d);
}

/* ---- one chunk -------------------------------------------------------------------------------------------------- */

/* What a row knows so far: the maximum of its scores, the sum of its weights relative to it, the weighted values. */
typedef struct running {
    float max[PL_ROWS], sum[PL_ROWS];
    float *out; /* (rows, d16) */
} running;

/* Everything one call works with. */
typedef struct attention {
    const pl_kernels *kernels;
    const pl_kv_layout *layout;
    uint8_t *const *pages;
    size_t unit;
    float scale;
    const pl_queries *queries;
    float *scores; /* (rows, PL_CHUNK) */
    float *part;   /* (rows, d16): values of this chunk */
} attention;

/* How many positions of the chunk at `start` row r sees. */
static int64_t visible(const pl_queries *q, int64_t r, int64_t start) {
    int64_t n = q->first + r * q->step + 1 - start;
    return n < 0 ? 0 : n > PL_CHUNK ? PL_CHUNK : n;
}

/* scores (rows, PL_CHUNK) = q . k over the strips that any row sees, a page at a time. */
static void score(const attention *a, int64_t start, int64_t n) {
    const pl_kv_layout *l = a->layout;
    pl_acts x = {.f = a->queries->q, .ld = a->queries->ldq, .k = l->head_dim};
    pl_packing packing = l->type == PL_TYPE_F16 ? PL_PACK_F16 : PL_PACK_F32;
    for (int64_t t = 0; t < n; t += PL_PAGE) {
        int64_t left = (n - t + PL_STRIP - 1) / PL_STRIP, strips = PL_PAGE / PL_STRIP;
        const uint8_t *keys = a->pages[(start + t) / PL_PAGE] + a->unit;
        a->kernels->matmul[packing](keys, left < strips ? left : strips, &x, 0, a->queries->rows, a->scores + t,
                                    PL_CHUNK, 0);
    }
}

/* part += p v for rows [row, row + rows) and positions [begin, end) of the chunk. */
static void weigh(const attention *a, int64_t start, int64_t begin, int64_t end, int64_t row, int64_t rows) {
    const pl_kv_layout *l = a->layout;
    for (int64_t t = begin; t < end;) {
        int64_t slot = (start + t) % PL_PAGE, n = PL_PAGE - slot < end - t ? PL_PAGE - slot : end - t;
        const uint8_t *values =
            a->pages[(start + t) / PL_PAGE] + a->unit + l->key_bytes + (size_t)(slot * l->d16) * l->element;
        const float *p = a->scores + row * PL_CHUNK + t;
        float *out = a->part + row * l->d16;
        if (l->type == PL_TYPE_F16) {
            a->kernels->weigh_f16((const uint16_t *)values, n, l->d16, p, PL_CHUNK, rows, out);
        } else {
            a->kernels->weigh_f32((const float *)values, n, l->d16, p, PL_CHUNK, rows, out);
        }
        t += n;
    }
}

/* Folds this chunk's (max, sum, part) into what row r knows. */
static void combine(const attention *a, running *so_far, int64_t r, float max, float sum) {
    int64_t d16 = a->layout->d16;
    float *out = so_far->out + r * d16;
    const float *part = a->part + r * d16;
    float top = max > so_far->max[r] ? max : so_far->max[r];
    float old = pl_expf(so_far->max[r] - top), new = pl_expf(max - top);
    so_far->max[r] = top;
    so_far->sum[r] = so_far->sum[r] * old + sum * new;
    for (int64_t d = 0; d < d16; d++) out[d] = out[d] * old + part[d] * new;
}

static void attend_chunk(const attention *a, running *so_far, int64_t start, int first) {
    const pl_queries *q = a->queries;
    float max[PL_ROWS], sum[PL_ROWS];
    score(a, start, visible(q, q->rows - 1, start));
    for (int64_t r = 0; r < q->rows; r++) {
        float *s = a->scores + r * PL_CHUNK;
        int64_t n = visible(q, r, start), n16 = (n + 15) / 16 * 16;
        for (int64_t t = n; t < n16; t++) s[t] = -INFINITY;
        if (n > 0) sum[r] = a->kernels->softmax(s, n16, a->scale, &max[r]);
    }
    memset(a->part, 0, (size_t)(q->rows * a->layout->d16) * sizeof *a->part);
    int64_t common = visible(q, 0, start);
    weigh(a, start, 0, common, 0, q->rows);
    for (int64_t r = 0; r < q->rows; r++) {
        int64_t n = visible(q, r, start);
        weigh(a, start, common, n, r, 1);
        if (n == 0) continue;
        if (first) {
            so_far->max[r] = max[r];
            so_far->sum[r] = sum[r];
            memcpy(so_far->out + r * a->layout->d16, a->part + r * a->layout->d16,
                   (size_t)a->layout->d16 * sizeof *a->part);
        } else {
            combine(a, so_far, r, max[r], sum[r]);
        }
    }
}

/* ---- all chunks ------------------------------------------------------------------------------------------------- */

size_t pl_attend_work(const pl_kv_layout *layout) { return PL_ROWS * (PL_CHUNK + 2 * (size_t)layout->d16); }

void pl_attend(const pl_kernels *kernels, const pl_kv_layout *layout, uint8_t *const *pages, size_t unit, float scale,
               const pl_queries *queries, float *work) {
    attention a = {kernels, layout, pages, unit, scale, queries, work, work + PL_ROWS * PL_CHUNK};
    running so_far = {.out = a.part + PL_ROWS * layout->d16};
    int64_t last = queries->first + (queries->rows - 1) * queries->step;
    for (int64_t start = 0; start <= last; start += PL_CHUNK) attend_chunk(&a, &so_far, start, start == 0);
    for (int64_t r = 0; r < queries->rows; r++) {
        float inverse = 1.0f / so_far.sum[r];
        for (int64_t d = 0; d < layout->head_dim; d++) {
            queries->out[r * queries->ldo + d] = so_far.out[r * layout->d16 + d] * inverse;
        }
    }
}
