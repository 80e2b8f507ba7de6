/* Packed weights: strips of 16 rows side by side, so that a SIMD lane is an output row, a scale is a vector load, and
 * a thread reads one sequential stream. Every struct is one block of k for 16 rows; a strip is its blocks in order of
 * k. Codes lie as [group of 4 k][row][4]: the operand order of vpdpbusd. Fields stand in the order of first touch.
 *
 *   value(row, k) = scale * code + minimum        code is an integer, scale and minimum are the type's own
 */
#ifndef PL_QUANT_STRIPS_H
#define PL_QUANT_STRIPS_H

#include <stdint.h>

enum { PL_STRIP = 16 /* rows in a strip */, PL_BLOCK = 32 /* weights that meet one activation scale */ };

typedef enum pl_packing {
    PL_PACK_F32,  /* float [k][16], k padded to a multiple of 4 with zeros, as for all float packings */
    PL_PACK_F16,  /* uint16 [k][16] */
    PL_PACK_BF16, /* uint16 [k / 2][16][2] */
    PL_PACK_Q8,   /* from here on: blocks as below */
    PL_PACK_Q8F,
    PL_PACK_Q4,
    PL_PACK_Q4M,
    PL_PACK_Q5,
    PL_PACK_Q5M,
    PL_PACK_Q4K,
    PL_PACK_Q5K,
    PL_PACK_Q6K,
    PL_PACK_Q8H,
    PL_PACK_Q2K,
    PL_PACK_COUNT
} pl_packing;

/* The bit planes of 32 k. q: low nibble = group g, high nibble = group g + 4, for g < 4. h: bit g of byte [row][i] is
 * the fifth bit of group g. h2: bits 2 (g % 4) and up of byte [g / 4][row][i] are bits 4 and 5 of group g;
 * in pl_codes2 they are all there is of it. */
typedef struct { uint8_t h2[2][16][4]; } pl_codes2;
typedef struct { uint8_t q[4][16][4]; } pl_codes4;
typedef struct { uint8_t h[16][4], q[4][16][4]; } pl_codes5;
typedef struct { uint8_t h2[2][16][4], q[4][16][4]; } pl_codes6;
typedef struct { uint8_t q[8][16][4]; } pl_codes8; /* code + 128 */

typedef struct {
    uint16_t d[16];
    pl_codes8 codes;
} pl_strip_q8; /* d code */
typedef struct {
    float d[16];
    pl_codes8 codes;
} pl_strip_q8f; /* d code, llama2.c's fp32 scales */
typedef struct {
    uint16_t d[16];
    pl_codes4 codes;
} pl_strip_q4; /* d (code - 8) */
typedef struct {
    uint16_t d[16], m[16];
    pl_codes4 codes;
} pl_strip_q4m; /* d code + m */
typedef struct {
    uint16_t d[16];
    pl_codes5 codes;
} pl_strip_q5; /* d (code - 16) */
typedef struct {
    uint16_t d[16], m[16];
    pl_codes5 codes;
} pl_strip_q5m;
/* 256 k: scale (d sc), minimum -(dmin mn), one sc and mn per 32 */
typedef struct {
    uint16_t d[16], dmin[16];
    uint8_t sc[8][16], mn[8][16];
    pl_codes4 codes[8];
} pl_strip_q4k;
typedef struct {
    uint16_t d[16], dmin[16];
    uint8_t sc[8][16], mn[8][16];
    pl_codes5 codes[8];
} pl_strip_q5k;
typedef struct {
    uint16_t d[16];
    int8_t sc[16][16];
    pl_codes6 codes[8];
} pl_strip_q6k; /* (d sc) (code - 32), sc per 16 */
typedef struct {
    float d[16][16];
    pl_codes8 codes[8];
} pl_strip_q8h; /* d code, d per 16 k */
typedef struct {
    uint16_t d[16], dmin[16];
    uint8_t sc[16][16], mn[16][16];
    pl_codes2 codes[8];
} pl_strip_q2k; /* (d sc) code - (dmin mn), sc and mn per 16 */

_Static_assert(sizeof(pl_strip_q8) == 544 && sizeof(pl_strip_q8f) == 576, "strip layout");
_Static_assert(sizeof(pl_strip_q4) == 288 && sizeof(pl_strip_q4m) == 320, "strip layout");
_Static_assert(sizeof(pl_strip_q5) == 352 && sizeof(pl_strip_q5m) == 384, "strip layout");
_Static_assert(sizeof(pl_strip_q4k) == 2368 && sizeof(pl_strip_q5k) == 2880, "strip layout");
_Static_assert(sizeof(pl_strip_q6k) == 3360 && sizeof(pl_strip_q8h) == 5120, "strip layout");
_Static_assert(sizeof(pl_strip_q2k) == 1600, "strip layout");

/* Every quantised packing: its name, its id, and from `bits` on what stands in pl_packing_info. */
#define PL_QUANTISED_PACKINGS(X) \
    X(q8, PL_PACK_Q8, 8, 7, 1, 1, 0) \
    X(q8f, PL_PACK_Q8F, 8, 7, 1, 1, 0) \
    X(q4, PL_PACK_Q4, 4, 3, 1, 1, 0) \
    X(q4m, PL_PACK_Q4M, 4, -1, 1, 1, 1) \
    X(q5, PL_PACK_Q5, 5, 4, 1, 1, 0) \
    X(q5m, PL_PACK_Q5M, 5, -1, 1, 1, 1) \
    X(q4k, PL_PACK_Q4K, 4, -1, 8, 1, 1) \
    X(q5k, PL_PACK_Q5K, 5, -1, 8, 1, 1) \
    X(q6k, PL_PACK_Q6K, 6, 5, 8, 2, 0) \
    X(q8h, PL_PACK_Q8H, 8, 7, 8, 2, 0) \
    X(q2k, PL_PACK_Q2K, 2, -1, 8, 2, 1)

typedef struct pl_packing_info {
    int32_t elements;    /* k per block; 1 for floats */
    int32_t bytes;       /* per block of a strip */
    int32_t floats;      /* 1: multiplied with fp32 activations, 0: with quantised ones */
    int32_t bits;        /* of a code */
    int32_t log2_bias;   /* of how much a stored code is above the meant one; -1 where a minimum says it */
    int32_t parts;       /* 32 k each in a block */
    int32_t steps;       /* scales in 32 k: two have one for each half */
    int32_t has_minimum; /* 1: value = scale code + minimum */
} pl_packing_info;

/* In a header, so that kernels whose packing is a constant know all of it when they are compiled. */
static const pl_packing_info pl_packings[PL_PACK_COUNT] = {
    [PL_PACK_F32] = {.elements = 1, .bytes = 4 * PL_STRIP, .floats = 1},
    [PL_PACK_F16] = {.elements = 1, .bytes = 2 * PL_STRIP, .floats = 1},
    [PL_PACK_BF16] = {.elements = 1, .bytes = 2 * PL_STRIP, .floats = 1},
#define PL_ROW(type, packing, bits, log2_bias, parts, steps, has_minimum) \
    [packing] = {(parts) * PL_BLOCK, sizeof(pl_strip_##type), 0, bits, log2_bias, parts, steps, has_minimum},
    PL_QUANTISED_PACKINGS(PL_ROW)
#undef PL_ROW
};

/* Bytes of one strip of k columns. */
static inline int64_t pl_strip_bytes(pl_packing packing, int64_t k) {
    const pl_packing_info *info = &pl_packings[packing];
    int64_t padded = info->floats ? (k + 3) / 4 * 4 : k;
    return padded / info->elements * info->bytes;
}

#endif
