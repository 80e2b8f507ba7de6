/* Q4_K, Q5_K, Q6_K: blocks of 256 whose sub-blocks have integer scales (and minima) under one f16 scale. */
#include "quant/blocks.h"
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

/* Nibbles l (low or high by `shift`) of 32 bytes, in the strip's order: byte 4 g + i holds groups g and g + 4. */
static void pack_nibbles(const uint8_t qs[32], int shift, uint8_t q[4][16][4], int32_t lane) {
    for (int g = 0; g < 4; g++) {
        uint32_t low = pl_load32(qs + 4 * g) >> shift & 0x0f0f0f0f;
        uint32_t high = pl_load32(qs + 16 + 4 * g) >> shift & 0x0f0f0f0f;
        pl_store32(q[g][lane], low | high << 4);
    }
}

static void pack_q4_k(const pl_source *source, int64_t row, void *strip, int32_t lane) {
    pl_strip_q4k *out = strip;
    FOR_EACH_BLOCK(pl_type_q4_k, pl_block_q4_k) {
        out->d[lane] = pl_load16(block->d);
        out->dmin[lane] = pl_load16(block->dmin);
        for (int j = 0; j < 8; j++) {
            unpack_scale(block->scales, j, &out->sc[j][lane], &out->mn[j][lane]);
            pack_nibbles(block->qs + j / 2 * 32, j % 2 * 4, out->codes[j].q, lane);
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
            pack_nibbles(block->qs + j / 2 * 32, j % 2 * 4, out->codes[j].q, lane);
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
            pack_nibbles(ql, j % 4 / 2 * 4, out->codes[j].q, lane);
            for (int half = 0; half < 2; half++) {
                uint32_t h = 0;
                for (int g = 0; g < 4; g++) {
                    h |= (pl_load32(qh + 16 * half + 4 * g) >> j % 4 * 2 & 0x03030303) << 2 * g;
                }
                pl_store32(out->codes[j].h2[half][lane], h);
            }
        }
        out++;
    }
}

const pl_type pl_type_q4_k = {{PL_TYPE_Q4_K, "Q4_K", 256, 144}, PL_PACK_Q4K, dequantize_q4_k, pack_q4_k};
const pl_type pl_type_q5_k = {{PL_TYPE_Q5_K, "Q5_K", 256, 176}, PL_PACK_Q5K, dequantize_q5_k, pack_q5_k};
const pl_type pl_type_q6_k = {{PL_TYPE_Q6_K, "Q6_K", 256, 210}, PL_PACK_Q6K, dequantize_q6_k, pack_q6_k};
