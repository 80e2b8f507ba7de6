#ifndef PL_OPS_PROBABILITY_H
#define PL_OPS_PROBABILITY_H

#include "kernels/kernels.h"

/* log softmax(logits)[token]: the exponentials of blocks of 1,024 in float, their sums in double. */
double pl_log_softmax_at(const pl_kernels *kernels, const float *logits, int64_t n, int64_t token);

#endif
