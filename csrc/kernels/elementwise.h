/* What is done to each element of a vector for itself, in plain C without branches. This is the definition, and each
 * level compiles it for its own instructions: the same operations in every lane, so the same bits. */
#ifndef PL_KERNELS_ELEMENTWISE_H
#define PL_KERNELS_ELEMENTWISE_H

#include "base/math.h"
#include "kernels/target.h"
#include "pyllm.h"

PL_INLINE float pl_silu(float x) { return x / (1.0f + pl_expf(-x)); }

PL_INLINE float pl_gelu(float x) { return 0.5f * x * (1.0f + pl_erff(x * 0.707106781f)); }

/* 0.5 x (1 + tanh u) is x / (1 + e^-2u), here with 2u = 2 sqrt(2 / pi) (x + 0.044715 x^3). */
PL_INLINE float pl_gelu_tanh(float x) { return x / (1.0f + pl_expf(-x * fmaf(0.0713548163f, x * x, 1.59576912f))); }

PL_INLINE float pl_relu_squared(float x) {
    float positive = pl_select(x > 0.0f, x, 0.0f);
    return positive * positive;
}

PL_INLINE float pl_silu_clamped(float gate, float up, float limit) {
    float g = pl_select(gate > limit, limit, gate), u = pl_select(up > limit, limit, up);
    u = pl_select(u < -limit, -limit, u);
    return g / (1.0f + pl_expf(-1.702f * g)) * (u + 1.0f);
}

/* out = f(gate) * up, or f(gate) where up is NULL. */
PL_INLINE void pl_activate_each(float f(float), const float *gate, const float *up, int64_t n, float *restrict out) {
    if (up == NULL) {
        for (int64_t i = 0; i < n; i++) out[i] = f(gate[i]);
    } else {
        for (int64_t i = 0; i < n; i++) out[i] = f(gate[i]) * up[i];
    }
}

PL_INLINE void pl_activate(int32_t kind, float limit, const float *gate, const float *up, int64_t n,
                           float *restrict out) {
    switch (kind) {
        case PL_ACTIVATION_SILU: pl_activate_each(pl_silu, gate, up, n, out); break;
        case PL_ACTIVATION_GELU: pl_activate_each(pl_gelu, gate, up, n, out); break;
        case PL_ACTIVATION_GELU_TANH: pl_activate_each(pl_gelu_tanh, gate, up, n, out); break;
        case PL_ACTIVATION_RELU_SQUARED: pl_activate_each(pl_relu_squared, gate, up, n, out); break;
        default:
            for (int64_t i = 0; i < n; i++) out[i] = pl_silu_clamped(gate[i], up[i], limit);
            break;
    }
}

PL_INLINE void pl_softcap(float *x, int64_t n, float scale, float cap) {
    float factor = scale / cap;
    for (int64_t i = 0; i < n; i++) x[i] = cap * pl_tanhf(x[i] * factor);
}

/* The two kernels of one level, inside its target region: activate_LEVEL and softcap_LEVEL. */
#define PL_ELEMENTWISE(level) \
    static void activate_##level(int32_t kind, float limit, const float *gate, const float *up, int64_t n, \
                                 float *out) { \
        pl_activate(kind, limit, gate, up, n, out); \
    } \
    static void softcap_##level(float *x, int64_t n, float scale, float cap) { pl_softcap(x, n, scale, cap); }

#endif
