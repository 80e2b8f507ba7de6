/* The kernels for AVX-512 with VNNI: the sums of scalar.c in the same order, a lane being an output row.
 *
 * A tile is one strip and a few columns, and its sums stay in registers over the whole of k. Every tile is an instance
 * of one template; the packing, the planes and the columns are constants in it. vpdpbusd wants unsigned codes, so the
 * codes of a type without a minimum are off by a power of two; the sum of the activations takes that back, exactly. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "base/math.h"
#include "kernels/kernels.h"
#include "kernels/target.h"
#include "quant/f16.h"

PL_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

enum { PREFETCH_AHEAD = 4096 /* bytes; the hardware alone loses a stream of several fields */ };

PL_INLINE __m512i load(const void *p) {
    return _mm512_loadu_si512(p);
}

PL_INLINE __m512 load_f16(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

PL_INLINE __m512 load_u8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

PL_INLINE __m512 load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

PL_INLINE __m512 negate(__m512 x) {
    return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f));
}

/* The lines of `bytes` (constant) at p, some way ahead. */
PL_INLINE void prefetch(const uint8_t *p, int bytes) {
    PL_UNROLL
    for (int i = 0; i < bytes; i += 64) _mm_prefetch((const char *)p + PREFETCH_AHEAD + i, _MM_HINT_T0);
}

/* ---- float weights ---------------------------------------------------------------------------------------------- */

/* Weights k = j of 16 rows, j < 4, from the weights of four k. */
PL_INLINE __m512 weight(pl_packing packing, const uint8_t *four, int j) {
    if (packing == PL_PACK_F32) return _mm512_loadu_ps(four + 64 * j);
    if (packing == PL_PACK_F16) return load_f16(four + 32 * j);
    __m512i pair = load(four + j / 2 * 64);
    return _mm512_castsi512_ps(j % 2 ? _mm512_and_si512(pair, _mm512_set1_epi32(-65536)) : _mm512_slli_epi32(pair, 16));
}

/* A column is one of two bases plus 0, 1 or 2 strides: addresses the processor forms itself, so that six columns need
 * three registers, not six. */
PL_INLINE void float_tile(pl_packing packing, int cols, const uint8_t *strip, const float *f, int64_t ld, int64_t k,
                          float *y, int64_t ldy) {
    const int bytes = packing == PL_PACK_F32 ? 256 : 128; /* of four k */
    const float *base[2] = {f, f + 3 * ld};
    __m512 sum[6][4];
    PL_UNROLL
    for (int i = 0; i < cols * 4; i++) sum[i / 4][i % 4] = _mm512_setzero_ps();
    for (; k >= 4; k -= 4, strip += bytes, base[0] += 4, base[1] += 4) {
        prefetch(strip, bytes);
        PL_UNROLL
        for (int j = 0; j < 4; j++) {
            __m512 w = weight(packing, strip, j);
            PL_UNROLL
            for (int c = 0; c < cols; c++) {
                __m512 x = _mm512_set1_ps(base[c / 3][c % 3 * ld + j]);
                sum[c][j] = _mm512_fmadd_ps(w, x, sum[c][j]);
            }
        }
    }
    PL_UNROLL
    for (int j = 0; j < 3; j++) {
        if (j >= k) break;
        PL_UNROLL
        for (int c = 0; c < cols; c++) {
            __m512 x = _mm512_set1_ps(base[c / 3][c % 3 * ld + j]);
            sum[c][j] = _mm512_fmadd_ps(weight(packing, strip, j), x, sum[c][j]);
        }
    }
    PL_UNROLL
    for (int c = 0; c < cols; c++) {
        __m512 even = _mm512_add_ps(sum[c][0], sum[c][1]), odd = _mm512_add_ps(sum[c][2], sum[c][3]);
        _mm512_storeu_ps(y + c * ldy, _mm512_add_ps(even, odd));
    }
}

/* ---- quantised weights: a block is 32 k of 16 rows --------------------------------------------------------------- */

typedef enum scales {
    SCALE_F32, /* one per block: d */
    SCALE_F16, /* d, and m if there is a minimum */
    SCALE_K,   /* d sc, and -(dmin mn); eight blocks to a struct */
    SCALE_Q6K, /* d sc for each half of a block; eight blocks to a struct */
} scales;

/* What the templates must know of a packing: strips.h in numbers, constant in every instance. */
typedef struct shape {
    scales scales;
    int bits;    /* of a code */
    int offset;  /* a stored code is 2^offset above the meant one; 0: equal to it */
    int minimum; /* whether there is one */
    int bytes;   /* of a struct of the strip; its codes stand last */
} shape;

