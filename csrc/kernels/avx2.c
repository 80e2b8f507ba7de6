/* The AVX2 level: its table, that of AVX-VNNI, and the kernels over vectors of both. Sixteen lanes are two vectors of
 * 8, elements i % 16 < 8 in the first. See kernels.h for what each kernel keeps, scalar.c for the definitions. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include "base/math.h"
#include "kernels/avx2.h"
#include "kernels/elementwise.h"
#include "kernels/target.h"

PL_TARGET_BEGIN("avx2,fma,f16c")

enum { LANES = 8 };

/* ---- activations ------------------------------------------------------------------------------------------------ */

PL_INLINE __m256i largest_of_eight(__m256i x) {
    x = _mm256_max_epu32(x, _mm256_permute2x128_si256(x, x, 1));
    x = _mm256_max_epu32(x, _mm256_shuffle_epi32(x, 0x4e));
    return _mm256_max_epu32(x, _mm256_shuffle_epi32(x, 0xb1));
}

/* The largest |x| of 32 as bits: ordered like the numbers, with inf and NaN above all. */
PL_INLINE uint32_t largest_magnitude(const __m256 x[4]) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i largest = _mm256_setzero_si256();
    PL_UNROLL for (int i = 0; i < 4; i++) {
        largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(x[i]), magnitude));
    }
    return (uint32_t)_mm256_cvtsi256_si32(largest_of_eight(largest));
}

/* Round to nearest even for |x| < 2^22. */
PL_INLINE __m256i round_to_int(__m256 x) {
    const __m256 magic = _mm256_set1_ps(PL_EXP_ROUND);
    return _mm256_sub_epi32(_mm256_castps_si256(_mm256_add_ps(x, magic)), _mm256_castps_si256(magic));
}

PL_INLINE int32_t sum_of_eight(__m256i x) {
    x = _mm256_add_epi32(x, _mm256_permute2x128_si256(x, x, 1));
    x = _mm256_add_epi32(x, _mm256_shuffle_epi32(x, 0x4e));
    return _mm256_cvtsi256_si32(_mm256_add_epi32(x, _mm256_shuffle_epi32(x, 0xb1)));
}

/* 32 int16, as vpackssdw left them (by 128-bit lanes: 0 2 1 3, 4 6 5 7), to bytes in order. */
PL_INLINE void store_bytes(int8_t *q, __m256i low, __m256i high) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
    _mm256_storeu_si256((__m256i *)q, bytes);
}

/* 32 values of x * inverse as integers, 256 high + low in two planes; minus: what either half sums up to, negated. */
PL_INLINE void quantize_block(const __m256 x[4], float inverse, int planes, int8_t *q, int32_t minus[2]) {
    __m256i a[4];
    PL_UNROLL for (int i = 0; i < 4; i++) a[i] = round_to_int(_mm256_mul_ps(x[i], _mm256_set1_ps(inverse)));
    __m256i first = _mm256_packs_epi32(a[0], a[1]), second = _mm256_packs_epi32(a[2], a[3]);
    if (planes == 2) {
        const __m256i half = _mm256_set1_epi16(128);
        __m256i high1 = _mm256_srai_epi16(_mm256_add_epi16(first, half), 8);
        __m256i high2 = _mm256_srai_epi16(_mm256_add_epi16(second, half), 8);
        store_bytes(q + PL_BLOCK, _mm256_sub_epi16(first, _mm256_slli_epi16(high1, 8)),
                    _mm256_sub_epi16(second, _mm256_slli_epi16(high2, 8)));
        store_bytes(q, high1, high2);
    } else {
        store_bytes(q, first, second);
    }
    PL_UNROLL for (int i = 0; i < 2; i++) minus[i] = -sum_of_eight(_mm256_add_epi32(a[2 * i], a[2 * i + 1]));
}

