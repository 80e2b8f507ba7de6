/* Quantised weights with AVX-512 and VNNI: a tile is one strip and a few columns, its sums in registers over all of k.
 *
 * Every tile is an instance of one template, in which the packing, the planes and the number of columns are constants.
 * vpdpbusd wants unsigned codes, so the codes of a type without a minimum are stored a power of two too high; sums
 * start at what that makes too much of, negated: exact, for it is all integers. */
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
    SCALE_Q8H, /* d for each half */
    SCALE_Q2K, /* d sc, and -(dmin mn), for each half */
} scales;

/* What the templates must know of a packing: strips.h in numbers, constant in every instance. */
typedef struct shape {
    scales scales;
    int bits;    /* of a code */
    int offset;  /* a stored code is 2^offset above the meant one; 0: equal to it */
    int minimum; /* whether there is one */
    int bytes;   /* of a struct of the strip; the codes of its blocks stand last */
} shape;

PL_INLINE scales scales_of(pl_packing packing) {
    if (packing == PL_PACK_Q8F) return SCALE_F32;
    if (packing == PL_PACK_Q8H) return SCALE_Q8H;
    if (packing == PL_PACK_Q6K) return SCALE_Q6K;
    if (packing == PL_PACK_Q2K) return SCALE_Q2K;
    return packing == PL_PACK_Q4K || packing == PL_PACK_Q5K ? SCALE_K : SCALE_F16;
}

PL_INLINE int blocks_of(shape t) { return t.scales >= SCALE_K ? 8 : 1; }

PL_INLINE int steps_of(shape t) { return t.scales >= SCALE_Q6K ? 2 : 1; }

PL_INLINE __m512 load_u8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

PL_INLINE __m512 load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

/* Block j of a struct of the strip. What is needed only after the dots is read only then: registers are dear. */
typedef struct block {
    const uint8_t *at; /* the struct */
    int j;
} block;

PL_INLINE const uint8_t *codes_of(shape t, block w) { return w.at + t.bytes - (blocks_of(t) - w.j) * (t.bits * 64); }

/* Of the 16 rows; s: the half of the block, where steps_of tells them apart. */
PL_INLINE __m512 scale_of(shape t, block w, int s) {
    if (t.scales == SCALE_F32) return _mm512_loadu_ps(w.at);
    if (t.scales == SCALE_Q8H) return _mm512_loadu_ps(((const pl_strip_q8h *)w.at)->d[2 * w.j + s]);
    __m512 d = pl_load_halves(w.at);
    if (t.scales == SCALE_K) return _mm512_mul_ps(d, load_u8(((const pl_strip_q4k *)w.at)->sc[w.j]));
    if (t.scales == SCALE_Q6K) return _mm512_mul_ps(d, load_i8(((const pl_strip_q6k *)w.at)->sc[2 * w.j + s]));
    if (t.scales == SCALE_Q2K) return _mm512_mul_ps(d, load_u8(((const pl_strip_q2k *)w.at)->sc[2 * w.j + s]));
    return d;
}

/* Q5_K begins with the fields of Q4_K, Q5_1 with those of Q4_1. Nested minima are for add_minimum to subtract. */
PL_INLINE __m512 minimum_of(shape t, block w, int s) {
    if (t.scales == SCALE_F16) return pl_load_halves(((const pl_strip_q4m *)w.at)->m);
    if (t.scales == SCALE_Q2K) {
        const pl_strip_q2k *halves = (const pl_strip_q2k *)w.at;
        return _mm512_mul_ps(pl_load_halves(halves->dmin), load_u8(halves->mn[2 * w.j + s]));
    }
    const pl_strip_q4k *k = (const pl_strip_q4k *)w.at;
    return _mm512_mul_ps(pl_load_halves(k->dmin), load_u8(k->mn[w.j]));
}

