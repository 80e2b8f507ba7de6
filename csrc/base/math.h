/* Elementary functions of our own: the platform's libm may round differently on another machine, and one arithmetic
 * (law 1) means the same bits everywhere. Plain IEEE operations and explicit fma only.
 *
 * Those in float have no branches and are inlined, so that a loop over one fills the vectors of whatever level it is
 * compiled for. */
#ifndef PL_BASE_MATH_H
#define PL_BASE_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define PL_MATH static inline __attribute__((always_inline))

PL_MATH uint32_t pl_float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

PL_MATH float pl_float_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* condition ? a : b, by its bits: a compiler that minds floating-point traps would make a branch of the other. */
PL_MATH float pl_select(int condition, float a, float b) {
    uint32_t mask = -(uint32_t)condition;
    return pl_float_from_bits((pl_float_bits(a) & mask) | (pl_float_bits(b) & ~mask));
}

/* The constants of pl_expf, shared with the SIMD levels. */
#define PL_EXP_MAX 88.7228394f
#define PL_EXP_MIN -87.3365479f
#define PL_EXP_LOG2E 1.44269502f
#define PL_EXP_LN2_HI 0.693145752f /* 16 significant bits: n * LN2_HI is exact */
#define PL_EXP_LN2_LO 1.42860677e-6f
#define PL_EXP_C2 0.5f /* (e^r - 1 - r) / r^2 on |r| <= ln2 / 2, Chebyshev fit, 0.2 ulp */
#define PL_EXP_C3 0.166665763f
#define PL_EXP_C4 0.0416665524f
#define PL_EXP_C5 0.00836323295f
#define PL_EXP_C6 0.00139262504f
#define PL_EXP_ROUND 12582912.0f /* 1.5 * 2^23: adding it rounds to the nearest integer, kept in the low bits */

/* e^x in float, within 1 ulp of the true value where the result is normal; 0 below -87.34, inf above 88.73, NaN for
 * NaN. e^x = 2^n e^r with n = round(x / ln 2); 2^n is added to the exponent field. The SIMD levels repeat these very
 * operations lane by lane. */
PL_MATH float pl_expf(float x) {
    float shifted = fmaf(x, PL_EXP_LOG2E, PL_EXP_ROUND);
    float n = shifted - PL_EXP_ROUND;
    float r = fmaf(n, -PL_EXP_LN2_LO, fmaf(n, -PL_EXP_LN2_HI, x));
    float p = fmaf(fmaf(fmaf(fmaf(PL_EXP_C6, r, PL_EXP_C5), r, PL_EXP_C4), r, PL_EXP_C3), r, PL_EXP_C2);
    float y = fmaf(p, r * r, r) + 1.0f;
    y = pl_float_from_bits(pl_float_bits(y) + (pl_float_bits(shifted) << 23));
    y = pl_select(x > PL_EXP_MAX, INFINITY, y);
    y = pl_select(x < PL_EXP_MIN, 0.0f, y);
    return pl_select(x == x, y, x);
}

/* |magnitude| with the sign of x. */
PL_MATH float pl_with_sign(float magnitude, float x) {
    return pl_float_from_bits((pl_float_bits(magnitude) & 0x7fffffff) | (pl_float_bits(x) & 0x80000000));
}

/* The error function, within 1.3 ulp. Near 0, x + x P(x^2); further out 1 - e^Q(|x|), Q = log erfc, which from 4 on
 * makes no difference any more. Both polynomials are minimax fits. */
PL_MATH float pl_erff(float x) {
    float t = pl_float_from_bits(pl_float_bits(x) & 0x7fffffff), s = x * x;
    float p = fmaf(fmaf(-0.000622241467f, s, 0.00503587071f), s, -0.026793953f);
    p = fmaf(fmaf(fmaf(p, s, 0.112825245f), s, -0.376125574f), s, 0.128379151f);
    float c = pl_select(t < 4.0f, t, 4.0f);
    float q = fmaf(fmaf(0.000201000643f, c, -0.00309233158f), c, 0.0224203616f);
    q = fmaf(fmaf(fmaf(q, c, -0.104327776f), c, -0.636736929f), c, -1.12793624f);
    float tail = 1.0f - pl_expf(fmaf(q, c, -0.00013354198f));
    float y = pl_select(t < 0.875f, fmaf(x, p, x), pl_with_sign(tail, x));
    return pl_select(x == x, y, x);
}

/* The hyperbolic tangent, within 1.3 ulp: near 0 x + x^3 P(x^2), further out 1 - 2 / (e^2|x| + 1). */
PL_MATH float pl_tanhf(float x) {
    float t = pl_float_from_bits(pl_float_bits(x) & 0x7fffffff), s = x * x;
    float p = fmaf(fmaf(-0.0061131753f, s, 0.0210100692f), s, -0.0538540669f);
    p = fmaf(fmaf(p, s, 0.133327946f), s, -0.333333284f);
    float tail = 1.0f - 2.0f / (pl_expf(2.0f * t) + 1.0f);
    float y = pl_with_sign(pl_select(t < 0.625f, fmaf(x * s, p, x), tail), x);
    return pl_select(x == x, y, x);
}

/* In double, for tables and reductions; accurate to a few ulp. */
double pl_exp(double x);
double pl_log(double x);                                /* x > 0 */
void pl_sincos(double x, double *sine, double *cosine); /* |x| < 1.6e6 */

#endif
