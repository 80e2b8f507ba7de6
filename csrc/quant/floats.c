/* F32, F16, BF16. Strips: [k][16], for BF16 [k / 2][16][2]. */
#include <string.h>

#include "quant/f16.h"
#include "quant/rows.h"

static uint16_t load16(const uint8_t *data, int64_t i) {
    uint16_t value;
    memcpy(&value, data + 2 * i, sizeof value);
    return value;
}

void pl_pack_float_row(const float *values, int64_t cols, void *strip, int32_t lane) {
    float *out = strip;
    for (int64_t k = 0; k < cols; k++) out[k * PL_STRIP + lane] = values[k];
}

static void dequantize_f32(const pl_source *source, int64_t row, float *out) {
    memcpy(out, pl_source_row(source, &pl_type_f32, row), (size_t)source->cols * sizeof *out);
}

static void pack_f32(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    const uint8_t *in = pl_source_row(source, &pl_type_f32, row);
    float *out = strip;
    for (int64_t k = 0; k < source->cols; k++) memcpy(&out[k * PL_STRIP + lane], in + 4 * k, 4);
}

static void dequantize_f16(const pl_source *source, int64_t row, float *out) {
    const uint8_t *in = pl_source_row(source, &pl_type_f16, row);
    for (int64_t k = 0; k < source->cols; k++) out[k] = pl_float_from_f16(load16(in, k));
}

static void pack_f16(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    const uint8_t *in = pl_source_row(source, &pl_type_f16, row);
    uint16_t *out = strip;
    for (int64_t k = 0; k < source->cols; k++) out[k * PL_STRIP + lane] = load16(in, k);
}

static void dequantize_bf16(const pl_source *source, int64_t row, float *out) {
    const uint8_t *in = pl_source_row(source, &pl_type_bf16, row);
    for (int64_t k = 0; k < source->cols; k++) out[k] = pl_float_from_bf16(load16(in, k));
}

static void pack_bf16(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    const uint8_t *in = pl_source_row(source, &pl_type_bf16, row);
    uint16_t *out = strip;
    for (int64_t k = 0; k < source->cols; k++) out[(k / 2 * PL_STRIP + lane) * 2 + k % 2] = load16(in, k);
}

static void quantize_f32(const float *x, int64_t cols, void *out) { memcpy(out, x, (size_t)cols * sizeof *x); }

static void store16(void *out, int64_t i, uint16_t value) { memcpy((uint8_t *)out + 2 * i, &value, sizeof value); }

static void quantize_f16(const float *x, int64_t cols, void *out) {
    for (int64_t k = 0; k < cols; k++) store16(out, k, pl_f16_from_float(x[k]));
}

/* To nearest even; x is finite. */
static void quantize_bf16(const float *x, int64_t cols, void *out) {
    for (int64_t k = 0; k < cols; k++) {
        uint32_t bits = pl_float_bits(x[k]);
        store16(out, k, (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16));
    }
}

const pl_type pl_type_f32 = {{PL_TYPE_F32, "F32", 1, 4}, PL_PACK_F32, dequantize_f32, pack_f32, quantize_f32};
const pl_type pl_type_f16 = {{PL_TYPE_F16, "F16", 1, 2}, PL_PACK_F16, dequantize_f16, pack_f16, quantize_f16};
const pl_type pl_type_bf16 = {{PL_TYPE_BF16, "BF16", 1, 2}, PL_PACK_BF16, dequantize_bf16, pack_bf16, quantize_bf16};
