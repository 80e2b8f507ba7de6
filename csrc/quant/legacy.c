/* Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: blocks of 32 with one f16 scale, and a minimum in the _1 types. */
#include <math.h>

#include "quant/blocks.h"
#include "quant/fit.h"
#include "quant/pack.h"
#include "quant/rows.h"

/* Loops over the blocks of a row: `block` is the file's, `strip` the packed one. */
#define FOR_EACH_BLOCK(type, block_t) \
    const block_t *block = (const block_t *)pl_source_row(source, &(type), row); \
    for (int64_t b = 0; b < source->cols / PL_BLOCK; b++, block++)

/* Bit 4 of element j, as 0 or 16. */
static int32_t fifth_bit(const uint8_t qh[4], int j) { return (int32_t)(pl_load32(qh) >> j & 1) << 4; }

static void dequantize_q8_0(const pl_source *source, int64_t row, float *out) {
    FOR_EACH_BLOCK(pl_type_q8_0, pl_block_q8_0) {
        float d = pl_load_f16(block->d);
        for (int j = 0; j < 32; j++) *out++ = d * (float)block->qs[j];
    }
}

static void dequantize_q4_0(const pl_source *source, int64_t row, float *out) {
    FOR_EACH_BLOCK(pl_type_q4_0, pl_block_q4_0) {
        float d = pl_load_f16(block->d);
        for (int j = 0; j < 16; j++) *out++ = d * (float)((block->qs[j] & 15) - 8);
        for (int j = 0; j < 16; j++) *out++ = d * (float)((block->qs[j] >> 4) - 8);
    }
}

static void dequantize_q4_1(const pl_source *source, int64_t row, float *out) {
    FOR_EACH_BLOCK(pl_type_q4_1, pl_block_q4_1) {
        float d = pl_load_f16(block->d), m = pl_load_f16(block->m);
        for (int j = 0; j < 16; j++) *out++ = d * (float)(block->qs[j] & 15) + m;
        for (int j = 0; j < 16; j++) *out++ = d * (float)(block->qs[j] >> 4) + m;
    }
}

static void dequantize_q5_0(const pl_source *source, int64_t row, float *out) {
    FOR_EACH_BLOCK(pl_type_q5_0, pl_block_q5_0) {
        float d = pl_load_f16(block->d);
        for (int j = 0; j < 16; j++) *out++ = d * (float)(((block->qs[j] & 15) | fifth_bit(block->qh, j)) - 16);
        for (int j = 0; j < 16; j++) *out++ = d * (float)(((block->qs[j] >> 4) | fifth_bit(block->qh, j + 16)) - 16);
    }
}

static void dequantize_q5_1(const pl_source *source, int64_t row, float *out) {
    FOR_EACH_BLOCK(pl_type_q5_1, pl_block_q5_1) {
        float d = pl_load_f16(block->d), m = pl_load_f16(block->m);
        for (int j = 0; j < 16; j++) *out++ = d * (float)((block->qs[j] & 15) | fifth_bit(block->qh, j)) + m;
        for (int j = 0; j < 16; j++) *out++ = d * (float)((block->qs[j] >> 4) | fifth_bit(block->qh, j + 16)) + m;
    }
}

/* The file's nibble order is the strip's: byte 4 g + i holds groups g and g + 4. */
static void pack_nibbles(const uint8_t qs[16], pl_codes4 *codes, int32_t lane) {
    for (int g = 0; g < 4; g++) memcpy(codes->q[g][lane], qs + 4 * g, 4);
}

/* Bit 4 g + i of qh becomes bit g of byte i. */
static void pack_fifth_bits(const uint8_t qh[4], uint8_t out[4]) {
    uint32_t bits = pl_load32(qh);
    for (int i = 0; i < 4; i++) {
        uint32_t column = bits >> i & 0x11111111; /* bit 4 g: now gather every fourth bit */
        column = (column | column >> 3) & 0x03030303;
        column = (column | column >> 6) & 0x000f000f;
        out[i] = (uint8_t)(column | column >> 12);
    }
}