static void quantize_avx2(const float *x, int64_t k, int32_t planes, int8_t *q, pl_act_block *blocks) {
    const float steps = planes == 2 ? 32512.0f : 127.0f;
    for (int64_t b = 0; b < k / PL_BLOCK; b++, x += PL_BLOCK, q += planes * PL_BLOCK) {
        __m256 v[4];
        PL_UNROLL for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(x + i * LANES);
        uint32_t bits = largest_magnitude(v);
        float largest = _mm256_cvtss_f32(_mm256_castsi256_ps(_mm256_set1_epi32((int32_t)bits)));
        int finite = bits < 0x7f800000, zero = !finite || largest < 0x1p-100f;
        if (zero) { /* inf * 0 is no zero */
            PL_UNROLL for (int i = 0; i < 4; i++) v[i] = _mm256_setzero_ps();
        }
        int32_t minus[2];
        quantize_block(v, zero ? 0.0f : steps / largest, planes, q, minus);
        blocks[b] = pl_act_block_of(!finite ? NAN : zero ? 0.0f : largest / steps, minus);
    }
}

/* ---- sums over a vector ----------------------------------------------------------------------------------------- */

/* Sixteen lanes folded 8, 4, 2, 1 apart. */
PL_INLINE float fold(__m256 low, __m256 high) {
    __m256 eight = _mm256_add_ps(low, high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static void rmsnorm_avx2(const float *x, const float *weight, int64_t n, float eps, float *out) {
    int64_t n16 = pl_pad(n);
    __m256 lane[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t i = 0; i < n16; i += 2 * LANES) {
        PL_UNROLL for (int j = 0; j < 2; j++) {
            __m256 v = _mm256_loadu_ps(x + i + j * LANES);
            lane[j] = _mm256_fmadd_ps(v, v, lane[j]);
        }
    }
    __m256 inverse = _mm256_set1_ps(1.0f / sqrtf(fold(lane[0], lane[1]) / (float)n + eps));
    for (int64_t i = 0; i < n16; i += LANES) {
        __m256 scaled = _mm256_mul_ps(inverse, _mm256_loadu_ps(x + i));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_loadu_ps(weight + i), scaled));
    }
}

/* pl_expf in each lane. */
PL_INLINE __m256 exponential(__m256 x) {
    const __m256 magic = _mm256_set1_ps(PL_EXP_ROUND), one = _mm256_set1_ps(1.0f);
    __m256 shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(PL_EXP_LOG2E), magic);
    __m256 n = _mm256_sub_ps(shifted, magic);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-PL_EXP_LN2_HI), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-PL_EXP_LN2_LO), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(PL_EXP_C6), r, _mm256_set1_ps(PL_EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(PL_EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(PL_EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(PL_EXP_C2));
    __m256 y = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), one);
    __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), power));
    y = _mm256_blendv_ps(y, _mm256_set1_ps(INFINITY), _mm256_cmp_ps(x, _mm256_set1_ps(PL_EXP_MAX), _CMP_GT_OQ));
    y = _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(PL_EXP_MIN), _CMP_LT_OQ), y);
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

static void swiglu_avx2(const float *gate, const float *up, int64_t n16, float *out) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    for (int64_t i = 0; i < n16; i += LANES) {
        __m256 g = _mm256_loadu_ps(gate + i);
        __m256 below = _mm256_add_ps(one, exponential(_mm256_xor_ps(g, sign)));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_div_ps(g, below), _mm256_loadu_ps(up + i)));
    }
}

PL_ELEMENTWISE(avx2)

PL_INLINE __m256 larger(__m256 a, __m256 b) { return _mm256_max_ps(a, b); /* b where one is NaN, as `a > b ? a : b` */ }

