/* The definition of every kernel, in plain C. See kernels.h for the contract each of these keeps. */
#include <math.h>
#include <stddef.h>

#include "base/math.h"
#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "quant/f16.h"

/* ---- float weights ---------------------------------------------------------------------------------------------- */

static float weight_f32(const void *strip, int64_t k, int row) { return ((const float *)strip)[k * 16 + row]; }

static float weight_f16(const void *strip, int64_t k, int row) {
    return pl_float_from_f16(((const uint16_t *)strip)[k * 16 + row]);
}

static float weight_bf16(const void *strip, int64_t k, int row) {
    return pl_float_from_bf16(((const uint16_t *)strip)[(k / 2 * 16 + row) * 2 + k % 2]);
}

static void put(float *y, float sum, int add) { *y = add ? *y + sum : sum; }

static inline void matmul_float(float weight(const void *, int64_t, int), const void *strip, const pl_acts *x,
                                int64_t first, int64_t n, float *y, int64_t ldy, int add) {
    for (int64_t c = 0; c < n; c++) {
        const float *f = x->f + (first + c) * x->ld;
        for (int row = 0; row < PL_STRIP; row++) {
            float s[4] = {0};
            for (int64_t k = 0; k < x->k; k++) s[k % 4] = fmaf(weight(strip, k, row), f[k], s[k % 4]);
            put(&y[c * ldy + row], (s[0] + s[1]) + (s[2] + s[3]), add);
        }
    }
}

/* ---- quantised weights ------------------------------------------------------------------------------------------ */

/* 32 weights of one row: value = scale[k / 16] * code[k] + minimum[k / 16]. */
typedef struct row_block {
    int16_t code[PL_BLOCK];
    float scale[2], minimum[2];
} row_block;

typedef void open_fn(const void *strip, int64_t block, int row, row_block *out);

static void open_codes4(const uint8_t q[4][16][4], int row, int16_t bias, int16_t *code) {
    for (int j = 0; j < 16; j++) {
        uint8_t byte = q[j / 4][row][j % 4];
        code[j] = (int16_t)((byte & 15) + bias);
        code[j + 16] = (int16_t)((byte >> 4) + bias);
    }
}

static void open_codes5(const pl_codes5 *codes, int row, int16_t bias, int16_t *code) {
    open_codes4(codes->q, row, bias, code);
    for (int j = 0; j < 32; j++) code[j] = (int16_t)(code[j] + (codes->h[row][j % 4] >> (j / 4) & 1) * 16);
}

static void open_codes6(const pl_codes6 *codes, int row, int16_t bias, int16_t *code) {
    open_codes4(codes->q, row, bias, code);
    for (int j = 0; j < 32; j++) {
        code[j] = (int16_t)(code[j] + (codes->h2[j / 16][row][j % 4] >> (j / 4 % 4 * 2) & 3) * 16);
    }
}

static void open_codes8(const pl_codes8 *codes, int row, int16_t *code) {
    for (int j = 0; j < 32; j++) code[j] = (int16_t)(codes->q[j / 4][row][j % 4] - 128);
}

static void set_scale(row_block *out, float scale, float minimum) {
    out->scale[0] = out->scale[1] = scale;
    out->minimum[0] = out->minimum[1] = minimum;
}

static void open_q8(const void *strip, int64_t block, int row, row_block *out) {
    const pl_strip_q8 *b = (const pl_strip_q8 *)strip + block;
    open_codes8(&b->codes, row, out->code);
    set_scale(out, pl_float_from_f16(b->d[row]), 0);
}

static void open_q8f(const void *strip, int64_t block, int row, row_block *out) {
    const pl_strip_q8f *b = (const pl_strip_q8f *)strip + block;
    open_codes8(&b->codes, row, out->code);
    set_scale(out, b->d[row], 0);
}

static void open_q4(const void *strip, int64_t block, int row, row_block *out) {
    const pl_strip_q4 *b = (const pl_strip_q4 *)strip + block;
    open_codes4(b->codes.q, row, -8, out->code);
    set_scale(out, pl_float_from_f16(b->d[row]), 0);
}

static void open_q4m(const void *strip, int64_t block, int row, row_block *out) {
    const pl_strip_q4m *b = (const pl_strip_q4m *)strip + block;
    open_codes4(b->codes.q, row, 0, out->code);
    set_scale(out, pl_float_from_f16(b->d[row]), pl_float_from_f16(b->m[row]));
}

static void open_q5(const void *strip, int64_t block, int row, row_block *out) {
    const pl_strip_q5 *b = (const pl_strip_q5 *)strip + block;
    open_codes5(&b->codes, row, -16, out->code);
    set_scale(out, pl_float_from_f16(b->d[row]), 0);
}