PL_INLINE __m512 add_minimum(shape t, __m512 minimum, int s, const pl_act_block *x, __m512 y) {
    const float half = x->scale * (float)-x->minus_half[s];
    const __m512 offset = _mm512_set1_ps(t.scales == SCALE_Q2K ? half : x->offset);
    return t.scales >= SCALE_K ? _mm512_fnmadd_ps(minimum, offset, y) : _mm512_fmadd_ps(minimum, offset, y);
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
    if (bits == 2) {
        __m512i four = shift(_mm512_loadu_si512(codes + g / 4 * 64), -(g % 4 * 2));
        return _mm512_and_si512(four, _mm512_set1_epi8(3));
    }
    __m512i low = shift(_mm512_loadu_si512(codes + (bits - 4) * 64 + g % 4 * 64), g < 4 ? 0 : -4);
    if (bits == 4) return _mm512_and_si512(low, nibble);
    const uint8_t *h = bits == 5 ? codes : codes + g / 4 * 64;
    __m512i high = shift(_mm512_loadu_si512(h), bits == 5 ? 4 - g : 4 - g % 4 * 2);
    __m512i both = _mm512_ternarylogic_epi32(high, low, nibble, 0xd8); /* nibble ? low : high */
    return _mm512_and_si512(both, _mm512_set1_epi8((char)((1 << bits) - 1)));
}

/* ---- the columns of a tile --------------------------------------------------------------------------------------- */

enum { MOST_COLUMNS = 8, BASES = (MOST_COLUMNS + 2) / 3 };

/* The activations of a tile from one block on. Column c is base c / 3 plus 0, 1 or 2 strides, addresses the processor
 * forms itself: pointers to all columns would not fit the registers. */
typedef struct columns {
    const int8_t *q[BASES];
    const pl_act_block *block[BASES];
    int64_t ldq, blocks; /* the strides */
} columns;

/* A base that a narrow tile has no columns for stays within the activations. */
PL_INLINE columns columns_at(const pl_acts *x, int64_t first, int cols) {
    columns at = {.ldq = x->ldq, .blocks = x->k / PL_BLOCK};
    PL_UNROLL
    for (int i = 0; i < BASES; i++) {
        const int64_t c = first + (i * 3 < cols ? i * 3 : 0);
        at.q[i] = x->q + c * at.ldq;
        at.block[i] = x->blocks + c * at.blocks;
    }
    return at;
}

PL_INLINE columns next_block(columns at, int planes) {
    PL_UNROLL
    for (int i = 0; i < BASES; i++) at.q[i] += planes * PL_BLOCK, at.block[i]++;
    return at;
}

PL_INLINE __m512i four_of(const columns *at, int c, int plane, int g) {
    int32_t four;
    memcpy(&four, at->q[c / 3] + c % 3 * at->ldq + plane * PL_BLOCK + 4 * g, sizeof four);
    return _mm512_set1_epi32(four);
}

PL_INLINE const pl_act_block *block_of(const columns *at, int c) { return at->block[c / 3] + c % 3 * at->blocks; }

/* ---- what is fetched ahead --------------------------------------------------------------------------------------- */

PL_INLINE int block_bytes(shape t) { return t.bytes / blocks_of(t); }

PL_INLINE int64_t strip_bytes(shape t, const pl_acts *x) { return x->k / PL_BLOCK * block_bytes(t); }

/* What a tile asks into the cache: a block with every `period`-th block that it computes. */
typedef struct fetch {
    const uint8_t *from;
    int64_t period, wait;
} fetch;

/* Whether a tile with so many dot products to a code waits for memory rather than for itself. */
PL_INLINE int waits(shape t, int dots) { return dots == 1 || (dots == 2 && t.bits % 4 == 0 && blocks_of(t) == 1); }

/* Whether the hardware follows a lone tile by itself, and fetching would only get in its way: where one waits for every
 * line of a stream of short blocks. Structs of eight blocks it loses, on some processors. */
PL_INLINE int is_followed(shape t, int dots) { return waits(t, dots) && blocks_of(t) == 1; }

