/* What the aarch64 levels share: a matrix product over quantised strips that leaves only the integer dot to the level,
 * and the entries of the table that are the same for all.
 *
 * A register holds 4 rows of 4 k: 16 codes. A strip is worked through in halves of 8 rows, so that a half's 32 k (16
 * registers) stay in place while the columns go by. Include after <arm_neon.h>, inside the level's target region, when
 * the level has said how many columns it multiplies TOGETHER, 1 or 2, and which level takes a `lone` one (NULL:
 * none). */
#ifndef PL_KERNELS_NEON_H
#define PL_KERNELS_NEON_H

#include "kernels/kernels.h"
#include "kernels/target.h"

/* neon.c */
pl_matmul_fn pl_neon_matmul_f32, pl_neon_matmul_f16, pl_neon_matmul_bf16;
void pl_neon_quantize(const float *x, int64_t k, int32_t planes, int8_t *q, pl_act_block *blocks);
void pl_neon_rmsnorm(const float *x, const float *weight, int64_t n, float eps, float *out);
void pl_neon_swiglu(const float *gate, const float *up, int64_t n16, float *out);
void pl_neon_activate(int32_t kind, float limit, const float *gate, const float *up, int64_t n, float *out);
void pl_neon_softcap(float *x, int64_t n, float scale, float cap);
float pl_neon_softmax(float *s, int64_t n16, float scale, float *max);
void pl_neon_weigh_f16(const uint16_t *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p, int64_t ldp,
                       int64_t heads, float *out);
void pl_neon_weigh_f32(const float *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p, int64_t ldp,
                       int64_t heads, float *out);
void pl_neon_weigh_q8_0(const pl_block_q8_0 *value, int64_t tokens, int64_t d16, int64_t ahead, const float *p,
                        int64_t ldp, int64_t heads, float *out);

/* ---- half a block: 8 rows of 32 k -------------------------------------------------------------------------------- */

typedef struct half_block {
    int8x16_t code[8][2];    /* group of 4 k, rows 4 r and up; still `bias` too high */
    float32x4_t scale[2][2]; /* one per step, rows 4 r and up */
    float32x4_t minimum[2][2];
} half_block;

/* What a packing's loop has to know; all constants where it is inlined. */
typedef struct traits {
    int bias;  /* value = scale * (code - bias) + minimum, taken off through the activations' sum */
    int chain; /* products of code and an int8 that an int16 can hold the sum of; divides the groups of a step */
    int steps; /* scales per 32 k */
    int has_minimum;
} traits;

typedef void open_fn(const void *strip, int64_t block, int half, half_block *out);

PL_INLINE float32x4_t load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }

PL_INLINE void open_codes4(const uint8_t q[4][16][4], int half, half_block *out) {
    for (int g = 0; g < 4; g++) {
        for (int r = 0; r < 2; r++) {
            uint8x16_t both = vld1q_u8(q[g][8 * half + 4 * r]);
            out->code[g][r] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
            out->code[g + 4][r] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
        }
    }
}

/* The bits of `bits` where `mask` has ones, over those of *code. */
PL_INLINE void insert(int8x16_t *code, uint8_t mask, uint8x16_t bits) {
    *code = vreinterpretq_s8_u8(vbslq_u8(vdupq_n_u8(mask), bits, vreinterpretq_u8_s8(*code)));
}

PL_INLINE void open_codes5(const pl_codes5 *codes, int half, half_block *out) {
    open_codes4(codes->q, half, out);
    for (int r = 0; r < 2; r++) {
        uint8x16_t h = vld1q_u8(codes->h[8 * half + 4 * r]);
        insert(&out->code[0][r], 16, vshlq_n_u8(h, 4));
        insert(&out->code[1][r], 16, vshlq_n_u8(h, 3));
        insert(&out->code[2][r], 16, vshlq_n_u8(h, 2));
        insert(&out->code[3][r], 16, vshlq_n_u8(h, 1));
        insert(&out->code[4][r], 16, h);
        insert(&out->code[5][r], 16, vshrq_n_u8(h, 1));
        insert(&out->code[6][r], 16, vshrq_n_u8(h, 2));
        insert(&out->code[7][r], 16, vshrq_n_u8(h, 3));
    }
}

/* Signed here: a step covers half of the block, and the activations' sum all of it. */
PL_INLINE void open_codes6(const pl_codes6 *codes, int half, half_block *out) {
    open_codes4(codes->q, half, out);
    for (int r = 0; r < 2; r++) {
        for (int s = 0; s < 2; s++) {
            uint8x16_t h = vld1q_u8(codes->h2[s][8 * half + 4 * r]);
            insert(&out->code[4 * s][r], 48, vshlq_n_u8(h, 4));
            insert(&out->code[4 * s + 1][r], 48, vshlq_n_u8(h, 2));
            insert(&out->code[4 * s + 2][r], 48, h);
            insert(&out->code[4 * s + 3][r], 48, vshrq_n_u8(h, 2));
        }
        for (int g = 0; g < 8; g++) out->code[g][r] = vsubq_s8(out->code[g][r], vdupq_n_s8(32));
    }
}

