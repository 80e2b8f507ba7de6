/* The AVX-512 level: activations and vectors, and the table of the whole. */
#if defined(__x86_64__)
#include <math.h>

#include "base/math.h"
#include "kernels/avx512.h"
#include "kernels/elementwise.h"
#include "quant/f16.h"

PL_TARGET_BEGIN(PL_AVX512_TARGET)

/* ---- activations ------------------------------------------------------------------------------------------------- */

/* 16 of a into their planes at q, a block apart. */
PL_INLINE void store_codes(__m512i a, int planes, int8_t *q) {
    __m512i high = a;
    if (planes == 2) {
        high = _mm512_srai_epi32(_mm512_add_epi32(a, _mm512_set1_epi32(128)), 8);
        __m512i low = _mm512_sub_epi32(a, _mm512_slli_epi32(high, 8));
        _mm_storeu_si128((__m128i *)(q + PL_BLOCK), _mm512_cvtepi32_epi8(low));
    }
    _mm_storeu_si128((__m128i *)q, _mm512_cvtepi32_epi8(high));
}

static void quantize_avx512(const float *x, int64_t k, int32_t planes, int8_t *q, pl_act_block *blocks) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    const float steps = planes == 2 ? 32512.0f : 127.0f;
    for (int64_t b = 0; b < k / PL_BLOCK; b++, x += PL_BLOCK, q += planes * PL_BLOCK) {
        __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16);
        __m512i m0 = _mm512_and_si512(_mm512_castps_si512(x0), magnitude);
        __m512i m1 = _mm512_and_si512(_mm512_castps_si512(x1), magnitude);
        uint32_t bits = _mm512_reduce_max_epu32(_mm512_max_epu32(m0, m1));
        float largest = pl_float_from_bits(bits);
        int finite = bits < 0x7f800000, zero = !finite || largest < 0x1p-100f;
        __mmask16 keep = zero ? 0 : 0xffff; /* not a factor 0: 0 * inf is no zero */
        __m512 inverse = _mm512_set1_ps(steps / largest);
        __m512i a0 = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(keep, x0, inverse));
        __m512i a1 = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(keep, x1, inverse));
        store_codes(a0, planes, q);
        store_codes(a1, planes, q + 16);
        const int32_t minus[2] = {-_mm512_reduce_add_epi32(a0), -_mm512_reduce_add_epi32(a1)};
        blocks[b] = pl_act_block_of(!finite ? NAN : zero ? 0.0f : largest / steps, minus);
    }
}

/* ---- vectors ----------------------------------------------------------------------------------------------------- */

/* pl_expf in every lane. */
PL_INLINE __m512 exp_lanes(__m512 x) {
    const __m512 round = _mm512_set1_ps(PL_EXP_ROUND);
    __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(PL_EXP_LOG2E), round);
    __m512 n = _mm512_sub_ps(shifted, round);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-PL_EXP_LN2_HI), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-PL_EXP_LN2_LO), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(PL_EXP_C6), r, _mm512_set1_ps(PL_EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(PL_EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(PL_EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(PL_EXP_C2));
    __m512 y = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    y = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), power));
    y = _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, _mm512_set1_ps(PL_EXP_MAX), _CMP_GT_OQ), _mm512_set1_ps(INFINITY));
    y = _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, _mm512_set1_ps(PL_EXP_MIN), _CMP_LT_OQ), _mm512_setzero_ps());
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

/* The sixteen lanes folded 8, 4, 2, 1 apart. */
PL_INLINE float fold(__m512 x) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

static void rmsnorm_avx512(const float *x, const float *weight, int64_t n, float eps, float *out) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
        __m512 v = _mm512_loadu_ps(x + i);
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    __m512 inverse = _mm512_set1_ps(1.0f / sqrtf(fold(squares) / (float)n + eps));
    for (int64_t i = 0; i < n; i += 16) {
        __m512 unit = _mm512_mul_ps(inverse, _mm512_loadu_ps(x + i));
        _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_loadu_ps(weight + i), unit));
    }
}

static void swiglu_avx512(const float *gate, const float *up, int64_t n16, float *out) {
    for (int64_t i = 0; i < n16; i += 16) {
        __m512 g = _mm512_loadu_ps(gate + i);
        __m512 silu = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0f), exp_lanes(pl_negate(g))));
        _mm512_storeu_ps(out + i, _mm512_mul_ps(silu, _mm512_loadu_ps(up + i)));
    }
}

PL_ELEMENTWISE(avx512)

/* The first to come of the largest s * scale: of +0 and -0, which are equal, the sign is the first one's. */
PL_INLINE float largest_scaled(const float *s, int64_t n16, float scale) {
    __m512 largest = _mm512_set1_ps(-INFINITY);
    for (int64_t i = 0; i < n16; i += 16) { /* vmaxps(a, b) is a > b ? a : b, and so passes over NaN */
        largest = _mm512_max_ps(_mm512_mul_ps(_mm512_loadu_ps(s + i), _mm512_set1_ps(scale)), largest);
    }
    float max = _mm512_reduce_max_ps(largest);
    for (int64_t i = 0; i < n16 && max == 0; i++) {
        if (s[i] * scale == 0) return s[i] * scale;
    }
    return max;
}

static float softmax_avx512(float *s, int64_t n16, float scale, float *max) {
    *max = largest_scaled(s, n16, scale);
    __m512 sum = _mm512_setzero_ps(), largest = _mm512_set1_ps(*max);
    for (int64_t i = 0; i < n16; i += 16) {
        __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(s + i), _mm512_set1_ps(scale));
        __m512 p = exp_lanes(_mm512_sub_ps(scaled, largest));
        _mm512_storeu_ps(s + i, p);
        sum = _mm512_add_ps(sum, p);
    }
    return fold(sum);
}

