/* Low-rank adapters: y = W x + b becomes y + B (scale A x) for some of a model's matrices, which stay as they are. */
#ifndef PL_MODEL_ADAPTER_H
#define PL_MODEL_ADAPTER_H

#include "model/model.h"

typedef struct pl_low_rank {
    pl_matrix a; /* (rank, cols) */
    pl_matrix b; /* (rows, rank); without strips where the adapter leaves a matrix alone */
} pl_low_rank;

struct pl_adapter {
    pl_model *model; /* holds a reference */
    atomic_int references;
    atomic_int in_use; /* 1: nothing can be bound any more */
    pl_arena weights;
    int64_t rank;       /* the largest */
    pl_low_rank *pairs; /* (model->n_linears), by pl_linear.index */
};

/* What a session's evaluations add to the model's products, one after another. */
typedef struct pl_adaptation {
    pl_adapter *adapter; /* holds a reference */
    float scale;
} pl_adaptation;

typedef struct pl_adaptations {
    pl_adaptation *list; /* (n) */
    int32_t n;
} pl_adaptations;

/* A list of the same adapters, each with one reference more. */
int32_t pl_adaptations_copy(const pl_adaptations *from, pl_adaptations *out, pl_error *err);
void pl_adaptations_free(pl_adaptations *adaptations);

#endif
