/* Q2_K to Q6_K: blocks of 256 whose sub-blocks have integer scales (and minima) under one f16 scale. */
#include "quant/blocks.h"
#include "quant/pack.h"
#include "quant/rows.h"

enum { SUPER = 256 };

#define FOR_EACH_BLOCK(type, block_t) \
    const block_t *block = (const block_t *)pl_source_row(source, &(type), row); \
    for (int64_t b = 0; b < source->cols / SUPER; b++, block++)

/* The 6-bit scale and minimum of sub-block j. The first four pairs are the low six bits of bytes j and j + 4; the
 * last four have their low nibbles in bytes 8 to 11 and their top two bits above those of the first four. */
static void unpack_scale(const uint8_t s[12], int j, uint8_t *scale, uint8_t *minimum) {
    if (j < 4) {
        *scale = s[j] & 63;
        *minimum = s[j + 4] & 63;
    } else {
        *scale = (uint8_t)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
        *minimum = (uint8_t)((s[j + 4] >> 4) | (s[j] >> 6) << 4);
    }
}

static void dequantize_q2_k(const pl_source *source, int64_t row, float *out) {
    FOR_EACH_BLOCK(pl_type_q2_k, pl_block_q2_k) {
        for (int s = 0; s < 16; s++) {
            float scale = pl_load_f16(block->d) * (float)(block->scales[s] & 15);
            float minimum = pl_load_f16(block->dmin) * (float)(block->scales[s] >> 4);
            const uint8_t *qs = block->qs + s / 8 * 32 + s % 2 * 16;
            for (int l = 0; l < 16; l++) *out++ = scale * (float)(qs[l] >> s % 8 / 2 * 2 & 3) - minimum;
        }
    }
}

/* The 6-bit scale of sub-block s, less 32: a nibble of the first eight bytes, two bits of the last four. */
static int8_t unpack_scale_q3_k(const uint8_t scales[12], int s) {
    int low = scales[s % 8] >> s / 8 * 4 & 15, high = scales[8 + s % 4] >> s / 4 * 2 & 3;
    return (int8_t)((low | high << 4) - 32);
}

static void dequantize_q3_k(const pl_source *source, int64_t row, float *out) {
    FOR_EACH_BLOCK(pl_type_q3_k, pl_block_q3_k) {
        for (int s = 0; s < 16; s++) {
            float scale = pl_load_f16(block->d) * (float)unpack_scale_q3_k(block->scales, s);
            const uint8_t *qs = block->qs + s / 8 * 32 + s % 2 * 16, *h = block->hmask + s % 2 * 16;
            for (int l = 0; l < 16; l++) {
                int code = (qs[l] >> s % 8 / 2 * 2 & 3) - (h[l] >> s / 2 & 1 ? 0 : 4);
                *out++ = scale * (float)code;
            }
        }
    }
}

static void dequantize_q4_k(const pl_source *source, int64_t row, float *out) {
    FOR_EACH_BLOCK(pl_type_q4_k, pl_block_q4_k) {
        for (int j = 0; j < 8; j++) {
            uint8_t sc, mn;
            unpack_scale(block->scales, j, &sc, &mn);
            float scale = pl_load_f16(block->d) * (float)sc, minimum = pl_load_f16(block->dmin) * (float)mn;
            const uint8_t *qs = block->qs + j / 2 * 32;
            for (int l = 0; l < 32; l++) *out++ = scale * (float)(qs[l] >> 4 * (j % 2) & 15) - minimum;
        }
    }
}

static void dequantize_q5_k(const pl_source *source, int64_t row, float *out) {
    FOR_EACH_BLOCK(pl_type_q5_k, pl_block_q5_k) {
        for (int j = 0; j < 8; j++) {
            uint8_t sc, mn;
            unpack_scale(block->scales, j, &sc, &mn);
            float scale = pl_load_f16(block->d) * (float)sc, minimum = pl_load_f16(block->dmin) * (float)mn;
            const uint8_t *qs = block->qs + j / 2 * 32;
            for (int l = 0; l < 32; l++) {
                int code = (qs[l] >> 4 * (j % 2) & 15) | (block->qh[l] >> j & 1) << 4;
                *out++ = scale * (float)code - minimum;
            }
        }
    }
}

static void dequantize_q6_k(const pl_source *source, int64_t row, float *out) {
    FOR_EACH_BLOCK(pl_type_q6_k, pl_block_q6_k) {
        for (int j = 0; j < 8; j++) { /* 32 weights: half j / 4, quarter j % 4 of it */
            const uint8_t *ql = block->ql + j / 4 * 64 + j % 2 * 32, *qh = block->qh + j / 4 * 32;
            int nibble = j % 4 / 2 * 4, pair = j % 4 * 2;
            for (int l = 0; l < 32; l++) {
                float scale = pl_load_f16(block->d) * (float)block->scales[2 * j + l / 16];
                *out++ = scale * (float)(((ql[l] >> nibble & 15) | (qh[l] >> pair & 3) << 4) - 32);
            }
        }
    }
}

