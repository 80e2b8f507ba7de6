/* The activations of one forward pass. Grown on demand and kept, so that decoding allocates nothing. */
#ifndef PL_MODEL_SCRATCH_H
#define PL_MODEL_SCRATCH_H

#include "model/model.h"

/* An expert that a token takes, and what its answer is multiplied with. */
typedef struct pl_choice {
    int32_t expert;
    float weight;
} pl_choice;

/* What the experts of a pass work in. A pair is a token and an expert that it takes; pairs lie expert by expert. */
typedef struct pl_expert_scratch {
    float *router;      /* (tokens, experts): logits */
    float *shared;      /* (tokens, 1): logits of the shared expert's router */
    pl_choice *choices; /* (max(tokens, threads), used) */
    float *ranking;     /* (threads, 3, experts): each thread's own, for choosing */
    int32_t *plans;     /* (threads, pl_plan_size): each thread's own account of which pair lies where */
    pl_act_buffer acts; /* (pairs) */
    float *gate, *up;   /* (pairs, expert_dim) */
    float *out;         /* (pairs, dim) */
} pl_expert_scratch;

/* Widths are padded to 16 and the padding stays zero, but in gate and up, whose rows may be of several widths. */
typedef struct pl_scratch {
    int64_t tokens; /* room for so many */
    int32_t threads;
    float *x;           /* (max(tokens, threads), dim): the residual stream; of a lone token each thread has its own */
    float *y;           /* (tokens, dim): what a block makes of it */
    float *q;           /* (tokens, heads * head_dim): queries, then attention's output */
    float *k, *v;       /* (tokens, kv_heads * head_dim) */
    float *gate, *up;   /* (tokens, hidden), of all experts' too */
    float *cos_sin;     /* (tokens, 2, rope_dims / 2, 2): by main and local rotation */
    pl_act_buffer acts; /* (max(tokens, threads)): what the next product reads */
    float *attend;      /* (threads, pl_scratch_attend): each thread's own, for attention */
    int64_t partials;   /* room for so many */
    pl_attended parts;  /* (partials): attention of lone tokens, by chunk and head */
    pl_expert_scratch experts;
} pl_scratch;

/* Floats that a thread works with in attention: a chunk's scores; for some rows either their turned queries or what is
 * known of two chunks; the queries as keys want them, from pl_scratch_queries on; and a head. */
static inline int64_t pl_scratch_queries(const pl_kv_layout *kv) {
    return PL_ATTEND_WORK + 2 * PL_ROWS * (kv->d16 + 2);
}

static inline int64_t pl_scratch_attend(const pl_kv_layout *kv) {
    return pl_scratch_queries(kv) + pl_query_room(kv) + kv->d16;
}

/* Token i's (cos, sin) for a layer's rotation. */
static inline float *pl_cos_sin(const pl_scratch *s, const pl_config *c, int64_t i, int32_t rope) {
    return s->cos_sin + (2 * i + (rope == PL_ROPE_LOCAL)) * pl_pad(c->rope_dims);
}

/* Where each expert's pairs begin, and the end of the last; the token of each pair; where each token's pairs lie. */
static inline int64_t pl_plan_size(const pl_config *c, int64_t tokens) {
    return c->n_experts + 1 + 2 * tokens * c->n_experts_used;
}

/* Room for a forward pass: what the last one left, or new. NULL: no memory. The model keeps what was returned last, one
 * at most; returning NULL leaves it with none. */
pl_scratch *pl_scratch_borrow(pl_model *model);
void pl_scratch_return(pl_model *model, pl_scratch *scratch);

int32_t pl_scratch_reserve(pl_scratch *scratch, const pl_model *model, int64_t tokens, int64_t partials,
                           int32_t threads, pl_error *err);
void pl_scratch_free(pl_scratch *scratch);

#endif
