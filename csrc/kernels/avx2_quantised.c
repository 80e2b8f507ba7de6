/* Quantised weights times quantised activations with AVX2: a vector is 8 of a strip's 16 rows.
 *
 * Codes of at most 6 bits meet the activations byte by byte (vpmaddubsw: u8 code x s8 a, pairs summed to int16, which
 * must not saturate); a second plane of activations is one more column whose dot counts 256-fold. Codes of 8 bits
 * would saturate there, so they and their activations are split into int16 (vpmaddwd), where two planes are one.
 *
 * A template's arguments up to the first pointer are constants at every call: each combination is an instance of its own. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "kernels/avx2.h"
#include "kernels/target.h"

PL_TARGET_BEGIN("avx2,fma,f16c")

enum { MAX_VECTORS = 4, ROWS = 8 /* in a vector */, HALVES = 2, AHEAD = 4096 /* bytes from a load to its prefetch */ };

/* ---- a block of a strip: 32 k, sub-block j of a block of 256 ----------------------------------------------------- */

PL_INLINE int bits_of(pl_packing packing) {
    switch (packing) {
        case PL_PACK_Q4: case PL_PACK_Q4M: case PL_PACK_Q4K: return 4;
        case PL_PACK_Q5: case PL_PACK_Q5M: case PL_PACK_Q5K: return 5;
        case PL_PACK_Q6K: return 6;
        default: return 8;
    }
}

/* What is taken from a stored code to get the one that counts, as a power of two; -1 where
 * that is nothing or, with Q6_K, has been taken already. */
PL_INLINE int log2_bias_of(pl_packing packing) {
    switch (packing) {
        case PL_PACK_Q4: return 3;
        case PL_PACK_Q5: return 4;
        case PL_PACK_Q8: case PL_PACK_Q8F: return 7;
        default: return -1;
    }
}

PL_INLINE int has_minimum(pl_packing packing) {
    return packing == PL_PACK_Q4M || packing == PL_PACK_Q5M || packing == PL_PACK_Q4K || packing == PL_PACK_Q5K;
}

PL_INLINE int blocks_per_struct(pl_packing packing) {
    return packing == PL_PACK_Q4K || packing == PL_PACK_Q5K || packing == PL_PACK_Q6K ? 8 : 1;
}

PL_INLINE int64_t struct_bytes(pl_packing packing) {
    switch (packing) {
        case PL_PACK_Q8: return sizeof(pl_strip_q8);
        case PL_PACK_Q8F: return sizeof(pl_strip_q8f);
        case PL_PACK_Q4: return sizeof(pl_strip_q4);
        case PL_PACK_Q4M: return sizeof(pl_strip_q4m);
        case PL_PACK_Q5: return sizeof(pl_strip_q5);
        case PL_PACK_Q5M: return sizeof(pl_strip_q5m);
        case PL_PACK_Q4K: return sizeof(pl_strip_q4k);
        case PL_PACK_Q5K: return sizeof(pl_strip_q5k);
        default: return sizeof(pl_strip_q6k);
    }
}

PL_INLINE const void *codes_of(pl_packing packing, const void *block, int j) {
    switch (packing) {
        case PL_PACK_Q8: return &((const pl_strip_q8 *)block)->codes;
        case PL_PACK_Q8F: return &((const pl_strip_q8f *)block)->codes;
        case PL_PACK_Q4: return &((const pl_strip_q4 *)block)->codes;
        case PL_PACK_Q4M: return &((const pl_strip_q4m *)block)->codes;
        case PL_PACK_Q5: return &((const pl_strip_q5 *)block)->codes;
        case PL_PACK_Q5M: return &((const pl_strip_q5m *)block)->codes;
        case PL_PACK_Q4K: return &((const pl_strip_q4k *)block)->codes[j];
        case PL_PACK_Q5K: return &((const pl_strip_q5k *)block)->codes[j];
        default: return &((const pl_strip_q6k *)block)->codes[j];
    }
}

PL_INLINE __m256 floats_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }

PL_INLINE __m256 floats_u8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

PL_INLINE __m256 floats_s8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

