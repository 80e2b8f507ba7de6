/* IQ4_NL, IQ4_XS, MXFP4: four bits that choose one of sixteen numbers. And Q8_K, which llama.cpp keeps activations in
 * and files hold now and then. */
#include "quant/coded.h"

static const int8_t nonlinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}; /* doubled */

/* Element j < 16 is chosen by the low nibble of qs[j], element j + 16 by the high one. */
static void look_up(const int8_t table[16], const uint8_t qs[16], int8_t code[32]) {
    for (int j = 0; j < 16; j++) {
        code[j] = table[qs[j] & 15];
        code[j + 16] = table[qs[j] >> 4];
    }
}

static void open_iq4_nl(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_q4_0 *block = (const pl_block_q4_0 *)bytes; /* the same fields */
    (void)part;
    pl_coded_scale(out, pl_load_f16(block->d));
    look_up(nonlinear, block->qs, out->code);
}

static void open_iq4_xs(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_iq4_xs *block = (const pl_block_iq4_xs *)bytes;
    int low = block->scales_l[part / 2] >> 4 * (part % 2) & 15, high = pl_load16(block->scales_h) >> 2 * part & 3;
    pl_coded_scale(out, pl_load_f16(block->d) * (float)((low | high << 4) - 32));
    look_up(nonlinear, block->qs + 16 * part, out->code);
}

/* Half of 2^(e - 127), since the codes are doubled; e = 0 and 1 are subnormal. */
static float half_power(uint8_t e) {
    return pl_float_from_bits(e < 2 ? (uint32_t)0x00200000 << e : (uint32_t)(e - 1) << 23);
}

static void open_mxfp4(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_mxfp4 *block = (const pl_block_mxfp4 *)bytes;
    (void)part;
    pl_coded_scale(out, half_power(block->e));
    look_up(e2m1, block->qs, out->code);
}

static void open_q8_k(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_q8_k *block = (const pl_block_q8_k *)bytes;
    pl_coded_scale(out, pl_float_from_bits(pl_load32(block->d)));
    memcpy(out->code, block->qs + 32 * part, sizeof out->code);
}

PL_CODED_TYPE(iq4_nl, PL_TYPE_IQ4_NL, "IQ4_NL", 32, 18, PL_PACK_Q8)
PL_CODED_TYPE(iq4_xs, PL_TYPE_IQ4_XS, "IQ4_XS", 256, 136, PL_PACK_Q8F)
PL_CODED_TYPE(mxfp4, PL_TYPE_MXFP4, "MXFP4", 32, 17, PL_PACK_Q8F)
PL_CODED_TYPE(q8_k, PL_TYPE_Q8_K, "Q8_K", 256, 292, PL_PACK_Q8F)