static void open_q5m(const void *strip, int64_t block, int row, row_block *out) {
    const pl_strip_q5m *b = (const pl_strip_q5m *)strip + block;
    open_codes5(&b->codes, row, 0, out->code);
    set_scale(out, pl_float_from_f16(b->d[row]), pl_float_from_f16(b->m[row]));
}

static void open_q4k(const void *strip, int64_t block, int row, row_block *out) {
    const pl_strip_q4k *b = (const pl_strip_q4k *)strip + block / 8;
    int j = (int)(block % 8);
    open_codes4(b->codes[j].q, row, 0, out->code);
    set_scale(out, pl_float_from_f16(b->d[row]) * (float)b->sc[j][row],
              -(pl_float_from_f16(b->dmin[row]) * (float)b->mn[j][row]));
}

static void open_q5k(const void *strip, int64_t block, int row, row_block *out) {
    const pl_strip_q5k *b = (const pl_strip_q5k *)strip + block / 8;
    int j = (int)(block % 8);
    open_codes5(&b->codes[j], row, 0, out->code);
    set_scale(out, pl_float_from_f16(b->d[row]) * (float)b->sc[j][row],
              -(pl_float_from_f16(b->dmin[row]) * (float)b->mn[j][row]));
}

static void open_q6k(const void *strip, int64_t block, int row, row_block *out) {
    const pl_strip_q6k *b = (const pl_strip_q6k *)strip + block / 8;
    int j = (int)(block % 8);
    open_codes6(&b->codes[j], row, -32, out->code);
    for (int half = 0; half < 2; half++) {
        out->scale[half] = pl_float_from_f16(b->d[row]) * (float)b->sc[2 * j + half][row];
    }
    out->minimum[0] = out->minimum[1] = 0;
}

static void open_q8h(const void *strip, int64_t block, int row, row_block *out) {
    const pl_strip_q8h *b = (const pl_strip_q8h *)strip + block / 8;
    int j = (int)(block % 8);
    open_codes8(&b->codes[j], row, out->code);
    for (int half = 0; half < 2; half++) {
        out->scale[half] = b->d[2 * j + half][row];
        out->minimum[half] = 0;
    }
}

static void open_q2k(const void *strip, int64_t block, int row, row_block *out) {
    const pl_strip_q2k *b = (const pl_strip_q2k *)strip + block / 8;
    int j = (int)(block % 8);
    for (int i = 0; i < 32; i++) out->code[i] = b->codes[j].h2[i / 16][row][i % 4] >> (i / 4 % 4 * 2) & 3;
    for (int half = 0; half < 2; half++) {
        out->scale[half] = pl_float_from_f16(b->d[row]) * (float)b->sc[2 * j + half][row];
        out->minimum[half] = -(pl_float_from_f16(b->dmin[row]) * (float)b->mn[2 * j + half][row]);
    }
}

/* sum of code * q over n values: a loop that compilers turn into the vector instructions of any CPU. */
static int32_t dot(const int16_t *code, const int8_t *q, int n) {
    int32_t sum = 0;
    for (int j = 0; j < n; j++) sum += code[j] * q[j];
    return sum;
}

/* A row's sum over the blocks so far, one block on. steps: 1 where a block of 32 has one scale, 2 where each 16 has
 * its own. */
static float add_block(const row_block *w, int steps, int has_minimum, const pl_acts *x, int64_t column, int64_t b,
                       float sum) {
    const int8_t *q = x->q + column * x->ldq + b * x->planes * PL_BLOCK;
    const pl_act_block *a = &x->blocks[column * (x->k / PL_BLOCK) + b];
    int n = PL_BLOCK / steps;
    for (int s = 0; s < steps; s++) {
        int32_t exact = dot(w->code + s * n, q + s * n, n); /* at most 32 * 128 * 32767 < 2^31 */
        if (x->planes == 2) exact = 256 * exact + dot(w->code + s * n, q + PL_BLOCK + s * n, n);
        float offset = steps == 1 ? a->offset : a->scale * (float)-a->minus_half[s];
        sum = fmaf((float)exact, w->scale[s] * a->scale, sum);
        if (has_minimum) sum = fmaf(w->minimum[s], offset, sum);
    }
    return sum;
}

static inline void matmul_quantised(open_fn open, int steps, int has_minimum, const void *strip, const pl_acts *x,
                                    int64_t first, int64_t n, float *y, int64_t ldy, int add) {
    enum { AT_ONCE = 16 }; /* columns that share an opened block */
    for (int64_t c = 0; c < n; c += AT_ONCE) {
        int64_t columns = n - c < AT_ONCE ? n - c : AT_ONCE;
        for (int row = 0; row < PL_STRIP; row++) {
            float sum[AT_ONCE] = {0};
            for (int64_t b = 0; b < x->k / PL_BLOCK; b++) {
                row_block w;
                open(strip, b, row, &w);
                for (int64_t i = 0; i < columns; i++) {
                    sum[i] = add_block(&w, steps, has_minimum, x, first + c + i, b, sum[i]);
                }
            }
            for (int64_t i = 0; i < columns; i++) put(&y[(c + i) * ldy + row], sum[i], add);
        }
    }
}

