/* What the levels of 256-bit vectors share: a matrix product over quantised strips that leaves the integer dots of a
 * block to the level. A vector is 8 of a strip's 16 rows.
 *
 * The int arguments before the first pointer and the packing are constants at every call: each combination of them is
 * an instance of its own. Include after <immintrin.h>, <stddef.h> and <string.h>, inside the level's target region. */
#ifndef PL_KERNELS_AVX2_QUANTISED_H
#define PL_KERNELS_AVX2_QUANTISED_H

#include "kernels/kernels.h"
#include "kernels/target.h"

enum {
    ROWS = 8,         /* in a vector */
    HALVES = 2,       /* of a strip */
    GROUPS = 8,       /* of 4 k in a block */
    MOST_COLUMNS = 6, /* in a tile */
    AHEAD = 8192      /* bytes from a load to its prefetch */
};

/* ---- a block of a strip: 32 k, part j of a struct --------------------------------------------------------------- */

PL_INLINE int bits_of(pl_packing packing) { return pl_packings[packing].bits; }

PL_INLINE int log2_bias_of(pl_packing packing) { return pl_packings[packing].log2_bias; }

PL_INLINE int parts_of(pl_packing packing) { return pl_packings[packing].parts; }

PL_INLINE int steps_of(pl_packing packing) { return pl_packings[packing].steps; }

PL_INLINE int has_minimum(pl_packing packing) { return pl_packings[packing].has_minimum; }

PL_INLINE int64_t struct_bytes(pl_packing packing) { return pl_packings[packing].bytes; }

/* Whether scales are the product of a struct's and a small integer. */
PL_INLINE int is_nested(pl_packing packing) { return parts_of(packing) > 1 && packing != PL_PACK_Q8H; }

/* Codes end every struct. */
PL_INLINE const void *codes_of(pl_packing packing, const void *block, int j) {
    return (const char *)block + struct_bytes(packing) - (parts_of(packing) - j) * (bits_of(packing) * 64);
}

PL_INLINE __m256 floats_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }

PL_INLINE __m256 floats_u8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

PL_INLINE __m256 floats_s8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

/* d begins every struct; minima come next; sc and mn lie alike in Q4_K and Q5_K. */
_Static_assert(offsetof(pl_strip_q4m, m) == offsetof(pl_strip_q4k, dmin), "strip layout");
_Static_assert(offsetof(pl_strip_q5m, m) == offsetof(pl_strip_q4k, dmin), "strip layout");
_Static_assert(offsetof(pl_strip_q5k, dmin) == offsetof(pl_strip_q4k, dmin), "strip layout");
_Static_assert(offsetof(pl_strip_q5k, sc) == offsetof(pl_strip_q4k, sc), "strip layout");
_Static_assert(offsetof(pl_strip_q5k, mn) == offsetof(pl_strip_q4k, mn), "strip layout");
_Static_assert(offsetof(pl_strip_q2k, dmin) == offsetof(pl_strip_q4k, dmin), "strip layout");

/* Scales of the rows from `row` on; step: the half of 32 k, where steps_of tells them apart. */
PL_INLINE __m256 scale_of(pl_packing packing, int step, int row, const void *block, int j) {
    if (packing == PL_PACK_Q8F) return _mm256_loadu_ps(((const pl_strip_q8f *)block)->d + row);
    if (packing == PL_PACK_Q8H) return _mm256_loadu_ps(((const pl_strip_q8h *)block)->d[2 * j + step] + row);
    __m256 d = floats_f16(((const pl_strip_q8 *)block)->d + row);
    if (!is_nested(packing)) return d;
    if (packing == PL_PACK_Q6K)
        return _mm256_mul_ps(d, floats_s8(((const pl_strip_q6k *)block)->sc[2 * j + step] + row));
    if (packing == PL_PACK_Q2K)
        return _mm256_mul_ps(d, floats_u8(((const pl_strip_q2k *)block)->sc[2 * j + step] + row));
    return _mm256_mul_ps(d, floats_u8(((const pl_strip_q4k *)block)->sc[j] + row));
}

/* y = fma(minimum, offset, y) for the rows from `row` on. */
PL_INLINE __m256 minimum_step(pl_packing packing, int step, int row, const void *block, int j, __m256 offset,
                              __m256 y) {
    const pl_strip_q4k *k = block;
    __m256 m = floats_f16(k->dmin + row);
    if (!is_nested(packing)) return _mm256_fmadd_ps(m, offset, y);
    const uint8_t *mn = packing == PL_PACK_Q2K ? ((const pl_strip_q2k *)block)->mn[2 * j + step] : k->mn[j];
    return _mm256_fnmadd_ps(_mm256_mul_ps(m, floats_u8(mn + row)), offset, y);
}

