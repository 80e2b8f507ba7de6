/* Searches for the scale, and minimum, under which a group of weights is off the least as small integers.
 *
 * Everything is plain C in one order: the same file comes out on every machine, with any number of threads. Groups are
 * of n = 16 or 32 weights, all finite; `weight` (n) says what an error in each costs. */
#ifndef PL_QUANT_FIT_H
#define PL_QUANT_FIT_H

#include <stdint.h>

/* x ~ scale * code - minimum, code in [low, high]; error: the weighted sum of squares. */
typedef struct pl_fit {
    float scale, minimum;
    double error;
} pl_fit;

/* Minimum 0, scale of either sign. */
pl_fit pl_fit_scale(const float *x, const float *weight, int n, int low, int high);
/* Codes from 0 on, scale >= 0; minimum >= 0 too, unless `any_minimum`. */
pl_fit pl_fit_affine(const float *x, const float *weight, int n, int high, int any_minimum);

/* 1 / scale where that is a number, else 0: a vanishing scale gives every code 0. */
float pl_fit_inverse(float scale);

/* The nearest codes; all of them 0, if those may be, where scale is 0. */
void pl_fit_codes(const float *x, int n, float scale, float minimum, int low, int high, int8_t *code);

/* What an error costs: more in large weights, which belong to channels that matter; the sum of squares, n 16 or 32. */
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