/* s *= scale; the largest s. */
PL_INLINE float scale_and_find_max(float *s, int64_t n16, float scale) {
    __m256 largest[2] = {_mm256_set1_ps(-INFINITY), _mm256_set1_ps(-INFINITY)};
    for (int64_t i = 0; i < n16; i += 2 * LANES) {
        PL_UNROLL for (int j = 0; j < 2; j++) {
            __m256 v = _mm256_mul_ps(_mm256_loadu_ps(s + i + j * LANES), _mm256_set1_ps(scale));
            _mm256_storeu_ps(s + i + j * LANES, v);
            largest[j] = larger(v, largest[j]);
        }
    }
    __m256 m = _mm256_max_ps(largest[0], largest[1]);
    m = _mm256_max_ps(m, _mm256_permute2f128_ps(m, m, 1));
    m = _mm256_max_ps(m, _mm256_permute_ps(m, 0x4e));
    return _mm256_cvtss_f32(_mm256_max_ps(m, _mm256_permute_ps(m, 0xb1)));
}

/* The first zero of s, which holds one: among zeros of both signs a chain of comparisons keeps that. */
PL_INLINE float first_zero(const float *s) {
    while (*s != 0) s++;
    return *s;
}

static float softmax_avx2(float *s, int64_t n16, float scale, float *max) {
    float largest = scale_and_find_max(s, n16, scale);
    if (largest == 0) largest = first_zero(s);
    __m256 lane[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t i = 0; i < n16; i += 2 * LANES) {
        PL_UNROLL for (int j = 0; j < 2; j++) {
            __m256 v = exponential(_mm256_sub_ps(_mm256_loadu_ps(s + i + j * LANES), _mm256_set1_ps(largest)));
            _mm256_storeu_ps(s + i + j * LANES, v);
            lane[j] = _mm256_add_ps(lane[j], v);
        }
    }
    *max = largest;
    return fold(lane[0], lane[1]);
}

/* ---- attention's weighted values -------------------------------------------------------------------------------- */

/* Where the values from dimension `start` on begin in a row: as its type has it, or the block of Q8_0 that holds it. */
PL_INLINE const uint8_t *value_at(int32_t type, const void *value, int64_t start) {
    return (const uint8_t *)value + pl_value_bytes(type, type == PL_TYPE_Q8_0 ? start / PL_BLOCK * PL_BLOCK : start);
}

/* Eight values, d dimensions on. */
PL_INLINE __m256 value8(int32_t type, const uint8_t *at, int64_t d) {
    if (type == PL_TYPE_F32) return _mm256_loadu_ps((const float *)at + d);
    if (type == PL_TYPE_F16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)at + d)));
    const pl_block_q8_0 *block = (const pl_block_q8_0 *)at + d / PL_BLOCK;
    __m128i codes = _mm_loadl_epi64((const __m128i *)(block->qs + d % PL_BLOCK));
    __m256 scale = _mm256_cvtph_ps(_mm_set1_epi16((int16_t)pl_load16(block->d)));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), scale);
}

/* `heads` heads times `vectors` vectors from dimension d on, the sums in registers over all tokens. Of Q8_0, d is a
 * multiple of 32 but for two vectors, which no block's end comes between. */
PL_INLINE void weigh_tile(int32_t type, int heads, int vectors, const void *value, int64_t tokens, int64_t d16,
                          const float *p, int64_t ldp, float *out, int64_t d) {
    const int64_t stride = pl_value_bytes(type, d16), within = type == PL_TYPE_Q8_0 && vectors == 2 ? d % PL_BLOCK : 0;
    const uint8_t *at = value_at(type, value, d);
    __m256 sum[4][8];
    PL_UNROLL for (int h = 0; h < heads; h++) {
        PL_UNROLL for (int i = 0; i < vectors; i++) sum[h][i] = _mm256_loadu_ps(out + h * d16 + d + i * LANES);
    }
    for (int64_t t = 0; t < tokens; t++, at += stride) {
        PL_UNROLL for (int i = 0; i < vectors; i++) {
            __m256 v = value8(type, at, within + i * LANES);
            PL_UNROLL for (int h = 0; h < heads; h++) {
                sum[h][i] = _mm256_fmadd_ps(_mm256_broadcast_ss(p + h * ldp + t), v, sum[h][i]);
            }
        }
    }
    PL_UNROLL for (int h = 0; h < heads; h++) {
        PL_UNROLL for (int i = 0; i < vectors; i++) _mm256_storeu_ps(out + h * d16 + d + i * LANES, sum[h][i]);
    }
}