/* A lone tile runs ahead of itself. Of several that read the same strip the first would have to wait for memory, and
 * the others leave it idle: so each fetches its part of the strip that comes after. */
PL_INLINE fetch fetch_of(shape t, int dots, const uint8_t *strip, const pl_acts *x, int64_t index, int64_t tiles) {
    if (tiles == 1 && x->ahead == 0 && is_followed(t, dots)) return (fetch){strip, 1, INT64_MAX};
    if (tiles == 1) return (fetch){pl_ahead(strip, pl_distance(x->ahead, waits(t, dots))), 1, 0};
    return (fetch){pl_ahead(strip, strip_bytes(t, x) + index * block_bytes(t)), tiles, index};
}

PL_INLINE fetch fetch_step(shape t, int dots, fetch f) {
    if (f.wait > 0) return (fetch){f.from, f.period, f.wait - 1};
    pl_prefetch(f.from, 0, block_bytes(t), waits(t, dots));
    return (fetch){pl_ahead(f.from, f.period * block_bytes(t)), f.period, f.period - 1};
}

/* ---- tiles ------------------------------------------------------------------------------------------------------- */

typedef __m512i tile_dots[MOST_COLUMNS][2]; /* of either plane */
typedef __m512 tile_sums[MOST_COLUMNS];

/* What a sum starts from: minus what the offset of the codes makes too much of. */
PL_INLINE __m512i start_of(shape t, int s, const pl_act_block *x) {
    if (!t.offset) return _mm512_setzero_si512();
    int32_t minus = steps_of(t) == 2 ? x->minus_half[s] : x->minus_sum;
    return _mm512_slli_epi32(_mm512_set1_epi32(minus), (unsigned)t.offset);
}

/* sum = codes * a over the k that share scale s of the block, for each column and plane. */
PL_INLINE void dots(shape t, int planes, int cols, block w, int s, const columns *at, tile_dots sum) {
    PL_UNROLL
    for (int c = 0; c < cols; c++) {
        sum[c][0] = _mm512_setzero_si512();
        sum[c][planes - 1] = start_of(t, s, block_of(at, c));
    }
    PL_UNROLL
    for (int i = 0; i < 8 / steps_of(t); i++) {
        int g = steps_of(t) == 2 ? s * 4 + i : i % 2 * 4 + i / 2; /* where free: the two nibbles of a byte in turn */
        __m512i codes = group(t.bits, codes_of(t, w), g);
        __asm__("" : "+v"(codes)); /* else the compiler would rather load and shift them again for each use */
        PL_UNROLL
        for (int c = 0; c < cols * planes; c++) {
            __m512i *to = &sum[c / planes][c % planes];
            *to = _mm512_dpbusd_epi32(*to, codes, four_of(at, c / planes, c % planes, g));
        }
    }
}

/* y = fma(S, scale_w scale_x, y), then y = fma(minimum, offset, y), for each column. */
PL_INLINE void step(shape t, int planes, int cols, block w, int s, const columns *at, tile_sums y) {
    tile_dots sum;
    dots(t, planes, cols, w, s, at, sum);
    /* Where sums take nearly all registers, scales must not be loaded before their time. */
    if (cols * (planes + 1) >= 20) __asm__ volatile("" ::: "memory");
    const __m512 scale = scale_of(t, w, s);
    PL_UNROLL
    for (int c = 0; c < cols; c++) {
        __m512i exact = sum[c][planes - 1];
        if (planes == 2) exact = _mm512_add_epi32(_mm512_slli_epi32(sum[c][0], 8), exact);
        __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(block_of(at, c)->scale));
        y[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), both, y[c]);
    }
    if (!t.minimum) return;
    const __m512 minimum = minimum_of(t, w, s);
    PL_UNROLL
    for (int c = 0; c < cols; c++) y[c] = add_minimum(t, minimum, s, block_of(at, c), y[c]);
}

