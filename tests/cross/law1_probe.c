/* One arithmetic, looked at from outside: a fixed set of inputs through everything that computes, and a hash of the
 * bits of each result. Whatever machine, compiler and kernel level it runs on, every line must be the same.
 *
 * The first line names the levels of the processor, best first; the others are "subject level hash", where the level is
 * "-" if there is only one way to compute. Arguments: the levels to look at, "-" for what has none; all without.
 *
 * tests/crossing.py builds this program for this machine and, where a cross compiler and an emulator are installed, for
 * another one. By hand, with every C file of csrc:
 *
 *   cc -std=c11 -D_GNU_SOURCE -O3 -ffp-contract=off -fno-math-errno -pthread -Icsrc \
 *      tests/cross/law1_probe.c $(find csrc -name '*.c') -lm -o probe && ./probe
 *
 * Only NaNs are not compared by their bits: which payload survives an operation is the processor's choice. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/math.h"
#include "kernels/kernels.h"
#include "pyllm.h"
#include "quant/f16.h"
#include "quant/types.h"

/* ---- inputs ------------------------------------------------------------------------------------------------------ */

static uint64_t random_state;

static uint32_t random_bits(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 16);
}

static float random_float(void) { return (float)(random_bits() & 0xffffff) * 0x1p-23f - 1.0f; }

typedef enum kind {
    ORDINARY,
    AWKWARD, /* some numbers at which something changes, among ordinary ones */
    EXTREME  /* codes and low bytes of activations as large as they get: where a narrow sum would overflow */
} kind;

static float awkward_float(void) {
    static const float edges[] = {
        0.0f,  -0.0f,      INFINITY,    -INFINITY, NAN,      0x1p-100f, 0x1p-101f,        1e-40f,      -1e-45f,
        3e38f, PL_EXP_MIN, -PL_EXP_MIN, -1.0f,     2048.25f, 65504.0f,  0x1.fffffep-127f, -PL_EXP_MAX, PL_EXP_MAX};
    uint32_t r = random_bits();
    return r % 16 ? random_float() * (float)(1u << r % 7) : edges[(r >> 8) % (sizeof edges / sizeof *edges)];
}

/* As 16-bit activations: a block's largest sets the scale to 1, the others have a low byte of -128. */
static float extreme_float(int64_t i) { return i % 32 == 7 ? 32512.0f : random_bits() % 2 ? -128.0f : 384.0f; }

static uint8_t extreme_byte(void) { return random_bits() % 2 ? 0 : 0xff; }

static void *get(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (memory == NULL) {
        fputs("out of memory\n", stderr);
        exit(2);
    }
    return memory;
}

/* (n) floats; every value ordinary, or some awkward. */
static float *random_floats(int64_t n, int awkward) {
    float *x = get((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = awkward ? awkward_float() : random_float();
    return x;
}

/* ---- hashes ------------------------------------------------------------------------------------------------------ */

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t nbytes) {
    const uint8_t *byte = data;
    for (size_t i = 0; i < nbytes; i++) hash = (hash ^ byte[i]) * 0x100000001b3; /* FNV-1a */
    return hash;
}

static uint64_t hash_floats(uint64_t hash, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = x[i] == x[i] ? pl_float_bits(x[i]) : 0x7fc00000;
        hash = hash_bytes(hash, &bits, sizeof bits);
    }
    return hash;
}

static uint64_t hash_double(uint64_t hash, double x) {
    if (x != x) x = 0.5;
    return hash_bytes(hash, &x, sizeof x);
}

static const uint64_t START = 0xcbf29ce484222325;

static void report(const char *subject, const char *detail, const char *level, uint64_t hash) {
    printf("%s%s %s %016" PRIx64 "\n", subject, detail, level, hash);
}

/* ---- elementary functions ---------------------------------------------------------------------------------------- */

static void probe_floats(void) {
    uint64_t exps = START, erfs = START, tanhs = START;
    for (uint64_t bits = 0; bits < (uint64_t)1 << 32; bits += 10007) {
        float x = pl_float_from_bits((uint32_t)bits), y = pl_expf(x), e = pl_erff(x), t = pl_tanhf(x);
        exps = hash_floats(exps, &y, 1);
        erfs = hash_floats(erfs, &e, 1);
        tanhs = hash_floats(tanhs, &t, 1);
    }
    report("expf", "", "-", exps);
    report("erff", "", "-", erfs);
    report("tanhf", "", "-", tanhs);
}

static void probe_doubles(void) {
    uint64_t exps = START, logs = START, angles = START;
    for (int i = 0; i < 20000; i++) {
        double x = (double)random_float(), sine, cosine;
        exps = hash_double(exps, pl_exp(x * 720.0));
        logs = hash_double(logs, pl_log(pl_exp(x * 700.0) * (2.0 + x)));
        pl_sincos(x * (double)(1u << i % 24), &sine, &cosine);
        angles = hash_double(hash_double(angles, sine), cosine);
    }
    report("exp", "", "-", exps);
    report("log", "", "-", logs);
    report("sincos", "", "-", angles);
}

