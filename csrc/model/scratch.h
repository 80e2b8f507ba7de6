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
    float *attend;      /* (threads, pl_attend_work) */
} pl_scratch;

int32_t pl_scratch_reserve(pl_scratch *scratch, const pl_model *model, int64_t tokens, int32_t threads, pl_error *err);
void pl_scratch_free(pl_scratch *scratch);

#endif
