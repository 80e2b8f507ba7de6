/* IQ4_NL, IQ4_XS, MXFP4, NVFP4: four bits that choose one of sixteen numbers. And Q8_K, which llama.cpp keeps
 * activations in and files hold now and then. */
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

/* Half of an unsigned 8-bit float, 4 bits of exponent and 3 of mantissa, since the codes are doubled. 0x7f is its NaN,
 * which ggml reads as 0; the top bit is no sign and is ignored. */
static float half_e4m3(uint8_t bits) {
    int exponent = bits >> 3 & 15, mantissa = bits & 7;
    if (bits == 0x7f) return 0;
    if (exponent == 0) return (float)mantissa * 0x1p-10f;
    return (float)(8 + mantissa) * pl_float_from_bits((uint32_t)(exponent - 11 + 127) << 23);
}

/* Sixteen weights under each scale: element j < 8 is the low nibble of byte j, element j + 8 the high one. */
static void open_nvfp4(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_nvfp4 *block = (const pl_block_nvfp4 *)bytes;
    for (int half = 0; half < 2; half++) {
        const uint8_t *qs = block->qs + 16 * part + 8 * half;
        out->scale[half] = half_e4m3(block->d[2 * part + half]);
        for (int j = 0; j < 8; j++) {
            out->code[16 * half + j] = e2m1[qs[j] & 15];
            out->code[16 * half + j + 8] = e2m1[qs[j] >> 4];
        }
    }
}

static void open_q8_k(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_q8_k *block = (const pl_block_q8_k *)bytes;
    pl_coded_scale(out, pl_float_from_bits(pl_load32(block->d)));
    memcpy(out->code, block->qs + 32 * part, sizeof out->code);
}

/* ---- quantising ------------------------------------------------------------------------------------------------- */

enum { WIDE = 160 /* more than any level, stretched, and rounded */ };

/* nearest[x + WIDE]: the index of the level nearest to the integer x. Between integers it is as good: levels are no
 * closer than 9. */
static void fill_nearest(uint8_t nearest[2 * WIDE]) {
    int index = 0;
    for (int x = -WIDE; x < WIDE; x++) {
        while (index < 15 && x - nonlinear[index] > nonlinear[index + 1] - x) index++;
        nearest[x + WIDE] = (uint8_t)index;
    }
}

static int level_index(const uint8_t nearest[2 * WIDE], float x) {
    x = x < -WIDE ? -WIDE : x > WIDE - 1 ? WIDE - 1 : x;
    return nearest[(int)(x + WIDE + 0.5f)];
}

/* The best scale for the levels that x (32) takes under `inverse`. gain: what it takes off the error of scale 0. */
static float try_levels(const uint8_t nearest[2 * WIDE], const float *x, const float *weight, float inverse,
                        float *gain) {
    float xq = 0, qq = 0;
    for (int j = 0; j < 32; j++) {
        float q = nonlinear[level_index(nearest, x[j] * inverse)], wq = weight[j] * q;
        xq += wq * x[j];
        qq += wq * q;
    }
    *gain = qq > 0 ? xq / qq * xq : 0;
    return qq > 0 ? xq / qq : 0;
}

/* Either end of the levels may be where the largest weight goes, or a little beside it. */
static float fit_levels(const uint8_t nearest[2 * WIDE], const float *x) {
    enum { TRIES = 15 };
    float weight[32], largest = 0, best = 0, most = 0;
    pl_fit_weights(x, 32, weight);
    for (int j = 0; j < 32; j++) largest = fabsf(x[j]) > fabsf(largest) ? x[j] : largest;
    if (fabsf(largest) < 0x1p-24f) return 0; /* half precision has no such scale */
    for (int s = 0; s < 2 * TRIES; s++) {
        float end = (float)(s < TRIES ? nonlinear[0] : nonlinear[15]) * (0.86f + 0.02f * (float)(s % TRIES)), gain;
        float d = try_levels(nearest, x, weight, end / largest, &gain);
        if (gain > most) most = gain, best = d;
    }
    return best;
}

static void quantize_iq4_nl(const float *x, int64_t cols, void *out) {
    uint8_t nearest[2 * WIDE];
    pl_block_q4_0 *block = out;
    fill_nearest(nearest);
    for (int64_t k = 0; k < cols; k += 32, block++) {
        uint16_t d = pl_fit_half(fit_levels(nearest, x + k));
        float inverse = pl_fit_inverse(pl_float_from_f16(d));
        memcpy(block->d, &d, sizeof d);
        for (int j = 0; j < 16; j++) {
            int low = level_index(nearest, x[k + j] * inverse), high = level_index(nearest, x[k + j + 16] * inverse);
            block->qs[j] = (uint8_t)(low | high << 4);
        }
    }
}

PL_CODED_TYPE(iq4_nl, PL_TYPE_IQ4_NL, "IQ4_NL", 32, 18, PL_PACK_Q8, quantize_iq4_nl)
PL_CODED_TYPE(iq4_xs, PL_TYPE_IQ4_XS, "IQ4_XS", 256, 136, PL_PACK_Q8F, NULL)
PL_CODED_TYPE(mxfp4, PL_TYPE_MXFP4, "MXFP4", 32, 17, PL_PACK_Q8F, NULL)
PL_CODED_TYPE(nvfp4, PL_TYPE_NVFP4, "NVFP4", 64, 36, PL_PACK_Q8H, NULL)
PL_CODED_TYPE(q8_k, PL_TYPE_Q8_K, "Q8_K", 256, 292, PL_PACK_Q8F, NULL)