static void probe_f16(void) {
    uint64_t to = START, from = START;
    for (uint32_t h = 0; h < 65536; h++) {
        float x = pl_float_from_f16((uint16_t)h);
        from = hash_floats(from, &x, 1);
    }
    for (uint64_t bits = 0; bits < (uint64_t)1 << 32; bits += 10007) {
        uint16_t h = pl_f16_from_float(pl_float_from_bits((uint32_t)bits));
        to = hash_bytes(to, &h, sizeof h);
    }
    report("f16/from", "", "-", from);
    report("f16/to", "", "-", to);
}

/* ---- kernels ----------------------------------------------------------------------------------------------------- */

typedef struct activations {
    float *f;
    int8_t *q;
    pl_act_block *blocks;
    pl_acts view;
} activations;

/* n columns of k, quantised by `kernels`; the padding of a column is zeros. */
static activations make_activations(const pl_kernels *kernels, int64_t n, int64_t k, int32_t planes, kind kind) {
    int64_t ld = (k + 31) / 32 * 32, blocks = ld / 32, ldq = pl_acts_ldq(ld, planes);
    activations a = {.f = get((size_t)(n * ld), 4), .blocks = get((size_t)(n * blocks), sizeof(pl_act_block))};
    a.q = get((size_t)n, (size_t)ldq);
    for (int64_t c = 0; c < n; c++) {
        for (int64_t i = 0; i < k; i++) {
            a.f[c * ld + i] = kind == EXTREME ? extreme_float(i) : kind == AWKWARD ? awkward_float() : random_float();
        }
        if (k % 32 == 0) { kernels->quantize(a.f + c * ld, k, planes, a.q + c * ldq, a.blocks + c * blocks); }
    }
    a.view = (pl_acts){.f = a.f, .ld = ld, .q = a.q, .ldq = ldq, .blocks = a.blocks};
    a.view.k = k, a.view.planes = planes;
    return a;
}

static void free_activations(activations *a) { free(a->f), free(a->q), free(a->blocks); }

enum { STRIPS = 3 }; /* in one call: a pair and a lone one */

static uint64_t hash_matmul(const pl_kernels *kernels, pl_packing packing, int64_t k, int64_t n, int32_t planes,
                            kind kind, uint64_t hash) {
    int64_t nbytes = pl_strip_bytes(packing, k);
    uint8_t *strips = get((size_t)nbytes, STRIPS);
    for (int64_t i = 0; i < nbytes * STRIPS; i++) { /* scales too: anything at all */
        strips[i] = kind == EXTREME ? extreme_byte() : (uint8_t)random_bits();
    }
    activations a = make_activations(kernels, n, k, planes, kind);
    float *y = get((size_t)n, STRIPS * PL_STRIP * sizeof *y);
    for (int add = 0; add < 2; add++) {
        pl_matmul_of(kernels, packing)(strips, STRIPS, &a.view, 0, n, y, STRIPS * PL_STRIP, add);
        hash = hash_floats(hash, y, n * STRIPS * PL_STRIP);
    }
    free(strips), free(y), free_activations(&a);
    return hash;
}

static void probe_matmuls(const pl_kernels *kernels) {
    static const int64_t columns[] = {1, 2, 3, 4, 5, 7, 8, 9, 17};
    for (int packing = 0; packing < PL_PACK_COUNT; packing++) {
        char detail[32];
        uint64_t hash = START;
        random_state = 1000 + (uint64_t)packing;
        for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
            int64_t k =
                pl_packings[packing].floats ? 37 + (int64_t)i : pl_packings[packing].elements * (1 + (int64_t)i % 3);
            for (int32_t planes = 1; planes <= 2; planes++) {
                hash = hash_matmul(kernels, (pl_packing)packing, k, columns[i], planes, (kind)(i % 3), hash);
            }
        }
        snprintf(detail, sizeof detail, "%d", packing);
        report("matmul/", detail, kernels->name, hash);
    }
}

static void probe_quantize(const pl_kernels *kernels) {
    uint64_t hash = START;
    random_state = 2;
    for (int32_t round = 0; round < 40; round++) {
        int32_t planes = 1 + round % 2;
        int64_t k = 32 * (1 + round % 5);
        activations a = make_activations(kernels, 1, k, planes, round > 10 ? AWKWARD : ORDINARY);
        hash = hash_bytes(hash, a.q, (size_t)(planes * k));
        for (int64_t b = 0; b < k / 32; b++) {
            const pl_act_block *block = &a.blocks[b];
            hash = hash_floats(hash_floats(hash, &block->scale, 1), &block->offset, 1);
            hash = hash_bytes(hash, &block->minus_sum, sizeof block->minus_sum);
            hash = hash_bytes(hash, block->minus_half, sizeof block->minus_half);
        }
        free_activations(&a);
    }
    report("quantize", "", kernels->name, hash);
}

