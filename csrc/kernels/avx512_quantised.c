/* Quantised weights with AVX-512 and VNNI: a tile is one or two strips and a few columns, its sums in registers over all
 * of k.
 *
 * Every tile is an instance of one template, in which the packing, the planes and the numbers of strips and columns are
 * constants. vpdpbusd wants unsigned codes, so the codes of a type without a minimum are stored a power of two too high;
 * sums start at what that makes too much of, negated: exact, for it is all integers. */
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

enum { MOST_STRIPS = 2, MOST_COLUMNS = 8, BASES = (MOST_COLUMNS + 2) / 3 };

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

/* What a tile asks into the cache: a block of each strip with every `period`-th block that it computes. The hardware
 * alone loses a stream that has several fields. */
typedef struct fetch {
    const uint8_t *from; /* of the first strip */
    int64_t period, wait;
} fetch;

/* A lone tile runs ahead of itself. Of several that read the same strips the first would have to wait for memory, and
 * the others leave it idle: so each fetches its part of the strips that come after. */
PL_INLINE fetch fetch_of(shape t, int strips, const uint8_t *strip, const pl_acts *x, int64_t index, int64_t tiles) {
    if (tiles == 1) return (fetch){pl_ahead(strip, x->ahead), 1, 0};
    return (fetch){pl_ahead(strip, strips * strip_bytes(t, x) + index * block_bytes(t)), tiles, index};
}

/* Where memory is the limit, into the second cache only (pl_prefetch); all the way where a tile of many `dots` to a code
 * would have to wait for that, or others have the lines to themselves later. */
PL_INLINE fetch fetch_step(shape t, int strips, int dots, int64_t stride, fetch f) {
    if (f.wait > 0) return (fetch){f.from, f.period, f.wait - 1};
    PL_UNROLL
    for (int r = 0; r < strips; r++) {
        if (dots <= 8 && f.period == 1) {
            pl_prefetch(f.from, r * stride, block_bytes(t));
        } else {
            PL_UNROLL
            for (int i = 0; i < block_bytes(t); i += 64) {
                _mm_prefetch((const char *)pl_ahead(f.from, r * stride + i), _MM_HINT_T0);
            }
        }
    }
    return (fetch){pl_ahead(f.from, f.period * block_bytes(t)), f.period, f.period - 1};
}

/* ---- tiles ------------------------------------------------------------------------------------------------------- */

typedef __m512i tile_dots[MOST_STRIPS][MOST_COLUMNS][2]; /* of either plane */
typedef __m512 tile_sums[MOST_STRIPS][MOST_COLUMNS];

/* What a sum starts from: minus what the offset of the codes makes too much of. */
PL_INLINE __m512i start_of(shape t, int s, const pl_act_block *x) {
    if (!t.offset) return _mm512_setzero_si512();
    int32_t minus = steps_of(t) == 2 ? x->minus_half[s] : x->minus_sum;
    return _mm512_slli_epi32(_mm512_set1_epi32(minus), (unsigned)t.offset);
}

/* Keeps in its register what the compiler would rather load again for each use: loads are dearer than it believes. */
PL_INLINE __m512i pinned(__m512i x) {
    __asm__("" : "+v"(x));
    return x;
}

/* sum = codes * a over the k that share scale s of the block, for each strip, column and plane. */
PL_INLINE void dots(shape t, int planes, int strips, int cols, const block *w, int s, const columns *at,
                    tile_dots sum) {
    PL_UNROLL
    for (int i = 0; i < strips * cols; i++) {
        sum[i / cols][i % cols][0] = _mm512_setzero_si512();
        sum[i / cols][i % cols][planes - 1] = start_of(t, s, block_of(at, i % cols));
    }
    PL_UNROLL
    for (int i = 0; i < 8 / steps_of(t); i++) {
        int g = steps_of(t) == 2 ? s * 4 + i : i % 2 * 4 + i / 2; /* where free: the two nibbles of a byte in turn */
        __m512i codes[MOST_STRIPS];
        PL_UNROLL
        for (int r = 0; r < strips; r++) codes[r] = pinned(group(t.bits, codes_of(t, w[r]), g));
        PL_UNROLL
        for (int c = 0; c < cols * planes; c++) {
            __m512i a = four_of(at, c / planes, c % planes, g);
            if (strips > 1) a = pinned(a);
            PL_UNROLL
            for (int r = 0; r < strips; r++) {
                __m512i *to = &sum[r][c / planes][c % planes];
                *to = _mm512_dpbusd_epi32(*to, codes[r], a);
            }
        }
    }
}

/* y = fma(S, scale_w scale_x, y), then y = fma(minimum, offset, y), for each strip and column. */
PL_INLINE void step(shape t, int planes, int strips, int cols, const block *w, int s, const columns *at, tile_sums y) {
    tile_dots sum;
    dots(t, planes, strips, cols, w, s, at, sum);
    /* Where sums take nearly all registers, scales must not be loaded before their time. */
    if (strips * cols * (planes + 1) >= 20) __asm__ volatile("" ::: "memory");
    PL_UNROLL
    for (int r = 0; r < strips; r++) {
        const __m512 scale = scale_of(t, w[r], s);
        PL_UNROLL
        for (int c = 0; c < cols; c++) {
            __m512i exact = sum[r][c][planes - 1];
            if (planes == 2) exact = _mm512_add_epi32(_mm512_slli_epi32(sum[r][c][0], 8), exact);
            __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(block_of(at, c)->scale));
            y[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), both, y[r][c]);
        }
        if (!t.minimum) continue;
        const __m512 minimum = minimum_of(t, w[r], s);
        PL_UNROLL
        for (int c = 0; c < cols; c++) { y[r][c] = add_minimum(t, minimum, s, block_of(at, c), y[r][c]); }
    }
}