/* ---- attention's sum over values --------------------------------------------------------------------------------- */

enum { MOST_HEADS = 4, MOST_WIDE = 4 /* vectors of 16 */ };

/* Where the values from dimension `start` on begin in a row, `start` being a multiple of 64 or the first of 16: as its
 * type has it, or the block of Q8_0 that holds them. */
PL_INLINE const uint8_t *value_at(int32_t type, const void *value, int64_t start) {
    return (const uint8_t *)value + pl_value_bytes(type, type == PL_TYPE_Q8_0 ? start / PL_BLOCK * PL_BLOCK : start);
}

/* 16 values, d dimensions on. */
PL_INLINE __m512 value16(int32_t type, const uint8_t *at, int64_t d) {
    if (type == PL_TYPE_F32) return _mm512_loadu_ps((const float *)at + d);
    if (type == PL_TYPE_F16) return pl_load_halves((const uint16_t *)at + d);
    const pl_block_q8_0 *block = (const pl_block_q8_0 *)at + d / PL_BLOCK;
    __m128i codes = _mm_loadu_si128((const __m128i *)(block->qs + d % PL_BLOCK));
    __m512 scale = _mm512_cvtph_ps(_mm256_set1_epi16((int16_t)pl_load16(block->d)));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), scale);
}

/* `wide` vectors of `heads` sums, in registers over all tokens; a converted value serves every head. */
PL_INLINE void weigh_tile(int32_t type, int heads, int wide, const void *value, int64_t start, int64_t tokens,
                          int64_t d16, int64_t ahead, const float *p, int64_t ldp, float *out) {
    const int all = heads * wide;
    const int64_t stride = pl_value_bytes(type, d16), within = type == PL_TYPE_Q8_0 && wide == 1 ? start % PL_BLOCK : 0;
    const uint8_t *at = value_at(type, value, start);
    __m512 sum[MOST_HEADS * MOST_WIDE], v[MOST_WIDE];
    PL_UNROLL
    for (int i = 0; i < all; i++) sum[i] = _mm512_loadu_ps(out + i / wide * d16 + i % wide * 16);
    for (int64_t t = 0; t < tokens; t++, at += stride) {
        PL_UNROLL
        for (int i = 0; i < wide; i++) v[i] = value16(type, at, within + 16 * i);
        if (ahead) pl_prefetch(at, ahead, (int)pl_value_bytes(type, 16 * wide), heads <= 2 || type == PL_TYPE_F32);
        PL_UNROLL
        for (int i = 0; i < all; i++) {
            sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(p[i / wide * ldp + t]), v[i % wide], sum[i]);
        }
    }
    PL_UNROLL
    for (int i = 0; i < all; i++) _mm512_storeu_ps(out + i / wide * d16 + i % wide * 16, sum[i]);
}

PL_INLINE void weigh_heads(int32_t type, int heads, const void *value, int64_t tokens, int64_t d16, int64_t ahead,
                           const float *p, int64_t ldp, float *out) {
    int64_t d = 0;
    for (; d + 64 <= d16; d += 64) weigh_tile(type, heads, MOST_WIDE, value, d, tokens, d16, ahead, p, ldp, out + d);
    for (; d < d16; d += 16) weigh_tile(type, heads, 1, value, d, tokens, d16, ahead, p, ldp, out + d);
}

PL_INLINE void weigh(int32_t type, const void *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p,
                     int64_t ldp, int64_t heads, float *out) {
    PL_FOR_TILES(count, MOST_HEADS, heads) {
        switch (count) {
            case 1: weigh_heads(type, 1, value, tokens, d16, ahead, p, ldp, out); break;
            case 2: weigh_heads(type, 2, value, tokens, d16, ahead, p, ldp, out); break;
            case 3: weigh_heads(type, 3, value, tokens, d16, ahead, p, ldp, out); break;
            case 4: weigh_heads(type, 4, value, tokens, d16, ahead, p, ldp, out); break;
        }
        p += count * ldp;
        out += count * d16;
    }
}

static void weigh_f16_avx512(const uint16_t *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p,
                             int64_t ldp, int64_t heads, float *out) {
    weigh(PL_TYPE_F16, value, tokens, d16, ahead, p, ldp, heads, out);
}

static void weigh_f32_avx512(const float *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p,
                             int64_t ldp, int64_t heads, float *out) {
    weigh(PL_TYPE_F32, value, tokens, d16, ahead, p, ldp, heads, out);
}

static void weigh_q8_0_avx512(const pl_block_q8_0 *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p,
                              int64_t ldp, int64_t heads, float *out) {
    weigh(PL_TYPE_Q8_0, value, tokens, d16, ahead, p, ldp, heads, out);
}

PL_TARGET_END

#define ENTRY(type, packing, ...) [packing] = pl_avx512_matmul_##type,
const pl_kernels pl_kernels_avx512 = {
    .name = "avx512",
    .matmul = {[PL_PACK_F32] = pl_avx512_matmul_f32,
               [PL_PACK_F16] = pl_avx512_matmul_f16,
               [PL_PACK_BF16] = pl_avx512_matmul_bf16,
               PL_QUANTISED_PACKINGS(ENTRY)},
    .quantize = quantize_avx512,
    .rmsnorm = rmsnorm_avx512,
    .swiglu = swiglu_avx512,
    .activate = activate_avx512,
    .softcap = softcap_avx512,
    .softmax = softmax_avx512,
    .weigh_f16 = weigh_f16_avx512,
    .weigh_f32 = weigh_f32_avx512,
    .weigh_q8_0 = weigh_q8_0_avx512,
};

#endif
