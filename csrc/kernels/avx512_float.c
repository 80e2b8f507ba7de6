/* Float weights with AVX-512: four chains by k mod 4 for each column of a tile, in registers over the whole of k. */
#if defined(__x86_64__)
#include "kernels/avx512.h"

PL_TARGET_BEGIN(PL_AVX512_TARGET)

enum { MOST_COLUMNS = 6 /* times four chains: 24 of the 32 registers */ };

PL_INLINE int bytes_of_four(pl_packing packing) { return 4 * PL_STRIP * (packing == PL_PACK_F32 ? 4 : 2); }

/* Weights k = j of 16 rows, j < 4, from the weights of four k. */
PL_INLINE __m512 weight(pl_packing packing, const uint8_t *four, int j) {
    if (packing == PL_PACK_F32) return _mm512_loadu_ps(four + 64 * j);
    if (packing == PL_PACK_F16) return pl_load_halves(four + 32 * j);
    __m512i pair = _mm512_loadu_si512(four + j / 2 * 64);
    return _mm512_castsi512_ps(j % 2 ? _mm512_and_si512(pair, _mm512_set1_epi32(-65536)) : _mm512_slli_epi32(pair, 16));
}

/* s_j = fma(w[k], x[k], s_j) at k = j for every column. A column is one of two bases plus 0, 1 or 2 strides, addresses
 * the processor forms itself: a pointer to each would take twice the registers. */
PL_INLINE void add_products(pl_packing packing, int cols, const uint8_t *four, int j, const float *const base[2],
                            int64_t ld, __m512 (*sum)[4]) {
    __m512 w = weight(packing, four, j);
    PL_UNROLL
    for (int c = 0; c < cols; c++) {
        sum[c][j] = _mm512_fmadd_ps(w, _mm512_set1_ps(base[c / 3][c % 3 * ld + j]), sum[c][j]);
    }
}

PL_INLINE void tile(pl_packing packing, int cols, const uint8_t *strip, const float *f, int64_t ld, int64_t k,
                    int64_t ahead, float *y, int64_t ldy, int add) {
    const int waits = cols <= 2 || packing == PL_PACK_F32;
    const float *base[2] = {f, cols > 3 ? f + 3 * ld : f};
    __m512 sum[MOST_COLUMNS][4];
    if (ahead || cols > 3 || !waits) ahead = pl_distance(ahead, waits); /* the hardware follows the others by itself */
    PL_UNROLL
    for (int i = 0; i < cols * 4; i++) sum[i / 4][i % 4] = _mm512_setzero_ps();
    for (; k >= 4; k -= 4, strip += bytes_of_four(packing), base[0] += 4, base[1] += 4) {
        if (ahead) pl_prefetch(strip, ahead, bytes_of_four(packing), waits);
        PL_UNROLL
        for (int j = 0; j < 4; j++) add_products(packing, cols, strip, j, base, ld, sum);
    }
    PL_UNROLL
    for (int j = 0; j < 3; j++) { /* not from the padding: it may hold anything beside zero weights, even NaN */
        if (j < k) add_products(packing, cols, strip, j, base, ld, sum);
    }
    PL_UNROLL
    for (int c = 0; c < cols; c++) {
        __m512 s01 = _mm512_add_ps(sum[c][0], sum[c][1]), s23 = _mm512_add_ps(sum[c][2], sum[c][3]);
        pl_put(y + c * ldy, _mm512_add_ps(s01, s23), add);
    }
}

PL_INLINE void matmul(pl_packing packing, const void *strip, const pl_acts *x, int64_t first, int64_t n, float *y,
                      int64_t ldy, int add) {
    const float *f = x->f + first * x->ld;
    PL_FOR_TILES(cols, MOST_COLUMNS, n) {
        switch (cols) {
            case 1: tile(packing, 1, strip, f, x->ld, x->k, x->ahead, y, ldy, add); break;
            case 2: tile(packing, 2, strip, f, x->ld, x->k, x->ahead, y, ldy, add); break;
            case 3: tile(packing, 3, strip, f, x->ld, x->k, x->ahead, y, ldy, add); break;
            case 4: tile(packing, 4, strip, f, x->ld, x->k, x->ahead, y, ldy, add); break;
            case 5: tile(packing, 5, strip, f, x->ld, x->k, x->ahead, y, ldy, add); break;
            case 6: tile(packing, 6, strip, f, x->ld, x->k, x->ahead, y, ldy, add); break;
        }
        f += cols * x->ld;
        y += cols * ldy;
    }
}

#define FLOAT_MATMUL(type, packing) \
    void pl_avx512_matmul_##type(const void *strips, int64_t count, const pl_acts *x, int64_t first, int64_t n, \
                                 float *y, int64_t ldy, int add) { \
        const char *strip = strips; \
        for (int64_t s = 0; s < count; s++, strip += pl_strip_bytes(packing, x->k), y += PL_STRIP) { \
            matmul(packing, strip, x, first, n, y, ldy, add); \
        } \
    }
FLOAT_MATMUL(f32, PL_PACK_F32)
FLOAT_MATMUL(f16, PL_PACK_F16)
FLOAT_MATMUL(bf16, PL_PACK_BF16)

PL_TARGET_END

#endif
