/* Float weights times float activations with AVX2: a vector is 8 of a strip's 16 rows, and every row's sum runs in
 * four chains by k mod 4.
 *
 * One column keeps all four chains in registers and reads the strip once, in order. Several columns take one chain
 * after another over a piece of the strip that stays in the first-level cache, so that the registers hold columns.
 *
 * A template's arguments up to the first pointer are constants at every call: each combination is its own instance. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/avx2.h"
#include "kernels/target.h"

PL_TARGET_BEGIN("avx2,fma,f16c")

enum {
    ROWS = 8,        /* in a vector */
    CHAINS = 4,      /* k mod 4 */
    MAX_COLUMNS = 6, /* 12 sums, 2 weights, 1 activation: 15 of the 16 registers */
    PIECE = 256      /* k: at most 16 KiB of weights and 6 KiB of activations */
};

typedef __m256 sums[MAX_COLUMNS][2]; /* (column, rows 0 to 7 and 8 to 15) */

PL_INLINE int bytes_of(pl_packing packing) { return packing == PL_PACK_F32 ? 4 : 2; }

/* Weights k of the rows from `row` on; odd is k % 2, which the layout of bf16 needs to know. */
PL_INLINE __m256 weights(pl_packing packing, int odd, int row, const void *strip, int64_t k) {
    const uint16_t *halves = (const uint16_t *)strip + k * PL_STRIP + row;
    if (packing == PL_PACK_F32) return _mm256_loadu_ps((const float *)strip + k * PL_STRIP + row);
    if (packing == PL_PACK_F16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
    const uint16_t *pairs = (const uint16_t *)strip + (k - odd) * PL_STRIP + 2 * row;
    __m256i bits = _mm256_loadu_si256((const __m256i *)pairs);
    bits = odd ? _mm256_and_si256(bits, _mm256_set1_epi32(-65536)) : _mm256_slli_epi32(bits, 16);
    return _mm256_castsi256_ps(bits);
}

/* sum = fma(weights k, x[k], sum) for all 16 rows. */
PL_INLINE void step(pl_packing packing, int odd, int columns, const void *strip, int64_t k, const float *x, int64_t ld,
                    sums sum) {
    __m256 low = weights(packing, odd, 0, strip, k), high = weights(packing, odd, ROWS, strip, k);
    PL_UNROLL for (int c = 0; c < columns; c++) {
        __m256 a = _mm256_broadcast_ss(x + c * ld + k);
        sum[c][0] = _mm256_fmadd_ps(low, a, sum[c][0]);
        sum[c][1] = _mm256_fmadd_ps(high, a, sum[c][1]);
    }
}

PL_INLINE void clear(int columns, sums sum) {
    PL_UNROLL for (int c = 0; c < columns; c++) sum[c][0] = sum[c][1] = _mm256_setzero_ps();
}

PL_INLINE void store(int columns, sums sum[CHAINS], float *y, int64_t ldy, int add) {
    PL_UNROLL for (int c = 0; c < columns; c++) {
        PL_UNROLL for (int half = 0; half < 2; half++) {
            __m256 even = _mm256_add_ps(sum[0][c][half], sum[1][c][half]);
            __m256 odd = _mm256_add_ps(sum[2][c][half], sum[3][c][half]);
            __m256 total = _mm256_add_ps(even, odd);
            float *to = y + c * ldy + half * ROWS;
            _mm256_storeu_ps(to, add ? _mm256_add_ps(_mm256_loadu_ps(to), total) : total);
        }
    }
}

/* ---- one column ------------------------------------------------------------------------------------------------- */

PL_INLINE void one_column(pl_packing packing, const void *strip, int64_t k, const float *x, float *y, int add) {
    sums sum[CHAINS];
    int64_t i = 0;
    PL_UNROLL for (int chain = 0; chain < CHAINS; chain++) clear(1, sum[chain]);
    for (; i + CHAINS <= k; i += CHAINS) {
        PL_UNROLL for (int chain = 0; chain < CHAINS; chain++) {
            step(packing, chain % 2, 1, strip, i + chain, x, 0, sum[chain]);
        }
    }
    PL_UNROLL for (int chain = 0; chain < CHAINS - 1; chain++) {
        if (i + chain < k) step(packing, chain % 2, 1, strip, i + chain, x, 0, sum[chain]);
    }
    store(1, sum, y, 0, add);
}

/* ---- several columns -------------------------------------------------------------------------------------------- */

/* One chain from k = from to below end; with each step it fetches a part of what comes after the piece. */
PL_INLINE void run_chain(pl_packing packing, int odd, int columns, const void *strip, int chain, int64_t from,
                         int64_t end, const float *x, int64_t ld, sums sum) {
    const int64_t part = PL_STRIP * bytes_of(packing); /* of what the chains fetch with their steps at one k */
    uintptr_t next = (uintptr_t)strip + (uintptr_t)((end + chain * ((end - from) / CHAINS)) * part);
    sums s;
    PL_UNROLL for (int c = 0; c < columns; c++) s[c][0] = sum[c][0], s[c][1] = sum[c][1];
    for (int64_t k = from + chain; k < end; k += CHAINS, next += (uintptr_t)part) {
        _mm_prefetch((const char *)next, _MM_HINT_T0); /* may lie past the end: a prefetch cannot fault */
        step(packing, odd, columns, strip, k, x, ld, s);
    }
    PL_UNROLL for (int c = 0; c < columns; c++) sum[c][0] = s[c][0], sum[c][1] = s[c][1];
}

PL_INLINE void tile(pl_packing packing, int columns, const void *strip, int64_t k, const float *x, int64_t ld, float *y,
                    int64_t ldy, int add) {
    sums sum[CHAINS];
    for (int chain = 0; chain < CHAINS; chain++) clear(columns, sum[chain]);
    for (int64_t from = 0; from < k; from += PIECE) {
        int64_t end = from + PIECE < k ? from + PIECE : k;
        for (int chain = 0; chain < CHAINS; chain += 2) {
            run_chain(packing, 0, columns, strip, chain, from, end, x, ld, sum[chain]);
            run_chain(packing, 1, columns, strip, chain + 1, from, end, x, ld, sum[chain + 1]);
        }
    }
    store(columns, sum, y, ldy, add);
}

/* The next tile of `left` columns: six, but nearly equal ones at the end. */
PL_INLINE int64_t tile_of(int64_t left) {
    if (left >= 9 || left == 6) return 6;
    if (left >= 7 || left == 4) return 4;
    return left >= 3 ? 3 : left;
}

PL_INLINE void matmul(pl_packing packing, const void *strip, const pl_acts *acts, int64_t first, int64_t n, float *y,
                      int64_t ldy, int add) {
    const int64_t k = acts->k, ld = acts->ld;
    const float *x = acts->f + first * ld;
    for (int64_t columns; n > 0; n -= columns, x += columns * ld, y += columns * ldy) {
        columns = tile_of(n);
        switch (columns) {
            case 1: one_column(packing, strip, k, x, y, add); break;
            case 2: tile(packing, 2, strip, k, x, ld, y, ldy, add); break;
            case 3: tile(packing, 3, strip, k, x, ld, y, ldy, add); break;
            case 4: tile(packing, 4, strip, k, x, ld, y, ldy, add); break;
            default: tile(packing, 6, strip, k, x, ld, y, ldy, add); break;
        }
    }
}

#define MATMUL(type, packing) \
    void pl_avx2_matmul_##type(const void *strips, int64_t count, const pl_acts *x, int64_t first, int64_t n, \
                               float *y, int64_t ldy, int add) { \
        const char *strip = strips; \
        for (int64_t s = 0; s < count; s++, strip += pl_strip_bytes(packing, x->k), y += PL_STRIP) { \
            matmul(packing, strip, x, first, n, y, ldy, add); \
        } \
    }
MATMUL(f32, PL_PACK_F32)
MATMUL(f16, PL_PACK_F16)
MATMUL(bf16, PL_PACK_BF16)

PL_TARGET_END
#endif