PL_INLINE int blocks_of(shape t) {
    return t.scales >= SCALE_K ? 8 : 1;
}

PL_INLINE int steps_of(shape t) {
    return t.scales == SCALE_Q6K ? 2 : 1;
}

typedef struct block {
    const uint8_t *codes;
    __m512 scale[2], minimum;
} block;

/* Block j of the struct at `strip`. */
PL_INLINE block open_block(shape t, const uint8_t *strip, int j) {
    __m512 d = t.scales == SCALE_F32 ? _mm512_loadu_ps(strip) : load_f16(strip);
    block w = {strip + t.bytes - (blocks_of(t) - j) * (t.bits * 64), {d, d}, d};
    if (t.scales == SCALE_F16 && t.minimum) w.minimum = load_f16(strip + offsetof(pl_strip_q4m, m));
    if (t.scales == SCALE_K) {
        const pl_strip_q4k *s = (const pl_strip_q4k *)strip; /* Q5_K begins with the same fields */
        w.scale[0] = _mm512_mul_ps(d, load_u8(s->sc[j]));
        w.minimum = negate(_mm512_mul_ps(load_f16(s->dmin), load_u8(s->mn[j])));
    }
    if (t.scales == SCALE_Q6K) {
        const pl_strip_q6k *s = (const pl_strip_q6k *)strip;
        w.scale[0] = _mm512_mul_ps(d, load_i8(s->sc[2 * j]));
        w.scale[1] = _mm512_mul_ps(d, load_i8(s->sc[2 * j + 1]));
    }
    return w;
}

/* x moved left by n bits, right if n < 0; what crosses a byte is for the caller to mask. */
PL_INLINE __m512i shift(__m512i x, int n) {
    if (n == 0) return x;
    return n > 0 ? _mm512_slli_epi16(x, (unsigned)n) : _mm512_srli_epi16(x, (unsigned)-n);
}

/* The codes of group g: four k of 16 rows. */
PL_INLINE __m512i group(int bits, const uint8_t *codes, int g) {
    const __m512i nibble = _mm512_set1_epi8(15);
    if (bits == 8) return load(codes + 64 * g);
    __m512i low = shift(load(codes + (bits - 4) * 64 + g % 4 * 64), g < 4 ? 0 : -4);
    if (bits == 4) return _mm512_and_si512(low, nibble);
    __m512i high = bits == 5 ? shift(load(codes), 4 - g) : shift(load(codes + g / 4 * 64), 4 - g % 4 * 2);
    __m512i both = _mm512_ternarylogic_epi32(nibble, low, high, 0xca); /* nibble ? low : high */
    return _mm512_and_si512(both, _mm512_set1_epi8((char)((1 << bits) - 1)));
}

/* ---- quantised weights: tiles ------------------------------------------------------------------------------------ */

enum { MOST_COLUMNS = 6 };

/* The activations of a tile from one block on. Row i of q, a plane of a column, is a base plus 0, 1 or 2 strides,
 * addresses the processor forms itself: pointers to every row would not fit the registers. Same for the columns. */
typedef struct columns {
    const int8_t *q[MOST_COLUMNS * 2 / 3];
    const float *scale[MOST_COLUMNS / 3], *offset[MOST_COLUMNS / 3];
    const int32_t *sum[MOST_COLUMNS / 3];
    int64_t k, blocks;
} columns;

PL_INLINE columns columns_at(const pl_acts *x, int64_t first) {
    columns at = {.k = x->k, .blocks = x->k / PL_BLOCK};
    PL_UNROLL
    for (int i = 0; i < MOST_COLUMNS * 2 / 3; i++) at.q[i] = x->q + (first * x->planes + i * 3) * at.k;
    PL_UNROLL
    for (int i = 0; i < MOST_COLUMNS / 3; i++) {
        at.scale[i] = x->scale + (first + i * 3) * at.blocks;
        at.offset[i] = x->offset + (first + i * 3) * at.blocks;
        at.sum[i] = x->sum + (first + i * 3) * at.blocks;
    }
    return at;
}

PL_INLINE columns next_block(columns at) {
    PL_UNROLL
    for (int i = 0; i < MOST_COLUMNS * 2 / 3; i++) at.q[i] += PL_BLOCK;
    PL_UNROLL
    for (int i = 0; i < MOST_COLUMNS / 3; i++) at.scale[i]++, at.offset[i]++, at.sum[i]++;
    return at;
}

/* sum += codes * q over four k */
PL_INLINE __m512i dot(__m512i sum, __m512i codes, const int8_t *q) {
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(four));
}