/* Scales of the rows from `row` on; step: the half of 32 k, which only Q6_K tells apart. */
PL_INLINE __m256 scale_of(pl_packing packing, const void *block, int j, int step, int row) {
    switch (packing) {
        case PL_PACK_Q8: return floats_f16(((const pl_strip_q8 *)block)->d + row);
        case PL_PACK_Q8F: return _mm256_loadu_ps(((const pl_strip_q8f *)block)->d + row);
        case PL_PACK_Q4: return floats_f16(((const pl_strip_q4 *)block)->d + row);
        case PL_PACK_Q4M: return floats_f16(((const pl_strip_q4m *)block)->d + row);
        case PL_PACK_Q5: return floats_f16(((const pl_strip_q5 *)block)->d + row);
        case PL_PACK_Q5M: return floats_f16(((const pl_strip_q5m *)block)->d + row);
        default: break;
    }
    const pl_strip_q4k *k4 = block;
    const pl_strip_q5k *k5 = block;
    const pl_strip_q6k *k6 = block;
    if (packing == PL_PACK_Q4K) return _mm256_mul_ps(floats_f16(k4->d + row), floats_u8(k4->sc[j] + row));
    if (packing == PL_PACK_Q5K) return _mm256_mul_ps(floats_f16(k5->d + row), floats_u8(k5->sc[j] + row));
    return _mm256_mul_ps(floats_f16(k6->d + row), floats_s8(k6->sc[2 * j + step] + row));
}

/* y + minimum * offset, as one fused step. */
PL_INLINE __m256 minimum_step(pl_packing packing, __m256 minimum, __m256 offset, __m256 y) {
    int is_subtracted = blocks_per_struct(packing) > 1;
    return is_subtracted ? _mm256_fnmadd_ps(minimum, offset, y) : _mm256_fmadd_ps(minimum, offset, y);
}

/* Minima of the rows from `row` on; those of Q4_K and Q5_K are to be subtracted. */
PL_INLINE __m256 minimum_of(pl_packing packing, const void *block, int j, int row) {
    const pl_strip_q4k *k4 = block;
    const pl_strip_q5k *k5 = block;
    if (packing == PL_PACK_Q4M) return floats_f16(((const pl_strip_q4m *)block)->m + row);
    if (packing == PL_PACK_Q5M) return floats_f16(((const pl_strip_q5m *)block)->m + row);
    if (packing == PL_PACK_Q4K) return _mm256_mul_ps(floats_f16(k4->dmin + row), floats_u8(k4->mn[j] + row));
    return _mm256_mul_ps(floats_f16(k5->dmin + row), floats_u8(k5->mn[j] + row));
}

/* ---- codes as bytes: 4 k of 8 rows ------------------------------------------------------------------------------- */

PL_INLINE __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* Bits move across bytes too: the caller masks. */
PL_INLINE __m256i shifted(__m256i x, int left) {
    return left > 0 ? _mm256_slli_epi16(x, left) : left < 0 ? _mm256_srli_epi16(x, -left) : x;
}

PL_INLINE __m256i nibbles(const uint8_t q[4][16][4], int group, int row) {
    return _mm256_and_si256(shifted(load(q[group % 4][row]), group < 4 ? 0 : -4), _mm256_set1_epi8(15));
}

PL_INLINE __m256i codes5(const pl_codes5 *codes, int group, int row) {
    __m256i bit = _mm256_and_si256(shifted(load(codes->h[row]), 4 - group), _mm256_set1_epi8(16));
    return _mm256_or_si256(nibbles(codes->q, group, row), bit);
}

PL_INLINE __m256i codes6(const pl_codes6 *codes, int group, int row) {
    __m256i high = shifted(load(codes->h2[group / 4][row]), 4 - group % 4 * 2);
    return _mm256_or_si256(nibbles(codes->q, group, row), _mm256_and_si256(high, _mm256_set1_epi8(48)));
}

PL_INLINE __m256i codes_group(int bits, const void *codes, int group, int row) {
    if (bits == 4) return nibbles(((const pl_codes4 *)codes)->q, group, row);
    if (bits == 5) return codes5(codes, group, row);
    if (bits == 6) return codes6(codes, group, row);
    return load(((const pl_codes8 *)codes)->q[group][row]);
}

/* ---- activations of one block, for `columns` columns -------------------------------------------------------------- */

typedef __m256 sums[MAX_VECTORS][HALVES]; /* (column, half of the rows) */

