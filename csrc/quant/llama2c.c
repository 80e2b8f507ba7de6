/* llama2.c's int8 (version 2): int8[n], then fp32 scales[n / group], groups over the flattened tensor. */
#include "quant/blocks.h"
#include "quant/pack.h"
#include "quant/rows.h"

static float group_scale(const pl_source *source, int64_t element) {
    float scale;
    const uint8_t *scales = (const uint8_t *)source->data + source->rows * source->cols;
    memcpy(&scale, scales + element / source->group * 4, sizeof scale);
    return scale;
}

static void dequantize_llama2c(const pl_source *source, int64_t row, float *out) {
    int64_t first = row * source->cols;
    const int8_t *q = (const int8_t *)source->data + first;
    for (int64_t k = 0; k < source->cols; k++) out[k] = (float)q[k] * group_scale(source, first + k);
}

static void pack_llama2c(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    int64_t first = row * source->cols;
    const int8_t *q = (const int8_t *)source->data + first;
    pl_strip_q8f *out = strip;
    for (int64_t k = 0; k < source->cols; k += PL_BLOCK, out++) {
        out->d[lane] = group_scale(source, first + k);
        pl_pack_codes8(&out->codes, lane, q + k);
    }
}

const pl_type pl_type_llama2c_q8 = {
    {PL_TYPE_LLAMA2C_Q8, "llama2.c int8", 1, 1}, PL_PACK_Q8F, dequantize_llama2c, pack_llama2c, NULL};
