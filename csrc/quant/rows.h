/* The rows of the type table, each defined in the file of its family. */
#ifndef PL_QUANT_ROWS_H
#define PL_QUANT_ROWS_H

#include "quant/types.h"

extern const pl_type pl_type_f32, pl_type_f16, pl_type_bf16;                                         /* floats.c */
extern const pl_type pl_type_q8_0, pl_type_q4_0, pl_type_q4_1, pl_type_q5_0, pl_type_q5_1;           /* legacy.c */
extern const pl_type pl_type_q2_k, pl_type_q3_k, pl_type_q4_k, pl_type_q5_k, pl_type_q6_k;           /* kquants.c */
extern const pl_type pl_type_iq4_nl, pl_type_iq4_xs, pl_type_mxfp4, pl_type_nvfp4, pl_type_q8_k;     /* nonlinear.c */
extern const pl_type pl_type_tq1_0, pl_type_tq2_0, pl_type_q2_0, pl_type_q1_0;                       /* ternary.c */
extern const pl_type pl_type_iq2_xxs, pl_type_iq2_xs, pl_type_iq2_s, pl_type_iq3_xxs, pl_type_iq3_s; /* grids.c */
extern const pl_type pl_type_iq1_s, pl_type_iq1_m;
extern const pl_type pl_type_llama2c_q8; /* llama2c.c */

/* Bytes of a file row, for types whose rows are whole blocks one after another. */
static inline const uint8_t *pl_source_row(const pl_source *source, const pl_type *type, int64_t row) {
    size_t row_bytes = (size_t)(source->cols / type->info.block_elements) * (size_t)type->info.block_bytes;
    return (const uint8_t *)source->data + (size_t)row * row_bytes;
}

/* kquantize.c */
void pl_quantize_q2_k(const float *x, int64_t cols, void *out);
void pl_quantize_q3_k(const float *x, int64_t cols, void *out);
void pl_quantize_q4_k(const float *x, int64_t cols, void *out);
void pl_quantize_q5_k(const float *x, int64_t cols, void *out);
void pl_quantize_q6_k(const float *x, int64_t cols, void *out);

void pl_pack_float_row(const float *values, int64_t cols, void *strip, int32_t lane);

#endif