static void probe_vectors(const pl_kernels *kernels) {
    uint64_t norm = START, glu = START, soft = START;
    random_state = 3;
    for (int64_t n = 1; n < 400; n += 13) {
        int64_t n16 = (n + 15) / 16 * 16;
        float *a = random_floats(n16, n % 2), *b = random_floats(n16, n % 2), *out = get((size_t)n16, sizeof *out), max;
        for (int64_t i = n; i < n16; i++) a[i] = b[i] = 0;
        kernels->rmsnorm(a, b, n, 1e-5f, out);
        norm = hash_floats(norm, out, n16);
        kernels->swiglu(a, b, n16, out);
        glu = hash_floats(glu, out, n16);
        for (int64_t i = n; i < n16; i++) a[i] = -INFINITY;
        float sum = kernels->softmax(a, n16, 0.25f, &max);
        soft = hash_floats(hash_floats(hash_floats(soft, a, n16), &sum, 1), &max, 1);
        free(a), free(b), free(out);
    }
    report("rmsnorm", "", kernels->name, norm);
    report("swiglu", "", kernels->name, glu);
    report("softmax", "", kernels->name, soft);
}

static void probe_elementwise(const pl_kernels *kernels) {
    uint64_t activation = START, cap = START, centre = START;
    random_state = 5;
    for (int64_t n = 1; n < 400; n += 13) {
        int64_t n16 = (n + 15) / 16 * 16;
        float *a = random_floats(n16, n % 2), *b = random_floats(n16, n % 2), *out = get((size_t)n16, sizeof *out);
        for (int32_t kind = PL_ACTIVATION_SILU; kind <= PL_ACTIVATION_SILU_CLAMPED; kind++) {
            kernels->activate(kind, 0.5f, a, b, n, out);
            activation = hash_floats(activation, out, n16);
            if (kind != PL_ACTIVATION_SILU_CLAMPED) kernels->activate(kind, 0, a, NULL, n, out);
            activation = hash_floats(activation, out, n16);
        }
        for (int64_t i = n; i < n16; i++) a[i] = 0;
        pl_centre(a, n, out);
        centre = hash_floats(centre, out, n16);
        kernels->softcap(a, n, 0.25f, 1.5f);
        cap = hash_floats(cap, a, n);
        free(a), free(b), free(out);
    }
    report("activate", "", kernels->name, activation);
    report("softcap", "", kernels->name, cap);
    report("centre", "", kernels->name, centre);
}

/* n blocks with codes of any kind and ordinary scales. */
static pl_block_q8_0 *random_blocks(int64_t n) {
    pl_block_q8_0 *block = get((size_t)n, sizeof *block);
    for (int64_t i = 0; i < n; i++) {
        uint16_t d = pl_f16_from_float(random_float());
        memcpy(block[i].d, &d, sizeof d);
        for (int j = 0; j < PL_BLOCK; j++) block[i].qs[j] = (int8_t)random_bits();
    }
    return block;
}

static void probe_weigh(const pl_kernels *kernels) {
    uint64_t half = START, full = START, eighth = START;
    random_state = 4;
    for (int64_t heads = 1; heads < 10; heads++) {
        int64_t tokens = 7 * heads, d16 = 16 * (1 + heads % 5), n = tokens * d16;
        float *value = random_floats(n, 0), *p = random_floats(heads * tokens, heads % 2);
        float *out = random_floats(heads * d16, 0);
        uint16_t *value16 = get((size_t)n, sizeof *value16);
        for (int64_t i = 0; i < n; i++) value16[i] = pl_f16_from_float(value[i]);
        kernels->weigh_f16(value16, tokens, d16, 0, p, tokens, heads, out);
        half = hash_floats(half, out, heads * d16);
        kernels->weigh_f32(value, tokens, d16, 0, p, tokens, heads, out);
        full = hash_floats(full, out, heads * d16);
        pl_block_q8_0 *blocks = random_blocks(tokens * ((d16 + PL_BLOCK - 1) / PL_BLOCK));
        kernels->weigh_q8_0(blocks, tokens, d16, 0, p, tokens, heads, out);
        eighth = hash_floats(eighth, out, heads * d16);
        free(value), free(value16), free(blocks), free(p), free(out);
    }
    report("weigh/f16", "", kernels->name, half);
    report("weigh/f32", "", kernels->name, full);
    report("weigh/q8_0", "", kernels->name, eighth);
}

/* ---- a whole model ----------------------------------------------------------------------------------------------- */