/* What the offset of the codes adds to each of the 16 half blocks of 256 k, in order: 2^offset sum a. */
PL_INLINE __m512i half_excess(int offset, int planes, const int8_t *q, int64_t k) {
    const __m512i ones = _mm512_set1_epi8(1);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i s[4]; /* a half block in 4 lanes */
    PL_UNROLL
    for (int i = 0; i < 4; i++) {
        s[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, load(q + 64 * i));
        if (planes == 2) s[i] = _mm512_dpbusd_epi32(_mm512_slli_epi32(s[i], 8), ones, load(q + k + 64 * i));
    }
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(s[0], s[1]), _mm512_unpackhi_epi32(s[0], s[1]));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(s[2], s[3]), _mm512_unpackhi_epi32(s[2], s[3]));
    __m512i abcd = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    return _mm512_slli_epi32(_mm512_permutexvar_epi32(order, abcd), (unsigned)offset);
}

/* y = fma(S, scale_w scale_x, y) for each column, S over one scale's share of a block. excess: see half_excess. */
PL_INLINE void step(shape t, int planes, int cols, const block *w, int s, const columns *at, const int32_t *excess,
                    __m512 *y) {
    __m512i sum[MOST_COLUMNS][2];
    PL_UNROLL
    for (int i = 0; i < cols * 2; i++) sum[i / 2][i % 2] = _mm512_setzero_si512();
    PL_UNROLL
    for (int i = 0; i < 8 / steps_of(t); i++) {
        int g = steps_of(t) == 2 ? s * 4 + i : i / 2 + i % 2 * 4; /* both nibbles of a byte in turn if order is free */
        __m512i codes = group(t.bits, w->codes, g);
        PL_UNROLL
        for (int r = 0; r < cols * planes; r++) {
            __m512i *to = &sum[r / planes][r % planes];
            *to = dot(*to, codes, at->q[r / 3] + r % 3 * at->k + 4 * g);
        }
    }
    PL_UNROLL
    for (int c = 0; c < cols; c++) {
        const int64_t column = c % 3 * at->blocks;
        __m512i exact = planes == 2 ? _mm512_add_epi32(_mm512_slli_epi32(sum[c][0], 8), sum[c][1]) : sum[c][0];
        if (steps_of(t) == 2) {
            exact = _mm512_sub_epi32(exact, _mm512_set1_epi32(excess[16 * c + s]));
        } else if (t.offset) {
            __m512i a = _mm512_set1_epi32(at->sum[c / 3][column]);
            exact = _mm512_sub_epi32(exact, _mm512_slli_epi32(a, (unsigned)t.offset));
        }
        __m512 scale = _mm512_mul_ps(w->scale[s], _mm512_set1_ps(at->scale[c / 3][column]));
        y[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scale, y[c]);
        if (t.minimum) y[c] = _mm512_fmadd_ps(w->minimum, _mm512_set1_ps(at->offset[c / 3][column]), y[c]);
    }
}

PL_INLINE void tile(shape t, int planes, int cols, const uint8_t *strip, const pl_acts *x, int64_t first, float *y,
                    int64_t ldy) {
    columns at = columns_at(x, first);
    int32_t excess[MOST_COLUMNS * 16];
    __m512 sum[MOST_COLUMNS];
    PL_UNROLL
    for (int c = 0; c < cols; c++) sum[c] = _mm512_setzero_ps();
    for (int64_t b = 0; b < at.blocks; b += blocks_of(t), strip += t.bytes) {
        PL_UNROLL
        for (int c = 0; c < cols && steps_of(t) == 2; c++) {
            const int8_t *q = at.q[c * planes / 3] + c * planes % 3 * at.k;
            _mm512_storeu_si512(excess + 16 * c, half_excess(t.offset, planes, q, at.k));
        }
        for (int j = 0; j < blocks_of(t); j++) {
            block w = open_block(t, strip, j);
            prefetch(strip + t.bytes / blocks_of(t) * j, t.bytes / blocks_of(t));
            PL_UNROLL
            for (int s = 0; s < steps_of(t); s++) step(t, planes, cols, &w, s, &at, excess + 2 * j, sum);
            at = next_block(at);
        }
    }
    PL_UNROLL
    for (int c = 0; c < cols; c++) _mm512_storeu_ps(y + c * ldy, sum[c]);
}

/* ---- instances --------------------------------------------------------------------------------------------------- */

