/* The level "neon": what every aarch64 processor has. Bit for bit scalar.c's results. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "base/math.h"
#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "quant/f16.h"

enum { TOGETHER = 1 };
static const pl_kernels *const lone = NULL;
#include "kernels/neon.h"

/* ---- quantised weights ------------------------------------------------------------------------------------------- */

/* Four activations, four times. */
PL_INLINE int8x16_t repeat4(const int8_t *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

/* s (2) += products of the low and the high eight codes: two rows in each. */
PL_INLINE void multiply_add(int8x16_t code, int8x16_t a, int16x8_t s[2]) {
    s[0] = vmlal_s8(s[0], vget_low_s8(code), vget_low_s8(a));
    s[1] = vmlal_high_s8(s[1], code, a);
}

PL_INLINE void multiply(int8x16_t code, int8x16_t a, int16x8_t s[2]) {
    s[0] = vmull_s8(vget_low_s8(code), vget_low_s8(a));
    s[1] = vmull_high_s8(code, a);
}

PL_INLINE void arrange(half_block *w) { (void)w; }

PL_INLINE void dot(const half_block *w, int begin, int groups, int chain, const int8_t *a, int64_t lda,
                   int32x4_t sum[TOGETHER][2]) {
    (void)lda;
    int32x4_t pairs[2][2] = {{vdupq_n_s32(0), vdupq_n_s32(0)}, {vdupq_n_s32(0), vdupq_n_s32(0)}};
    for (int g = begin; g < begin + groups; g += chain) {
        int16x8_t s[2][2];
        for (int r = 0; r < 2; r++) multiply(w->code[g][r], repeat4(a + 4 * g), s[r]);
        for (int i = g + 1; i < g + chain; i++) {
            for (int r = 0; r < 2; r++) multiply_add(w->code[i][r], repeat4(a + 4 * i), s[r]);
        }
        for (int r = 0; r < 4; r++) pairs[r / 2][r % 2] = vpadalq_s16(pairs[r / 2][r % 2], s[r / 2][r % 2]);
    }
    for (int r = 0; r < 2; r++) sum[0][r] = vpaddq_s32(pairs[r][0], pairs[r][1]);
}

const pl_kernels pl_kernels_neon = PL_NEON_TABLE("neon");

/* ---- float weights ----------------------------------------------------------------------------------------------- */

/* Four rows of four k of a strip, k a multiple of 4; the last ones may be padding. */
typedef void load_fn(const void *strip, int64_t k, int row, float32x4_t w[4]);

PL_INLINE void load4_f32(const void *strip, int64_t k, int row, float32x4_t w[4]) {
    const float *p = (const float *)strip + k * PL_STRIP + row;
    for (int j = 0; j < 4; j++) w[j] = vld1q_f32(p + j * PL_STRIP);
}

PL_INLINE void load4_f16(const void *strip, int64_t k, int row, float32x4_t w[4]) {
    const uint16_t *p = (const uint16_t *)strip + k * PL_STRIP + row;
    for (int j = 0; j < 4; j++) w[j] = load_f16(p + j * PL_STRIP);
}

/* Pairs of k side by side: the even one is the low half of 32 bits. */
PL_INLINE void load4_bf16(const void *strip, int64_t k, int row, float32x4_t w[4]) {
    const uint16_t *p = (const uint16_t *)strip + k * PL_STRIP + 2 * row;
    for (int j = 0; j < 4; j += 2) {
        uint32x4_t pair = vreinterpretq_u32_u16(vld1q_u16(p + j * PL_STRIP));
        w[j] = vreinterpretq_f32_u32(vshlq_n_u32(pair, 16));
        w[j + 1] = vreinterpretq_f32_u32(vandq_u32(pair, vdupq_n_u32(0xffff0000)));
    }
}

/* s[r or c][j] = fma(w, x[k + j], the same) for the four chains j. */
PL_INLINE void add_four(load_fn load, const void *strip, int64_t k, int row, int rows, int columns, const float *x,
                        int64_t ld, float32x4_t s[4][4]) {
    for (int r = 0; r < rows; r++) {
        float32x4_t w[4];
        load(strip, k, row + 4 * r, w);
        for (int c = 0; c < columns; c++) {
            float32x4_t f = vld1q_f32(x + c * ld + k);
            s[r + c][0] = vfmaq_laneq_f32(s[r + c][0], w[0], f, 0);
            s[r + c][1] = vfmaq_laneq_f32(s[r + c][1], w[1], f, 1);
            s[r + c][2] = vfmaq_laneq_f32(s[r + c][2], w[2], f, 2);
            s[r + c][3] = vfmaq_laneq_f32(s[r + c][3], w[3], f, 3);
        }
    }
}

/* The last one to three k: the other chains are left alone, and nothing of x is read that is not there. */
PL_INLINE void add_rest(load_fn load, const void *strip, int64_t k, int row, int rest, int rows, int columns,
                        const float *x, int64_t ld, float32x4_t s[4][4]) {
    for (int r = 0; r < rows; r++) {
        float32x4_t w[4];
        load(strip, k, row + 4 * r, w);
        for (int c = 0; c < columns; c++) {
            const float *f = x + c * ld + k;
            s[r + c][0] = vfmaq_n_f32(s[r + c][0], w[0], f[0]);
            if (rest > 1) s[r + c][1] = vfmaq_n_f32(s[r + c][1], w[1], f[1]);
            if (rest > 2) s[r + c][2] = vfmaq_n_f32(s[r + c][2], w[2], f[2]);
        }
    }
}

/* A tile of 4 * rows rows and some columns, one of the two numbers 4 and the other 1: 16 accumulators. */
PL_INLINE void float_tile(load_fn load, const void *strip, int row, int rows, int columns, const float *x, int64_t ld,
                          int64_t k_end, float *y, int64_t ldy, int add) {
    float32x4_t s[4][4];
    for (int i = 0; i < 16; i++) s[i / 4][i % 4] = vdupq_n_f32(0);
    int64_t k = 0;
    for (; k + 4 <= k_end; k += 4) add_four(load, strip, k, row, rows, columns, x, ld, s);
    if (k < k_end) add_rest(load, strip, k, row, (int)(k_end - k), rows, columns, x, ld, s);
    for (int i = 0; i < 4; i++) {
        float *out = rows == 4 ? y + row + 4 * i : y + row + i * ldy;
        put(out, vaddq_f32(vaddq_f32(s[i][0], s[i][1]), vaddq_f32(s[i][2], s[i][3])), add);
    }
}

PL_INLINE void matmul_float(load_fn load, const void *strip, const pl_acts *x, int64_t first, int64_t n, float *y,
                            int64_t ldy, int add) {
    const float *f = x->f + first * x->ld;
    int64_t c = 0;
    for (; c + 4 <= n; c += 4) {
        for (int row = 0; row < PL_STRIP; row += 4) {
            float_tile(load, strip, row, 1, 4, f + c * x->ld, x->ld, x->k, y + c * ldy, ldy, add);
        }
    }
    for (; c < n; c++) float_tile(load, strip, 0, 4, 1, f + c * x->ld, x->ld, x->k, y + c * ldy, ldy, add);
}

#define FLOAT_MATMUL(type, packing) \
    void pl_neon_matmul_##type(const void *strips, int64_t count, const pl_acts *x, int64_t first, int64_t n, \
                               float *y, int64_t ldy, int add) { \
        const char *strip = strips; \
        for (int64_t s = 0; s < count; s++, strip += pl_strip_bytes(packing, x->k), y += PL_STRIP) { \
            matmul_float(load4_##type, strip, x, first, n, y, ldy, add); \
        } \
    }
FLOAT_MATMUL(f32, PL_PACK_F32)
FLOAT_MATMUL(f16, PL_PACK_F16)
FLOAT_MATMUL(bf16, PL_PACK_BF16)

/* ---- activations ------------------------------------------------------------------------------------------------- */

/* The largest |x| of 32 as bits: ordered like the numbers, with inf and NaN above all. */
PL_INLINE uint32_t largest_magnitude(const float *x) {
    uint32x4_t largest = vdupq_n_u32(0);
    for (int j = 0; j < PL_BLOCK; j += 4) {
        uint32x4_t bits = vreinterpretq_u32_f32(vld1q_f32(x + j));
        largest = vmaxq_u32(largest, vandq_u32(bits, vdupq_n_u32(0x7fffffff)));
    }
    return vmaxvq_u32(largest);
}

/* Round x * inverse to nearest even, for results below 2^15. */
PL_INLINE int16x4_t scale_and_round(const float *x, float inverse) {
    float32x4_t shifted = vaddq_f32(vmulq_n_f32(vld1q_f32(x), inverse), vdupq_n_f32(PL_EXP_ROUND));
    int32x4_t zero = vreinterpretq_s32_f32(vdupq_n_f32(PL_EXP_ROUND));
    return vmovn_s32(vsubq_s32(vreinterpretq_s32_f32(shifted), zero));
}

/* 32 activations into their bytes, q (planes, 32); minus: what either half sums up to, negated. */
PL_INLINE void quantize_block(const float *x, float inverse, int32_t planes, int8_t *q, int32_t minus[2]) {
    int32x4_t total[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
    for (int j = 0; j < PL_BLOCK; j += 8) {
        int16x8_t a = vcombine_s16(scale_and_round(x + j, inverse), scale_and_round(x + j + 4, inverse));
        total[j / 16] = vpadalq_s16(total[j / 16], a);
        if (planes == 2) {
            vst1_s8(q + j, vshrn_n_s16(vaddq_s16(a, vdupq_n_s16(128)), 8));
            vst1_s8(q + PL_BLOCK + j, vmovn_s16(a));
        } else {
            vst1_s8(q + j, vmovn_s16(a));
        }
    }
    for (int i = 0; i < 2; i++) minus[i] = -vaddvq_s32(total[i]);
}

void pl_neon_quantize(const float *x, int64_t k, int32_t planes, int8_t *q, pl_act_block *blocks) {
    const float steps = planes == 2 ? 32512.0f : 127.0f;
    for (int64_t b = 0; b < k / PL_BLOCK; b++, x += PL_BLOCK, q += planes * PL_BLOCK) {
        uint32_t bits = largest_magnitude(x);
        float largest = pl_float_from_bits(bits), scale;
        int finite = bits < 0x7f800000;
        int32_t minus[2] = {0};
        if (!finite || largest < 0x1p-100f) {
            memset(q, 0, (size_t)planes * PL_BLOCK);
            scale = finite ? 0.0f : NAN;
        } else {
            quantize_block(x, steps / largest, planes, q, minus);
            scale = largest / steps;
        }
        blocks[b] = pl_act_block_of(scale, minus);
    }
}

/* ---- sums over a vector ------------------------------------------------------------------------------------------ */

/* The sixteen lanes folded 8, 4, 2, 1 apart. */
PL_INLINE float fold(const float32x4_t lane[4]) {
    float32x4_t four = vaddq_f32(vaddq_f32(lane[0], lane[2]), vaddq_f32(lane[1], lane[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

void pl_neon_rmsnorm(const float *x, const float *weight, int64_t n, float eps, float *out) {
    int64_t n16 = pl_pad(n);
    float32x4_t lane[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    for (int64_t i = 0; i < n16; i += 16) {
        for (int j = 0; j < 4; j++) {
            float32x4_t v = vld1q_f32(x + i + 4 * j);
            lane[j] = vfmaq_f32(lane[j], v, v);
        }
    }
    float inverse = 1.0f / sqrtf(fold(lane) / (float)n + eps);
    for (int64_t i = 0; i < n16; i += 4) {
        vst1q_f32(out + i, vmulq_f32(vld1q_f32(weight + i), vmulq_n_f32(vld1q_f32(x + i), inverse)));
    }
}

/* pl_expf in four lanes: the same operations, with its three exits as selections. */
PL_INLINE float32x4_t exp4(float32x4_t x) {
    float32x4_t round = vdupq_n_f32(PL_EXP_ROUND);
    float32x4_t shifted = vfmaq_f32(round, x, vdupq_n_f32(PL_EXP_LOG2E));
    float32x4_t n = vsubq_f32(shifted, round);
    float32x4_t r = vfmaq_f32(x, n, vdupq_n_f32(-PL_EXP_LN2_HI));
    r = vfmaq_f32(r, n, vdupq_n_f32(-PL_EXP_LN2_LO));
    float32x4_t p = vfmaq_f32(vdupq_n_f32(PL_EXP_C5), vdupq_n_f32(PL_EXP_C6), r);
    p = vfmaq_f32(vdupq_n_f32(PL_EXP_C4), p, r);
    p = vfmaq_f32(vdupq_n_f32(PL_EXP_C3), p, r);
    p = vfmaq_f32(vdupq_n_f32(PL_EXP_C2), p, r);
    float32x4_t y = vaddq_f32(vfmaq_f32(r, p, vmulq_f32(r, r)), vdupq_n_f32(1));
    uint32x4_t power = vshlq_n_u32(vreinterpretq_u32_f32(shifted), 23);
    y = vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(y), power));
    y = vbslq_f32(vcltq_f32(x, vdupq_n_f32(PL_EXP_MIN)), vdupq_n_f32(0), y);
    y = vbslq_f32(vcgtq_f32(x, vdupq_n_f32(PL_EXP_MAX)), vdupq_n_f32(INFINITY), y);
    return vbslq_f32(vceqq_f32(x, x), y, x);
}

void pl_neon_swiglu(const float *gate, const float *up, int64_t n16, float *out) {
    for (int64_t i = 0; i < n16; i += 4) {
        float32x4_t g = vld1q_f32(gate + i);
        float32x4_t silu = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1), exp4(vnegq_f32(g))));
        vst1q_f32(out + i, vmulq_f32(silu, vld1q_f32(up + i)));
    }
}

void pl_neon_activate(int32_t kind, float limit, const float *gate, const float *up, int64_t n, float *out) {
    pl_activate(kind, limit, gate, up, n, out);
}

void pl_neon_softcap(float *x, int64_t n, float scale, float cap) { pl_softcap(x, n, scale, cap); }

/* The first of the largest in s (n16); not a maximum instruction, which would return NaN or either of two zeros. */
PL_INLINE float scale_and_find_largest(float *s, int64_t n16, float scale) {
    float32x4_t largest4 = vdupq_n_f32(-INFINITY);
    for (int64_t i = 0; i < n16; i += 4) {
        float32x4_t v = vmulq_n_f32(vld1q_f32(s + i), scale);
        vst1q_f32(s + i, v);
        largest4 = vbslq_f32(vcgtq_f32(v, largest4), v, largest4);
    }
    float four[4], largest = -INFINITY;
    vst1q_f32(four, largest4);
    for (int j = 0; j < 4; j++) largest = four[j] > largest ? four[j] : largest;
    for (int64_t i = 0; i < n16 && largest == 0; i++) {
        if (s[i] == 0) return s[i]; /* the sign of the zero that comes first */
    }
    return largest;
}

float pl_neon_softmax(float *s, int64_t n16, float scale, float *max) {
    float largest = scale_and_find_largest(s, n16, scale);
    float32x4_t lane[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    for (int64_t i = 0; i < n16; i += 16) {
        for (int j = 0; j < 4; j++) {
            float32x4_t e = exp4(vsubq_f32(vld1q_f32(s + i + 4 * j), vdupq_n_f32(largest)));
            vst1q_f32(s + i + 4 * j, e);
            lane[j] = vaddq_f32(lane[j], e);
        }
    }
    *max = largest;
    return fold(lane);
}

/* ---- attention's weighted sum ------------------------------------------------------------------------------------ */

/* v (16): dimensions d and up of a row of values, d a multiple of 16. */
typedef void load16_fn(const uint8_t *value, int64_t d, float32x4_t v[4]);

PL_INLINE void load16_f16(const uint8_t *value, int64_t d, float32x4_t v[4]) {
    for (int j = 0; j < 4; j++) v[j] = load_f16((const uint16_t *)value + d + 4 * j);
}

PL_INLINE void load16_f32(const uint8_t *value, int64_t d, float32x4_t v[4]) {
    for (int j = 0; j < 4; j++) v[j] = vld1q_f32((const float *)value + d + 4 * j);
}

PL_INLINE void load16_q8_0(const uint8_t *value, int64_t d, float32x4_t v[4]) {
    const pl_block_q8_0 *block = (const pl_block_q8_0 *)value + d / PL_BLOCK;
    int8x16_t codes = vld1q_s8(block->qs + d % PL_BLOCK);
    int16x8_t low = vmovl_s8(vget_low_s8(codes)), high = vmovl_high_s8(codes);
    int32x4_t wide[4] = {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
                         vmovl_high_s16(high)};
    for (int j = 0; j < 4; j++) v[j] = vmulq_n_f32(vcvtq_f32_s32(wide[j]), pl_load_f16(block->d));
}

/* Sixteen dimensions from d on, of some heads that share the values, `bytes` apart: 4 accumulators a head. */
PL_INLINE void weigh_tile(load16_fn load, const uint8_t *value, int64_t bytes, int64_t tokens, int64_t d16, int64_t d,
                          const float *p, int64_t ldp, int heads, float *out) {
    float32x4_t s[4][4];
    for (int i = 0; i < 4 * heads; i++) s[i / 4][i % 4] = vld1q_f32(out + i / 4 * d16 + d + 4 * (i % 4));
    for (int64_t t = 0; t < tokens; t++) {
        float32x4_t v[4];
        load(value + t * bytes, d, v);
        for (int i = 0; i < 4 * heads; i++)
            s[i / 4][i % 4] = vfmaq_n_f32(s[i / 4][i % 4], v[i % 4], p[i / 4 * ldp + t]);
    }
    for (int i = 0; i < 4 * heads; i++) vst1q_f32(out + i / 4 * d16 + d + 4 * (i % 4), s[i / 4][i % 4]);
}

PL_INLINE void weigh(load16_fn load, const void *value, int64_t bytes, int64_t tokens, int64_t d16, const float *p,
                     int64_t ldp, int64_t heads, float *out) {
    int64_t h = 0;
    for (; h + 4 <= heads; h += 4) {
        for (int64_t d = 0; d < d16; d += 16) {
            weigh_tile(load, value, bytes, tokens, d16, d, p + h * ldp, ldp, 4, out + h * d16);
        }
    }
    for (; h < heads; h++) {
        for (int64_t d = 0; d < d16; d += 16) {
            weigh_tile(load, value, bytes, tokens, d16, d, p + h * ldp, ldp, 1, out + h * d16);
        }
    }
}

void pl_neon_weigh_f16(const uint16_t *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p, int64_t ldp,
                       int64_t heads, float *out) {
    (void)ahead;
    weigh(load16_f16, value, pl_value_bytes(PL_TYPE_F16, d16), tokens, d16, p, ldp, heads, out);
}

void pl_neon_weigh_f32(const float *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p, int64_t ldp,
                       int64_t heads, float *out) {
    (void)ahead;
    weigh(load16_f32, value, pl_value_bytes(PL_TYPE_F32, d16), tokens, d16, p, ldp, heads, out);
}

void pl_neon_weigh_q8_0(const pl_block_q8_0 *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p,
                        int64_t ldp, int64_t heads, float *out) {
    (void)ahead;
    weigh(load16_q8_0, value, pl_value_bytes(PL_TYPE_Q8_0, d16), tokens, d16, p, ldp, heads, out);
}
#endif