enum {
    DIM = 256,
    HIDDEN = 512,
    LAYERS = 2,
    HEADS = 4,
    KV_HEADS = 2,
    HEAD_DIM = 64,
    VOCAB = 96,
    PROMPT = 11,
    DECODED = 5
};
enum { GROUP = 64 /* of the llama2.c type */ };

static pl_error error;

static void must(int32_t status) {
    if (status == PL_OK) return;
    fprintf(stderr, "%s\n", error.message);
    exit(2);
}

static void put_f16(uint8_t *at, float value) {
    uint16_t h = pl_f16_from_float(value);
    memcpy(at, &h, sizeof h);
}

/* Where a block has its scale and its minimum, and how large they are where weights are about 1 / sqrt(DIM). */
typedef struct tame {
    int32_t type, scale_at, minimum_at; /* 0: none */
    float scale, minimum;
} tame;

static const tame tames[] = {
    {PL_TYPE_Q8_0, 0, 0, 0x1p-11f, 0},   {PL_TYPE_Q4_0, 0, 0, 0x1p-7f, 0},     {PL_TYPE_Q4_1, 0, 2, 0x1p-7f, -8},
    {PL_TYPE_Q5_0, 0, 0, 0x1p-7f, 0},    {PL_TYPE_Q5_1, 0, 2, 0x1p-7f, -8},    {PL_TYPE_Q2_K, 80, 82, 0x1p-8f, 1.5f},
    {PL_TYPE_Q3_K, 108, 0, 0x1p-10f, 0}, {PL_TYPE_Q4_K, 0, 2, 0x1p-12f, 8},    {PL_TYPE_Q5_K, 0, 2, 0x1p-12f, 8},
    {PL_TYPE_Q6_K, 208, 0, 0x1p-15f, 0}, {PL_TYPE_IQ2_XXS, 0, 0, 0x1p-10f, 0}, {PL_TYPE_IQ2_XS, 0, 0, 0x1p-10f, 0},
    {PL_TYPE_IQ2_S, 0, 0, 0x1p-10f, 0},  {PL_TYPE_IQ3_XXS, 0, 0, 0x1p-11f, 0}, {PL_TYPE_IQ3_S, 0, 0, 0x1p-11f, 0},
    {PL_TYPE_IQ1_S, 0, 0, 0x1p-7f, 0},   {PL_TYPE_IQ4_NL, 0, 0, 0x1p-10f, 0},  {PL_TYPE_IQ4_XS, 0, 0, 0x1p-14f, 0},
    {PL_TYPE_TQ1_0, 52, 0, 0x1p-4f, 0},  {PL_TYPE_TQ2_0, 64, 0, 0x1p-4f, 0},
};

/* Any bits are codes; the scales among them are made ordinary. */
static void tame_block(int32_t type, uint8_t *block) {
    float spread = 1.0f + 0.5f * random_float(), q8_k = 0x1p-11f * spread;
    if (type == PL_TYPE_MXFP4) block[0] = 120;
    if (type == PL_TYPE_Q8_K) memcpy(block, &q8_k, sizeof q8_k);
    if (type == PL_TYPE_IQ1_M) { /* an f16 of 0x2000, 2^-7, a nibble in each word */
        for (int i = 0; i < 4; i++) block[49 + 2 * i] = (uint8_t)((block[49 + 2 * i] & 15) | (i == 3 ? 0x20 : 0));
    }
    for (size_t i = 0; i < sizeof tames / sizeof *tames; i++) {
        if (tames[i].type != type) continue;
        put_f16(block + tames[i].scale_at, tames[i].scale * spread);
        if (tames[i].minimum_at) put_f16(block + tames[i].minimum_at, tames[i].minimum * tames[i].scale * spread);
    }
}

static void fill_weights(const pl_type_info *type, int64_t n, uint8_t *data, size_t nbytes) {
    for (size_t i = 0; i < nbytes; i++) data[i] = (uint8_t)random_bits();
    if (type->id == PL_TYPE_LLAMA2C_Q8) {
        for (int64_t i = 0; i < n / GROUP; i++) {
            float scale = 0x1p-11f * (1.5f + random_float());
            memcpy(data + n + 4 * i, &scale, sizeof scale);
        }
    }
    for (int64_t i = 0; i < n / type->block_elements && type->id != PL_TYPE_LLAMA2C_Q8; i++) {
        uint8_t *block = data + i * type->block_bytes;
        float value = 0.1f * random_float();
        uint16_t upper = (uint16_t)(pl_float_bits(value) >> 16);
        switch (type->id) {
            case PL_TYPE_F32: memcpy(block, &value, sizeof value); break;
            case PL_TYPE_F16: put_f16(block, value); break;
            case PL_TYPE_BF16: memcpy(block, &upper, sizeof upper); break;
            default: tame_block(type->id, block); break;
        }
    }
}