PL_INLINE void open_codes8(const pl_codes8 *codes, int half, half_block *out) {
    for (int g = 0; g < 8; g++) {
        for (int r = 0; r < 2; r++) {
            uint8x16_t stored = vld1q_u8(codes->q[g][8 * half + 4 * r]);
            out->code[g][r] = vreinterpretq_s8_u8(veorq_u8(stored, vdupq_n_u8(128)));
        }
    }
}

PL_INLINE void open_codes2(const pl_codes2 *codes, int half, half_block *out) {
    for (int r = 0; r < 2; r++) {
        for (int s = 0; s < 2; s++) {
            const uint8x16_t four = vld1q_u8(codes->h2[s][8 * half + 4 * r]), mask = vdupq_n_u8(3);
            out->code[4 * s][r] = vreinterpretq_s8_u8(vandq_u8(four, mask));
            out->code[4 * s + 1][r] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(four, 2), mask));
            out->code[4 * s + 2][r] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(four, 4), mask));
            out->code[4 * s + 3][r] = vreinterpretq_s8_u8(vshrq_n_u8(four, 6));
        }
    }
}

PL_INLINE void open_scale_f16(const uint16_t *d, int half, half_block *out) {
    for (int r = 0; r < 2; r++) out->scale[0][r] = load_f16(d + 8 * half + 4 * r);
}

PL_INLINE void open_minimum_f16(const uint16_t *m, int half, half_block *out) {
    for (int r = 0; r < 2; r++) out->minimum[0][r] = load_f16(m + 8 * half + 4 * r);
}

PL_INLINE void open_q8(const void *strip, int64_t block, int half, half_block *out) {
    const pl_strip_q8 *b = (const pl_strip_q8 *)strip + block;
    open_codes8(&b->codes, half, out);
    open_scale_f16(b->d, half, out);
}

PL_INLINE void open_q8f(const void *strip, int64_t block, int half, half_block *out) {
    const pl_strip_q8f *b = (const pl_strip_q8f *)strip + block;
    open_codes8(&b->codes, half, out);
    for (int r = 0; r < 2; r++) out->scale[0][r] = vld1q_f32(b->d + 8 * half + 4 * r);
}

PL_INLINE void open_q4(const void *strip, int64_t block, int half, half_block *out) {
    const pl_strip_q4 *b = (const pl_strip_q4 *)strip + block;
    open_codes4(b->codes.q, half, out);
    open_scale_f16(b->d, half, out);
}

PL_INLINE void open_q4m(const void *strip, int64_t block, int half, half_block *out) {
    const pl_strip_q4m *b = (const pl_strip_q4m *)strip + block;
    open_codes4(b->codes.q, half, out);
    open_scale_f16(b->d, half, out);
    open_minimum_f16(b->m, half, out);
}

PL_INLINE void open_q5(const void *strip, int64_t block, int half, half_block *out) {
    const pl_strip_q5 *b = (const pl_strip_q5 *)strip + block;
    open_codes5(&b->codes, half, out);
    open_scale_f16(b->d, half, out);
}

PL_INLINE void open_q5m(const void *strip, int64_t block, int half, half_block *out) {
    const pl_strip_q5m *b = (const pl_strip_q5m *)strip + block;
    open_codes5(&b->codes, half, out);
    open_scale_f16(b->d, half, out);
    open_minimum_f16(b->m, half, out);
}

/* d * factor for the 8 rows of a half: factor (8) bytes. */
PL_INLINE void scale_u8(const uint16_t *d, const uint8_t *factor, float32x4_t out[2]) {
    uint16x8_t wide = vmovl_u8(vld1_u8(factor));
    out[0] = vmulq_f32(load_f16(d), vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide))));
    out[1] = vmulq_f32(load_f16(d + 4), vcvtq_f32_u32(vmovl_u16(vget_high_u16(wide))));
}

PL_INLINE void minus_scale_u8(const uint16_t *d, const uint8_t *factor, float32x4_t out[2]) {
    scale_u8(d, factor, out);
    for (int r = 0; r < 2; r++) out[r] = vnegq_f32(out[r]);
}

PL_INLINE void scale_s8(const uint16_t *d, const int8_t *factor, float32x4_t out[2]) {
    int16x8_t wide = vmovl_s8(vld1_s8(factor));
    out[0] = vmulq_f32(load_f16(d), vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))));
    out[1] = vmulq_f32(load_f16(d + 4), vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide))));
}

