/* Quantised weights with AVX-512 and VNNI: a tile is one strip and a few columns, its sums in registers over all of k.
 *
 * Every tile is an instance of one template, in which the packing, the planes and the number of columns are constants.
 * vpdpbusd wants unsigned codes, so the codes of a type without a minimum are stored a power of two too high; the sum
 * of the activations takes that back, exactly, for it is all integers. */
#if defined(__x86_64__)
#include <stddef.h>
#include <string.h>

#include "kernels/avx512.h"

PL_TARGET_BEGIN(PL_AVX512_TARGET)

/* ---- a block: 32 k of 16 rows ------------------------------------------------------------------------------------ */

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
    int bytes;   /* of a struct of the strip; the codes of its blocks stand last */
} shape;

PL_INLINE int blocks_of(shape t) { return t.scales >= SCALE_K ? 8 : 1; }

PL_INLINE int steps_of(shape t) { return t.scales == SCALE_Q6K ? 2 : 1; }

typedef struct block {
    const uint8_t *codes;
    __m512 scale[2], minimum; /* as many as the shape has */
} block;

PL_INLINE __m512 load_u8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

PL_INLINE __m512 load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

/* Block j of the struct at `strip`. */
PL_INLINE block open_block(shape t, const uint8_t *strip, int j) {
    __m512 d = t.scales == SCALE_F32 ? _mm512_loadu_ps(strip) : pl_load_f16(strip);
    block w = {strip + t.bytes - (blocks_of(t) - j) * (t.bits * 64), {d, d}, d};
    if (t.scales == SCALE_F16 && t.minimum) w.minimum = pl_load_f16(strip + offsetof(pl_strip_q4m, m));
    if (t.scales == SCALE_K) {
        const pl_strip_q4k *s = (const pl_strip_q4k *)strip; /* Q5_K begins with the same fields */
        w.scale[0] = _mm512_mul_ps(d, load_u8(s->sc[j]));
        w.minimum = pl_negate(_mm512_mul_ps(pl_load_f16(s->dmin), load_u8(s->mn[j])));
    }
    if (t.scales == SCALE_Q6K) {
        const pl_strip_q6k *s = (const pl_strip_q6k *)strip;
        w.scale[0] = _mm512_mul_ps(d, load_i8(s->sc[2 * j]));
        w.scale[1] = _mm512_mul_ps(d, load_i8(s->sc[2 * j + 1]));
    }
    return w;
}

/* x moved left by n bits, right if n < 0; what crosses the border of a byte is for the caller to mask. */
PL_INLINE __m512i shift(__m512i x, int n) {
    if (n == 0) return x;
    return n > 0 ? _mm512_slli_epi16(x, (unsigned)n) : _mm512_srli_epi16(x, (unsigned)-n);
}

/* The codes of group g: four k of 16 rows. */
PL_INLINE __m512i group(int bits, const uint8_t *codes, int g) {
    const __m512i nibble = _mm512_set1_epi8(15);
    if (bits == 8) return _mm512_loadu_si512(codes + 64 * g);
    __m512i low = shift(_mm512_loadu_si512(codes + (bits - 4) * 64 + g % 4 * 64), g < 4 ? 0 : -4);
    if (bits == 4) return _mm512_and_si512(low, nibble);
    const uint8_t *h = bits == 5 ? codes : codes + g / 4 * 64;
    __m512i high = shift(_mm512_loadu_si512(h), bits == 5 ? 4 - g : 4 - g % 4 * 2);
    __m512i both = _mm512_ternarylogic_epi32(high, low, nibble, 0xd8); /* nibble ? low : high */
    return _mm512_and_si512(both, _mm512_set1_epi8((char)((1 << bits) - 1)));
}

/* ---- the columns of a tile --------------------------------------------------------------------------------------- */

enum { MOST_COLUMNS = 6, BASES = (MOST_COLUMNS + 2) / 3 };

/* The activations of a tile from one block on. Row i of q, a plane of a column, is base i / 3 plus 0, 1 or 2 strides,
 * addresses the processor forms itself: pointers to all rows would not fit the registers. Columns likewise. */
