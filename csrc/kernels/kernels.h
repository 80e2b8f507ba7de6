/* The table of kernels: everything that is worth a SIMD path, and nothing that knows of threads, models or files.
 *
 * scalar.c is complete: it is the definition of each operation, the fallback, and the oracle of the tests. Every other
 * level gives the same bits (law 1). That holds because
 *   - a SIMD lane is an output row, so each row's sum is one chain in one order whatever the vector width;
 *   - integer sums are exact;
 *   - sums over a vector run in 16 lanes, element i in lane i % 16, folded 8, 4, 2, 1 apart;
 *   - every fused multiply-add is written as one, and nothing else is fused.
 *
 * Padding: lengths of fp32 vectors marked n16 are multiples of 16; the caller pads with zeros. */
#ifndef PL_KERNELS_H
#define PL_KERNELS_H

#include <stdint.h>

#include "pyllm.h"
#include "quant/blocks.h"
#include "quant/strips.h"

/* n rounded up to the 16 lanes that fp32 buffers are padded to. */
static inline int64_t pl_pad(int64_t n) { return (n + PL_STRIP - 1) / PL_STRIP * PL_STRIP; }

/* What 32 activations of one column have in common. */
typedef struct pl_act_block {
    float scale;           /* x ~ scale * a */
    float offset;          /* scale * sum a: what a weight's minimum is multiplied with */
    int32_t minus_sum;     /* -sum a: times 2^n, what codes stored 2^n too high start their sum from */
    int32_t minus_half[2]; /* the same of either 16 */
} pl_act_block;

static inline pl_act_block pl_act_block_of(float scale, const int32_t minus_half[2]) {
    int32_t minus_sum = minus_half[0] + minus_half[1];
    return (pl_act_block){scale, scale * (float)-minus_sum, minus_sum, {minus_half[0], minus_half[1]}};
}

/* Activations: what a weight matrix is multiplied with. Columns are tokens (or heads). Float packings read f, the
 * others the quantised form: per 32 values x ~ scale * a, where a is an int16 in two bytes, a = 256 high + low
 * (planes == 2, precision "high"; |a| <= 32512), or one int8 (planes == 1, "fast"). */
typedef struct pl_acts {
    const float *f; /* column c at f + c * ld; k of it, then readable zeros (or zero weights) up to 4 */
    int64_t ld;
    const int8_t *q;            /* column c at q + c * ldq: (k / 32, planes, 32), high bytes before low */
    int64_t ldq;                /* a little more than a column, or columns would share their sets of the cache */
    const pl_act_block *blocks; /* (n, k / 32) */
    int64_t k;
    int32_t planes;
    int64_t ahead; /* bytes from a weight to what may be fetched with it; 0: weights are read from end to end */
} pl_acts;

/* Bytes from one quantised column to the next. */
static inline int64_t pl_acts_ldq(int64_t k, int32_t planes) { return k * planes + 64; }

/* y[c * ldy + 16 * s + row] = sum_k W[s][row][k] x[first + c][k] for `count` strips of 16 rows and n columns; added to
 * what y holds if `add`.
 *
 *   float:      chain j < 4:  s_j = fma(w[k], x[k], s_j) over k = j, j + 4, ...;  y = (s_0 + s_1) + (s_2 + s_3)
 *   quantised:  per 32 k:     y = fma((float)S, scale_w * scale_x, y), S = sum code * a exactly in int32
 *               then, with a minimum:  y = fma(minimum, offset, y)
 *               Q6K, Q8H, Q2K: two such steps per 32 k, one for each 16 (Q2K's minima too, their offsets too) */
typedef void pl_matmul_fn(const void *strips, int64_t count, const pl_acts *x, int64_t first, int64_t n, float *y,
                          int64_t ldy, int add);

