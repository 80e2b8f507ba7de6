/* Quantised weights times quantised activations with AVX2.
 *
 * Codes of at most 6 bits meet the activations byte by byte (vpmaddubsw: u8 code x s8 a, pairs summed to int16, which
 * must not saturate); a second plane of activations is one more column whose dot counts 256-fold. Codes of 8 bits
 * would saturate there, so they and their activations are split into int16 (vpmaddwd), where two planes are one: that
 * takes |a| < 2^15, and quantize gives at most 32512. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "kernels/avx2.h"
#include "kernels/target.h"

PL_TARGET_BEGIN("avx2,fma,f16c")
#include "kernels/avx2_quantised.h" /* in here: its templates are instances of this level */

enum { MAX_VECTORS = 4 /* columns times planes: 8 sums, 2 of codes, activations, products fit 16 registers */ };

/* ---- what is made of a block's activations ---------------------------------------------------------------------- */

/* Pairs of int16 made from q once per block, to be broadcast. */
typedef struct acts_pairs {
    int32_t even[MAX_VECTORS][GROUPS], odd[MAX_VECTORS][GROUPS]; /* a[0], a[2] and a[1], a[3] of each group of 4 k */
    int32_t bias[MAX_VECTORS][GROUPS]; /* per plane: 32 (a[0] + a[1]), 32 (a[2] + a[3]), summed over each 4 groups */
} acts_pairs;

/* Through memory: a broadcast that loads is free, while GCC would take the numbers out of the register one by one. */
PL_INLINE void store_pairs(int32_t to[GROUPS], __m256i pairs) {
    _mm256_storeu_si256((__m256i *)to, pairs);
    __asm__("" : "+m"(*(int32_t (*)[GROUPS])to));
}

PL_INLINE __m256i low_bytes(__m256i x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); }

PL_INLINE void split_words(int planes, int columns, const acts_block *x, acts_pairs *pairs) {
    PL_UNROLL for (int c = 0; c < columns; c++) {
        __m256i high = load(x->q + c * x->ldq);
        __m256i even = low_bytes(high), odd = _mm256_srai_epi16(high, 8);
        if (planes == 2) {
            __m256i low = load(x->q + c * x->ldq + PL_BLOCK), top = _mm256_set1_epi16(-256);
            even = _mm256_add_epi16(_mm256_slli_epi16(high, 8), low_bytes(low));
            odd = _mm256_add_epi16(_mm256_and_si256(high, top), _mm256_srai_epi16(low, 8));
        }
        store_pairs(pairs->even[c], even);
        store_pairs(pairs->odd[c], odd);
    }
}

/* In int16: -32 * 128 * 8 = -2^15 to 32 * 127 * 8 = 32512. */
PL_INLINE void sum_bias(int planes, int vectors, const acts_block *x, acts_pairs *pairs) {
    PL_UNROLL for (int v = 0; v < vectors; v++) {
        __m256i sum = _mm256_maddubs_epi16(_mm256_set1_epi8(32), load(vector_of(planes, x, v)));
        sum = _mm256_add_epi16(sum, _mm256_shuffle_epi32(sum, 0x4e));
        store_pairs(pairs->bias[v], _mm256_add_epi16(sum, _mm256_shuffle_epi32(sum, 0xb1)));
    }
}

/* ---- integer dots ------------------------------------------------------------------------------------------------ */

typedef __m256i vector_dots[MAX_VECTORS][HALVES];

/* Four or eight groups of codes in int16 before anything is widened. The largest sums, two products a pair:
 *   2 bits: 3 * 128 * 2 * 4 groups = 3072;   4 bits: 15 * 128 * 2 * 8 groups = 30720
 *   5 bits: 31 * 128 * 2 * 4 groups = 31744
 *   6 bits: 63 * 128 * 2 = 16128 in one group; four groups sum (32 - code) * a, a bias of 32 a to begin with, and
 *   stay all the way from -32 * 128 * 8 = -2^15 to 32 * 127 * 8 = 32512. */
