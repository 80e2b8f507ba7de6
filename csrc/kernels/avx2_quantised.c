/* Quantised weights times quantised activations with AVX2: a vector is 8 of a strip's 16 rows.
 *
 * Codes of at most 6 bits meet the activations byte by byte (vpmaddubsw: u8 code x s8 a, pairs summed to int16, which
 * must not saturate); a second plane of activations is one more column whose dot counts 256-fold. Codes of 8 bits
 * would saturate there, so they and their activations are split into int16 (vpmaddwd), where two planes are one: that
 * takes |a| < 2^15, and quantize gives at most 32512.
 *
 * The int arguments before the first pointer and the packing are constants at every call: each combination of them is
 * an instance of its own. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <string.h>

#include "kernels/avx2.h"
#include "kernels/target.h"

PL_TARGET_BEGIN("avx2,fma,f16c")

enum {
    ROWS = 8,        /* in a vector */
    HALVES = 2,      /* of a strip */
    GROUPS = 8,      /* of 4 k in a block */
    MAX_VECTORS = 4, /* columns times planes: 8 sums, 2 of codes, activations, products fit 16 registers */
    AHEAD = 4096     /* bytes from a load to its prefetch */
};

/* ---- a block of a strip: 32 k, part j of a struct --------------------------------------------------------------- */

PL_INLINE int bits_of(pl_packing packing) {
    if (packing == PL_PACK_Q4 || packing == PL_PACK_Q4M || packing == PL_PACK_Q4K) return 4;
    if (packing == PL_PACK_Q5 || packing == PL_PACK_Q5M || packing == PL_PACK_Q5K) return 5;
    if (packing == PL_PACK_Q2K) return 2;
    return packing == PL_PACK_Q6K ? 6 : 8;
}

/* log2 of what a dot has counted too much per unit of a; -1 if nothing, as where a minimum says it or with Q6_K. */
PL_INLINE int log2_bias_of(pl_packing packing) {
    if (packing == PL_PACK_Q4) return 3;
    if (packing == PL_PACK_Q5) return 4;
    return packing == PL_PACK_Q8 || packing == PL_PACK_Q8F || packing == PL_PACK_Q8H ? 7 : -1;
}

/* Whether scales are the product of a struct's and a small integer. */
PL_INLINE int is_nested(pl_packing packing) {
    return packing == PL_PACK_Q4K || packing == PL_PACK_Q5K || packing == PL_PACK_Q6K || packing == PL_PACK_Q2K;
}

/* Blocks of 32 k in a struct. */
PL_INLINE int parts_of(pl_packing packing) { return is_nested(packing) || packing == PL_PACK_Q8H ? 8 : 1; }

/* Scales in 32 k: two have one for each half. */
PL_INLINE int steps_of(pl_packing packing) {
    return packing == PL_PACK_Q6K || packing == PL_PACK_Q8H || packing == PL_PACK_Q2K ? 2 : 1;
}

PL_INLINE int has_minimum(pl_packing packing) {
    return packing == PL_PACK_Q4M || packing == PL_PACK_Q5M || packing == PL_PACK_Q4K || packing == PL_PACK_Q5K ||
           packing == PL_PACK_Q2K;
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
        case PL_PACK_Q8H: return sizeof(pl_strip_q8h);
        case PL_PACK_Q2K: return sizeof(pl_strip_q2k);
        default: return sizeof(pl_strip_q6k);
    }
}

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

/* ---- integer dots of all 16 rows: [column][rows 0 to 7, 8 to 15] ------------------------------------------------ */

typedef __m256i dots[MAX_VECTORS][HALVES];
typedef __m256 sums[MAX_VECTORS][HALVES];

PL_INLINE __m256i broadcast(const void *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return _mm256_set1_epi32(x);
}

/* Keeps a sum as it is written: GCC makes trees of the chains otherwise, which need more registers than there are. */
PL_INLINE __m256i pinned(__m256i sum) {
    __asm__("" : "+x"(sum));
    return sum;
}

/* Four or eight groups of codes in int16 before anything is widened. The largest sums, two products a pair:
 *   2 bits: 3 * 128 * 2 * 4 groups = 3072;   4 bits: 15 * 128 * 2 * 8 groups = 30720
 *   5 bits: 31 * 128 * 2 * 4 groups = 31744
 *   6 bits: 63 * 128 * 2 = 16128 in one group; four groups sum (32 - code) * a, a bias of 32 a to begin with, and
 *   stay all the way from -32 * 128 * 8 = -2^15 to 32 * 127 * 8 = 32512. */
