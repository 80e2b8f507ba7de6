/* IQ4_NL, IQ4_XS, MXFP4: four bits that choose one of sixteen numbers. And Q8_K, which llama.cpp keeps activations in
 * and files hold now and then. */
#include <math.h>

#include "quant/coded.h"
#include "quant/fit.h"

static const int8_t nonlinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}; /* doubled */

/* Element j < 16 is chosen by the low nibble of qs[j], element j + 16 by the high one. */
static void look_up(const int8_t table[16], const uint8_t qs[16], int8_t code[32]) {
    for (int j = 0; j < 16; j++) {
        code[j] = table[qs[j] & 15];
        code[j + 16] = table[qs[j] >> 4];
    }
}

static void open_iq4_nl(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_q4_0 *block = (const pl_block_q4_0 *)bytes; /* the same fields */
    (void)part;
    pl_coded_scale(out, pl_load_f16(block->d));
    look_up(nonlinear, block->qs, out->code);
}

/* The index of the level nearest to x. */
static int nearest_level(float x) {
    int low = 0, high = 15;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (x < (float)nonlinear[middle]) high = middle;
        else low = middle;
    }
    return x - (float)nonlinear[low] < (float)nonlinear[high] - x ? low : high;
}

/* The best scale for the levels that x (32) takes under `inverse`; *error is how far off it leaves them. */
static float try_levels(const float *x, const float *weight, float inverse, double *error) {
    double xx = 0, xq = 0, qq = 0;
    for (int j = 0; j < 32; j++) {
        double q = nonlinear[nearest_level(x[j] * inverse)], w = (double)weight[j], value = (double)x[j];
        xx += w * value * value, xq += w * value * q, qq += w * q * q;
    }
    *error = qq > 0 ? xx - xq * xq / qq : xx;
    return qq > 0 ? (float)(xq / qq) : 0;
}

/* Either end of the levels may be where the largest weight goes, or a little beside it. */
static float fit_levels(const float *x) {
    enum { TRIES = 15 };
    float weight[32], largest = 0, best = 0;
    double least = INFINITY;
    pl_fit_weights(x, 32, weight);
    for (int j = 0; j < 32; j++) largest = fabsf(x[j]) > fabsf(largest) ? x[j] : largest;
    if (largest == 0) return 0;
    for (int s = 0; s < 2 * TRIES; s++) {
        double error;
        float end = (float)(s < TRIES ? nonlinear[0] : nonlinear[15]) * (0.86f + 0.02f * (float)(s % TRIES));
        float d = try_levels(x, weight, end / largest, &error);
        if (error < least) least = error, best = d;
    }
    return best;
}

static void quantize_iq4_nl(const float *x, int64_t cols, void *out) {
    pl_block_q4_0 *block = out;
    for (int64_t k = 0; k < cols; k += 32, block++) {
        uint16_t d = pl_f16_from_float(fit_levels(x + k));
        float inverse = pl_fit_inverse(pl_float_from_f16(d));
        memcpy(block->d, &d, sizeof d);
        for (int j = 0; j < 16; j++) {
            int low = nearest_level(x[k + j] * inverse), high = nearest_level(x[k + j + 16] * inverse);
            block->qs[j] = (uint8_t)(low | high << 4);
        }
    }
}

static void open_iq4_xs(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_iq4_xs *block = (const pl_block_iq4_xs *)bytes;
    int low = block->scales_l[part / 2] >> 4 * (part % 2) & 15, high = pl_load16(block->scales_h) >> 2 * part & 3;
    pl_coded_scale(out, pl_load_f16(block->d) * (float)((low | high << 4) - 32));
    look_up(nonlinear, block->qs + 16 * part, out->code);
}

/* Half of 2^(e - 127), since the codes are doubled; e = 0 and 1 are subnormal. */
static float half_power(uint8_t e) {
    return pl_float_from_bits(e < 2 ? (uint32_t)0x00200000 << e : (uint32_t)(e - 1) << 23);
}

static void open_mxfp4(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_mxfp4 *block = (const pl_block_mxfp4 *)bytes;
    (void)part;
    pl_coded_scale(out, half_power(block->e));
    look_up(e2m1, block->qs, out->code);
}

static void open_q8_k(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_q8_k *block = (const pl_block_q8_k *)bytes;
    pl_coded_scale(out, pl_float_from_bits(pl_load32(block->d)));
    memcpy(out->code, block->qs + 32 * part, sizeof out->code);
}

PL_CODED_TYPE(iq4_nl, PL_TYPE_IQ4_NL, "IQ4_NL", 32, 18, PL_PACK_Q8, quantize_iq4_nl)
PL_CODED_TYPE(iq4_xs, PL_TYPE_IQ4_XS, "IQ4_XS", 256, 136, PL_PACK_Q8F, NULL)
PL_CODED_TYPE(mxfp4, PL_TYPE_MXFP4, "MXFP4", 32, 17, PL_PACK_Q8F, NULL)
PL_CODED_TYPE(q8_k, PL_TYPE_Q8_K, "Q8_K", 256, 292, PL_PACK_Q8F, NULL)