/* n columns as tiles of nearly equal width, none above `most`: full tiles and a thin rest would be slower. */
#define FOR_TILES(most, n, cols) \
    for (int64_t left = (n), tiles = (left + (most) - 1) / (most), cols; \
         tiles > 0 && (cols = (left + tiles - 1) / tiles, 1); left -= cols, tiles--)

PL_INLINE void matmul(shape t, int planes, const void *strip, const pl_acts *x, int64_t first, int64_t n, float *y,
                      int64_t ldy) {
    FOR_TILES(MOST_COLUMNS, n, cols) {
        switch (cols) {
        case 1: tile(t, planes, 1, strip, x, first, y, ldy); break;
        case 2: tile(t, planes, 2, strip, x, first, y, ldy); break;
        case 3: tile(t, planes, 3, strip, x, first, y, ldy); break;
        case 4: tile(t, planes, 4, strip, x, first, y, ldy); break;
        case 5: tile(t, planes, 5, strip, x, first, y, ldy); break;
        case 6: tile(t, planes, 6, strip, x, first, y, ldy); break;
        }
        first += cols, y += cols * ldy;
    }
}

#define QUANTISED_MATMUL(type, scales, bits, offset, minimum) \
    static void matmul_##type##_avx512(const void *strip, const pl_acts *x, int64_t first, int64_t n, float *y, \
                                       int64_t ldy) { \
        const shape t = {scales, bits, offset, minimum, sizeof(pl_strip_##type)}; \
        if (x->planes == 2) matmul(t, 2, strip, x, first, n, y, ldy); \
        else matmul(t, 1, strip, x, first, n, y, ldy); \
    }
QUANTISED_MATMUL(q8, SCALE_F16, 8, 7, 0)
QUANTISED_MATMUL(q8f, SCALE_F32, 8, 7, 0)
QUANTISED_MATMUL(q4, SCALE_F16, 4, 3, 0)
QUANTISED_MATMUL(q4m, SCALE_F16, 4, 0, 1)
QUANTISED_MATMUL(q5, SCALE_F16, 5, 4, 0)
QUANTISED_MATMUL(q5m, SCALE_F16, 5, 0, 1)
QUANTISED_MATMUL(q4k, SCALE_K, 4, 0, 1)
QUANTISED_MATMUL(q5k, SCALE_K, 5, 0, 1)
QUANTISED_MATMUL(q6k, SCALE_Q6K, 6, 5, 0)

#define FLOAT_MATMUL(type, packing) \
    static void matmul_##type##_avx512(const void *strip, const pl_acts *x, int64_t first, int64_t n, float *y, \
                                       int64_t ldy) { \
        const float *f = x->f + first * x->ld; \
        FOR_TILES(6, n, cols) { \
            switch (cols) { \
            case 1: float_tile(packing, 1, strip, f, x->ld, x->k, y, ldy); break; \
            case 2: float_tile(packing, 2, strip, f, x->ld, x->k, y, ldy); break; \
            case 3: float_tile(packing, 3, strip, f, x->ld, x->k, y, ldy); break; \
            case 4: float_tile(packing, 4, strip, f, x->ld, x->k, y, ldy); break; \
            case 5: float_tile(packing, 5, strip, f, x->ld, x->k, y, ldy); break; \
            case 6: float_tile(packing, 6, strip, f, x->ld, x->k, y, ldy); break; \
            } \
            f += cols * x->ld, y += cols * ldy; \
        } \
    }
FLOAT_MATMUL(f32, PL_PACK_F32)
FLOAT_MATMUL(f16, PL_PACK_F16)
FLOAT_MATMUL(bf16, PL_PACK_BF16)

/* ---- activations ------------------------------------------------------------------------------------------------- */

/* 16 of a into their planes at q, k apart. */
PL_INLINE void store_codes(__m512i a, int planes, int8_t *q, int64_t k) {
    __m512i high = a;
    if (planes == 2) {
        high = _mm512_srai_epi32(_mm512_add_epi32(a, _mm512_set1_epi32(128)), 8);
        __m512i low = _mm512_sub_epi32(a, _mm512_slli_epi32(high, 8));
        _mm_storeu_si128((__m128i *)(q + k), _mm512_cvtepi32_epi8(low));
    }
    _mm_storeu_si128((__m128i *)q, _mm512_cvtepi32_epi8(high));
}

static void quantize_avx512(const float *x, int64_t k, int32_t planes, int8_t *q, float *scale, float *offset,
                            int32_t *sum) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    const float steps = planes == 2 ? 32512.0f : 127.0f;
    for (int64_t b = 0; b < k / PL_BLOCK; b++, x += PL_BLOCK, q += PL_BLOCK) {
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
        store_codes(a0, planes, q, k);
        store_codes(a1, planes, q + 16, k);
        scale[b] = !finite ? NAN : zero ? 0.0f : largest / steps;
        sum[b] = _mm512_reduce_add_epi32(_mm512_add_epi32(a0, a1));
        offset[b] = scale[b] * (float)sum[b];
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
        __m512 silu = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0f), exp_lanes(negate(g))));
        _mm512_storeu_ps(out + i, _mm512_mul_ps(silu, _mm512_loadu_ps(up + i)));
    }
}

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

