/* Attention over paged keys and values: ops/kv.h says how they lie. */
#ifndef PL_OPS_ATTENTION_H
#define PL_OPS_ATTENTION_H

#include "ops/kv.h"

enum {
    PL_CHUNK = 256, /* positions whose softmax is taken at once; part of the arithmetic */
    PL_ROWS = 16,   /* queries that one call of pl_attend_chunk may share its keys with */
};

/* Queries of one KV head, in one sequence: either the heads of a group at one position (step 0) or consecutive
 * positions of one head (step 1). Row r is column r of `acts` and stands at position first + r * step. */
typedef struct pl_queries {
    pl_acts acts; /* pl_query_acts */
    int64_t rows; /* <= PL_ROWS */
    int64_t first, step;
} pl_queries;

/* Floats of room that queries take beside themselves: Q8_0 keys are multiplied with integers of 16 bits. */
int64_t pl_query_room(const pl_kv_layout *layout);
/* Queries q (rows, ld) of head_dim as the keys' product reads them; room (pl_query_room) has to last as long. */
pl_acts pl_query_acts(const pl_kernels *kernels, const pl_kv_layout *layout, const float *q, int64_t ld, int64_t rows,
                      float *room);

/* What a position sees: so many before it, itself, and so many after it, of the `length` there are. */
typedef struct pl_sight { int64_t before, after, length; } pl_sight;

/* The positions [begin, end) that `position` sees. */
static inline int64_t pl_sight_begin(const pl_sight *s, int64_t position) {
    return position > s->before ? position - s->before : 0;
}

static inline int64_t pl_sight_end(const pl_sight *s, int64_t position) {
    return position < s->length - s->after ? position + s->after + 1 : s->length;
}

/* What becomes of a score q . k: scale times it or, where there is a cap, cap * tanh(scale / cap times it). */
typedef struct pl_scoring { float scale, cap; /* 0: none */ } pl_scoring;

/* What queries make of some of the positions, a row each: the largest score m, l = sum p with p = exp(score - m), and
 * sum p v. */
typedef struct pl_attended { float *max, *sum, *values; /* (rows), (rows), (rows, d16) */ } pl_attended;

/* The sequence's keys and values of one layer and KV head. */
typedef struct pl_kv_view {
    const pl_kv_layout *layout;
    uint8_t *const *pages;
    size_t unit;
} pl_kv_view;

enum { PL_ATTEND_WORK = PL_ROWS * PL_CHUNK }; /* floats of `work` below */

/* One chunk: the PL_CHUNK positions from `start` on, as far as each row sees them. A row that sees none has m = -inf,
 * l = 0. */
void pl_attend_chunk(const pl_kernels *kernels, const pl_kv_view *kv, pl_scoring scoring, const pl_sight *sight,
                     const pl_queries *queries, int64_t start, float *work, pl_attended out);
/* Folds the chunk that follows into what is known of those before it. */
void pl_attend_fold(int64_t rows, int64_t d16, pl_attended so_far, pl_attended chunk);
/* The attention of row r, out (head_dim): sum p v / sum p. sink: NULL, or one more score, which has no value. */
void pl_attend_finish(const pl_kv_layout *layout, pl_attended all, int64_t r, const float *sink, float *out);

#endif
