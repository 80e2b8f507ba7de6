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
    PL_PAGE = 64,   /* positions per page */
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

/* Writes k and v (head_dim) at position `slot` of a page's unit; pl_kv_load reads them back as fp32. */
void pl_kv_store(const pl_kv_layout *layout, uint8_t *unit, int64_t slot, const float *k, const float *v);
void pl_kv_load(const pl_kv_layout *layout, const uint8_t *unit, int64_t slot, float *k, float *v);

/* Queries of one KV head, in one sequence: either the heads of a group at one position (step 0) or consecutive
 * positions of one head (step 1). Row r is at q + r * ldq, sees positions [0, first + r * step], and its result goes
 * to out + r * ldo. */
typedef struct pl_queries {
    const float *q;
    int64_t ldq, rows; /* rows <= PL_ROWS */
    int64_t first, step;
    float *out;
    int64_t ldo;
} pl_queries;

/* out_r = sum_t softmax(scale q_r . k_t) v_t. Per chunk of PL_CHUNK positions: scores, their maximum m, p = exp(s - m),
 * l = sum p, o = sum p v; chunks are combined in order. pages: the sequence's pages; work: pl_attend_work() floats. */
void pl_attend(const pl_kernels *kernels, const pl_kv_layout *layout, uint8_t *const *pages, size_t unit, float scale,
               const pl_queries *queries, float *work);
size_t pl_attend_work(const pl_kv_layout *layout);

#endif
