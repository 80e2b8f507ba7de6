/* Quantised weights times quantised activations with AVX-VNNI: four products of u8 code and s8 a and their sum at once
 * (vpdpbusd), exact in int32 whatever the bits of a code. A second plane of activations is one more column whose dot
 * counts 256-fold. */
#include "kernels/kernels.h"

#if defined(PL_HAS_AVXVNNI_LEVEL)
#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "kernels/avx2.h"
#include "kernels/target.h"

PL_TARGET_BEGIN(PL_AVXVNNI_TARGET)
#include "kernels/avx2_quantised.h" /* in here: its templates are instances of this level */

enum { MAX_VECTORS = 6 /* columns times planes: 12 sums, 2 of codes, activations, a mask are 16 registers */ };

/* Codes that are put together of two planes of bits, or that have many scales, need registers for that. */
PL_INLINE int widest(pl_packing packing, int planes) {
    const int bits = bits_of(packing);
    return (bits == 4 || bits == 8 ? MAX_VECTORS : 4) / planes;
}

/* sum (columns * planes) = codes * a over the k of a step, minus the bias of the codes. */
PL_INLINE void sum_step(pl_packing packing, int planes, int columns, int step, const void *codes, const acts_block *x,
                        __m256i sum[MAX_VECTORS][HALVES]) {
    const int groups = GROUPS / steps_of(packing);
    PL_UNROLL for (int v = 0; v < columns * planes; v++) {
        const int biased = log2_bias_of(packing) >= 0 && v % planes == planes - 1;
        const pl_act_block *a = x->a + v / planes * x->blocks;
        sum[v][0] = sum[v][1] = biased ? minus_bias(packing, step, a) : _mm256_setzero_si256();
    }
    PL_UNROLL for (int g = step * groups; g < (step + 1) * groups; g++) {
        __m256i w[HALVES];
        PL_UNROLL for (int i = 0; i < HALVES; i++) w[i] = codes_group(bits_of(packing), g, i * ROWS, codes);
        PL_UNROLL for (int v = 0; v < columns * planes; v++) {
            __m256i a = broadcast(vector_of(planes, x, v) + 4 * g);
            PL_UNROLL for (int i = 0; i < HALVES; i++) sum[v][i] = pinned(pl_dpbusd(sum[v][i], w[i], a));
        }
    }
}

PL_INLINE void add_block(pl_packing packing, int planes, int columns, const void *block, int j, const acts_block *x,
                         sums y) {
    PL_UNROLL for (int step = 0; step < steps_of(packing); step++) {
        __m256i sum[MAX_VECTORS][HALVES];
        dots dot;
        sum_step(packing, planes, columns, step, codes_of(packing, block, j), x, sum);
        PL_UNROLL for (int i = 0; i < columns * HALVES; i++) {
            __m256i low = sum[i / HALVES * planes + planes - 1][i % HALVES],
                    high = sum[i / HALVES * planes][i % HALVES];
            dot[i / HALVES][i % HALVES] = planes == 2 ? _mm256_add_epi32(_mm256_slli_epi32(high, 8), low) : low;
        }
        add_step(packing, columns, step, block, j, x, dot, y);
    }
}

#define MATMUL(type, packing, ...) PL_AVX2_MATMUL(avxvnni, type, packing)
PL_QUANTISED_PACKINGS(MATMUL)

PL_TARGET_END
#endif
