/* Half-precision numbers in plain C, rounding to nearest even and quieting NaNs exactly as F16C and NEON do. */
#ifndef PL_QUANT_F16_H
#define PL_QUANT_F16_H

#include "base/math.h"

static inline float pl_float_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 0) { /* zero or subnormal: mantissa * 2^-24, exact */
        float magnitude = (float)mantissa * 0x1p-24f;
        return pl_float_from_bits(sign | pl_float_bits(magnitude));
    }
    if (exponent == 31) return pl_float_from_bits(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
    return pl_float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

static inline uint16_t pl_f16_from_float(float x) {
    uint32_t bits = pl_float_bits(x), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
    if (magnitude >= 0x47800000) return (uint16_t)(sign | 0x7c00); /* 65536 and up */
    if (magnitude < 0x38800000) { /* below 2^-14: adding 0.5 leaves round(x * 2^24) in the low bits */
        float shifted = pl_float_from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (pl_float_bits(shifted) - 0x3f000000));
    }
    uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    return (uint16_t)(sign | ((rounded >> 13) - (112 << 10)));
}

static inline float pl_float_from_bf16(uint16_t b) { return pl_float_from_bits((uint32_t)b << 16); }

#endif
