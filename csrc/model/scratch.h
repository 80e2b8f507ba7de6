/* The activations of one forward pass. Grown on demand and kept, so that decoding allocates nothing. */
#ifndef PL_MODEL_SCRATCH_H
#define PL_MODEL_SCRATCH_H

#include "model/model.h"

/* Widths are padded to 16 and the padding stays zero. */
typedef struct pl_scratch {
    int64_t tokens; /* room for so many */
    int32_t threads;
    float *x;           /* (tokens, dim): the residual stream */
    float *q;           /* (tokens, heads * head_dim): queries, then attention's output */
    float *k, *v;       /* (tokens, kv_heads * head_dim) */
    float *gate, *up;   /* (tokens, hidden) */
    float *cos_sin;     /* (tokens, rope_dims / 2, 2) */
    pl_act_buffer acts; /* (max(tokens, threads)): what the next product reads */
    float *attend;      /* (threads, pl_scratch_attend): each thread's own, for attention */
    int64_t partials;   /* room for so many */
    pl_attended parts;  /* (partials): attention of lone tokens, by chunk and head */
} pl_scratch;

/* Floats that a thread works with in attention: a chunk's scores, and for some rows either their rotated queries or
 * what is known of two chunks. */
static inline int64_t pl_scratch_attend(const pl_kv_layout *kv) { return PL_ATTEND_WORK + 2 * PL_ROWS * (kv->d16 + 2); }

/* Room for a forward pass: what the last one left, or new. NULL: no memory. The model keeps what was returned last, one
 * at most; returning NULL leaves it with none. */
pl_scratch *pl_scratch_borrow(pl_model *model);
void pl_scratch_return(pl_model *model, pl_scratch *scratch);

int32_t pl_scratch_reserve(pl_scratch *scratch, const pl_model *model, int64_t tokens, int64_t partials,
                           int32_t threads, pl_error *err);
void pl_scratch_free(pl_scratch *scratch);

#endif
