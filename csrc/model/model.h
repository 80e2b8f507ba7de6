/* A model: plain hyper-parameters and packed weights. Frozen after pl_model_finish; shared by any number of threads.
 * Reference-counted: the owner holds one reference, each session another, so either may go first. */
#ifndef PL_MODEL_MODEL_H
#define PL_MODEL_MODEL_H

#include <stdatomic.h>

#include "base/slabs.h"
#include "ops/attention.h"
#include "ops/matmul.h"
#include "pyllm.h"

/* What pyllm_api.h calls optional may be absent: NULL, or a matrix without strips. */
typedef struct pl_norm { float *weight, *bias; /* (n) */ } pl_norm;

typedef struct pl_linear {
    pl_matrix matrix; /* (rows, cols) */
    float *bias;      /* (rows) */
    int32_t index;    /* among all of the model that are bound */
} pl_linear;

/* down (activation(gate n) * (up n)): a feed-forward layer, or one expert of it. */
typedef struct pl_feed_forward {
    pl_linear gate, up; /* (width, dim) */
    pl_linear down;     /* (dim, width) */
} pl_feed_forward;

typedef struct pl_layer {
    pl_layer_config config;
    pl_norm attention_norm;
    pl_linear wq, wk, wv;   /* (heads * head_dim, dim), (kv_heads * head_dim, dim) twice */
    float *q_norm, *k_norm; /* as config.qk_norm says */
    float *sinks;           /* (heads) */
    pl_linear wo;           /* (dim, heads * head_dim) */
    pl_norm attention_post_norm;
    pl_norm ffn_norm;
    pl_feed_forward dense;    /* where it has no experts */
    int32_t quantised_input;  /* whether any matrix below that reads norm(x) wants it quantised */
    pl_linear router;         /* (experts, dim) */
    float *choice_bias;       /* (experts) */
    pl_feed_forward *experts; /* (n_experts) */
    pl_feed_forward shared;   /* that every token takes */
    pl_linear shared_router;  /* (1, dim) */
    pl_norm ffn_post_norm;
} pl_layer;

struct pl_model {
    pl_config config;
    pl_kv_layout kv;
    pl_arena weights; /* what the matrices' strips lie in */
    atomic_int references;
    pl_slabs page_memory;
    atomic_llong pages;                /* KV pages alive */
    atomic_llong page_limit;           /* so many at most */
    _Atomic(struct pl_scratch *) idle; /* of the last forward pass, for the next one; or NULL */
    int finished;
    int32_t n_linears;            /* matrices bound */
    pl_linear embedding;          /* (vocab, dim) */
    pl_linear position_embedding; /* (context, dim) */
    pl_norm embedding_norm;
    pl_layer *layers; /* (n_layers) */
    pl_norm final_norm;
    pl_linear own_head;  /* (vocab, dim); without a matrix where the embedding is tied */
    float *rope_factors; /* (rope_dims / 2) or NULL */
    float *rope_factors_long;
    float *rope_main, *rope_long, *rope_local; /* (rope_dims / 2) frequencies; NULL where no layer needs them */
};

static inline int pl_is_bound(const pl_linear *linear) { return linear->matrix.strips != NULL; }

/* What logits are made with; NULL in an encoder without a head. */
static inline const pl_matrix *pl_model_head(const pl_model *m) {
    if (pl_is_bound(&m->own_head)) return &m->own_head.matrix;
    return m->config.causal ? &m->embedding.matrix : NULL;
}

void pl_model_retain(pl_model *model);

/* A matrix that products are made with, and the order in which it takes the file's rows; NULL where there is none. */
const pl_linear *pl_model_linear(const pl_model *model, int32_t slot, int32_t layer, int32_t expert,
                                 pl_row_order *order);

#endif
