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

_Static_assert(sizeof(pl_block_q8_0) == 34 && sizeof(pl_block_q4_0) == 18 && sizeof(pl_block_q4_1) == 20, "block size");
_Static_assert(sizeof(pl_block_q5_0) == 22 && sizeof(pl_block_q5_1) == 24, "block size");
_Static_assert(sizeof(pl_block_q4_k) == 144 && sizeof(pl_block_q5_k) == 176 && sizeof(pl_block_q6_k) == 210,
               "block size");

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