PL_INLINE void tile(shape t, int planes, int cols, const uint8_t *strip, const pl_acts *x, int64_t first, fetch f,
                    float *y, int64_t ldy, int add) {
    columns at = columns_at(x, first, cols);
    tile_sums sum;
    PL_UNROLL
    for (int c = 0; c < cols; c++) sum[c] = _mm512_setzero_ps();
    for (int64_t b = 0; b < at.blocks; b += blocks_of(t), strip += t.bytes) {
        for (int j = 0; j < blocks_of(t); j++, at = next_block(at, planes)) {
            f = fetch_step(t, planes * cols, f);
            PL_UNROLL
            for (int s = 0; s < steps_of(t); s++) step(t, planes, cols, (block){strip, j}, s, &at, sum);
        }
    }
    PL_UNROLL
    for (int c = 0; c < cols; c++) pl_put(y + c * ldy, sum[c], add);
}

/* ---- instances --------------------------------------------------------------------------------------------------- */

/* Columns whose sums, codes and masks fit 32 registers. */
PL_INLINE int widest(shape t, int planes) { return planes == 2 && steps_of(t) == 2 && t.bits < 8 ? 6 : MOST_COLUMNS; }

/* All columns of a strip, in tiles whose sums fit the registers. */
PL_INLINE void columns_of_strip(shape t, int planes, const uint8_t *strip, const pl_acts *x, int64_t first, int64_t n,
                                float *y, int64_t ldy, int add) {
    const int most = widest(t, planes);
    const int64_t count = (n + most - 1) / most;
    PL_FOR_TILES(cols, most, n) {
        const fetch f = fetch_of(t, planes * (int)cols, strip, x, count - tiles, count);
        switch (cols) {
            case 1: tile(t, planes, 1, strip, x, first, f, y, ldy, add); break;
            case 2: tile(t, planes, 2, strip, x, first, f, y, ldy, add); break;
            case 3: tile(t, planes, 3, strip, x, first, f, y, ldy, add); break;
            case 4: tile(t, planes, 4, strip, x, first, f, y, ldy, add); break;
            case 5: tile(t, planes, 5, strip, x, first, f, y, ldy, add); break;
            case 6: tile(t, planes, 6, strip, x, first, f, y, ldy, add); break;
            case 7:
                if (most >= 7) tile(t, planes, 7, strip, x, first, f, y, ldy, add);
                break;
            case 8:
                if (most >= 8) tile(t, planes, 8, strip, x, first, f, y, ldy, add);
                break;
        }
        first += cols;
        y += cols * ldy;
    }
}

/* One strip after the other: two streams at once are more than the hardware follows. */
PL_INLINE void matmul(shape t, int planes, const uint8_t *strip, int64_t count, const pl_acts *x, int64_t first,
                      int64_t n, float *y, int64_t ldy, int add) {
    for (; count > 0; count--, strip += strip_bytes(t, x), y += PL_STRIP) {
        columns_of_strip(t, planes, strip, x, first, n, y, ldy, add);
    }
}

PL_INLINE shape shape_of(pl_packing packing) {
    const pl_packing_info *p = &pl_packings[packing];
    return (shape){scales_of(packing), p->bits, p->log2_bias < 0 ? 0 : p->log2_bias, p->has_minimum, p->bytes};
}

#define QUANTISED_MATMUL(type, packing, ...) \
    void pl_avx512_matmul_##type(const void *strips, int64_t count, const pl_acts *x, int64_t first, int64_t n, \
                                 float *y, int64_t ldy, int add) { \
        const shape t = shape_of(packing); \
        if (x->planes == 2) { \
            matmul(t, 2, strips, count, x, first, n, y, ldy, add); \
        } else { \
            matmul(t, 1, strips, count, x, first, n, y, ldy, add); \
        } \
    }
PL_QUANTISED_PACKINGS(QUANTISED_MATMUL)

PL_TARGET_END

#endif