/* ---- the instances ---------------------------------------------------------------------------------------------- */

/* A kernel over `count` strips: `one` strip after another. */
#define MATMUL(type, packing, one) \
    static void matmul_##type(const void *strips, int64_t count, const pl_acts *x, int64_t first, int64_t n, float *y, \
                              int64_t ldy, int add) { \
        const char *strip = strips; \
        for (int64_t s = 0; s < count; s++, strip += pl_strip_bytes(packing, x->k), y += PL_STRIP) one; \
    }
#define FLOAT_MATMUL(type, packing) MATMUL(type, packing, matmul_float(weight_##type, strip, x, first, n, y, ldy, add))
#define QUANTISED_MATMUL(type, packing, bits, log2_bias, parts, steps, has_minimum) \
    MATMUL(type, packing, matmul_quantised(open_##type, steps, has_minimum, strip, x, first, n, y, ldy, add))
FLOAT_MATMUL(f32, PL_PACK_F32)
FLOAT_MATMUL(f16, PL_PACK_F16)
FLOAT_MATMUL(bf16, PL_PACK_BF16)
PL_QUANTISED_PACKINGS(QUANTISED_MATMUL)

#define OPENER(type, packing, ...) [packing] = open_##type,
static open_fn *const openers[PL_PACK_COUNT] = {PL_QUANTISED_PACKINGS(OPENER)};

void pl_strip_row(pl_packing packing, const void *strip, int64_t k, int32_t row, float *out) {
    for (int64_t i = 0; i < k && packing == PL_PACK_F32; i++) out[i] = weight_f32(strip, i, row);
    for (int64_t i = 0; i < k && packing == PL_PACK_F16; i++) out[i] = weight_f16(strip, i, row);
    for (int64_t i = 0; i < k && packing == PL_PACK_BF16; i++) out[i] = weight_bf16(strip, i, row);
    if (openers[packing] == NULL) return;
    for (int64_t b = 0; b < k / PL_BLOCK; b++) {
        row_block w;
        openers[packing](strip, b, row, &w);
        for (int j = 0; j < PL_BLOCK; j++) *out++ = w.scale[j / 16] * (float)w.code[j] + w.minimum[j / 16];
    }
}

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* The largest |x| as bits: ordered like the numbers, with inf and NaN above all. */
static uint32_t largest_magnitude(const float *x, int n) {
    uint32_t largest = 0;
    for (int i = 0; i < n; i++) {
        uint32_t magnitude = pl_float_bits(x[i]) & 0x7fffffff;
        if (magnitude > largest) largest = magnitude;
    }
    return largest;
}

/* Round to nearest even for |x| < 2^22, without asking libm. */
static int32_t round_to_int(float x) {
    return (int32_t)(pl_float_bits(x + PL_EXP_ROUND) - pl_float_bits(PL_EXP_ROUND));
}

/* One value's bytes, q (planes, 32). */
static void put_code(int32_t a, int32_t planes, int8_t *q) {
    if (planes == 2) {
        q[0] = (int8_t)((a + 128) >> 8);
        q[PL_BLOCK] = (int8_t)(a - 256 * q[0]);
    } else {
        q[0] = (int8_t)a;
    }
}

static void quantize(const float *x, int64_t k, int32_t planes, int8_t *q, pl_act_block *blocks) {
    const float steps = planes == 2 ? 32512.0f : 127.0f;
    for (int64_t b = 0; b < k / PL_BLOCK; b++, x += PL_BLOCK, q += planes * PL_BLOCK) {
        uint32_t bits = largest_magnitude(x, PL_BLOCK);
        float largest = pl_float_from_bits(bits);
        int finite = bits < 0x7f800000, zero = !finite || largest < 0x1p-100f;
        float inverse = zero ? 0.0f : steps / largest;
        int32_t minus[2] = {0};
        for (int j = 0; j < PL_BLOCK; j++) {
            int32_t a = zero ? 0 : round_to_int(x[j] * inverse);
            minus[j / 16] -= a;
            put_code(a, planes, q + j);
        }
        float scale = !finite ? NAN : zero ? 0.0f : largest / steps;
        blocks[b] = pl_act_block_of(scale, minus);
    }
}

/* ---- sums over a vector ------------------------------------------------------------------------------------------ */

/* The sixteen lanes folded 8, 4, 2, 1 apart. */
static float fold(float lane[16]) {
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    }
    return lane[0];
}

static void rmsnorm(const float *x, const float *weight, int64_t n, float eps, float *out) {
    int64_t n16 = pl_pad(n);
    float lane[16] = {0};
    for (int64_t i = 0; i < n16; i++) lane[i % 16] = fmaf(x[i], x[i], lane[i % 16]);
    float inverse = 1.0f / sqrtf(fold(lane) / (float)n + eps);
    for (int64_t i = 0; i < n16; i++) out[i] = weight[i] * (inverse * x[i]);
}

static void swiglu(const float *gate, const float *up, int64_t n16, float *out) {
    for (int64_t i = 0; i < n16; i++) out[i] = gate[i] / (1.0f + pl_expf(-gate[i])) * up[i];
}

PL_ELEMENTWISE(scalar)

static float softmax(float *s, int64_t n16, float scale, float *max) {
    float largest = -INFINITY, lane[16] = {0};
    for (int64_t i = 0; i < n16; i++) {
        s[i] *= scale;
        largest = s[i] > largest ? s[i] : largest;
    }
    for (int64_t i = 0; i < n16; i++) {
        s[i] = pl_expf(s[i] - largest);
        lane[i % 16] += s[i];
    }
    *max = largest;
    return fold(lane);
}

static void weigh_f16(const uint16_t *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p, int64_t ldp,
                      int64_t heads, float *out) {
    (void)ahead;
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t t = 0; t < tokens; t++) {
            for (int64_t d = 0; d < d16; d++) {
                out[h * d16 + d] = fmaf(p[h * ldp + t], pl_float_from_f16(value[t * d16 + d]), out[h * d16 + d]);
            }
        }
    }
}

