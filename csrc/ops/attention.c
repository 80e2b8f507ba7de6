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

static int64_t key_index(const pl_kv_layout *l, int64_t slot, int64_t d) {
    return (slot / PL_STRIP * l->d4 + d) * PL_STRIP + slot % PL_STRIP;
}

void pl_kv_store(const pl_kv_layout *l, uint8_t *unit, int64_t slot, const float *k, const float *v) {
    for (int64_t d = 0; d < l->head_dim; d++) put(l, unit, key_index(l, slot, d), k[d]);
    for (int64_t d = 0; d < l->head_dim; d++) put(l, unit + l->key_bytes, slot * l->d16 + d, v[d]);
}

/* Where a position's value begins in a unit. */
static size_t value_offset(const pl_kv_layout *l, int64_t slot) {
    return l->key_bytes + (size_t)(slot * l->d16) * l->element;
}

void pl_kv_pack(const pl_kv_layout *l, const uint8_t *unit, int64_t slot, uint8_t *out) {
    for (int64_t d = 0; d < l->head_dim; d++, out += l->element) {
        memcpy(out, unit + (size_t)key_index(l, slot, d) * l->element, l->element);
    }
    memcpy(out, unit + value_offset(l, slot), (size_t)l->head_dim * l->element);
}

void pl_kv_unpack(const pl_kv_layout *l, uint8_t *unit, int64_t slot, const uint8_t *in) {
    for (int64_t d = 0; d < l->head_dim; d++, in += l->element) {
        memcpy(unit + (size_t)key_index(l, slot, d) * l->element, in, l->element);
    }
    memcpy(unit + value_offset(l, slot), in, (size_t)l->head_dim * l->element);
}

/* ---- one chunk -------------------------------------------------------------------------------------------------- */

/* Everything one call works with. */
typedef struct attention {
    const pl_kernels *kernels;
    const pl_kv_view *kv;
    const pl_queries *queries;
    int64_t start;
    float *scores; /* (rows, PL_CHUNK) */
    float *values; /* (rows, d16) */
} attention;

/* How many positions of the chunk at `start` row r sees. */
static int64_t visible(const pl_queries *q, int64_t r, int64_t start) {
    int64_t n = q->first + r * q->step + 1 - start;
    return n < 0 ? 0 : n > PL_CHUNK ? PL_CHUNK : n;
}

/* Where the keys and the values of page i lie. */
static const uint8_t *keys_of(const attention *a, int64_t i) { return a->kv->pages[i] + a->kv->unit; }

static const uint8_t *values_of(const attention *a, int64_t i) { return keys_of(a, i) + a->kv->layout->key_bytes; }

/* From what is read to what is read next, of which as much is fetched meanwhile. One position's attention does little
 * with each byte, and no page is long enough for the hardware to notice that it is read from end to end. */
static int64_t ahead(const attention *a, const uint8_t *from, const uint8_t *next) {
    return a->queries->step == 0 ? (int64_t)((uintptr_t)next - (uintptr_t)from) : 0;
}

/* scores (rows, PL_CHUNK) = q . k over the strips that any row sees, a page at a time. */
static void score(const attention *a, int64_t n) {
    const pl_kv_layout *l = a->kv->layout;
    pl_acts x = {.f = a->queries->q, .ld = a->queries->ldq, .k = l->head_dim};
    pl_packing packing = l->type == PL_TYPE_F16 ? PL_PACK_F16 : PL_PACK_F32;
    int64_t first = a->start / PL_PAGE;
    for (int64_t t = 0; t < n; t += PL_PAGE) {
        int64_t left = (n - t + PL_STRIP - 1) / PL_STRIP, strips = PL_PAGE / PL_STRIP, page = first + t / PL_PAGE;
        x.ahead = ahead(a, keys_of(a, page), t + PL_PAGE < n ? keys_of(a, page + 1) : values_of(a, first));
        a->kernels->matmul[packing](keys_of(a, page), left < strips ? left : strips, &x, 0, a->queries->rows,
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
    for (int64_t t = begin; t < end;) {
        int64_t page = (a->start + t) / PL_PAGE, slot = (a->start + t) % PL_PAGE;
        int64_t n = PL_PAGE - slot < end - t ? PL_PAGE - slot : end - t;
        int64_t next = ahead(a, values_of(a, page), after_values(a, page));
        const void *v = values_of(a, page) + (size_t)(slot * l->d16) * l->element;
        const float *p = a->scores + row * PL_CHUNK + t;
        float *values = a->values + row * l->d16;
        if (l->type == PL_TYPE_F16) {
            a->kernels->weigh_f16(v, n, l->d16, next, p, PL_CHUNK, rows, values);
        } else {
            a->kernels->weigh_f32(v, n, l->d16, next, p, PL_CHUNK, rows, values);
        }
        t += n;
    }
}

void pl_attend_chunk(const pl_kernels *kernels, const pl_kv_view *kv, float scale, const pl_queries *q, int64_t start,
                     float *work, pl_attended out) {
    attention a = {kernels, kv, q, start, work, out.values};
    score(&a, visible(q, q->rows - 1, start));
    for (int64_t r = 0; r < q->rows; r++) {
        float *s = work + r * PL_CHUNK;
        int64_t n = visible(q, r, start), n16 = (n + 15) / 16 * 16;
        for (int64_t t = n; t < n16; t++) s[t] = -INFINITY;
        out.max[r] = -INFINITY;
        out.sum[r] = n > 0 ? kernels->softmax(s, n16, scale, &out.max[r]) : 0.0f;
    }
    memset(out.values, 0, (size_t)(q->rows * kv->layout->d16) * sizeof *out.values);
    int64_t common = visible(q, 0, start);
    weigh(&a, 0, common, 0, q->rows);
    for (int64_t r = 0; r < q->rows; r++) weigh(&a, common, visible(q, r, start), r, 1);
}

/* ---- all chunks ------------------------------------------------------------------------------------------------- */

void pl_attend_fold(int64_t rows, int64_t d16, pl_attended so_far, pl_attended chunk) {
    for (int64_t r = 0; r < rows; r++) {
        if (chunk.sum[r] == 0) continue; /* sees none of it: others have at least their largest score, exp(0) */
        float top = chunk.max[r] > so_far.max[r] ? chunk.max[r] : so_far.max[r];
        float old = pl_expf(so_far.max[r] - top), new = pl_expf(chunk.max[r] - top);
        so_far.max[r] = top;
        so_far.sum[r] = so_far.sum[r] * old + chunk.sum[r] * new;
        float *values = so_far.values + r * d16;
        const float *more = chunk.values + r * d16;
        for (int64_t d = 0; d < d16; d++) values[d] = values[d] * old + more[d] * new;
    }
}

void pl_attend_finish(const pl_kv_layout *layout, pl_attended all, int64_t r, float *out) {
    float inverse = 1.0f / all.sum[r];
    const float *values = all.values + r * layout->d16;
    for (int64_t d = 0; d < layout->head_dim; d++) out[d] = values[d] * inverse;
}