PL_INLINE void sum_groups(int bits, int planes, int vectors, int from, int to, const void *codes, const acts_block *x,
                          const acts_pairs *pairs, vector_dots sum) {
    PL_UNROLL for (int g = from; g < to; g++) {
        __m256i w[HALVES] = {codes_group(bits, g, 0, codes), codes_group(bits, g, ROWS, codes)};
        PL_UNROLL for (int v = 0; v < vectors; v++) {
            __m256i a = broadcast(vector_of(planes, x, v) + 4 * g);
            PL_UNROLL for (int i = 0; i < HALVES; i++) {
                __m256i products = _mm256_maddubs_epi16(w[i], a);
                if (bits == 6) {
                    __m256i before = g == from ? broadcast(&pairs->bias[v][g]) : sum[v][i];
                    sum[v][i] = pinned(_mm256_sub_epi16(before, products));
                } else {
                    sum[v][i] = pinned(g == from ? products : _mm256_add_epi16(sum[v][i], products));
                }
            }
        }
    }
}

/* dot (+)= the sums of the planes, 256 high + low. */
PL_INLINE void widen(int bits, int planes, int columns, int add, vector_dots sum, dots dot) {
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

PL_INLINE void dot_bytes(int bits, int planes, int columns, int from, int to, const void *codes, const acts_block *x,
                         const acts_pairs *pairs, dots dot) {
    const int at_once = bits == 4 ? 8 : 4;
    PL_UNROLL for (int g = from; g < to; g += at_once) {
        vector_dots sum;
        sum_groups(bits, planes, planes * columns, g, g + at_once, codes, x, pairs, sum);
        widen(bits, planes, columns, g > from, sum, dot);
    }
}

/* Codes of 8 bits, and two planes of activations as one, in int16: each pair of products is exact in int32. */
PL_INLINE void dot_words(int columns, int from, int to, const void *codes, const acts_pairs *pairs, dots dot) {
    PL_UNROLL for (int g = from; g < to; g++) {
        __m256i u[HALVES] = {codes_group(8, g, 0, codes), codes_group(8, g, ROWS, codes)};
        PL_UNROLL for (int odd = 0; odd < 2; odd++) {
            __m256i w[HALVES];
            PL_UNROLL for (int i = 0; i < HALVES; i++) {
                w[i] = odd ? _mm256_srli_epi16(u[i], 8) : _mm256_and_si256(u[i], _mm256_set1_epi16(255));
            }
            PL_UNROLL for (int c = 0; c < columns; c++) {
                __m256i a = broadcast(odd ? &pairs->odd[c][g] : &pairs->even[c][g]);
                PL_UNROLL for (int i = 0; i < HALVES; i++) {
                    __m256i products = _mm256_madd_epi16(w[i], a);
                    int is_first = g == from && !odd;
                    dot[c][i] = pinned(is_first ? products : _mm256_add_epi32(dot[c][i], products));
                }
            }
        }
    }
}

/* dot -= bias * sum, which 6 bits have done already. */
PL_INLINE void take_bias(pl_packing packing, int columns, int step, const acts_block *x, dots dot) {
    if (log2_bias_of(packing) < 0) return;
    PL_UNROLL for (int c = 0; c < columns; c++) {
        __m256i minus = minus_bias(packing, step, x->a + c * x->blocks);
        PL_UNROLL for (int i = 0; i < HALVES; i++) dot[c][i] = _mm256_add_epi32(dot[c][i], minus);
    }
}

PL_INLINE void add_block(pl_packing packing, int planes, int columns, const void *block, int j, const acts_block *x,
                         sums y) {
    const int bits = bits_of(packing), groups = GROUPS / steps_of(packing);
    const void *codes = codes_of(packing, block, j);
    acts_pairs pairs;
    if (bits == 8) split_words(planes, columns, x, &pairs);
    if (bits == 6) sum_bias(planes, columns * planes, x, &pairs);
    PL_UNROLL for (int step = 0; step < steps_of(packing); step++) {
        const int from = step * groups;
        dots dot;
        if (bits == 8) dot_words(columns, from, from + groups, codes, &pairs, dot);
        else dot_bytes(bits, planes, columns, from, from + groups, codes, x, &pairs, dot);
        if (bits != 6) take_bias(packing, columns, step, x, dot);
        add_step(packing, columns, step, block, j, x, dot, y);
    }
}

PL_INLINE int widest(pl_packing packing, int planes) {
    return bits_of(packing) == 8 ? MAX_VECTORS : MAX_VECTORS / planes;
}

#define MATMUL(type, packing, ...) PL_AVX2_MATMUL(avx2, type, packing)
PL_QUANTISED_PACKINGS(MATMUL)

PL_TARGET_END
#endif
