/* The IQ1, IQ2 and IQ3 types: groups of 8 or 4 weights that are a point of a codebook, with signs and small scales. */
#include "quant/coded.h"
#include "quant/grid_tables.h"

static const int8_t levels_iq2[4] = {8, 25, 43, 0};
static const int8_t levels_iq3_xxs[8] = {4, 12, 20, 28, 36, 44, 52, 62};
static const int8_t levels_iq3_s[8] = {1, 3, 5, 7, 9, 11, 13, 15};

/* 8 weights of an IQ2 grid, negative where `signs` has a bit. */
static void put_eight(uint16_t point, uint8_t signs, int8_t code[8]) {
    for (int i = 0; i < 8; i++) {
        int8_t level = levels_iq2[point >> 2 * i & 3];
        code[i] = (int8_t)(signs >> i & 1 ? -level : level);
    }
}

/* 4 weights of an IQ3 grid. */
static void put_four(const int8_t levels[8], uint16_t point, int signs, int8_t code[4]) {
    for (int i = 0; i < 4; i++) {
        int8_t level = levels[point >> 3 * i & 7];
        code[i] = (int8_t)(signs >> i & 1 ? -level : level);
    }
}

/* Seven signs are stored; the eighth makes the number of minuses even. */
static uint8_t with_parity(uint32_t seven) {
    uint32_t odd = seven ^ seven >> 4;
    odd = (odd ^ odd >> 2) & 0x33;
    odd = (odd ^ odd >> 1) & 1;
    return (uint8_t)((seven & 127) | odd << 7);
}

/* ---- IQ2 -------------------------------------------------------------------------------------------------------- */

static float scale_iq2(const uint8_t *d, uint32_t four_bits) {
    return pl_load_f16(d) * (0.5f + (float)four_bits) * 0.25f;
}

static void open_iq2_xxs(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_iq2_xxs *block = (const pl_block_iq2_xxs *)bytes;
    const uint8_t *points = block->qs + 8 * part;
    uint32_t signs = pl_load32(points + 4);
    pl_coded_scale(out, scale_iq2(block->d, signs >> 28));
    for (int i = 0; i < 4; i++) {
        put_eight(grid_iq2_xxs[points[i]], with_parity(signs >> 7 * i & 127), out->code + 8 * i);
    }
}

static void open_iq2_xs(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_iq2_xs *block = (const pl_block_iq2_xs *)bytes;
    for (int half = 0; half < 2; half++) out->scale[half] = scale_iq2(block->d, block->scales[part] >> 4 * half & 15);
    for (int i = 0; i < 4; i++) {
        uint16_t q = pl_load16(block->qs + 8 * part + 2 * i);
        put_eight(grid_iq2_xs[q & 511], with_parity(q >> 9), out->code + 8 * i);
    }
}

static void open_iq2_s(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_iq2_s *block = (const pl_block_iq2_s *)bytes;
    for (int half = 0; half < 2; half++) out->scale[half] = scale_iq2(block->d, block->scales[part] >> 4 * half & 15);
    for (int i = 0; i < 4; i++) {
        int point = block->qs[4 * part + i] | (block->qh[part] >> 2 * i & 3) << 8;
        put_eight(grid_iq2_s[point], block->signs[4 * part + i], out->code + 8 * i);
    }
}

/* ---- IQ3 -------------------------------------------------------------------------------------------------------- */

static void open_iq3_xxs(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_iq3_xxs *block = (const pl_block_iq3_xxs *)bytes;
    uint32_t signs = pl_load32(block->signs + 4 * part);
    pl_coded_scale(out, pl_load_f16(block->d) * (0.5f + (float)(signs >> 28)) * 0.5f);
    for (int i = 0; i < 8; i++) {
        int four = with_parity(signs >> 7 * (i / 2) & 127) >> 4 * (i % 2);
        put_four(levels_iq3_xxs, grid_iq3_xxs[block->qs[8 * part + i]], four, out->code + 4 * i);
    }
}

static void open_iq3_s(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_iq3_s *block = (const pl_block_iq3_s *)bytes;
    int scale = block->scales[part / 2] >> 4 * (part % 2) & 15;
    pl_coded_scale(out, pl_load_f16(block->d) * (float)(1 + 2 * scale));
    for (int i = 0; i < 8; i++) {
        int point = block->qs[8 * part + i] | (block->qh[part] >> i & 1) << 8;
        int four = block->signs[4 * part + i / 2] >> 4 * (i % 2);
        put_four(levels_iq3_s, grid_iq3_s[point], four, out->code + 4 * i);
    }
}

/* ---- IQ1 -------------------------------------------------------------------------------------------------------- */

/* 8 weights, (-1, 0 or 1) + 1/8 or - 1/8, in eighths. */
static void put_ternary(uint16_t point, int below, int8_t code[8]) {
    for (int i = 0; i < 8; i++) code[i] = (int8_t)(8 * ((point >> 2 * i & 3) - 1) + (below ? -1 : 1));
}

static void open_iq1_s(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_iq1_s *block = (const pl_block_iq1_s *)bytes;
    uint16_t h = pl_load16(block->qh + 2 * part);
    pl_coded_scale(out, pl_load_f16(block->d) * (float)(2 * (h >> 12 & 7) + 1) * 0.125f);
    for (int i = 0; i < 4; i++) {
        int point = block->qs[4 * part + i] | (h >> 3 * i & 7) << 8;
        put_ternary(grid_iq1_s[point], h >> 15, out->code + 8 * i);
    }
}

/* The f16 scale stands in the top nibbles of the four words that hold the small ones. */
static void open_iq1_m(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_iq1_m *block = (const pl_block_iq1_m *)bytes;
    uint32_t d = 0, word = pl_load16(block->scales + part / 2 * 2);
    for (int i = 0; i < 4; i++) d |= (uint32_t)(pl_load16(block->scales + 2 * i) >> 12) << 4 * i;
    for (int half = 0; half < 2; half++) {
        uint32_t scale = word >> (6 * (part % 2) + 3 * half) & 7;
        out->scale[half] = pl_float_from_f16((uint16_t)d) * (float)(2 * scale + 1) * 0.125f;
    }
    for (int i = 0; i < 4; i++) {
        int h = block->qh[2 * part + i / 2] >> 4 * (i % 2);
        put_ternary(grid_iq1_s[block->qs[4 * part + i] | (h & 7) << 8], h >> 3 & 1, out->code + 8 * i);
    }
}

PL_CODED_TYPE(iq2_xxs, PL_TYPE_IQ2_XXS, "IQ2_XXS", 256, 66, PL_PACK_Q8F, NULL)
PL_CODED_TYPE(iq2_xs, PL_TYPE_IQ2_XS, "IQ2_XS", 256, 74, PL_PACK_Q8H, NULL)
PL_CODED_TYPE(iq2_s, PL_TYPE_IQ2_S, "IQ2_S", 256, 82, PL_PACK_Q8H, NULL)
PL_CODED_TYPE(iq3_xxs, PL_TYPE_IQ3_XXS, "IQ3_XXS", 256, 98, PL_PACK_Q8F, NULL)
PL_CODED_TYPE(iq3_s, PL_TYPE_IQ3_S, "IQ3_S", 256, 110, PL_PACK_Q8F, NULL)
PL_CODED_TYPE(iq1_s, PL_TYPE_IQ1_S, "IQ1_S", 256, 50, PL_PACK_Q8F, NULL)
PL_CODED_TYPE(iq1_m, PL_TYPE_IQ1_M, "IQ1_M", 256, 56, PL_PACK_Q8H, NULL)