typedef struct columns {
    const int8_t *q[2 * BASES];
    const float *scale[BASES], *offset[BASES];
    const int32_t *sum[BASES];
    int64_t k, blocks; /* the strides */
} columns;

/* Bases that a narrow tile has no rows for stay within the activations. */
PL_INLINE columns columns_at(const pl_acts *x, int64_t first, int planes, int cols) {
    columns at = {.k = x->k, .blocks = x->k / PL_BLOCK};
    PL_UNROLL
    for (int i = 0; i < 2 * BASES; i++) at.q[i] = x->q + (first * planes + (i * 3 < cols * planes ? i * 3 : 0)) * at.k;
    PL_UNROLL
    for (int i = 0; i < BASES; i++) {
        const int64_t skip = (first + (i * 3 < cols ? i * 3 : 0)) * at.blocks;
        at.scale[i] = x->scale + skip;
        at.offset[i] = x->offset + skip;
        at.sum[i] = x->sum + skip;
    }
    return at;
}

PL_INLINE columns next_block(columns at) {
    PL_UNROLL
    for (int i = 0; i < 2 * BASES; i++) at.q[i] += PL_BLOCK;
    PL_UNROLL
    for (int i = 0; i < BASES; i++) at.scale[i]++, at.offset[i]++, at.sum[i]++;
    return at;
}

PL_INLINE const int8_t *row_of(const columns *at, int row) { return at->q[row / 3] + row % 3 * at->k; }

/* What the offset of the codes adds to each of the 16 half blocks of 256 k, in order: 2^offset sum a. */
PL_INLINE __m512i half_excess(int offset, int planes, const int8_t *q, int64_t k) {
    const __m512i ones = _mm512_set1_epi8(1);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i s[4]; /* four lanes to a half block */
    PL_UNROLL
    for (int i = 0; i < 4; i++) {
        s[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, _mm512_loadu_si512(q + 64 * i));
        if (planes == 1) continue;
        s[i] = _mm512_dpbusd_epi32(_mm512_slli_epi32(s[i], 8), ones, _mm512_loadu_si512(q + k + 64 * i));
    }
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(s[0], s[1]), _mm512_unpackhi_epi32(s[0], s[1]));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(s[2], s[3]), _mm512_unpackhi_epi32(s[2], s[3]));
    __m512i abcd = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    return _mm512_slli_epi32(_mm512_permutexvar_epi32(order, abcd), (unsigned)offset);
}

PL_INLINE void store_excess(shape t, int planes, int cols, const columns *at, int32_t *excess) {
    PL_UNROLL
    for (int c = 0; c < cols; c++) {
        _mm512_storeu_si512(excess + 16 * c, half_excess(t.offset, planes, row_of(at, c * planes), at->k));
    }
}

/* ---- tiles ------------------------------------------------------------------------------------------------------- */

/* sum[c][plane] = codes * a over the k that share scale s of the block. */
PL_INLINE void dots(shape t, int planes, int cols, const block *w, int s, const columns *at, __m512i (*sum)[2]) {
    PL_UNROLL
    for (int i = 0; i < cols * 2; i++) sum[i / 2][i % 2] = _mm512_setzero_si512();
    PL_UNROLL
    for (int i = 0; i < 8 / steps_of(t); i++) {
        int g = steps_of(t) == 2 ? s * 4 + i : i % 2 * 4 + i / 2; /* where free: the two nibbles of a byte in turn */
        __m512i codes = group(t.bits, w->codes, g);
        PL_UNROLL
        for (int r = 0; r < cols * planes; r++) {
            int32_t four;
            memcpy(&four, row_of(at, r) + 4 * g, sizeof four);
            __m512i *to = &sum[r / planes][r % planes];
            *to = _mm512_dpbusd_epi32(*to, codes, _mm512_set1_epi32(four));
        }
    }
}