PL_INLINE void open_q4k(const void *strip, int64_t block, int half, half_block *out) {
    const pl_strip_q4k *b = (const pl_strip_q4k *)strip + block / 8;
    open_codes4(b->codes[block % 8].q, half, out);
    scale_u8(b->d + 8 * half, b->sc[block % 8] + 8 * half, out->scale[0]);
    minus_scale_u8(b->dmin + 8 * half, b->mn[block % 8] + 8 * half, out->minimum[0]);
}

PL_INLINE void open_q5k(const void *strip, int64_t block, int half, half_block *out) {
    const pl_strip_q5k *b = (const pl_strip_q5k *)strip + block / 8;
    open_codes5(&b->codes[block % 8], half, out);
    scale_u8(b->d + 8 * half, b->sc[block % 8] + 8 * half, out->scale[0]);
    minus_scale_u8(b->dmin + 8 * half, b->mn[block % 8] + 8 * half, out->minimum[0]);
}

PL_INLINE void open_q6k(const void *strip, int64_t block, int half, half_block *out) {
    const pl_strip_q6k *b = (const pl_strip_q6k *)strip + block / 8;
    open_codes6(&b->codes[block % 8], half, out);
    for (int s = 0; s < 2; s++) scale_s8(b->d + 8 * half, b->sc[2 * (block % 8) + s] + 8 * half, out->scale[s]);
}

PL_INLINE void open_q8h(const void *strip, int64_t block, int half, half_block *out) {
    const pl_strip_q8h *b = (const pl_strip_q8h *)strip + block / 8;
    open_codes8(&b->codes[block % 8], half, out);
    for (int i = 0; i < 4; i++) {
        out->scale[i / 2][i % 2] = vld1q_f32(b->d[2 * (block % 8) + i / 2] + 8 * half + 4 * (i % 2));
    }
}

PL_INLINE void open_q2k(const void *strip, int64_t block, int half, half_block *out) {
    const pl_strip_q2k *b = (const pl_strip_q2k *)strip + block / 8;
    open_codes2(&b->codes[block % 8], half, out);
    for (int s = 0; s < 2; s++) {
        scale_u8(b->d + 8 * half, b->sc[2 * (block % 8) + s] + 8 * half, out->scale[s]);
        minus_scale_u8(b->dmin + 8 * half, b->mn[2 * (block % 8) + s] + 8 * half, out->minimum[s]);
    }
}

/* ---- the product ------------------------------------------------------------------------------------------------- */

/* The level's own: how it wants the codes of an opened half, and sum[c][r] = dots of rows 4 r and up with the c-th of
 * TOGETHER columns (32 int8 each, a + c * lda), over the groups [begin, begin + groups). */
PL_INLINE void arrange(half_block *w);
PL_INLINE void dot(const half_block *w, int begin, int groups, int chain, const int8_t *a, int64_t lda,
                   int32x4_t sum[TOGETHER][2]);

/* The same with whole activations: q (planes, 32) of each column. */
PL_INLINE void dot_planes(const half_block *w, int begin, int groups, int chain, int planes, const int8_t *q,
                          int64_t ldq, int32x4_t sum[TOGETHER][2]) {
    dot(w, begin, groups, chain, q, ldq, sum);
    if (planes == 2) {
        int32x4_t low[TOGETHER][2];
        dot(w, begin, groups, chain, q + PL_BLOCK, ldq, low);
        for (int i = 0; i < 2 * TOGETHER; i++) {
            sum[i / 2][i % 2] = vaddq_s32(vshlq_n_s32(sum[i / 2][i % 2], 8), low[i / 2][i % 2]);
        }
    }
}

/* One step of a block of one column: total, 8 rows of the half. */
PL_INLINE void add_step(const half_block *w, traits t, int s, const int32x4_t dots[2], const pl_act_block *a,
                        float32x4_t total[2]) {
    const float offset = t.steps == 1 ? a->offset : a->scale * (float)-a->minus_half[s];
    for (int r = 0; r < 2; r++) {
        int32x4_t exact = t.bias ? vaddq_s32(dots[r], vdupq_n_s32(t.bias * a->minus_sum)) : dots[r];
        total[r] = vfmaq_f32(total[r], vcvtq_f32_s32(exact), vmulq_n_f32(w->scale[s][r], a->scale));
        if (t.has_minimum) total[r] = vfmaq_n_f32(total[r], w->minimum[s][r], offset);
    }
}