/* ---- codes as bytes: 4 k of 8 rows ------------------------------------------------------------------------------ */

PL_INLINE __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* Bits move across bytes too: the caller masks. */
PL_INLINE __m256i shifted(__m256i x, int left) {
    return left > 0 ? _mm256_slli_epi16(x, left) : left < 0 ? _mm256_srli_epi16(x, -left) : x;
}

PL_INLINE __m256i nibbles(int group, int row, const uint8_t q[4][16][4]) {
    return _mm256_and_si256(shifted(load(q[group % 4][row]), group < 4 ? 0 : -4), _mm256_set1_epi8(15));
}

PL_INLINE __m256i codes5(int group, int row, const pl_codes5 *codes) {
    __m256i bit = _mm256_and_si256(shifted(load(codes->h[row]), 4 - group), _mm256_set1_epi8(16));
    return _mm256_or_si256(nibbles(group, row, codes->q), bit);
}

PL_INLINE __m256i codes6(int group, int row, const pl_codes6 *codes) {
    __m256i high = shifted(load(codes->h2[group / 4][row]), 4 - group % 4 * 2);
    return _mm256_or_si256(nibbles(group, row, codes->q), _mm256_and_si256(high, _mm256_set1_epi8(48)));
}

PL_INLINE __m256i codes2(int group, int row, const pl_codes2 *codes) {
    return _mm256_and_si256(shifted(load(codes->h2[group / 4][row]), -(group % 4 * 2)), _mm256_set1_epi8(3));
}

PL_INLINE __m256i codes_group(int bits, int group, int row, const void *codes) {
    if (bits == 2) return codes2(group, row, codes);
    if (bits == 4) return nibbles(group, row, ((const pl_codes4 *)codes)->q);
    if (bits == 5) return codes5(group, row, codes);
    if (bits == 6) return codes6(group, row, codes);
    return load(((const pl_codes8 *)codes)->q[group][row]);
}

/* ---- activations of one block, for `columns` columns ------------------------------------------------------------ */

typedef struct acts_block {
    const int8_t *q; /* (planes, 32) of column 0; column c at q + c * ldq */
    int64_t ldq, blocks;
    const pl_act_block *a; /* of column 0; column c at a + c * blocks */
} acts_block;

/* Vector v is plane v % planes of column v / planes. */
PL_INLINE const int8_t *vector_of(int planes, const acts_block *x, int v) {
    return x->q + v / planes * x->ldq + v % planes * PL_BLOCK;
}

/* Keeps a sum as it is written: GCC makes trees of the chains otherwise, which need more registers than there are. */
PL_INLINE __m256i pinned(__m256i sum) {
    __asm__("" : "+x"(sum));
    return sum;
}

PL_INLINE __m256i broadcast(const void *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return _mm256_set1_epi32(x);
}

/* ---- one block, one tile, one strip ----------------------------------------------------------------------------- */

/* Of all 16 rows: [column][rows 0 to 7, 8 to 15]. */
typedef __m256i dots[MOST_COLUMNS][HALVES];
typedef __m256 sums[MOST_COLUMNS][HALVES];

/* What the bias of the codes makes too much of a step's dots, negated; for packings that have one. */
PL_INLINE __m256i minus_bias(pl_packing packing, int step, const pl_act_block *a) {
    const int32_t *minus = steps_of(packing) == 2 ? &a->minus_half[step] : &a->minus_sum;
    return _mm256_slli_epi32(broadcast(minus), log2_bias_of(packing));
}

/* y = fma(dot, scale_w scale_x, y) for one step of a block. */
PL_INLINE void add_scaled(pl_packing packing, int columns, int step, const void *block, int j, const acts_block *x,
                          dots dot, sums y) {
    PL_UNROLL for (int i = 0; i < HALVES; i++) {
        __m256 scale = scale_of(packing, step, i * ROWS, block, j);
        PL_UNROLL for (int c = 0; c < columns; c++) {
            __m256 both = _mm256_mul_ps(scale, _mm256_broadcast_ss(&x->a[c * x->blocks].scale));
            y[c][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[c][i]), both, y[c][i]);
        }
    }
}

PL_INLINE __m256 offset_of(pl_packing packing, int step, const pl_act_block *a) {
    if (steps_of(packing) == 1) return _mm256_broadcast_ss(&a->offset);
    return _mm256_set1_ps(a->scale * (float)-a->minus_half[step]);
}

