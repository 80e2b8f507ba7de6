/* Matrix products: packed weights, prepared activations, and the worker's share of the rows. */
#ifndef PL_OPS_MATMUL_H
#define PL_OPS_MATMUL_H

#include "base/memory.h"
#include "base/threads.h"
#include "kernels/kernels.h"
#include "pyllm.h"
#include "quant/types.h"

/* A packed matrix W (rows, cols); its strips belong to an arena. Rows beyond `rows` in the last strip are zeros. */
typedef struct pl_matrix {
    pl_packing packing;
    int64_t rows, cols;
    uint8_t *strips;
    size_t nbytes;
} pl_matrix;

/* Packs `source` into `arena` with `threads` threads. order(context, r) is the file's row that becomes row r (NULL: the
 * same). */
typedef int64_t (*pl_row_order)(const void *context, int64_t row);
int32_t pl_matrix_pack(pl_matrix *out, pl_arena *arena, const pl_source *source, pl_row_order order,
                       const void *context, int32_t threads, pl_error *err);
/* Row `row` as fp32, out (cols). */
void pl_matrix_row(const pl_matrix *matrix, int64_t row, float *out);

/* Room for the activations of n tokens, in the forms that float and quantised weights read. Owns its memory. */
typedef struct pl_act_buffer {
    float *f;             /* (n, ld) */
    int64_t ld;           /* padded width of the widest input */
    int8_t *q;            /* n columns of pl_acts_ldq(k, planes) bytes, planes at most 2 */
    pl_act_block *blocks; /* (n, k / 32) */
} pl_act_buffer;

int32_t pl_act_buffer_init(pl_act_buffer *buffer, int64_t n, int64_t widest, pl_error *err);
void pl_act_buffer_free(pl_act_buffer *buffer);

/* Column c as floats, for an input to be written to. */
static inline float *pl_acts_column(const pl_act_buffer *buffer, int64_t c) { return buffer->f + c * buffer->ld; }
/* Makes column c of x (k), which may be that column itself: quantised into `planes` bytes each, for which k is a
 * multiple of 32, or as floats (planes 0). */
void pl_acts_set(const pl_kernels *kernels, pl_act_buffer *buffer, int64_t c, const float *x, int64_t k,
                 int32_t planes);
/* Makes column `to` of one buffer column `c` of another, as pl_acts_set left it: as floats, and if planes > 0
 * quantised. */
void pl_acts_copy(pl_act_buffer *buffer, int64_t to, const pl_act_buffer *from, int64_t c, int64_t k, int32_t planes);
/* The buffer from column `first` on as kernels read it, for inputs of width k quantised into `planes`. */
pl_acts pl_acts_view(const pl_act_buffer *buffer, int64_t first, int64_t k, int32_t planes);

/* Where a product goes: column c to base + c * ld, or to columns[c] where that is given. */
typedef struct pl_output {
    float *base;
    int64_t ld;
    float *const *columns;
    int32_t add; /* 1: y += W x; 0: y = W x */
} pl_output;

/* The worker's share of y (n, rows) = x (n, cols) W^T. */
void pl_matmul(const pl_kernels *kernels, const pl_worker *worker, const pl_matrix *w, const pl_acts *x, int64_t n,
               const pl_output *y);

#endif
