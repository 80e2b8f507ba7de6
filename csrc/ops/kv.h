/* Keys and values as pages hold them.
 *
 * A page holds PL_PAGE positions of every layer and KV head. Per (layer, head), which is a unit: the keys as strips of
 * 16 positions, which is the weight layout, so that scores are a matrix product; then the values, position by position.
 *
 *   F32, F16   keys [d4][16], values [d16]: head_dim rounded up to 4 and 16, padded with zeros
 *   Q8_0       blocks of 32 of a head, the last one filled up with zeros: keys pl_strip_q8, values pl_block_q8_0. A
 *              block is what kernels->quantize makes of it with one plane, its scale rounded to f16: a code times a
 *              scale is exact in fp32. Where a block holds no number, or one that f16 has no scale for, its scale is
 *              NaN. */
#ifndef PL_OPS_KV_H
#define PL_OPS_KV_H

#include "kernels/kernels.h"
#include "pyllm.h"

typedef struct pl_kv_layout {
    int32_t type; /* PL_TYPE_F32, PL_TYPE_F16 or PL_TYPE_Q8_0 */
    int32_t n_kv_heads;
    pl_packing packing;    /* of the keys */
    int64_t head_dim, d16; /* d16: rounded up to 16, as sums of values are */
    int64_t width;         /* head_dim as keys have it: rounded up to 4, or to 32 in Q8_0 */
    size_t head_bytes;     /* of one key or one value, packed for itself */
    size_t strip_bytes;    /* of 16 keys */
    size_t value_bytes;    /* from one position's value to the next */
    size_t key_bytes;      /* of a unit: where its values begin */
    size_t unit_bytes, page_bytes;
} pl_kv_layout;

pl_kv_layout pl_kv_layout_of(const pl_config *config);

/* Where (layer, head) lies in a page. */
static inline size_t pl_kv_unit(const pl_kv_layout *layout, int64_t layer, int64_t head) {
    return (size_t)(layer * layout->n_kv_heads + head) * layout->unit_bytes;
}

/* Writes k and v (head_dim) at position `slot` of a page's unit. */
void pl_kv_store(const pl_kernels *kernels, const pl_kv_layout *layout, uint8_t *unit, int64_t slot, const float *k,
                 const float *v);
void pl_kv_load(const pl_kv_layout *layout, const uint8_t *unit, int64_t slot, float *k, float *v); /* back as fp32 */
/* The same as bytes: k, then v, head_bytes each: head_dim elements, or blocks, as the page's type has them. */
void pl_kv_pack(const pl_kv_layout *layout, const uint8_t *unit, int64_t slot, uint8_t *out);
void pl_kv_unpack(const pl_kv_layout *layout, uint8_t *unit, int64_t slot, const uint8_t *in);

#endif
