/* The table of weight types: a type is a row (law 5). */
#ifndef PL_QUANT_TYPES_H
#define PL_QUANT_TYPES_H

#include "pyllm.h"
#include "quant/strips.h"

typedef struct pl_type {
    pl_type_info info;
    pl_packing packing; /* how its strips look */
    /* The reference: out (cols) are the values that row `row` of the file means. */
    void (*dequantize_row)(const pl_source *source, int64_t row, float *out);
    /* Writes row `row` of the file as row `lane` of a zeroed strip. */
    void (*pack_row)(const pl_source *source, int64_t row, void *strip, int32_t lane);
    /* x (cols), finite and at most 65504 in size, as a row of blocks; NULL where there is no quantiser. */
    void (*quantize_row)(const float *x, int64_t cols, void *out);
} pl_type;

const pl_type *pl_type_row(int32_t id); /* NULL if unknown */

/* Checks type, shape and nbytes against each other; names what does not fit. */
int32_t pl_source_check(const pl_source *source, pl_error *err);

/* The packing `source` gets, and its packing function. A tensor whose rows or groups do not line up with the strip's
 * blocks is unpacked to floats (through scratch (cols)): exact, and such files are small. */
pl_packing pl_source_packing(const pl_source *source);
void pl_source_pack_row(const pl_source *source, int64_t row, void *strip, int32_t lane, float *scratch);

#endif