/* y = fma(S, scale_w scale_x, y) for each column. excess: of column c at 16 c + s, where steps_of is 2. */
PL_INLINE void step(shape t, int planes, int cols, const block *w, int s, const columns *at, const int32_t *excess,
                    __m512 *y) {
    __m512i sum[MOST_COLUMNS][2];
    dots(t, planes, cols, w, s, at, sum);
    PL_UNROLL
    for (int c = 0; c < cols; c++) {
        const int64_t stride = c % 3 * at->blocks;
        __m512i exact = planes == 2 ? _mm512_add_epi32(_mm512_slli_epi32(sum[c][0], 8), sum[c][1]) : sum[c][0];
        if (steps_of(t) == 2) {
            exact = _mm512_sub_epi32(exact, _mm512_set1_epi32(excess[16 * c + s]));
        } else if (t.offset) {
            __m512i a = _mm512_set1_epi32(at->sum[c / 3][stride]);
            exact = _mm512_sub_epi32(exact, _mm512_slli_epi32(a, (unsigned)t.offset));
        }
        __m512 scale = _mm512_mul_ps(w->scale[s], _mm512_set1_ps(at->scale[c / 3][stride]));
        y[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scale, y[c]);
        if (t.minimum) y[c] = _mm512_fmadd_ps(w->minimum, _mm512_set1_ps(at->offset[c / 3][stride]), y[c]);
    }
}

PL_INLINE void tile(shape t, int planes, int cols, const uint8_t *strip, const pl_acts *x, int64_t first, float *y,
                    int64_t ldy) {
    columns at = columns_at(x, first, planes, cols);
    int32_t excess[MOST_COLUMNS * 16];
    __m512 sum[MOST_COLUMNS];
    PL_UNROLL
    for (int c = 0; c < cols; c++) sum[c] = _mm512_setzero_ps();
    for (int64_t b = 0; b < at.blocks; b += blocks_of(t), strip += t.bytes) {
        if (steps_of(t) == 2) store_excess(t, planes, cols, &at, excess);
        for (int j = 0; j < blocks_of(t); j++, at = next_block(at)) {
            block w = open_block(t, strip, j);
            pl_prefetch(strip + t.bytes / blocks_of(t) * j, t.bytes / blocks_of(t));
            PL_UNROLL
            for (int s = 0; s < steps_of(t); s++) step(t, planes, cols, &w, s, &at, excess + 2 * j, sum);
        }
    }
    PL_UNROLL
    for (int c = 0; c < cols; c++) _mm512_storeu_ps(y + c * ldy, sum[c]);
}

/* ---- instances --------------------------------------------------------------------------------------------------- */

PL_INLINE void matmul(shape t, int planes, const void *strip, const pl_acts *x, int64_t first, int64_t n, float *y,
                      int64_t ldy) {
    PL_FOR_TILES(cols, MOST_COLUMNS, n) {
        switch (cols) {
            case 1: tile(t, planes, 1, strip, x, first, y, ldy); break;
            case 2: tile(t, planes, 2, strip, x, first, y, ldy); break;
            case 3: tile(t, planes, 3, strip, x, first, y, ldy); break;
            case 4: tile(t, planes, 4, strip, x, first, y, ldy); break;
            case 5: tile(t, planes, 5, strip, x, first, y, ldy); break;
            case 6: tile(t, planes, 6, strip, x, first, y, ldy); break;
        }
        first += cols;
        y += cols * ldy;
    }
}

#define QUANTISED_MATMUL(type, scales, bits, offset, minimum) \
    void pl_avx512_matmul_##type(const void *strip, const pl_acts *x, int64_t first, int64_t n, float *y, \
                                 int64_t ldy) { \
        const shape t = {scales, bits, offset, minimum, sizeof(pl_strip_##type)}; \
        if (x->planes == 2) { \
            matmul(t, 2, strip, x, first, n, y, ldy); \
        } else { \
            matmul(t, 1, strip, x, first, n, y, ldy); \
        } \
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

PL_TARGET_END

#else
typedef int pl_avx512_quantised_empty; /* ISO C wants a declaration in every file */
#endif