static void bind_expert(pl_model *model, int32_t slot, int32_t layer, int32_t expert, const pl_type_info *type,
                        int64_t rows, int64_t cols) {
    int64_t group = type->id == PL_TYPE_LLAMA2C_Q8 ? GROUP : 0, n = rows * cols;
    size_t nbytes = (size_t)(n / type->block_elements * type->block_bytes + (group ? n / group * 4 : 0));
    uint8_t *data = get(nbytes, 1);
    fill_weights(type, n, data, nbytes);
    pl_source source = {.type = type->id, .rows = rows, .cols = cols, .group = group, .data = data, .nbytes = nbytes};
    must(pl_model_bind(model, slot, layer, expert, &source, 1, &error));
    free(data);
}

static void bind(pl_model *model, int32_t slot, int32_t layer, const pl_type_info *type, int64_t rows, int64_t cols) {
    bind_expert(model, slot, layer, 0, type, rows, cols);
}

/* A small Llama. */
static pl_config plain_config(int32_t planes, int32_t kv_type) {
    return (pl_config){.dim = DIM,
                       .hidden_dim = HIDDEN,
                       .n_layers = LAYERS,
                       .n_heads = HEADS,
                       .n_kv_heads = KV_HEADS,
                       .head_dim = HEAD_DIM,
                       .vocab_size = VOCAB,
                       .context_length = 64,
                       .norm_eps = 1e-5f,
                       .gated = 1,
                       .causal = 1,
                       .rope_base = 10000.0f,
                       .rope_scale = 1.0f,
                       .rope_dims = HEAD_DIM,
                       .rope_interleaved = planes == 1,
                       .embedding_scale = 1.0f,
                       .residual_scale = 1.0f,
                       .logit_scale = 1.0f,
                       .expert_scale = 1.0f,
                       .planes = planes,
                       .kv_type = kv_type};
}

static void bind_attention(pl_model *model, int32_t layer, const pl_type_info *type) {
    bind(model, PL_SLOT_WQ, layer, type, HEADS * HEAD_DIM, DIM);
    bind(model, PL_SLOT_WK, layer, type, KV_HEADS * HEAD_DIM, DIM);
    bind(model, PL_SLOT_WV, layer, type, KV_HEADS * HEAD_DIM, DIM);
    bind(model, PL_SLOT_WO, layer, type, DIM, HEADS * HEAD_DIM);
}

/* Vectors of one width into slots of a layer. */
static void bind_vectors(pl_model *model, int32_t layer, int64_t width, const int32_t *slots, int32_t n) {
    for (int32_t i = 0; i < n; i++) bind(model, slots[i], layer, pl_type_find(PL_TYPE_F32), 1, width);
}

#define BIND_VECTORS(model, layer, width, ...) \
    bind_vectors(model, layer, width, (const int32_t[]){__VA_ARGS__}, \
                 (int32_t)(sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t)))

static pl_model *make_model(const pl_type_info *type, int32_t planes, int32_t kv_type) {
    const pl_config config = plain_config(planes, kv_type);
    pl_layer_config layers[LAYERS];
    for (int i = 0; i < LAYERS; i++) layers[i] = (pl_layer_config){.rope = PL_ROPE_MAIN};
    pl_model *model;
    must(pl_model_new(&config, layers, &model, &error));
    bind(model, PL_SLOT_EMBEDDING, 0, type, VOCAB, DIM);
    for (int32_t layer = 0; layer < LAYERS; layer++) {
        BIND_VECTORS(model, layer, DIM, PL_SLOT_ATTENTION_NORM);
        bind_attention(model, layer, type);
        BIND_VECTORS(model, layer, DIM, PL_SLOT_FFN_NORM);
        bind(model, PL_SLOT_GATE, layer, type, HIDDEN, DIM);
        bind(model, PL_SLOT_UP, layer, type, HIDDEN, DIM);
        bind(model, PL_SLOT_DOWN, layer, type, DIM, HIDDEN);
    }
    BIND_VECTORS(model, 0, DIM, PL_SLOT_FINAL_NORM);
    must(pl_model_finish(model, &error));
    return model;
}

enum { EXPERTS = 5, USED = 2, EXPERT_DIM = 64, SHARED_DIM = 96 };

