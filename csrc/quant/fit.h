/* Searches for the scale, and minimum, under which groups of weights are off the least as small integers.
 *
 * Eight groups are searched at a time, one in each lane, by the same operations in the same order on every machine: the
 * same file comes out everywhere, with any number of threads. Weights are finite. */
#ifndef PL_QUANT_FIT_H
#define PL_QUANT_FIT_H

#include <stdint.h>

typedef float pl_f4 __attribute__((vector_size(16))); /* what SSE2 and NEON have: two of them are eight lanes */

enum { PL_FIT_LANES = 8, PL_FIT_HALVES = 2, PL_FIT_LONGEST = 32 };

/* Groups of n weights: lane l of half h is group 4 h + l. `weight` is what an error costs: more in large weights, which
 * belong to channels that matter. */
typedef struct pl_groups {
    int n;
    pl_f4 x[PL_FIT_LONGEST][PL_FIT_HALVES], weight[PL_FIT_LONGEST][PL_FIT_HALVES];
} pl_groups;

/* x ~ scale * code - minimum, one of each per lane. */
typedef struct pl_fits { pl_f4 scale[PL_FIT_HALVES], minimum[PL_FIT_HALVES]; } pl_fits;

/* The first `count` groups are those of x (count, n), the others zeros. n: 16 or 32. */
void pl_groups_load(pl_groups *groups, const float *x, int n, int count);

/* Codes in [low, high], minimum 0, scale of either sign. */
void pl_fit_scale(const pl_groups *groups, int low, int high, pl_fits *out);
/* Codes in [0, high], scale >= 0; minimum >= 0 too, unless `any_minimum`. */
void pl_fit_affine(const pl_groups *groups, int high, int any_minimum, pl_fits *out);

/* The nearest half-precision number that is one: the best scale or minimum may lie beyond them all. */
uint16_t pl_fit_half(float x);

/* 1 / scale where that is a number, else 0: a vanishing scale gives every code 0. */
float pl_fit_inverse(float scale);

/* The nearest codes to x (n); all of them 0, if those may be, where scale is 0. */
void pl_fit_codes(const float *x, int n, float scale, float minimum, int low, int high, int8_t *code);

/* What an error costs, for one group x (n), as `pl_groups` has it. */
void pl_fit_weights(const float *x, int n, float *weight);

/* How the scales (and minima) of a block of 256 are themselves integers. */
typedef struct pl_nesting {
    int size;                  /* of a sub-block: 16 or 32 */
    int low, high;             /* codes */
    int scale_low, scale_high; /* their integer scales */
    int minimum_high;          /* minima are in [0, minimum_high]; 0 where there are none */
} pl_nesting;

/* x ~ (d * scale[s]) * code - (dmin * minimum[s]) with d, dmin f16 numbers. */
typedef struct pl_nested {
    uint16_t d, dmin; /* f16 */
    int16_t scale[16], minimum[16];
    int8_t code[256];
} pl_nested;

void pl_fit_nested(const float *x, const pl_nesting *nesting, pl_nested *out);

#endif