typedef struct pl_kernels {
    const char *name;
    pl_matmul_fn *matmul[PL_PACK_COUNT];

    /* One column x (k), k a multiple of 32, into its quantised form. Per 32: m = max |x|; a = round to even of
     * x * (32512 / m) (one plane: 127 / m), scale = m / 32512. A block below 2^-100 is zero; one that holds a
     * non-finite value gets scale NaN and zeros. q (k / 32, planes, 32), blocks (k / 32). */
    void (*quantize)(const float *x, int64_t k, int32_t planes, int8_t *q, pl_act_block *blocks);

    /* out = weight * (x / sqrt(mean x^2 + eps)); n the true length, all vectors padded to n16. */
    void (*rmsnorm)(const float *x, const float *weight, int64_t n, float eps, float *out);

    /* out = gate / (1 + exp(-gate)) * up, (n16) */
    void (*swiglu)(const float *gate, const float *up, int64_t n16, float *out);

    /* out = activation(gate) * up, or activation(gate) where up is NULL: elementwise.h. kind: PL_ACTIVATION_*. */
    void (*activate)(int32_t kind, float limit, const float *gate, const float *up, int64_t n, float *out);

    /* x = cap * tanh(x * (scale / cap)) in place, (n) */
    void (*softcap)(float *x, int64_t n, float scale, float cap);

    /* s = exp(s * scale - m) in place, m = max(s * scale) in *max; returns the sum. s (n16), padded with -inf. */
    float (*softmax)(float *s, int64_t n16, float scale, float *max);

    /* out[h][d] = fma(p[h][t], value[t][d], out[h][d]) for t in order. value (tokens, d16) f16 or f32, or as many
     * blocks of Q8_0 as d16 begins, each value its code times its scale; p (heads, ldp), out (heads, d16). ahead: as in
     * pl_acts; 0 asks for nothing. */
    void (*weigh_f16)(const uint16_t *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p, int64_t ldp,
                      int64_t heads, float *out);
    void (*weigh_f32)(const float *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p, int64_t ldp,
                      int64_t heads, float *out);
    void (*weigh_q8_0)(const pl_block_q8_0 *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p,
                       int64_t ldp, int64_t heads, float *out);
} pl_kernels;

/* Bytes of n dimensions of a value: of an F32, F16 or Q8_0 row. */
static inline int64_t pl_value_bytes(int32_t type, int64_t n) {
    if (type == PL_TYPE_Q8_0) return (n + PL_BLOCK - 1) / PL_BLOCK * (int64_t)sizeof(pl_block_q8_0);
    return n * (type == PL_TYPE_F16 ? 2 : 4);
}

extern const pl_kernels pl_kernels_scalar;

/* A level's product; the scalar one where it has none of its own. */
static inline pl_matmul_fn *pl_matmul_of(const pl_kernels *kernels, pl_packing packing) {
    pl_matmul_fn *own = kernels->matmul[packing];
    return own ? own : pl_kernels_scalar.matmul[packing];
}
#if defined(__x86_64__)
extern const pl_kernels pl_kernels_avx2; /* needs AVX2, FMA, F16C */
/* Compilers that know AVX-VNNI (GCC 11, Clang 12) have a header for it. */
#if __has_include(<avxvnniintrin.h>)
#define PL_HAS_AVXVNNI_LEVEL
extern const pl_kernels pl_kernels_avxvnni; /* needs AVX-VNNI, and all of AVX2's */
#endif
extern const pl_kernels pl_kernels_avx512; /* needs AVX-512 F, BW, DQ, VL, VNNI, and all of AVX2's */
#endif
#if defined(__aarch64__)
extern const pl_kernels pl_kernels_neon; /* what every aarch64 processor has */
/* Clang before 16 has the intrinsics of an extension only where the whole build is for it. */
#if !defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD)
#define PL_HAS_DOTPROD_LEVEL
extern const pl_kernels pl_kernels_dotprod; /* needs sdot: Armv8.2's dot product extension */
#endif
#if defined(__clang__) ? __clang_major__ >= 16 || defined(__ARM_FEATURE_MATMUL_INT8) : __GNUC__ >= 10
#define PL_HAS_I8MM_LEVEL
extern const pl_kernels pl_kernels_i8mm; /* needs smmla: the int8 matrix extension; and sdot */
#endif
#endif

/* The table in use; a caller keeps the pointer for the whole of one evaluation. */
const pl_kernels *pl_kernels_current(void);
const pl_kernels *pl_kernels_by_name(const char *name); /* NULL if unknown or not runnable here */

/* Row `row` of a strip as the values it means, out (k). Equal to the type's dequantize_row. */
void pl_strip_row(pl_packing packing, const void *strip, int64_t k, int32_t row, float *out);

/* Kernels that are exact or elementwise, and that the compiler vectorises well from plain C. */
void pl_add(float *x, const float *y, int64_t n);                     /* x += y */
void pl_add_scaled(float *x, const float *y, float scale, int64_t n); /* x += scale * y, rounded twice */
void pl_scale(float *x, float scale, int64_t n);                      /* x *= scale */
/* out = x - mean x, the mean over 16 lanes as in all sums; the padding up to n16 becomes zeros. */
void pl_centre(const float *x, int64_t n, float *out);
void pl_rope(float *x, const float *cos_sin, int32_t dims); /* rotate pairs (i, i + dims / 2); (dims / 2, 2) */

#endif