static void pack_q2_k(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    pl_strip_q2k *out = strip;
    FOR_EACH_BLOCK(pl_type_q2_k, pl_block_q2_k) {
        out->d[lane] = pl_load16(block->d);
        out->dmin[lane] = pl_load16(block->dmin);
        for (int s = 0; s < 16; s++) {
            out->sc[s][lane] = block->scales[s] & 15;
            out->mn[s][lane] = block->scales[s] >> 4;
        }
        for (int j = 0; j < 8; j++) pl_pack_pairs(out->codes[j].h2, lane, block->qs + j / 4 * 32, j % 4 * 2);
        out++;
    }
}

/* As Q6_K's: code + 32, which is 28 to 35. */
static void pack_q3_k(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    pl_strip_q6k *out = strip;
    FOR_EACH_BLOCK(pl_type_q3_k, pl_block_q3_k) {
        out->d[lane] = pl_load16(block->d);
        for (int s = 0; s < 16; s++) out->sc[s][lane] = unpack_scale_q3_k(block->scales, s);
        for (int j = 0; j < 8; j++) {
            uint8_t code[32];
            for (int l = 0; l < 32; l++) {
                code[l] = (uint8_t)(28 + (block->qs[j / 4 * 32 + l] >> j % 4 * 2 & 3) + (block->hmask[l] >> j & 1) * 4);
            }
            pl_pack_nibbles(out->codes[j].q, lane, code, 0);
            pl_pack_pairs(out->codes[j].h2, lane, code, 4);
        }
        out++;
    }
}

static void pack_q4_k(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    pl_strip_q4k *out = strip;
    FOR_EACH_BLOCK(pl_type_q4_k, pl_block_q4_k) {
        out->d[lane] = pl_load16(block->d);
        out->dmin[lane] = pl_load16(block->dmin);
        for (int j = 0; j < 8; j++) {
            unpack_scale(block->scales, j, &out->sc[j][lane], &out->mn[j][lane]);
            pl_pack_nibbles(out->codes[j].q, lane, block->qs + j / 2 * 32, j % 2 * 4);
        }
        out++;
    }
}

static void pack_q5_k(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    pl_strip_q5k *out = strip;
    FOR_EACH_BLOCK(pl_type_q5_k, pl_block_q5_k) {
        out->d[lane] = pl_load16(block->d);
        out->dmin[lane] = pl_load16(block->dmin);
        for (int j = 0; j < 8; j++) {
            unpack_scale(block->scales, j, &out->sc[j][lane], &out->mn[j][lane]);
            pl_pack_nibbles(out->codes[j].q, lane, block->qs + j / 2 * 32, j % 2 * 4);
            uint32_t h = 0;
            for (int g = 0; g < 8; g++) h |= (pl_load32(block->qh + 4 * g) >> j & 0x01010101) << g;
            pl_store32(out->codes[j].h[lane], h);
        }
        out++;
    }
}

static void pack_q6_k(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    pl_strip_q6k *out = strip;
    FOR_EACH_BLOCK(pl_type_q6_k, pl_block_q6_k) {
        out->d[lane] = pl_load16(block->d);
        for (int s = 0; s < 16; s++) out->sc[s][lane] = block->scales[s];
        for (int j = 0; j < 8; j++) {
            const uint8_t *ql = block->ql + j / 4 * 64 + j % 2 * 32, *qh = block->qh + j / 4 * 32;
            pl_pack_nibbles(out->codes[j].q, lane, ql, j % 4 / 2 * 4);
            pl_pack_pairs(out->codes[j].h2, lane, qh, j % 4 * 2);
        }
        out++;
    }
}

const pl_type pl_type_q2_k = {
    {PL_TYPE_Q2_K, "Q2_K", 256, 84}, PL_PACK_Q2K, dequantize_q2_k, pack_q2_k, pl_quantize_q2_k};
const pl_type pl_type_q3_k = {
    {PL_TYPE_Q3_K, "Q3_K", 256, 110}, PL_PACK_Q6K, dequantize_q3_k, pack_q3_k, pl_quantize_q3_k};
const pl_type pl_type_q4_k = {
    {PL_TYPE_Q4_K, "Q4_K", 256, 144}, PL_PACK_Q4K, dequantize_q4_k, pack_q4_k, pl_quantize_q4_k};
const pl_type pl_type_q5_k = {
    {PL_TYPE_Q5_K, "Q5_K", 256, 176}, PL_PACK_Q5K, dequantize_q5_k, pack_q5_k, pl_quantize_q5_k};
const pl_type pl_type_q6_k = {
    {PL_TYPE_Q6_K, "Q6_K", 256, 210}, PL_PACK_Q6K, dequantize_q6_k, pack_q6_k, pl_quantize_q6_k};