static void pack_codes5(const uint8_t qh[4], const uint8_t qs[16], pl_codes5 *codes, int32_t lane) {
    pack_fifth_bits(qh, codes->h[lane]);
    for (int g = 0; g < 4; g++) memcpy(codes->q[g][lane], qs + 4 * g, 4);
}

static void pack_q8_0(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    pl_strip_q8 *out = strip;
    FOR_EACH_BLOCK(pl_type_q8_0, pl_block_q8_0) {
        out->d[lane] = pl_load16(block->d);
        pl_pack_codes8(&out++->codes, lane, block->qs);
    }
}

static void pack_q4_0(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    pl_strip_q4 *out = strip;
    FOR_EACH_BLOCK(pl_type_q4_0, pl_block_q4_0) {
        out->d[lane] = pl_load16(block->d);
        pack_nibbles(block->qs, &out++->codes, lane);
    }
}

static void pack_q4_1(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    pl_strip_q4m *out = strip;
    FOR_EACH_BLOCK(pl_type_q4_1, pl_block_q4_1) {
        out->d[lane] = pl_load16(block->d);
        out->m[lane] = pl_load16(block->m);
        pack_nibbles(block->qs, &out++->codes, lane);
    }
}

static void pack_q5_0(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    pl_strip_q5 *out = strip;
    FOR_EACH_BLOCK(pl_type_q5_0, pl_block_q5_0) {
        out->d[lane] = pl_load16(block->d);
        pack_codes5(block->qh, block->qs, &out++->codes, lane);
    }
}

static void pack_q5_1(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    pl_strip_q5m *out = strip;
    FOR_EACH_BLOCK(pl_type_q5_1, pl_block_q5_1) {
        out->d[lane] = pl_load16(block->d);
        out->m[lane] = pl_load16(block->m);
        pack_codes5(block->qh, block->qs, &out++->codes, lane);
    }
}

/* ---- quantising ------------------------------------------------------------------------------------------------- */

static void put16(uint8_t at[2], uint16_t value) { memcpy(at, &value, sizeof value); }

/* As ggml does, to the bit: with 255 steps there is nothing to search for. */
static void quantize_q8_0(const float *x, int64_t cols, void *out) {
    pl_block_q8_0 *block = out;
    for (int64_t k = 0; k < cols; k += 32, block++) {
        float largest = 0;
        for (int j = 0; j < 32; j++) largest = fabsf(x[k + j]) > largest ? fabsf(x[k + j]) : largest;
        float d = largest / 127, inverse = pl_fit_inverse(d); /* whose inverse is no number is 0 in half precision */
        put16(block->d, pl_f16_from_float(d));
        for (int j = 0; j < 32; j++) block->qs[j] = (int8_t)roundf(x[k + j] * inverse);
    }
}

/* What a block is made of: codes from 0 on, one scale and, in the _1 types, one minimum. */
typedef struct fitted {
    uint16_t d, m; /* f16 */
    int8_t code[32];
} fitted;

static void fit_scales(const pl_groups *groups, const float *x, int count, int high, fitted *out) {
    int half = (high + 1) / 2;
    pl_fits fits;
    pl_fit_scale(groups, -half, high - half, &fits);
    for (int l = 0; l < count; l++, out++) {
        out->d = pl_fit_half(fits.scale[l / 4][l % 4]);
        pl_fit_codes(x + 32 * l, 32, pl_float_from_f16(out->d), 0, -half, high - half, out->code);
        for (int j = 0; j < 32; j++) out->code[j] = (int8_t)(out->code[j] + half);
    }
}

static void fit_minima(const pl_groups *groups, const float *x, int count, int high, fitted *out) {
    pl_fits fits;
    pl_fit_affine(groups, high, 1, &fits);
    for (int l = 0; l < count; l++, out++) {
        out->d = pl_fit_half(fits.scale[l / 4][l % 4]);
        out->m = pl_fit_half(-fits.minimum[l / 4][l % 4]);
        pl_fit_codes(x + 32 * l, 32, pl_float_from_f16(out->d), -pl_float_from_f16(out->m), 0, high, out->code);
    }
}