typedef struct acts_block {
    const int8_t *q; /* of column 0; column c at q + c * planes * k, its low plane k further */
    int64_t k, blocks;
    const float *scale, *offset; /* of column 0; column c at [c * blocks] */
    const int32_t *sum;
    /* Made from q once per block: */
    int32_t even[MAX_VECTORS][8], odd[MAX_VECTORS][8]; /* a[4 g + 0, 2] and a[4 g + 1, 3] as pairs of int16 */
    int32_t bias[MAX_VECTORS][8]; /* per plane: 32 (a[0] + a[1]), 32 (a[2] + a[3]) as int16, summed over each 16 k */
} acts_block;

PL_INLINE __m256i low_bytes(__m256i x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); }

PL_INLINE void split_words(int planes, int columns, acts_block *x) {
    PL_UNROLL for (int c = 0; c < columns; c++) {
        __m256i high = load(x->q + c * planes * x->k);
        __m256i even = low_bytes(high), odd = _mm256_srai_epi16(high, 8);
        if (planes == 2) {
            __m256i low = load(x->q + (c * planes + 1) * x->k), top = _mm256_set1_epi16(-256);
            even = _mm256_add_epi16(_mm256_slli_epi16(high, 8), low_bytes(low));
            odd = _mm256_add_epi16(_mm256_and_si256(high, top), _mm256_srai_epi16(low, 8));
        }
        _mm256_storeu_si256((__m256i *)x->even[c], even);
        _mm256_storeu_si256((__m256i *)x->odd[c], odd);
    }
}

/* 32 * 128 * 8 = 2^15: the sums lie in [-2^15, 2^15 - 1] as int8 does in [-2^7, 2^7 - 1]. */
PL_INLINE void sum_bias(int vectors, acts_block *x) {
    PL_UNROLL for (int v = 0; v < vectors; v++) {
        __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(32), load(x->q + v * x->k));
        pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
        pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0xb1));
        _mm256_storeu_si256((__m256i *)x->bias[v], pairs);
    }
}

/* ---- integer dots of all 16 rows: [column][rows 0 to 7, 8 to 15] -------------------------------------------------- */

typedef __m256i dots[MAX_VECTORS][HALVES];

PL_INLINE __m256i broadcast(const void *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return _mm256_set1_epi32(x);
}

/* Keeps a sum where and as it is: left free, GCC turns the chains into trees that need twice the registers there are. */
PL_INLINE __m256i pinned(__m256i sum) {
    __asm__("" : "+x"(sum));
    return sum;
}

/* Four or eight groups of codes in int16 before anything is widened. The largest sums, two products a pair:
 *   4 bits: 15 * 128 * 2 * 8 groups = 30720;   5 bits: 31 * 128 * 2 * 4 groups = 31744
 *   6 bits: 63 * 128 * 2 = 16128 in one group, and with four the sum taken is that of (32 - code) * a, from
 *   -32 * 128 * 8 = -2^15 to 32 * 127 * 8 = 32512; on the way to it int16 may wrap around. */
PL_INLINE void sum_groups(int bits, int vectors, const void *codes, int from, int to, const acts_block *x, dots sum) {
    PL_UNROLL for (int g = from; g < to; g++) {
        __m256i w[HALVES] = {codes_group(bits, codes, g, 0), codes_group(bits, codes, g, ROWS)};
        PL_UNROLL for (int v = 0; v < vectors; v++) {
            __m256i a = broadcast(x->q + v * x->k + 4 * g);
            PL_UNROLL for (int i = 0; i < HALVES; i++) {
                __m256i pairs = _mm256_maddubs_epi16(w[i], a);
                if (bits == 6) {
                    __m256i before = g == from ? broadcast(&x->bias[v][g]) : sum[v][i];
                    sum[v][i] = pinned(_mm256_sub_epi16(before, pairs));
                } else {
                    sum[v][i] = pinned(g == from ? pairs : _mm256_add_epi16(sum[v][i], pairs));
                }
            }
        }
    }
}

/* dot (+)= the sums of the planes, 256 high + low. */
PL_INLINE void widen(int bits, int planes, int columns, int add, dots sum, dots dot) {
    const int sign = bits == 6 ? -1 : 1;
    PL_UNROLL for (int c = 0; c < columns; c++) {
        PL_UNROLL for (int i = 0; i < HALVES; i++) {
            __m256i total = _mm256_madd_epi16(sum[c * planes + planes - 1][i], _mm256_set1_epi16((short)sign));
            if (planes == 2) {
                __m256i high = _mm256_madd_epi16(sum[c * planes][i], _mm256_set1_epi16((short)(256 * sign)));
                total = _mm256_add_epi32(total, high);
            }
            dot[c][i] = add ? _mm256_add_epi32(dot[c][i], total) : total;
        }
    }
}

