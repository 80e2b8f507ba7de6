/* Quantised blocks as GGUF stores them (ggml's formats), and the bit moves that packing them shares. All fields are
 * bytes or 16-bit halves read through memcpy: rows of a file need no alignment. */
#ifndef PL_QUANT_BLOCKS_H
#define PL_QUANT_BLOCKS_H

#include <stdint.h>
#include <string.h>

#include "quant/f16.h"

/* 32 weights: element j < 16 in the low nibble of qs[j], element j + 16 in the high one; qh: bit j is bit 4 of
 * element j. d, m: f16. */
typedef struct {
    uint8_t d[2];
    int8_t qs[32];
} pl_block_q8_0;
typedef struct { uint8_t d[2], qs[16]; } pl_block_q4_0;
typedef struct { uint8_t d[2], m[2], qs[16]; } pl_block_q4_1;
typedef struct { uint8_t d[2], qh[4], qs[16]; } pl_block_q5_0;
typedef struct { uint8_t d[2], m[2], qh[4], qs[16]; } pl_block_q5_1;

/* 256 weights in 8 sub-blocks of 32, with 6-bit scales and minima packed into 12 bytes. Sub-blocks 2 j and 2 j + 1
 * are the low and high nibbles of qs[32 j ...]; bit j of qh[l] is bit 4 of element l of sub-block j. */
typedef struct { uint8_t d[2], dmin[2], scales[12], qs[128]; } pl_block_q4_k;
typedef struct { uint8_t d[2], dmin[2], scales[12], qh[32], qs[128]; } pl_block_q5_k;
/* 256 weights in 16 sub-blocks of 16 with 8-bit scales; per half of 128: ql 64 bytes, qh 32 bytes. */
typedef struct {
    uint8_t ql[128], qh[64];
    int8_t scales[16];
    uint8_t d[2];
} pl_block_q6_k;

/* 256 weights in 16 sub-blocks of 16. Q2_K: the scale in a low nibble, the minimum in the high one; sub-blocks 2 j and
 * 2 j + 1 are bits 2 (j % 4) and up of the 32 bytes from qs[32 (j / 4)] on. Q3_K: likewise, and a clear bit j of
 * hmask[l] takes 4 off; 6-bit scales in 12 bytes. */
typedef struct { uint8_t scales[16], qs[64], d[2], dmin[2]; } pl_block_q2_k;
typedef struct { uint8_t hmask[32], qs[64], scales[12], d[2]; } pl_block_q3_k;
typedef struct {
    uint8_t d[4]; /* fp32 */
    int8_t qs[256];
    uint8_t bsums[32]; /* sums of 16, which follow from qs */
} pl_block_q8_k;

typedef struct { uint8_t d[2], scales_h[2], scales_l[4], qs[128]; } pl_block_iq4_xs;
typedef struct { uint8_t e, qs[16]; } pl_block_mxfp4;
typedef struct { uint8_t d[4], qs[32]; } pl_block_nvfp4; /* 64 weights in 4 sub-blocks of 16; d: UE4M3 */
typedef struct { uint8_t d[2], qs[16]; } pl_block_q1_0;  /* 128 weights */
typedef struct { uint8_t d[2], qs[16]; } pl_block_q2_0;  /* 64 weights */
typedef struct { uint8_t qs[48], qh[4], d[2]; } pl_block_tq1_0;
typedef struct { uint8_t qs[64], d[2]; } pl_block_tq2_0;

/* Points of grids; per 32 weights IQ2_XXS has four bytes of them, then 4 x 7 bits of signs and 4 of scale. */
typedef struct { uint8_t d[2], qs[64]; } pl_block_iq2_xxs;
typedef struct { uint8_t d[2], qs[64], scales[8]; } pl_block_iq2_xs;
typedef struct { uint8_t d[2], qs[32], signs[32], qh[8], scales[8]; } pl_block_iq2_s;
typedef struct { uint8_t d[2], qs[64], signs[32]; } pl_block_iq3_xxs;
typedef struct { uint8_t d[2], qs[64], qh[8], signs[32], scales[4]; } pl_block_iq3_s;
typedef struct { uint8_t d[2], qs[32], qh[16]; } pl_block_iq1_s;
typedef struct { uint8_t qs[32], qh[16], scales[8]; } pl_block_iq1_m;

_Static_assert(sizeof(pl_block_q8_0) == 34 && sizeof(pl_block_q4_0) == 18 && sizeof(pl_block_q4_1) == 20, "block size");
_Static_assert(sizeof(pl_block_q5_0) == 22 && sizeof(pl_block_q5_1) == 24, "block size");
_Static_assert(sizeof(pl_block_q4_k) == 144 && sizeof(pl_block_q5_k) == 176 && sizeof(pl_block_q6_k) == 210,
               "block size");
_Static_assert(sizeof(pl_block_q2_k) == 84 && sizeof(pl_block_q3_k) == 110 && sizeof(pl_block_q8_k) == 292,
               "block size");
_Static_assert(sizeof(pl_block_iq4_xs) == 136 && sizeof(pl_block_mxfp4) == 17, "block size");
_Static_assert(sizeof(pl_block_nvfp4) == 36 && sizeof(pl_block_q1_0) == 18 && sizeof(pl_block_q2_0) == 18,
               "block size");
_Static_assert(sizeof(pl_block_tq1_0) == 54 && sizeof(pl_block_tq2_0) == 66, "block size");
_Static_assert(sizeof(pl_block_iq2_xxs) == 66 && sizeof(pl_block_iq2_xs) == 74 && sizeof(pl_block_iq2_s) == 82,
               "block size");
_Static_assert(sizeof(pl_block_iq3_xxs) == 98 && sizeof(pl_block_iq3_s) == 110, "block size");
_Static_assert(sizeof(pl_block_iq1_s) == 50 && sizeof(pl_block_iq1_m) == 56, "block size");

static inline uint16_t pl_load16(const uint8_t *p) {
    uint16_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static inline uint32_t pl_load32(const void *p) {
    uint32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static inline void pl_store32(void *p, uint32_t value) { memcpy(p, &value, sizeof value); }

static inline float pl_load_f16(const uint8_t *p) { return pl_float_from_f16(pl_load16(p)); }

#endif