/* Layer 0 dense, layer 1 a mixture of experts; windows, sinks, caps, norms before and after, biases. */
static pl_model *make_expert_model(const pl_type_info *type, int32_t activation, int32_t routing) {
    pl_config c = plain_config(2, PL_TYPE_F16);
    c.qk_norm = PL_QK_NORM_EACH, c.activation = activation, c.activation_limit = 1.5f;
    c.rope_local_base = 300.0f, c.rope_scale = 1.1f, c.rope_dims = 48;
    c.attention_softcap = 2.0f, c.logit_softcap = 20.0f, c.residual_scale = 0.7f, c.embedding_scale = 3.0f;
    c.n_experts = EXPERTS, c.n_experts_used = USED, c.expert_dim = EXPERT_DIM, c.shared_dim = SHARED_DIM;
    c.routing = routing, c.expert_renormalise = 1, c.expert_scale = 1.5f;
    const pl_layer_config layers[LAYERS] = {{.window = 4, .rope = PL_ROPE_LOCAL}, {.rope = PL_ROPE_MAIN, .experts = 1}};
    pl_model *model;
    must(pl_model_new(&c, layers, &model, &error));
    bind(model, PL_SLOT_EMBEDDING, 0, type, VOCAB, DIM);
    for (int32_t layer = 0; layer < LAYERS; layer++) {
        BIND_VECTORS(model, layer, DIM, PL_SLOT_ATTENTION_NORM, PL_SLOT_BO, PL_SLOT_FFN_POST_NORM, PL_SLOT_FFN_NORM);
        BIND_VECTORS(model, layer, HEADS * HEAD_DIM, PL_SLOT_BQ, PL_SLOT_Q_NORM);
        BIND_VECTORS(model, layer, KV_HEADS * HEAD_DIM, PL_SLOT_BK, PL_SLOT_BV, PL_SLOT_K_NORM);
        BIND_VECTORS(model, layer, HEADS, PL_SLOT_SINKS);
        bind_attention(model, layer, type);
    }
    bind(model, PL_SLOT_GATE, 0, type, HIDDEN, DIM);
    bind(model, PL_SLOT_UP, 0, type, HIDDEN, DIM);
    bind(model, PL_SLOT_DOWN, 0, type, DIM, HIDDEN);
    bind(model, PL_SLOT_ROUTER, 1, pl_type_find(PL_TYPE_F32), EXPERTS, DIM);
    BIND_VECTORS(model, 1, EXPERTS, PL_SLOT_ROUTER_BIAS, PL_SLOT_CHOICE_BIAS);
    for (int32_t e = 0; e < EXPERTS; e++) {
        bind_expert(model, PL_SLOT_EXPERT_GATE, 1, e, type, EXPERT_DIM, DIM);
        bind_expert(model, PL_SLOT_EXPERT_UP, 1, e, type, EXPERT_DIM, DIM);
        bind_expert(model, PL_SLOT_EXPERT_DOWN, 1, e, type, DIM, EXPERT_DIM);
    }
    bind(model, PL_SLOT_SHARED_GATE, 1, type, SHARED_DIM, DIM);
    bind(model, PL_SLOT_SHARED_UP, 1, type, SHARED_DIM, DIM);
    bind(model, PL_SLOT_SHARED_DOWN, 1, type, DIM, SHARED_DIM);
    bind(model, PL_SLOT_SHARED_ROUTER, 1, type, 1, DIM);
    BIND_VECTORS(model, 0, DIM, PL_SLOT_FINAL_NORM);
    must(pl_model_finish(model, &error));
    return model;
}

/* Layer norms with biases, learned positions, parallel blocks without a gate. */
static pl_model *make_parallel_model(const pl_type_info *type, int32_t activation) {
    pl_config c = plain_config(1, PL_TYPE_F32);
    c.norm = PL_NORM_LAYER, c.parallel = 1, c.gated = 0, c.activation = activation, c.qk_norm = PL_QK_NORM_WIDE;
    const pl_layer_config layers[LAYERS] = {{.rope = PL_ROPE_NONE}, {.rope = PL_ROPE_MAIN, .window = 7}};
    pl_model *model;
    must(pl_model_new(&c, layers, &model, &error));
    bind(model, PL_SLOT_EMBEDDING, 0, type, VOCAB, DIM);
    bind(model, PL_SLOT_POSITION_EMBEDDING, 0, type, 64, DIM);
    for (int32_t layer = 0; layer < LAYERS; layer++) {
        BIND_VECTORS(model, layer, DIM, PL_SLOT_ATTENTION_NORM, PL_SLOT_ATTENTION_NORM_BIAS, PL_SLOT_DOWN_BIAS);
        BIND_VECTORS(model, layer, HIDDEN, PL_SLOT_UP_BIAS);
        BIND_VECTORS(model, layer, HEADS * HEAD_DIM, PL_SLOT_Q_NORM);
        BIND_VECTORS(model, layer, KV_HEADS * HEAD_DIM, PL_SLOT_K_NORM);
        bind_attention(model, layer, type);
        bind(model, PL_SLOT_UP, layer, type, HIDDEN, DIM);
        bind(model, PL_SLOT_DOWN, layer, type, DIM, HIDDEN);
    }
    BIND_VECTORS(model, 0, DIM, PL_SLOT_FINAL_NORM, PL_SLOT_FINAL_NORM_BIAS, PL_SLOT_EMBEDDING_NORM);
    BIND_VECTORS(model, 0, VOCAB, PL_SLOT_HEAD_BIAS);
    must(pl_model_finish(model, &error));
    return model;
}

