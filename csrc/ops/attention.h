/* Attention over paged keys and values.
 *
 * A page holds PL_PAGE positions of every layer and KV head. Per (layer, head): the keys as strips of 16 positions,
 * [d4][16], which is the weight layout, so that scores are a matrix product; then the values, [position][d16].
 * Elements are f16 or f32; d4 and d16 are head_dim rounded up to 4 and 16, padded with zeros. */
#ifndef PL_OPS_ATTENTION_H
#define PL_OPS_ATTENTION_H

#include "kernels/kernels.h"
#include "pyllm.h"

enum {
    PL_CHUNK = 256, /* positions whose softmax is taken at once; part of the arithmetic */
    PL_ROWS = 16,   /* queries that one call of pl_attend may share its keys with */
};

typedef struct pl_kv_layout {
    int32_t type; /* PL_TYPE_F16 or PL_TYPE_F32 */
    int32_t n_kv_heads;
    int64_t head_dim, d4, d16;
    size_t element;               /* bytes */
    size_t key_bytes, unit_bytes; /* of one (layer, head): its keys; keys and values */
    size_t page_bytes;
} pl_kv_layout;

pl_kv_layout pl_kv_layout_of(const pl_config *config);

/* Where (layer, head) lies in a page. */
static inline size_t pl_kv_unit(const pl_kv_layout *layout, int64_t layer, int64_t head) {
    return (size_t)(layer * layout->n_kv_heads + head) * layout->unit_bytes;
}

/* Writes k and v (head_dim) at position `slot` of a page's unit. */
void pl_kv_store(const pl_kv_layout *layout, uint8_t *unit, int64_t slot, const float *k, const float *v);
void pl_kv_load(const pl_kv_layout *layout, const uint8_t *unit, int64_t slot, float *k, float *v); /* back as fp32 */
/* The same as bytes: k, then v, head_dim elements each as the page holds them. */
void pl_kv_pack(const pl_kv_layout *layout, const uint8_t *unit, int64_t slot, uint8_t *out);
void pl_kv_unpack(const pl_kv_layout *layout, uint8_t *unit, int64_t slot, const uint8_t *in);

/* Queries of one KV head, in one sequence: either the heads of a group at one position (step 0) or consecutive
 * positions of one head (step 1). Row r is at q + r * ldq and stands at position first + r * step. */
typedef struct pl_queries {
    const float *q;
    int64_t ldq, rows; /* rows <= PL_ROWS */
    int64_t first, step;
} pl_queries;

/* What a position sees: so many before it, itself, and so many after it, of the `length` there are. */
typedef struct pl_sight { int64_t before, after, length; } pl_sight;

/* The positions [begin, end) that `position` sees. */
static inline int64_t pl_sight_begin(const pl_sight *s, int64_t position) {
    return position > s->before ? position - s->before : 0;
}

static inline int64_t pl_sight_end(const pl_sight *s, int64_t position) {
    return position < s->length - s->after ? position + s->after + 1 : s->length;
}

/* What becomes of a score q . k: scale times it or, where there is a cap, cap * tanh(scale / cap times it). */
typedef struct pl_scoring { float scale, cap; /* 0: none */ } pl_scoring;

/* What queries make of some of the positions, a row each: the largest score m, l = sum p with p = exp(score - m), and
 * sum p v. */
typedef struct pl_attended { float *max, *sum, *values; /* (rows), (rows), (rows, d16) */ } pl_attended;

/* The sequence's keys and values of one layer and KV head. */
typedef struct pl_kv_view {
    const pl_kv_layout *layout;
    uint8_t *const *pages;
    size_t unit;
} pl_kv_view;

enum { PL_ATTEND_WORK = PL_ROWS * PL_CHUNK }; /* floats of `work` below */

/* One chunk: the PL_CHUNK positions from `start` on, as far as each row sees them. A row that sees none has m = -inf,
 * l = 0. */
void pl_attend_chunk(const pl_kernels *kernels, const pl_kv_view *kv, pl_scoring scoring, const pl_sight *sight,
                     const pl_queries *queries, int64_t start, float *work, pl_attended out);
/* Folds the chunk that follows into what is known of those before it. */
void pl_attend_fold(int64_t rows, int64_t d16, pl_attended so_far, pl_attended chunk);
/* The attention of row r, out (head_dim): sum p v / sum p. sink: NULL, or one more score, which has no value. */
void pl_attend_finish(const pl_kv_layout *layout, pl_attended all, int64_t r, const float *sink, float *out);

#endif
