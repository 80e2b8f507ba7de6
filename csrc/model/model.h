/* A model: plain hyper-parameters and packed weights. Frozen after pl_model_finish; shared by any number of threads.
 * Reference-counted: the owner holds one reference, each session another, so either may go first. */
#ifndef PL_MODEL_MODEL_H
#define PL_MODEL_MODEL_H

#include <stdatomic.h>

#include "ops/attention.h"
#include "ops/matmul.h"
#include "pyllm.h"

typedef struct pl_layer {
    float *attention_norm; /* (dim) */
    pl_matrix wq, wk, wv;  /* (heads * head_dim, dim), (kv_heads * head_dim, dim) twice */
    pl_matrix wo;          /* (dim, heads * head_dim) */
    float *ffn_norm;       /* (dim) */
    pl_matrix gate, up;    /* (hidden, dim) */
    pl_matrix down;        /* (dim, hidden) */
} pl_layer;

struct pl_model {
    pl_config config;
    pl_kv_layout kv;
    pl_arena weights; /* what the matrices' strips lie in */
    atomic_int references;
    atomic_llong pages;                /* KV pages alive */
    atomic_llong page_limit;           /* so many at most */
    _Atomic(struct pl_scratch *) idle; /* of the last forward pass, for the next one; or NULL */
    int finished;
    pl_matrix embedding;     /* (vocab, dim) */
    pl_layer *layers;        /* (n_layers) */
    float *final_norm;       /* (dim) */
    pl_matrix own_head;      /* (vocab, dim); empty where the embedding is tied */
    float *rope_factors;     /* (rope_dims / 2) or NULL */
    float *rope_frequencies; /* (rope_dims / 2) */
};

static inline const pl_matrix *pl_model_head(const pl_model *m) {
    return m->own_head.strips ? &m->own_head : &m->embedding;
}

void pl_model_retain(pl_model *model);

#endif