/* All dimensions of some heads: 8 / heads vectors at a time, then what is left of them by two. */
PL_INLINE void weigh_heads(int32_t type, int heads, const void *value, int64_t tokens, int64_t d16, const float *p,
                           int64_t ldp, float *out) {
    const int vectors = 8 / heads;
    int64_t d = 0;
    for (; d + vectors * LANES <= d16; d += vectors * LANES) {
        weigh_tile(type, heads, vectors, value, tokens, d16, p, ldp, out, d);
    }
    for (; d < d16; d += 2 * LANES) weigh_tile(type, heads, 2, value, tokens, d16, p, ldp, out, d);
}

PL_INLINE void weigh(int32_t type, const void *value, int64_t tokens, int64_t d16, const float *p, int64_t ldp,
                     int64_t heads, float *out) {
    int64_t h = 0;
    for (; h + 4 <= heads; h += 4) weigh_heads(type, 4, value, tokens, d16, p + h * ldp, ldp, out + h * d16);
    if (h + 2 <= heads) weigh_heads(type, 2, value, tokens, d16, p + h * ldp, ldp, out + h * d16), h += 2;
    if (h < heads) weigh_heads(type, 1, value, tokens, d16, p + h * ldp, ldp, out + h * d16);
}

static void weigh_f16_avx2(const uint16_t *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p,
                           int64_t ldp, int64_t heads, float *out) {
    (void)ahead;
    weigh(PL_TYPE_F16, value, tokens, d16, p, ldp, heads, out);
}

static void weigh_f32_avx2(const float *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p, int64_t ldp,
                           int64_t heads, float *out) {
    (void)ahead;
    weigh(PL_TYPE_F32, value, tokens, d16, p, ldp, heads, out);
}

static void weigh_q8_0_avx2(const pl_block_q8_0 *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p,
                            int64_t ldp, int64_t heads, float *out) {
    (void)ahead;
    weigh(PL_TYPE_Q8_0, value, tokens, d16, p, ldp, heads, out);
}

PL_TARGET_END

/* Levels that differ in how they multiply quantised weights. */
#define ENTRY_avx2(type, packing, ...) [packing] = pl_avx2_matmul_##type,
#define ENTRY_avxvnni(type, packing, ...) [packing] = pl_avxvnni_matmul_##type,
#define AVX2_TABLE(level) \
    { \
        .name = #level, \
        .matmul = {[PL_PACK_F32] = pl_avx2_matmul_f32, \
                   [PL_PACK_F16] = pl_avx2_matmul_f16, \
                   [PL_PACK_BF16] = pl_avx2_matmul_bf16, \
                   PL_QUANTISED_PACKINGS(ENTRY_##level)}, \
        .quantize = quantize_avx2, \
        .rmsnorm = rmsnorm_avx2, \
        .swiglu = swiglu_avx2, \
        .activate = activate_avx2, \
        .softcap = softcap_avx2, \
        .softmax = softmax_avx2, \
        .weigh_f16 = weigh_f16_avx2, \
        .weigh_f32 = weigh_f32_avx2, \
        .weigh_q8_0 = weigh_q8_0_avx2, \
    }

const pl_kernels pl_kernels_avx2 = AVX2_TABLE(avx2);
#if defined(PL_HAS_AVXVNNI_LEVEL)
const pl_kernels pl_kernels_avxvnni = AVX2_TABLE(avxvnni);
#endif
#endif
