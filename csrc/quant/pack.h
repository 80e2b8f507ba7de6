/* The codes of 32 weights of one row, put into their strip. strips.h says where they go; only this file does it. */
#ifndef PL_QUANT_PACK_H
#define PL_QUANT_PACK_H

#include "quant/blocks.h"
#include "quant/strips.h"

/* code (32) bytes, any int8. */
static inline void pl_pack_codes8(pl_codes8 *codes, int32_t lane, const void *code) {
    for (int g = 0; g < 8; g++) {
        pl_store32(codes->q[g][lane], pl_load32((const uint8_t *)code + 4 * g) ^ 0x80808080);
    }
}

static inline void pl_unpack_codes8(const pl_codes8 *codes, int32_t lane, void *code) {
    for (int g = 0; g < 8; g++) { pl_store32((uint8_t *)code + 4 * g, pl_load32(codes->q[g][lane]) ^ 0x80808080); }
}

/* code (32) in [-bias, 15 - bias]. */
static inline void pl_pack_codes4(pl_codes4 *codes, int32_t lane, const int8_t *code, int bias) {
    for (int j = 0; j < 16; j++) {
        codes->q[j / 4][lane][j % 4] = (uint8_t)((code[j] + bias) | (code[j + 16] + bias) << 4);
    }
}

/* Nibbles (low or high by `shift`) of 32 bytes, in the strip's order: byte 4 g + i holds groups g and g + 4. */
static inline void pl_pack_nibbles(uint8_t q[4][16][4], int32_t lane, const uint8_t qs[32], int shift) {
    for (int g = 0; g < 4; g++) {
        uint32_t low = pl_load32(qs + 4 * g) >> shift & 0x0f0f0f0f;
        uint32_t high = pl_load32(qs + 16 + 4 * g) >> shift & 0x0f0f0f0f;
        pl_store32(q[g][lane], low | high << 4);
    }
}

/* Two bits of each of 32 bytes, those from `shift` on: bits 2 (g % 4) and up of byte [g / 4][lane][i] are group g's. */
static inline void pl_pack_pairs(uint8_t h2[2][16][4], int32_t lane, const uint8_t qs[32], int shift) {
    for (int half = 0; half < 2; half++) {
        uint32_t pairs = 0;
        for (int g = 0; g < 4; g++) pairs |= (pl_load32(qs + 16 * half + 4 * g) >> shift & 0x03030303) << 2 * g;
        pl_store32(h2[half][lane], pairs);
    }
}

#endif
