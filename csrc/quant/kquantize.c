/* Quantising to Q2_K to Q6_K: the search is fit.c's, the layout kquants.c's. */
#include "quant/blocks.h"
#include "quant/fit.h"
#include "quant/rows.h"

enum { SUPER = 256 };

/* The inverse of kquants.c's unpack_scale. */
static void pack_scales(const pl_nested *w, uint8_t out[12]) {
    memset(out, 0, 12);
    for (int j = 0; j < 4; j++) {
        out[j] = (uint8_t)(w->scale[j] | (w->scale[j + 4] >> 4) << 6);
        out[j + 4] = (uint8_t)(w->minimum[j] | (w->minimum[j + 4] >> 4) << 6);
        out[j + 8] = (uint8_t)((w->scale[j + 4] & 15) | (w->minimum[j + 4] & 15) << 4);
    }
}

static void put16(uint8_t *at, uint16_t value) { memcpy(at, &value, sizeof value); }

/* Two bits of each code, `low` off: four sub-blocks of 32 side by side in 32 bytes. */
static void pack_two_bits(const int8_t *code, int low, uint8_t qs[64]) {
    memset(qs, 0, 64);
    for (int i = 0; i < SUPER; i++) {
        qs[i / 128 * 32 + i % 32] |= (uint8_t)(((code[i] - low) & 3) << i % 128 / 32 * 2);
    }
}

/* The low nibbles: two sub-blocks of 32 side by side in 32 bytes. */
static void pack_low_nibbles(const int8_t *code, uint8_t qs[128]) {
    memset(qs, 0, 128);
    for (int i = 0; i < SUPER; i++) qs[i / 64 * 32 + i % 32] |= (uint8_t)((code[i] & 15) << i % 64 / 32 * 4);
}

void pl_quantize_q2_k(const float *x, int64_t cols, void *out) {
    static const pl_nesting nesting = {16, 0, 3, 0, 15, 15};
    pl_block_q2_k *block = out;
    for (int64_t k = 0; k < cols; k += SUPER, block++) {
        pl_nested w;
        pl_fit_nested(x + k, &nesting, &w);
        put16(block->d, w.d);
        put16(block->dmin, w.dmin);
        for (int s = 0; s < 16; s++) block->scales[s] = (uint8_t)(w.scale[s] | w.minimum[s] << 4);
        pack_two_bits(w.code, 0, block->qs);
    }
}

void pl_quantize_q3_k(const float *x, int64_t cols, void *out) {
    static const pl_nesting nesting = {16, -4, 3, -32, 31, 0};
    pl_block_q3_k *block = out;
    for (int64_t k = 0; k < cols; k += SUPER, block++) {
        pl_nested w;
        pl_fit_nested(x + k, &nesting, &w);
        put16(block->d, w.d);
        memset(block->scales, 0, sizeof block->scales);
        for (int s = 0; s < 16; s++) {
            int scale = w.scale[s] + 32;
            block->scales[s % 8] |= (uint8_t)((scale & 15) << s / 8 * 4);
            block->scales[8 + s % 4] |= (uint8_t)((scale >> 4) << s / 4 * 2);
        }
        memset(block->hmask, 0, sizeof block->hmask);
        for (int i = 0; i < SUPER; i++) block->hmask[i % 32] |= (uint8_t)((w.code[i] >= 0) << i / 32);
        pack_two_bits(w.code, 0, block->qs); /* of -4 to -1 the last two bits are those of 0 to 3 */
    }
}

void pl_quantize_q4_k(const float *x, int64_t cols, void *out) {
    static const pl_nesting nesting = {32, 0, 15, 0, 63, 63};
    pl_block_q4_k *block = out;
    for (int64_t k = 0; k < cols; k += SUPER, block++) {
        pl_nested w;
        pl_fit_nested(x + k, &nesting, &w);
        put16(block->d, w.d);
        put16(block->dmin, w.dmin);
        pack_scales(&w, block->scales);
        pack_low_nibbles(w.code, block->qs);
    }
}

void pl_quantize_q5_k(const float *x, int64_t cols, void *out) {
    static const pl_nesting nesting = {32, 0, 31, 0, 63, 63};
    pl_block_q5_k *block = out;
    for (int64_t k = 0; k < cols; k += SUPER, block++) {
        pl_nested w;
        pl_fit_nested(x + k, &nesting, &w);
        put16(block->d, w.d);
        put16(block->dmin, w.dmin);
        pack_scales(&w, block->scales);
        pack_low_nibbles(w.code, block->qs);
        memset(block->qh, 0, sizeof block->qh);
        for (int i = 0; i < SUPER; i++) block->qh[i % 32] |= (uint8_t)((w.code[i] >> 4) << i / 32);
    }
}

void pl_quantize_q6_k(const float *x, int64_t cols, void *out) {
    static const pl_nesting nesting = {16, -32, 31, -128, 127, 0};
    pl_block_q6_k *block = out;
    for (int64_t k = 0; k < cols; k += SUPER, block++) {
        pl_nested w;
        pl_fit_nested(x + k, &nesting, &w);
        put16(block->d, w.d);
        for (int s = 0; s < 16; s++) block->scales[s] = (int8_t)w.scale[s];
        memset(block->ql, 0, sizeof block->ql);
        memset(block->qh, 0, sizeof block->qh);
        for (int i = 0; i < SUPER; i++) { /* half i / 128, quarter i % 128 / 32 of it */
            int code = w.code[i] + 32, quarter = i % 128 / 32;
            block->ql[i / 128 * 64 + quarter % 2 * 32 + i % 32] |= (uint8_t)((code & 15) << quarter / 2 * 4);
            block->qh[i / 128 * 32 + i % 32] |= (uint8_t)((code >> 4) << quarter * 2);
        }
    }
}