PL_INLINE void dot_bytes(int bits, int planes, int columns, const void *codes, int step, const acts_block *x,
                         dots dot) {
    const int at_once = bits == 4 ? 8 : 4, from = 4 * step, to = bits == 6 ? from + 4 : 8;
    PL_UNROLL for (int g = from; g < to; g += at_once) {
        dots sum;
        sum_groups(bits, planes * columns, codes, g, g + at_once, x, sum);
        widen(bits, planes, columns, g > from, sum, dot);
    }
}

/* Codes as int16 pairs to meet a[0, 2] or a[1, 3] of a group; 6 bits without their bias. */
PL_INLINE __m256i words(int bits, __m256i codes, int odd) {
    __m256i w = odd ? _mm256_srli_epi16(codes, 8) : _mm256_and_si256(codes, _mm256_set1_epi16(255));
    return bits == 6 ? _mm256_sub_epi16(w, _mm256_set1_epi16(32)) : w;
}

/* Codes of 8 bits, or 6, in int16: each pair of products is exact in int32. */
PL_INLINE void dot_words(int bits, int columns, const void *codes, int step, const acts_block *x, dots dot) {
    const int from = 4 * step, to = bits == 6 ? from + 4 : 8;
    PL_UNROLL for (int g = from; g < to; g++) {
        __m256i u[HALVES] = {codes_group(bits, codes, g, 0), codes_group(bits, codes, g, ROWS)};
        PL_UNROLL for (int odd = 0; odd < 2; odd++) {
            __m256i w[HALVES] = {words(bits, u[0], odd), words(bits, u[1], odd)};
            PL_UNROLL for (int c = 0; c < columns; c++) {
                __m256i a = broadcast(odd ? &x->odd[c][g] : &x->even[c][g]);
                PL_UNROLL for (int i = 0; i < HALVES; i++) {
                    __m256i products = _mm256_madd_epi16(w[i], a);
                    int is_first = g == from && !odd;
                    dot[c][i] = pinned(is_first ? products : _mm256_add_epi32(dot[c][i], products));
                }
            }
        }
    }
}

/* ---- one block, one tile, one strip ------------------------------------------------------------------------------- */

/* Whether the codes meet the activations in int16. For 6 bits that pays with two planes and enough columns. */
PL_INLINE int in_words(pl_packing packing, int planes, int columns) {
    return bits_of(packing) == 8 || (bits_of(packing) == 6 && planes == 2 && columns > 1);
}

/* dot - bias * sum, where the dot has left the bias in. */
PL_INLINE __m256i unbiased(pl_packing packing, __m256i dot, const int32_t *sum) {
    if (log2_bias_of(packing) < 0) return dot;
    return _mm256_sub_epi32(dot, _mm256_slli_epi32(broadcast(sum), log2_bias_of(packing)));
}

/* y = fma(dot, scale_w scale_x, y) for one step of a block. */
PL_INLINE void add_scaled(pl_packing packing, int columns, const void *block, int j, int step, const acts_block *x,
                          dots dot, sums y) {
    PL_UNROLL for (int i = 0; i < HALVES; i++) {
        __m256 scale = scale_of(packing, block, j, step, i * ROWS);
        PL_UNROLL for (int c = 0; c < columns; c++) {
            __m256 s = _mm256_cvtepi32_ps(unbiased(packing, dot[c][i], &x->sum[c * x->blocks]));
            __m256 both = _mm256_mul_ps(scale, _mm256_broadcast_ss(&x->scale[c * x->blocks]));
            y[c][i] = _mm256_fmadd_ps(s, both, y[c][i]);
        }
    }
}

PL_INLINE void add_minimum(pl_packing packing, int columns, const void *block, int j, const acts_block *x, sums y) {
    PL_UNROLL for (int i = 0; i < HALVES; i++) {
        __m256 minimum = minimum_of(packing, block, j, i * ROWS);
        PL_UNROLL for (int c = 0; c < columns; c++) {
            y[c][i] = minimum_step(packing, minimum, _mm256_broadcast_ss(&x->offset[c * x->blocks]), y[c][i]);
        }
    }
}

