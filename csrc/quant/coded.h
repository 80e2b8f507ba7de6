/* Types whose weights are an integer times a scale, and nothing else: one function that opens a block says all there is
 * to say about the type. Its reference values and its packing both follow from what it gives. */
#ifndef PL_QUANT_CODED_H
#define PL_QUANT_CODED_H

#include "quant/blocks.h"
#include "quant/pack.h"
#include "quant/rows.h"

/* 32 weights: value[k] = scale[k / 16] * code[k], one rounding. */
typedef struct pl_coded {
    float scale[2];
    int8_t code[PL_BLOCK];
} pl_coded;

/* Opens the 32 weights from 32 * part on of one block of the file. */
typedef void pl_open_coded(const uint8_t *block, int part, pl_coded *out);

static inline void pl_coded_scale(pl_coded *out, float scale) { out->scale[0] = out->scale[1] = scale; }

static inline void pl_dequantize_coded(pl_open_coded open, const pl_type_info *info, const uint8_t *block, int64_t cols,
                                       float *out) {
    int parts = info->block_elements / PL_BLOCK;
    for (int64_t b = 0; b < cols / PL_BLOCK; b++) {
        pl_coded w;
        open(block + b / parts * info->block_bytes, (int)(b % parts), &w);
        for (int j = 0; j < PL_BLOCK; j++) *out++ = w.scale[j / 16] * (float)w.code[j];
    }
}

/* `packing` is a constant at every call. Q4 and Q8 are for types whose scale is an f16. */
static inline void pl_pack_coded(pl_open_coded open, const pl_type_info *info, pl_packing packing, const uint8_t *block,
                                 int64_t cols, void *strip, int32_t lane) {
    int parts = info->block_elements / PL_BLOCK;
    for (int64_t b = 0; b < cols / PL_BLOCK; b++) {
        pl_coded w;
        open(block + b / parts * info->block_bytes, (int)(b % parts), &w);
        if (packing == PL_PACK_Q4) {
            pl_strip_q4 *to = (pl_strip_q4 *)strip + b;
            to->d[lane] = pl_f16_from_float(w.scale[0]);
            pl_pack_codes4(&to->codes, lane, w.code, 8);
        } else if (packing == PL_PACK_Q8) {
            pl_strip_q8 *to = (pl_strip_q8 *)strip + b;
            to->d[lane] = pl_f16_from_float(w.scale[0]);
            pl_pack_codes8(&to->codes, lane, w.code);
        } else if (packing == PL_PACK_Q8F) {
            pl_strip_q8f *to = (pl_strip_q8f *)strip + b;
            to->d[lane] = w.scale[0];
            pl_pack_codes8(&to->codes, lane, w.code);
        } else {
            pl_strip_q8h *to = (pl_strip_q8h *)strip + b / 8;
            to->d[b % 8 * 2][lane] = w.scale[0];
            to->d[b % 8 * 2 + 1][lane] = w.scale[1];
            pl_pack_codes8(&to->codes[b % 8], lane, w.code);
        }
    }
}

/* The row of the table for type ID, whose blocks open_<type> opens. */
#define PL_CODED_TYPE(type, ID, name, elements, bytes, packing, quantize) \
    static void dequantize_##type(const pl_source *source, int64_t row, float *out) { \
        const uint8_t *block = pl_source_row(source, &pl_type_##type, row); \
        pl_dequantize_coded(open_##type, &pl_type_##type.info, block, source->cols, out); \
    } \
    static void pack_##type(const pl_source *source, int64_t row, void *strip, int32_t lane) { \
        const uint8_t *block = pl_source_row(source, &pl_type_##type, row); \
        pl_pack_coded(open_##type, &pl_type_##type.info, packing, block, source->cols, strip, lane); \
    } \
    const pl_type pl_type_##type = {{ID, name, elements, bytes}, packing, dequantize_##type, pack_##type, quantize};

#endif
