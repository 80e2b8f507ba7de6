#include "ops/probability.h"

#include <math.h>
#include <string.h>

#include "base/math.h"

enum { BLOCK = 1024 };

/* The sum of e^(x - max) over one block, and its max. */
static float block_sum(const pl_kernels *kernels, const float *x, int64_t n, float *max) {
    float copy[BLOCK];
    int64_t n16 = pl_pad(n);
    memcpy(copy, x, (size_t)n * sizeof *x);
    for (int64_t i = n; i < n16; i++) copy[i] = -INFINITY;
    return kernels->softmax(copy, n16, 1.0f, max);
}

double pl_log_softmax_at(const pl_kernels *kernels, const float *logits, int64_t n, int64_t token) {
    double total = 0, top = -(double)INFINITY;
    for (int64_t i = 0; i < n; i += BLOCK) {
        float max;
        double sum = block_sum(kernels, logits + i, n - i < BLOCK ? n - i : BLOCK, &max);
        double higher = (double)max > top ? (double)max : top;
        if (max == -INFINITY) continue; /* nothing but -inf in it */
        total = total * pl_exp(top - higher) + sum * pl_exp((double)max - higher);
        top = higher;
    }
    return (double)logits[token] - top - pl_log(total);
}

double pl_log_probability(const float *logits, int64_t vocab, int32_t token) {
    return pl_log_softmax_at(pl_kernels_current(), logits, vocab, token);
}
