/* Elementary functions of our own: the platform's libm may round differently on another machine, and one arithmetic
 * (law 1) means the same bits everywhere. Plain IEEE operations and explicit fma only. */
#ifndef PL_BASE_MATH_H
#define PL_BASE_MATH_H

/* e^x in float, within 1 ulp of the true value where the result is normal; 0 below -87.34, inf above 88.73, NaN for
 * NaN. The SIMD levels repeat these very operations lane by lane. */
float pl_expf(float x);

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

/* In double, for tables and reductions; accurate to a few ulp. */
double pl_exp(double x);
double pl_log(double x);                                /* x > 0 */
void pl_sincos(double x, double *sine, double *cosine); /* |x| < 1.6e6 */

#endif