static void weigh_f32(const float *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p, int64_t ldp,
                      int64_t heads, float *out) {
    (void)ahead;
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t t = 0; t < tokens; t++) {
            for (int64_t d = 0; d < d16; d++) {
                out[h * d16 + d] = fmaf(p[h * ldp + t], value[t * d16 + d], out[h * d16 + d]);
            }
        }
    }
}

static void weigh_q8_0(const pl_block_q8_0 *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p,
                       int64_t ldp, int64_t heads, float *out) {
    (void)ahead;
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t t = 0; t < tokens; t++) {
            const pl_block_q8_0 *block = value + t * ((d16 + PL_BLOCK - 1) / PL_BLOCK);
            for (int64_t d = 0; d < d16; d++) {
                float v = pl_load_f16(block[d / PL_BLOCK].d) * (float)block[d / PL_BLOCK].qs[d % PL_BLOCK];
                out[h * d16 + d] = fmaf(p[h * ldp + t], v, out[h * d16 + d]);
            }
        }
    }
}

const pl_kernels pl_kernels_scalar = {
    .name = "scalar",
    .matmul = {[PL_PACK_F32] = matmul_f32,
               [PL_PACK_F16] = matmul_f16,
               [PL_PACK_BF16] = matmul_bf16,
               [PL_PACK_Q8] = matmul_q8,
               [PL_PACK_Q8F] = matmul_q8f,
               [PL_PACK_Q4] = matmul_q4,
               [PL_PACK_Q4M] = matmul_q4m,
               [PL_PACK_Q5] = matmul_q5,
               [PL_PACK_Q5M] = matmul_q5m,
               [PL_PACK_Q4K] = matmul_q4k,
               [PL_PACK_Q5K] = matmul_q5k,
               [PL_PACK_Q6K] = matmul_q6k,
               [PL_PACK_Q8H] = matmul_q8h,
               [PL_PACK_Q2K] = matmul_q2k},
    .quantize = quantize,
    .rmsnorm = rmsnorm,
    .swiglu = swiglu,
    .activate = activate_scalar,
    .softcap = softcap_scalar,
    .softmax = softmax,
    .weigh_f16 = weigh_f16,
    .weigh_f32 = weigh_f32,
    .weigh_q8_0 = weigh_q8_0,
};

/* ---- elementwise, one version for all levels --------------------------------------------------------------------- */

void pl_add(float *x, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

void pl_add_scaled(float *x, const float *y, float scale, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] += scale * y[i];
}

void pl_scale(float *x, float scale, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] *= scale;
}

void pl_centre(const float *x, int64_t n, float *out) {
    int64_t n16 = pl_pad(n);
    float lane[16] = {0};
    for (int64_t i = 0; i < n16; i += 16) {
        for (int j = 0; j < 16; j++) lane[j] += x[i + j];
    }
    float mean = fold(lane) / (float)n;
    for (int64_t i = 0; i < n; i++) out[i] = x[i] - mean;
    for (int64_t i = n; i < n16; i++) out[i] = 0.0f;
}

void pl_rope(float *x, const float *cos_sin, int32_t dims) {
    int32_t half = dims / 2;
    for (int32_t i = 0; i < half; i++) {
        float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], a = x[i], b = x[i + half];
        x[i] = a * c - b * s;
        x[i + half] = a * s + b * c;
    }
}
