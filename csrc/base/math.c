#include "base/math.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

static double scale_by_power_of_two(double x, int64_t n) {
    uint64_t bits = (uint64_t)(n + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return x * power;
}

double pl_exp(double x) {
    if (x != x) return x;
    if (x > 709.0) return (double)INFINITY;
    if (x < -708.0) return 0.0;
    int64_t n = (int64_t)(x * 1.4426950408889634 + (x < 0 ? -0.5 : 0.5));
    double r = (x - (double)n * 6.93147180369123816490e-01) - (double)n * 1.90821492927058770002e-10;
    double sum = 1.0;
    for (int k = 13; k >= 1; k--) sum = 1.0 + r / k * sum; /* Taylor, |r| <= 0.35 */
    return scale_by_power_of_two(sum, n);
}

double pl_log(double x) {
    int exponent;
    double m = frexp(x, &exponent);
    if (m < 0.70710678118654752) m *= 2.0, exponent -= 1;
    double s = (m - 1.0) / (m + 1.0), s2 = s * s, sum = 0.0;
    for (int k = 25; k >= 3; k -= 2) sum = (sum + 1.0 / k) * s2; /* log m = 2 atanh s, |s| <= 0.172 */
    return (double)exponent * 1.90821492927058770002e-10 + (2.0 * s * (1.0 + sum)) +
           (double)exponent * 6.93147180369123816490e-01;
}

void pl_sincos(double x, double *sine, double *cosine) {
    /* pi/2 in two parts, the first with 33 bits: k * part is exact for |k| < 2^20. */
    int64_t k = (int64_t)(x * 0.63661977236758134 + (x < 0 ? -0.5 : 0.5));
    double r = (x - (double)k * 1.57079632673412561417e+00) - (double)k * 6.07710050650619224932e-11;
    double r2 = r * r, s = 1.0, c = 1.0;
    for (int i = 16; i >= 2; i -= 2) s = 1.0 - r2 / (i * (i + 1)) * s; /* Taylor, |r| <= pi / 4 */
    for (int i = 17; i >= 1; i -= 2) c = 1.0 - r2 / (i * (i + 1)) * c;
    s *= r;
    switch (k & 3) {
        case 0: *sine = s, *cosine = c; break;
        case 1: *sine = c, *cosine = -s; break;
        case 2: *sine = -s, *cosine = -c; break;
        default: *sine = -c, *cosine = s; break;
    }
}