PL_INLINE void add_block(pl_packing packing, int planes, int columns, const void *block, int j, acts_block *x, sums y) {
    const int bits = bits_of(packing), words = in_words(packing, planes, columns), steps = bits == 6 ? 2 : 1;
    const void *codes = codes_of(packing, block, j);
    if (words) split_words(planes, columns, x);
    else if (bits == 6) sum_bias(columns * planes, x);
    PL_UNROLL for (int step = 0; step < steps; step++) {
        dots dot;
        if (words) dot_words(bits, columns, codes, step, x, dot);
        else dot_bytes(bits, planes, columns, codes, step, x, dot);
        add_scaled(packing, columns, block, j, step, x, dot, y);
    }
    if (has_minimum(packing)) add_minimum(packing, columns, block, j, x, y);
}

PL_INLINE void prefetch(const void *p, int64_t bytes) {
    PL_UNROLL for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)p + AHEAD + i, _MM_HINT_T0);
}

PL_INLINE void start(const pl_acts *x, int64_t column, acts_block *first) {
    first->k = x->k;
    first->blocks = x->k / PL_BLOCK;
    first->q = x->q + column * x->planes * x->k;
    first->scale = x->scale + column * first->blocks;
    first->offset = x->offset + column * first->blocks;
    first->sum = x->sum + column * first->blocks;
}

PL_INLINE void advance(acts_block *x) {
    x->q += PL_BLOCK, x->scale++, x->offset++, x->sum++;
}

PL_INLINE void tile(pl_packing packing, int planes, int columns, const void *strip, const pl_acts *acts, int64_t column,
                    float *out, int64_t ldy) {
    const int per_struct = blocks_per_struct(packing);
    const int64_t bytes = struct_bytes(packing);
    acts_block x;
    sums y;
    start(acts, column, &x);
    PL_UNROLL for (int c = 0; c < columns; c++) y[c][0] = y[c][1] = _mm256_setzero_ps();
    for (const char *block = strip, *end = block + x.blocks / per_struct * bytes; block < end; block += bytes) {
        for (int j = 0; j < per_struct; j++, advance(&x)) {
            if (columns == 1) prefetch(block + j * (bytes / per_struct), bytes / per_struct);
            add_block(packing, planes, columns, block, j, &x, y);
        }
    }
    PL_UNROLL for (int c = 0; c < columns; c++) {
        _mm256_storeu_ps(out + c * ldy, y[c][0]);
        _mm256_storeu_ps(out + c * ldy + ROWS, y[c][1]);
    }
}

PL_INLINE void matmul(pl_packing packing, int planes, const void *strip, const pl_acts *x, int64_t first, int64_t n,
                      float *y, int64_t ldy) {
    const int most = in_words(packing, planes, MAX_VECTORS) ? MAX_VECTORS : MAX_VECTORS / planes;
    int64_t c = 0;
    for (; most == 4 && c + 4 <= n; c += 4) tile(packing, planes, 4, strip, x, first + c, y + c * ldy, ldy);
    for (; c + 2 <= n; c += 2) tile(packing, planes, 2, strip, x, first + c, y + c * ldy, ldy);
    if (c < n) tile(packing, planes, 1, strip, x, first + c, y + c * ldy, ldy);
}

#define MATMUL(type, packing)                                                                                        \
    void pl_avx2_matmul_##type(const void *strip, const pl_acts *x, int64_t first, int64_t n, float *y, int64_t ldy) { \
        if (x->planes == 2) matmul(packing, 2, strip, x, first, n, y, ldy);                                          \
        else matmul(packing, 1, strip, x, first, n, y, ldy);                                                         \
    }
MATMUL(q8, PL_PACK_Q8)
MATMUL(q8f, PL_PACK_Q8F)
MATMUL(q4, PL_PACK_Q4)
MATMUL(q4m, PL_PACK_Q4M)
MATMUL(q5, PL_PACK_Q5)
MATMUL(q5m, PL_PACK_Q5M)
MATMUL(q4k, PL_PACK_Q4K)
MATMUL(q5k, PL_PACK_Q5K)
MATMUL(q6k, PL_PACK_Q6K)

PL_TARGET_END
#endif
