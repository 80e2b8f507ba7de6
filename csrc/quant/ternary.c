/* TQ1_0 and TQ2_0: -1, 0 and 1 under one f16 scale for 256 (TQ2_0 has room for 2 as well). Q2_0 and Q1_0: -1 to 2 for
 * 64, and -1 or 1 for 128. */
#include "quant/coded.h"

/* Digit n (the first is the highest) of a byte that holds five base-3 digits as a fraction, value * 256 / 243. */
static int8_t trit(uint8_t byte, int n) {
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    uint8_t moved = (uint8_t)(byte * power[n]);
    return (int8_t)((moved * 3 >> 8) - 1);
}

/* Digits lie plane by plane: five planes of 32 bytes, five of the next 16, four of the last 4. */
static void open_tq1_0(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_tq1_0 *block = (const pl_block_tq1_0 *)bytes;
    pl_coded_scale(out, pl_load_f16(block->d));
    for (int j = 0; j < 32; j++) {
        int k = part * 32 + j;
        if (k < 160) {
            out->code[j] = trit(block->qs[k % 32], k / 32);
        } else if (k < 240) {
            out->code[j] = trit(block->qs[32 + (k - 160) % 16], (k - 160) / 16);
        } else {
            out->code[j] = trit(block->qh[(k - 240) % 4], (k - 240) / 4);
        }
    }
}

static void open_tq2_0(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_tq2_0 *block = (const pl_block_tq2_0 *)bytes;
    const uint8_t *qs = block->qs + part / 4 * 32;
    pl_coded_scale(out, pl_load_f16(block->d));
    for (int j = 0; j < 32; j++) out->code[j] = (int8_t)((qs[j] >> part % 4 * 2 & 3) - 1);
}

static void open_q2_0(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_q2_0 *block = (const pl_block_q2_0 *)bytes;
    const uint8_t *qs = block->qs + 8 * part;
    pl_coded_scale(out, pl_load_f16(block->d));
    for (int j = 0; j < 32; j++) out->code[j] = (int8_t)((qs[j / 4] >> j % 4 * 2 & 3) - 1);
}

static void open_q1_0(const uint8_t *bytes, int part, pl_coded *out) {
    const pl_block_q1_0 *block = (const pl_block_q1_0 *)bytes;
    uint32_t signs = pl_load32(block->qs + 4 * part);
    pl_coded_scale(out, pl_load_f16(block->d));
    for (int j = 0; j < 32; j++) out->code[j] = (int8_t)((int)(signs >> j & 1) * 2 - 1);
}

PL_CODED_TYPE(tq1_0, PL_TYPE_TQ1_0, "TQ1_0", 256, 54, PL_PACK_Q4, NULL)
PL_CODED_TYPE(tq2_0, PL_TYPE_TQ2_0, "TQ2_0", 256, 66, PL_PACK_Q4, NULL)
PL_CODED_TYPE(q2_0, PL_TYPE_Q2_0, "Q2_0", 64, 18, PL_PACK_Q4, NULL)
PL_CODED_TYPE(q1_0, PL_TYPE_Q1_0, "Q1_0", 128, 18, PL_PACK_Q4, NULL)