/* Logits that are NaN or all one number would hash alike whatever the arithmetic. */
static void must_be_alive(const float *logits) {
    float low = INFINITY, high = -INFINITY;
    for (int i = 0; i < VOCAB; i++) {
        if (!isfinite(logits[i])) low = high = NAN;
        low = logits[i] < low ? logits[i] : low;
        high = logits[i] > high ? logits[i] : high;
    }
    if (high - low > 1e-3f && high - low < 1e6f) return;
    fprintf(stderr, "the probe's model is not alive: logits from %g to %g\n", (double)low, (double)high);
    exit(2);
}

/* Evaluates n tokens, with the logits of all. */
static uint64_t eval(pl_model *model, pl_session *session, const int32_t *tokens, int32_t n, float *logits,
                     uint64_t hash) {
    pl_run run = {.session = session, .tokens = tokens, .n = n, .n_logits = n, .logits = logits};
    must(pl_eval(model, &run, 1, 1, NULL, NULL, &error));
    for (int32_t i = 0; i < n; i++) {
        must_be_alive(logits + i * VOCAB);
        hash = hash_double(hash, pl_log_probability(logits + i * VOCAB, VOCAB, i));
    }
    return hash_floats(hash, logits, (int64_t)n * VOCAB);
}

enum { SEED = 42 };

/* The text that comes where C goes on by itself after the prompt must be the same. */
static void must_go_on_alike(pl_model *model, pl_session *session, pl_sampler *sampler, const int32_t *tokens) {
    int32_t text[PROMPT + DECODED];
    float logits[VOCAB];
    pl_generation g = {.sampler = sampler, .text = text, .n_text = PROMPT, .most = DECODED, .seconds = 1e9};
    g.logits = logits;
    memcpy(text, tokens, PROMPT * sizeof *text);
    must(pl_session_truncate(session, PROMPT - 1, &error));
    pl_run last = {.session = session, .tokens = text + PROMPT - 1, .n = 1, .n_logits = 1, .logits = logits};
    must(pl_eval(model, &last, 1, 1, NULL, NULL, &error));
    sampler->rng = SEED;
    pl_generate(session, &g, 1);
    if (g.drawn == DECODED && memcmp(text, tokens, sizeof text) == 0) return;
    fprintf(stderr, "pl_generate drew %d tokens, or others than pl_sample\n", (int)g.drawn);
    exit(2);
}

/* A prompt at once, then sampled tokens one by one: logits, probabilities and draws. `by_itself`: they must be the same
 * where C draws and evaluates them by itself. */
static uint64_t hash_model(pl_model *model, uint64_t hash, int by_itself) {
    int32_t tokens[PROMPT + DECODED];
    float logits[PROMPT * VOCAB], work[2 * VOCAB + 16];
    pl_sampler sampler = {
        .sampling = {.temperature = 0.8f, .top_p = 0.95f, .repetition_penalty = 1.1f}, .work = work, .rng = SEED};
    pl_session *session;
    must(pl_session_new(model, 64, &session, &error));
    for (int i = 0; i < PROMPT; i++) tokens[i] = (int32_t)(random_bits() % VOCAB);
    hash = eval(model, session, tokens, PROMPT, logits, hash);
    const float *last = logits + (PROMPT - 1) * VOCAB;
    for (int32_t n = PROMPT; n < PROMPT + DECODED; n++, last = logits) {
        must(pl_sample(&sampler, last, VOCAB, tokens, n, NULL, &tokens[n], &error));
        hash = eval(model, session, tokens + n, 1, logits, hash);
    }
    if (by_itself) must_go_on_alike(model, session, &sampler, tokens);
    pl_session_free(session);
    return hash_bytes(hash, tokens, sizeof tokens);
}

/* What any bits mean, for every type. */
static void probe_values(void) {
    enum { ROWS = 8, COLS = 1024 };
    const pl_type_info *type;
    float *out = get(ROWS * COLS, sizeof *out);
    for (int32_t i = 0; (type = pl_type_at(i)) != NULL; i++) {
        int64_t group = type->id == PL_TYPE_LLAMA2C_Q8 ? GROUP : 0, n = ROWS * COLS;
        size_t nbytes = (size_t)(n / type->block_elements * type->block_bytes + (group ? n / group * 4 : 0));
        uint8_t *data = get(nbytes, 1);
        random_state = 200 + (uint64_t)i;
        for (size_t j = 0; j < nbytes; j++) data[j] = (uint8_t)random_bits();
        pl_source source = {type->id, ROWS, COLS, group, data, nbytes};
        must(pl_dequantize(&source, out, &error));
        report("values/", group ? "llama2c-int8" : type->name, "-", hash_floats(START, out, n));
        free(data);
    }
    free(out);
}