PL_INLINE void sum_groups(int bits, int planes, int vectors, int from, int to, const void *codes, const acts_block *x,
                          const acts_pairs *pairs, dots sum) {
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

PL_INLINE void dot_bytes(int bits, int planes, int columns, int from, int to, const void *codes, const acts_block *x,
                         const acts_pairs *pairs, dots dot) {
    const int at_once = bits == 4 ? 8 : 4;
    PL_UNROLL for (int g = from; g < to; g += at_once) {
        dots sum;
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

/* ---- one block, one tile, one strip ----------------------------------------------------------------------------- */

/* dot - bias * sum, where the dot has left the bias in. */
PL_INLINE __m256i unbiased(pl_packing packing, int step, __m256i dot, const pl_act_block *a) {
    if (log2_bias_of(packing) < 0) return dot;
    const int32_t *minus = steps_of(packing) == 2 ? &a->minus_half[step] : &a->minus_sum;
    return _mm256_add_epi32(dot, _mm256_slli_epi32(broadcast(minus), log2_bias_of(packing)));
}

/* y = fma(dot, scale_w scale_x, y) for one step of a block. */
PL_INLINE void add_scaled(pl_packing packing, int columns, int step, const void *block, int j, const acts_block *x,
                          dots dot, sums y) {
    PL_UNROLL for (int i = 0; i < HALVES; i++) {
        __m256 scale = scale_of(packing, step, i * ROWS, block, j);
        PL_UNROLL for (int c = 0; c < columns; c++) {
            const pl_act_block *a = x->a + c * x->blocks;
            __m256 s = _mm256_cvtepi32_ps(unbiased(packing, step, dot[c][i], a));
            __m256 both = _mm256_mul_ps(scale, _mm256_broadcast_ss(&a->scale));
            y[c][i] = _mm256_fmadd_ps(s, both, y[c][i]);
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
        add_scaled(packing, columns, step, block, j, x, dot, y);
        if (has_minimum(packing)) add_minimum(packing, columns, step, block, j, x, y);
    }
}

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

/* comes_first: before other tiles that read the strip, which then is in the cache. */
PL_INLINE void tile(pl_packing packing, int planes, int columns, const void *strip, const pl_acts *acts, int64_t column,
                    int comes_first, float *out, int64_t ldy, int add) {
    const int parts = parts_of(packing);
    const int64_t bytes = struct_bytes(packing);
    acts_block x = start(acts, column);
    sums y;
    PL_UNROLL for (int c = 0; c < columns; c++) y[c][0] = y[c][1] = _mm256_setzero_ps();
    for (const char *block = strip, *end = block + x.blocks / parts * bytes; block < end; block += bytes) {
        for (int j = 0; j < parts; j++, advance(planes, &x)) {
            if (comes_first) prefetch(bytes / parts, block + j * (bytes / parts));
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
    const int most = bits_of(packing) == 8 ? MAX_VECTORS : MAX_VECTORS / planes;
    int64_t c = 0;
    for (; most == 4 && c + 4 <= n; c += 4)
        tile(packing, planes, 4, strip, x, first + c, c == 0, y + c * ldy, ldy, add);
    for (; c + 2 <= n; c += 2) tile(packing, planes, 2, strip, x, first + c, c == 0, y + c * ldy, ldy, add);
    if (c < n) tile(packing, planes, 1, strip, x, first + c, c == 0, y + c * ldy, ldy, add);
}

#define MATMUL(type, packing) \
    void pl_avx2_matmul_##type(const void *strips, int64_t count, const pl_acts *x, int64_t first, int64_t n, \
                               float *y, int64_t ldy, int add) { \
        const char *strip = strips; \
        for (int64_t s = 0; s < count; s++, strip += pl_strip_bytes(packing, x->k), y += PL_STRIP) { \
            if (x->planes == 2) matmul(packing, 2, strip, x, first, n, y, ldy, add); \
            else matmul(packing, 1, strip, x, first, n, y, ldy, add); \
        } \
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
MATMUL(q8h, PL_PACK_Q8H)
MATMUL(q2k, PL_PACK_Q2K)

PL_TARGET_END
#endif