PL_INLINE void add_minimum(pl_packing packing, int columns, int step, const void *block, int j, const acts_block *x,
                           sums y) {
    PL_UNROLL for (int i = 0; i < HALVES; i++) {
        PL_UNROLL for (int c = 0; c < columns; c++) {
            __m256 offset = offset_of(packing, step, x->a + c * x->blocks);
            y[c][i] = minimum_step(packing, step, i * ROWS, block, j, offset, y[c][i]);
        }
    }
}

/* All that follows the dots of a step. */
PL_INLINE void add_step(pl_packing packing, int columns, int step, const void *block, int j, const acts_block *x,
                        dots dot, sums y) {
    add_scaled(packing, columns, step, block, j, x, dot, y);
    if (has_minimum(packing)) add_minimum(packing, columns, step, block, j, x, y);
}

/* The level's own: a block's step or two, for some columns; and the most columns that its registers hold. */
PL_INLINE void add_block(pl_packing packing, int planes, int columns, const void *block, int j, const acts_block *x,
                         sums y);
PL_INLINE int widest(pl_packing packing, int planes);

PL_INLINE void prefetch(int64_t bytes, const void *p) {
    PL_UNROLL for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)p + AHEAD + i, _MM_HINT_T1);
}

PL_INLINE acts_block start(const pl_acts *x, int64_t column) {
    int64_t blocks = x->k / PL_BLOCK;
    return (acts_block){x->q + column * x->ldq, x->ldq, blocks, x->blocks + column * blocks};
}

PL_INLINE void advance(int planes, acts_block *x) {
    x->q += planes * PL_BLOCK;
    x->a++;
}

PL_INLINE void put(float *y, __m256 sum, int add) {
    _mm256_storeu_ps(y, add ? _mm256_add_ps(_mm256_loadu_ps(y), sum) : sum);
}

/* Whether the hardware follows a tile by itself, and fetching would only get in its way: where that waits for every
 * line of a stream of short blocks. Structs of eight blocks it loses, on some processors. */
PL_INLINE int is_followed(pl_packing packing, int dots) {
    return parts_of(packing) == 1 && (dots == 1 || (dots == 2 && bits_of(packing) % 4 == 0));
}

/* comes_first: before other tiles that read the strip, which then is in the cache. */
PL_INLINE void tile(pl_packing packing, int planes, int columns, const void *strip, const pl_acts *acts, int64_t column,
                    int comes_first, float *out, int64_t ldy, int add) {
    const int parts = parts_of(packing);
    const int64_t bytes = struct_bytes(packing);
    const int fetches = comes_first && !is_followed(packing, planes * columns);
    acts_block x = start(acts, column);
    sums y;
    PL_UNROLL for (int c = 0; c < columns; c++) y[c][0] = y[c][1] = _mm256_setzero_ps();
    for (const char *block = strip, *end = block + x.blocks / parts * bytes; block < end; block += bytes) {
        for (int j = 0; j < parts; j++, advance(planes, &x)) {
            if (fetches) prefetch(bytes / parts, block + j * (bytes / parts));
            add_block(packing, planes, columns, block, j, &x, y);
        }
    }
    PL_UNROLL for (int c = 0; c < columns; c++) {
        put(out + c * ldy, y[c][0], add);
        put(out + c * ldy + ROWS, y[c][1], add);
    }
}

PL_INLINE void matmul(pl_packing packing, int planes, const void *strip, const pl_acts *x, int64_t first, int64_t n,
                      float *y, int64_t ldy, int add) {
    const int most = widest(packing, planes);
    int64_t c = 0;
#define TILE(columns) \
    case columns: \
        if (columns <= most) tile(packing, planes, columns, strip, x, first + c, c == 0, y + c * ldy, ldy, add); \
        break
    PL_FOR_TILES(width, most, n) {
        switch (width) {
            TILE(1);
            TILE(2);
            TILE(3);
            TILE(4);
            TILE(5);
            TILE(6);
        }
        c += width;
    }
#undef TILE
}

#define PL_AVX2_MATMUL(level, type, packing) \
    void pl_##level##_matmul_##type(const void *strips, int64_t count, const pl_acts *x, int64_t first, int64_t n, \
                                    float *y, int64_t ldy, int add) { \
        const char *strip = strips; \
        for (int64_t s = 0; s < count; s++, strip += pl_strip_bytes(packing, x->k), y += PL_STRIP) { \
            if (x->planes == 2) matmul(packing, 2, strip, x, first, n, y, ldy, add); \
            else matmul(packing, 1, strip, x, first, n, y, ldy, add); \
        } \
    }

#endif