/* What the quantisers make of ordinary numbers, of very small and of very large ones. */
static void probe_quantisers(void) {
    enum { COLS = 256 * 9 };
    const pl_type_info *type;
    static float x[COLS];
    static uint8_t out[COLS * 4];
    for (int32_t i = 0; (type = pl_type_at(i)) != NULL; i++) {
        uint64_t hash = START;
        size_t nbytes = (size_t)(COLS / type->block_elements) * (size_t)type->block_bytes;
        if (pl_type_row(type->id)->quantize_row == NULL) continue;
        random_state = 300;
        for (int k = 0; k < COLS; k++) {
            x[k] = random_float() * random_float() * (k < 1024 ? 0.05f : k < 1280 ? 1e-8f : k < 1536 ? 6e4f : 1.0f);
        }
        pl_type_row(type->id)->quantize_row(x, COLS, out);
        report("quantised/", type->name, "-", hash_bytes(hash, out, nbytes));
    }
}

/* One type stands for all that are packed alike: beyond the packing they share all code. */
static void probe_models(const pl_kernels *kernels) {
    const pl_type_info *type;
    uint32_t seen = 0;
    must(pl_isa_select(kernels->name, &error));
    for (int32_t i = 0; (type = pl_type_at(i)) != NULL; i++) {
        uint64_t hash = START;
        uint32_t packing = 1u << pl_type_row(type->id)->packing;
        if (seen & packing) continue;
        seen |= packing;
        random_state = 100 + (uint64_t)i;
        for (int32_t planes = 1; planes <= 2; planes++) {
            pl_model *model = make_model(type, planes, planes == 1 ? PL_TYPE_F16 : PL_TYPE_F32);
            hash = hash_model(model, hash, 0);
            pl_model_release(model);
        }
        report("model/", type->id == PL_TYPE_LLAMA2C_Q8 ? "llama2c-int8" : type->name, kernels->name, hash);
    }
}

/* Keys and values in 8 bits. */
static void probe_kept(const pl_kernels *kernels) {
    must(pl_isa_select(kernels->name, &error));
    random_state = 400;
    pl_model *model = make_model(pl_type_find(PL_TYPE_Q4_0), 2, PL_TYPE_Q8_0);
    report("model/", "kv-q8_0", kernels->name, hash_model(model, START, 1));
    pl_model_release(model);
}

/* Everything that is not in a plain Llama, on two types that differ in all: quantised weights, and floats. */
static void probe_switches(const pl_kernels *kernels) {
    static const int32_t types[] = {PL_TYPE_Q4_0, PL_TYPE_F16};
    uint64_t experts = START, parallel = START;
    must(pl_isa_select(kernels->name, &error));
    random_state = 300;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        for (int32_t choice = 0; choice < 3; choice++) {
            static const int32_t gated[] = {PL_ACTIVATION_GELU, PL_ACTIVATION_GELU_TANH, PL_ACTIVATION_SILU_CLAMPED};
            pl_model *model = make_expert_model(pl_type_find(types[i]), gated[choice], choice);
            experts = hash_model(model, experts, 0);
            pl_model_release(model);
        }
        for (int32_t activation = PL_ACTIVATION_GELU; activation <= PL_ACTIVATION_RELU_SQUARED; activation++) {
            pl_model *model = make_parallel_model(pl_type_find(types[i]), activation);
            parallel = hash_model(model, parallel, 0);
            pl_model_release(model);
        }
    }
    report("model/", "experts", kernels->name, experts);
    report("model/", "parallel", kernels->name, parallel);
}

static void probe_what_has_no_level(void) {
    random_state = 1;
    probe_floats();
    probe_doubles();
    probe_f16();
    probe_values();
    probe_quantisers();
}

static void probe_level(const pl_kernels *kernels) {
    probe_matmuls(kernels);
    probe_quantize(kernels);
    probe_vectors(kernels);
    probe_elementwise(kernels);
    probe_weigh(kernels);
    probe_models(kernels);
    probe_switches(kernels);
    probe_kept(kernels);
}

/* Whether it is among the arguments, or there are none. */
static int is_wanted(const char *name, int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0) return 1;
    }
    return argc == 1;
}

int main(int argc, char **argv) {
    const char *name;
    printf("levels");
    for (int32_t i = 0; (name = pl_isa_name(i)) != NULL; i++) printf(" %s", name);
    printf("\n");
    if (is_wanted("-", argc, argv)) probe_what_has_no_level();
    for (int32_t i = 0; (name = pl_isa_name(i)) != NULL; i++) {
        if (is_wanted(name, argc, argv)) probe_level(pl_kernels_by_name(name));
    }
    return 0;
}