/* 16 values from element i on. */
PL_INLINE __m512 value16(int half, const void *value, int64_t i) {
    return half ? load_f16((const uint16_t *)value + i) : _mm512_loadu_ps((const float *)value + i);
}

/* `wide` vectors of `heads` sums, in registers over all tokens; a converted value serves every head. */
PL_INLINE void weigh_tile(int half, int heads, int wide, const void *value, int64_t start, int64_t tokens, int64_t d16,
                          const float *p, int64_t ldp, float *out) {
    __m512 sum[4][4];
    PL_UNROLL
    for (int i = 0; i < heads * wide; i++) sum[i / wide][i % wide] = _mm512_loadu_ps(out + i / wide * d16 + i % wide * 16);
    for (int64_t t = 0; t < tokens; t++) {
        __m512 v[4];
        PL_UNROLL
        for (int i = 0; i < wide; i++) v[i] = value16(half, value, start + t * d16 + 16 * i);
        PL_UNROLL
        for (int i = 0; i < heads * wide; i++) {
            __m512 *to = &sum[i / wide][i % wide];
            *to = _mm512_fmadd_ps(_mm512_set1_ps(p[i / wide * ldp + t]), v[i % wide], *to);
        }
    }
    PL_UNROLL
    for (int i = 0; i < heads * wide; i++) _mm512_storeu_ps(out + i / wide * d16 + i % wide * 16, sum[i / wide][i % wide]);
}

PL_INLINE void weigh_heads(int half, int heads, const void *value, int64_t tokens, int64_t d16, const float *p,
                           int64_t ldp, float *out) {
    int64_t d = 0;
    for (; d + 64 <= d16; d += 64) weigh_tile(half, heads, 4, value, d, tokens, d16, p, ldp, out + d);
    for (; d < d16; d += 16) weigh_tile(half, heads, 1, value, d, tokens, d16, p, ldp, out + d);
}

#define WEIGH(type, half) \
    static void weigh_##type##_avx512(const type##_value *value, int64_t tokens, int64_t d16, const float *p, \
                                      int64_t ldp, int64_t heads, float *out) { \
        FOR_TILES(4, heads, count) { \
            switch (count) { \
            case 1: weigh_heads(half, 1, value, tokens, d16, p, ldp, out); break; \
            case 2: weigh_heads(half, 2, value, tokens, d16, p, ldp, out); break; \
            case 3: weigh_heads(half, 3, value, tokens, d16, p, ldp, out); break; \
            case 4: weigh_heads(half, 4, value, tokens, d16, p, ldp, out); break; \
            } \
            p += count * ldp, out += count * d16; \
        } \
    }
typedef uint16_t f16_value;
typedef float f32_value;
WEIGH(f16, 1)
WEIGH(f32, 0)

PL_TARGET_END

const pl_kernels pl_kernels_avx512 = {
    .name = "avx512",
    .matmul = {[PL_PACK_F32] = matmul_f32_avx512,
               [PL_PACK_F16] = matmul_f16_avx512,
               [PL_PACK_BF16] = matmul_bf16_avx512,
               [PL_PACK_Q8] = matmul_q8_avx512,
               [PL_PACK_Q8F] = matmul_q8f_avx512,
               [PL_PACK_Q4] = matmul_q4_avx512,
               [PL_PACK_Q4M] = matmul_q4m_avx512,
               [PL_PACK_Q5] = matmul_q5_avx512,
               [PL_PACK_Q5M] = matmul_q5m_avx512,
               [PL_PACK_Q4K] = matmul_q4k_avx512,
               [PL_PACK_Q5K] = matmul_q5k_avx512,
               [PL_PACK_Q6K] = matmul_q6k_avx512},
    .quantize = quantize_avx512,
    .rmsnorm = rmsnorm_avx512,
    .swiglu = swiglu_avx512,
    .softmax = softmax_avx512,
    .weigh_f16 = weigh_f16_avx512,
    .weigh_f32 = weigh_f32_avx512,
};

#else
typedef int pl_avx512_nothing_here; /* ISO C wants a declaration in every file */
#endif