/* One block of TOGETHER columns: y (TOGETHER, 16), 8 rows of the half. */
PL_INLINE void add_block(const half_block *w, traits t, int planes, const int8_t *q, int64_t ldq, const pl_act_block *a,
                         int64_t lda, float *y) {
    float32x4_t total[TOGETHER][2];
    for (int i = 0; i < 2 * TOGETHER; i++) total[i / 2][i % 2] = vld1q_f32(y + i / 2 * PL_STRIP + i % 2 * 4);
    for (int s = 0; s < t.steps; s++) {
        int32x4_t exact[TOGETHER][2];
        dot_planes(w, s * (8 / t.steps), 8 / t.steps, t.chain, planes, q, ldq, exact);
        for (int c = 0; c < TOGETHER; c++) add_step(w, t, s, exact[c], a + c * lda, total[c]);
    }
    for (int i = 0; i < 2 * TOGETHER; i++) vst1q_f32(y + i / 2 * PL_STRIP + i % 2 * 4, total[i / 2][i % 2]);
}

/* sum (columns, 16): one strip times columns from `first` on. A last column that is alone is its own neighbour, whose
 * sums nobody reads. */
PL_INLINE void sum_blocks(open_fn open, traits t, const void *strip, const pl_acts *x, int64_t first, int64_t columns,
                          float *sum) {
    int64_t blocks = x->k / PL_BLOCK;
    for (int64_t b = 0; b < blocks; b++) {
        for (int half = 0; half < 2; half++) {
            half_block w;
            open(strip, b, half, &w);
            arrange(&w);
            for (int64_t c = 0; c < columns; c += TOGETHER) {
                const int64_t next = c + 1 < columns;
                const int8_t *q = x->q + (first + c) * x->ldq + b * x->planes * PL_BLOCK;
                const pl_act_block *a = &x->blocks[(first + c) * blocks + b];
                add_block(&w, t, x->planes, q, next * x->ldq, a, next * blocks, sum + c * PL_STRIP + 8 * half);
            }
        }
    }
}

PL_INLINE void put(float *y, float32x4_t sum, int add) { vst1q_f32(y, add ? vaddq_f32(vld1q_f32(y), sum) : sum); }

PL_INLINE void matmul_quantised(open_fn open, traits t, const void *strip, const pl_acts *x, int64_t first, int64_t n,
                                float *y, int64_t ldy, int add) {
    enum { AT_ONCE = 16 }; /* columns that share an opened block; a multiple of TOGETHER */
    for (int64_t c = 0; c < n; c += AT_ONCE) {
        int64_t columns = n - c < AT_ONCE ? n - c : AT_ONCE;
        float sum[AT_ONCE * PL_STRIP] = {0};
        sum_blocks(open, t, strip, x, first + c, columns, sum);
        for (int64_t i = 0; i < columns * 4; i++) {
            put(y + (c + i / 4) * ldy + i % 4 * 4, vld1q_f32(sum + 4 * i), add);
        }
    }
}

/* An int16 holds a step's 8 products of at most 31 * 128, or 4 of 32 * 128, but not two of 128 * 128. Codes of 6 and 8
 * bits are opened as they are meant. */
PL_INLINE traits traits_of(pl_packing packing) {
    const pl_packing_info *p = &pl_packings[packing];
    int bias = p->bits < 6 && p->log2_bias >= 0 ? 1 << p->log2_bias : 0;
    return (traits){bias, p->bits == 8 ? 1 : 8 / p->steps, p->steps, p->has_minimum};
}

#define PL_NEON_MATMUL(type, packing, ...) \
    static void matmul_##type(const void *strips, int64_t count, const pl_acts *x, int64_t first, int64_t n, float *y, \
                              int64_t ldy, int add) { \
        const char *strip = strips; \
        if (lone != NULL && n == 1) { \
            lone->matmul[packing](strips, count, x, first, n, y, ldy, add); \
            return; \
        } \
        for (int64_t s = 0; s < count; s++, strip += pl_strip_bytes(packing, x->k), y += PL_STRIP) { \
            matmul_quantised(open_##type, traits_of(packing), strip, x, first, n, y, ldy, add); \
        } \
    }
PL_QUANTISED_PACKINGS(PL_NEON_MATMUL)

#define PL_NEON_ENTRY(type, packing, ...) [packing] = matmul_##type,
#define PL_NEON_TABLE(level) \
    { \
        .name = level, \
        .matmul = {[PL_PACK_F32] = pl_neon_matmul_f32, \
                   [PL_PACK_F16] = pl_neon_matmul_f16, \
                   [PL_PACK_BF16] = pl_neon_matmul_bf16, \
                   PL_QUANTISED_PACKINGS(PL_NEON_ENTRY)}, \
        .quantize = pl_neon_quantize, \
        .rmsnorm = pl_neon_rmsnorm, \
        .swiglu = pl_neon_swiglu, \
        .activate = pl_neon_activate, \
        .softcap = pl_neon_softcap, \
        .softmax = pl_neon_softmax, \
        .weigh_f16 = pl_neon_weigh_f16, \
        .weigh_f32 = pl_neon_weigh_f32, \
        .weigh_q8_0 = pl_neon_weigh_q8_0, \
    }

#endif