PL_INLINE void tile(shape t, int planes, int strips, int cols, const uint8_t *strip, const pl_acts *x, int64_t first,
                    fetch f, float *y, int64_t ldy, int add) {
    const int64_t stride = strip_bytes(t, x);
    columns at = columns_at(x, first, cols);
    tile_sums sum;
    PL_UNROLL
    for (int i = 0; i < strips * cols; i++) sum[i / cols][i % cols] = _mm512_setzero_ps();
    for (int64_t b = 0; b < at.blocks; b += blocks_of(t), strip += t.bytes) {
        for (int j = 0; j < blocks_of(t); j++, at = next_block(at, planes)) {
            const block w[MOST_STRIPS] = {{strip, j}, {strip + stride, j}};
            f = fetch_step(t, strips, planes * cols, stride, f);
            PL_UNROLL
            for (int s = 0; s < steps_of(t); s++) step(t, planes, strips, cols, w, s, &at, sum);
        }
    }
    PL_UNROLL
    for (int i = 0; i < strips * cols; i++)
        pl_put(y + i % cols * ldy + i / cols * PL_STRIP, sum[i / cols][i % cols], add);
}

/* ---- instances --------------------------------------------------------------------------------------------------- */

/* Columns of a tile of one strip, or of two, whose sums, codes and masks fit 32 registers. */
PL_INLINE int widest(shape t, int planes, int strips) {
    if (strips == 1) return planes == 2 && steps_of(t) == 2 && t.bits < 8 ? 6 : MOST_COLUMNS;
    return planes == 2 ? 3 : blocks_of(t) > 1 || t.bits == 5 ? 5 : 6;
}

/* All columns of one strip or two, in tiles whose sums fit the registers. */
PL_INLINE void columns_of_strips(shape t, int planes, int strips, const uint8_t *strip, const pl_acts *x, int64_t first,
                                 int64_t n, float *y, int64_t ldy, int add) {
    const int most = widest(t, planes, strips);
    const int64_t count = (n + most - 1) / most;
    PL_FOR_TILES(cols, most, n) {
        const fetch f = fetch_of(t, strips, strip, x, count - tiles, count);
        switch (cols) {
            case 1: tile(t, planes, strips, 1, strip, x, first, f, y, ldy, add); break;
            case 2: tile(t, planes, strips, 2, strip, x, first, f, y, ldy, add); break;
            case 3: tile(t, planes, strips, 3, strip, x, first, f, y, ldy, add); break;
            case 4:
                if (most >= 4) tile(t, planes, strips, 4, strip, x, first, f, y, ldy, add);
                break;
            case 5:
                if (most >= 5) tile(t, planes, strips, 5, strip, x, first, f, y, ldy, add);
                break;
            case 6:
                if (most >= 6) tile(t, planes, strips, 6, strip, x, first, f, y, ldy, add);
                break;
            case 7:
                if (most >= 7) tile(t, planes, strips, 7, strip, x, first, f, y, ldy, add);
                break;
            case 8:
                if (most >= 8) tile(t, planes, strips, 8, strip, x, first, f, y, ldy, add);
                break;
        }
        first += cols;
        y += cols * ldy;
    }
}

/* Strips go in pairs, which halves the loads of activations, where a lone tile holds all columns, or codes are bytes
 * already. Others would rather be unpacked once for eight columns, and a lone column be read in one stream. */
PL_INLINE int in_pairs(shape t, int planes, int64_t n) {
    return n > 1 && (n <= widest(t, planes, 2) || (t.bits == 8 && n > MOST_COLUMNS));
}

PL_INLINE void matmul(shape t, int planes, const uint8_t *strip, int64_t count, const pl_acts *x, int64_t first,
                      int64_t n, float *y, int64_t ldy, int add) {
    const int64_t stride = strip_bytes(t, x);
    for (; count > 1 && in_pairs(t, planes, n); count -= 2, strip += 2 * stride, y += 2 * PL_STRIP) {
        columns_of_strips(t, planes, 2, strip, x, first, n, y, ldy, add);
    }
    for (; count > 0; count--, strip += stride, y += PL_STRIP) {
        columns_of_strips(t, planes, 1, strip, x, first, n, y, ldy, add);
    }
}

#define QUANTISED_MATMUL(type, scales, bits, offset, minimum) \
    void pl_avx512_matmul_##type(const void *strips, int64_t count, const pl_acts *x, int64_t first, int64_t n, \
                                 float *y, int64_t ldy, int add) { \
        const shape t = {scales, bits, offset, minimum, sizeof(pl_strip_##type)}; \
        if (x->planes == 2) { \
            matmul(t, 2, strips, count, x, first, n, y, ldy, add); \
        } else { \
            matmul(t, 1, strips, count, x, first, n, y, ldy, add); \
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
QUANTISED_MATMUL(q8h, SCALE_Q8H, 8, 7, 0)
QUANTISED_MATMUL(q2k, SCALE_Q2K, 2, 0, 1)

PL_TARGET_END

#else
typedef int pl_avx512_quantised_empty; /* ISO C wants a declaration in every file */
#endif