typedef void fit_blocks(const pl_groups *groups, const float *x, int count, int high, fitted *out);
typedef void put_block(const fitted *in, void *block);

/* A row x (cols), as many blocks at a time as are searched together. */
static void quantize_row(const float *x, int64_t cols, fit_blocks fit, int high, put_block put, size_t block_bytes,
                         void *out) {
    for (int64_t b = 0; b < cols / 32; b += PL_FIT_LANES) {
        int count = cols / 32 - b < PL_FIT_LANES ? (int)(cols / 32 - b) : PL_FIT_LANES;
        pl_groups groups;
        fitted fits[PL_FIT_LANES];
        pl_groups_load(&groups, x + 32 * b, 32, count);
        fit(&groups, x + 32 * b, count, high, fits);
        for (int l = 0; l < count; l++) put(&fits[l], (uint8_t *)out + (size_t)(b + l) * block_bytes);
    }
}

static void put_nibbles(const int8_t code[32], uint8_t qs[16]) {
    for (int j = 0; j < 16; j++) qs[j] = (uint8_t)((code[j] & 15) | (code[j + 16] & 15) << 4);
}

static void put_fifth_bits(const int8_t code[32], uint8_t qh[4]) {
    uint32_t bits = 0;
    for (int j = 0; j < 32; j++) bits |= (uint32_t)(code[j] >> 4) << j;
    pl_store32(qh, bits);
}

static void put_q4_0(const fitted *in, void *out) {
    pl_block_q4_0 *block = out;
    put16(block->d, in->d);
    put_nibbles(in->code, block->qs);
}

static void put_q4_1(const fitted *in, void *out) {
    pl_block_q4_1 *block = out;
    put16(block->d, in->d);
    put16(block->m, in->m);
    put_nibbles(in->code, block->qs);
}

static void put_q5_0(const fitted *in, void *out) {
    pl_block_q5_0 *block = out;
    put16(block->d, in->d);
    put_nibbles(in->code, block->qs);
    put_fifth_bits(in->code, block->qh);
}

static void put_q5_1(const fitted *in, void *out) {
    pl_block_q5_1 *block = out;
    put16(block->d, in->d);
    put16(block->m, in->m);
    put_nibbles(in->code, block->qs);
    put_fifth_bits(in->code, block->qh);
}

static void quantize_q4_0(const float *x, int64_t cols, void *out) {
    quantize_row(x, cols, fit_scales, 15, put_q4_0, sizeof(pl_block_q4_0), out);
}

static void quantize_q4_1(const float *x, int64_t cols, void *out) {
    quantize_row(x, cols, fit_minima, 15, put_q4_1, sizeof(pl_block_q4_1), out);
}

static void quantize_q5_0(const float *x, int64_t cols, void *out) {
    quantize_row(x, cols, fit_scales, 31, put_q5_0, sizeof(pl_block_q5_0), out);
}

static void quantize_q5_1(const float *x, int64_t cols, void *out) {
    quantize_row(x, cols, fit_minima, 31, put_q5_1, sizeof(pl_block_q5_1), out);
}

const pl_type pl_type_q8_0 = {{PL_TYPE_Q8_0, "Q8_0", 32, 34}, PL_PACK_Q8, dequantize_q8_0, pack_q8_0, quantize_q8_0};
const pl_type pl_type_q4_0 = {{PL_TYPE_Q4_0, "Q4_0", 32, 18}, PL_PACK_Q4, dequantize_q4_0, pack_q4_0, quantize_q4_0};
const pl_type pl_type_q4_1 = {{PL_TYPE_Q4_1, "Q4_1", 32, 20}, PL_PACK_Q4M, dequantize_q4_1, pack_q4_1, quantize_q4_1};
const pl_type pl_type_q5_0 = {{PL_TYPE_Q5_0, "Q5_0", 32, 22}, PL_PACK_Q5, dequantize_q5_0, pack_q5_0, quantize_q5_0};
const pl_type pl_type_q5_1 = {{PL_TYPE_Q5_1, "Q5_1", 32, 24}, PL_PACK_Q5M, dequantize_q5_1, pack_q5_1, quantize_q5_1};
