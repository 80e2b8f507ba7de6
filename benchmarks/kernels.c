/* The micro-kernels of one level, each beside what the processor can do: benchmarks/kernels.py compiles it with the
 * sources of csrc/, runs it and reads what it prints: the number of the type's packing, and then a line for each
 * number of columns:
 *
 *   columns cached-GMAC/s ceiling-GMAC/s streamed-GB/s memory-GB/s
 *
 * One thread; its CPU time, so that others on the machine take part of the cache and of the memory only. Ceilings are
 * loops over registers of the level's own multiply-add, run before each sample. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "base/memory.h"
#include "kernels/avx2.h"
#include "kernels/kernels.h"
#include "kernels/target.h"
#include "quant/rows.h"

enum {
    K = 2048,
    CACHED_STRIPS = 8,         /* a few hundred kilobytes at most */
    STREAMED_BYTES = 64 << 20, /* more than a cache holds */
    MOST_COLUMNS = 96,
    SAMPLES = 5,
    CHAINS = 12
};

static double cpu_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void *get(size_t bytes) {
    void *memory = pl_map(bytes); /* as the weights of a model are: on huge pages, where there are any */
    if (memory == NULL) exit(1);
    return memory;
}

/* ---- ceilings: multiply-accumulates of `turns` turns, CHAINS instructions each ----------------------------------- */

typedef double ceiling_fn(long turns);

/* The loop: `step` makes sum[i] of sum[i], x and y, which the compiler must believe to be new each time. */
#define CEILING(name, vector, lanes, register, zero, step) \
    static double name(long turns) { \
        vector sum[CHAINS], x = zero, y = zero; \
        PL_UNROLL \
        for (int i = 0; i < CHAINS; i++) sum[i] = zero; \
        for (long t = 0; t < turns; t++) { \
            PL_UNROLL \
            for (int i = 0; i < CHAINS; i++) { \
                __asm__ volatile("" : "+" register(x), "+" register(y)); \
                sum[i] = step; \
            } \
        } \
        PL_UNROLL \
        for (int i = 0; i < CHAINS; i++) __asm__ volatile("" : "+" register(sum[i])); \
        return (double)turns * CHAINS * (lanes); \
    }

#if defined(__x86_64__)
PL_TARGET_BEGIN("avx2,fma")
CEILING(avx2_float, __m256, 8, "x", _mm256_setzero_ps(), _mm256_fmadd_ps(x, y, sum[i]))
CEILING(avx2_bytes, __m256i, 32, "x", _mm256_setzero_si256(), _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(x, y)))
PL_TARGET_END
#if defined(PL_HAS_AVXVNNI_LEVEL)
PL_TARGET_BEGIN(PL_AVXVNNI_TARGET)
CEILING(avxvnni_bytes, __m256i, 32, "x", _mm256_setzero_si256(), pl_dpbusd(sum[i], x, y))
PL_TARGET_END
#endif
PL_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512vnni")
CEILING(avx512_float, __m512, 16, "v", _mm512_setzero_ps(), _mm512_fmadd_ps(x, y, sum[i]))
CEILING(avx512_bytes, __m512i, 64, "v", _mm512_setzero_si512(), _mm512_dpbusd_epi32(sum[i], x, y))
PL_TARGET_END
#elif defined(__aarch64__)
CEILING(neon_float, float32x4_t, 4, "w", vdupq_n_f32(0), vfmaq_f32(sum[i], x, y))
CEILING(neon_bytes, int8x16_t, 8, "w", vdupq_n_s8(0),
        vreinterpretq_s8_s16(vmlal_s8(vreinterpretq_s16_s8(sum[i]), vget_low_s8(x), vget_low_s8(y))))
#if defined(PL_HAS_DOTPROD_LEVEL)
PL_TARGET_BEGIN("arch=armv8.2-a+dotprod")
CEILING(dotprod_bytes, int8x16_t, 16, "w", vdupq_n_s8(0),
        vreinterpretq_s8_s32(vdotq_s32(vreinterpretq_s32_s8(sum[i]), x, y)))
PL_TARGET_END
#endif
#if defined(PL_HAS_I8MM_LEVEL)
PL_TARGET_BEGIN("arch=armv8.2-a+i8mm")
CEILING(i8mm_bytes, int8x16_t, 32, "w", vdupq_n_s8(0),
        vreinterpretq_s8_s32(vmmlaq_s32(vreinterpretq_s32_s8(sum[i]), x, y)))
PL_TARGET_END
#endif
#endif

static ceiling_fn *ceiling_of(const char *isa, int floats) {
#if defined(__x86_64__)
    if (strcmp(isa, "avx512") == 0) return floats ? avx512_float : avx512_bytes;
#if defined(PL_HAS_AVXVNNI_LEVEL)
    if (strcmp(isa, "avxvnni") == 0) return floats ? avx2_float : avxvnni_bytes;
#endif
    if (strcmp(isa, "avx2") == 0) return floats ? avx2_float : avx2_bytes;
#elif defined(__aarch64__)
#if defined(PL_HAS_I8MM_LEVEL)
    if (strcmp(isa, "i8mm") == 0) return floats ? neon_float : i8mm_bytes;
#endif
#if defined(PL_HAS_DOTPROD_LEVEL)
    if (strcmp(isa, "dotprod") == 0) return floats ? neon_float : dotprod_bytes;
#endif
    if (strcmp(isa, "neon") == 0) return floats ? neon_float : neon_bytes;
#endif
    (void)isa, (void)floats;
    return NULL; /* the scalar level has none */
}

static double ceiling_rate(ceiling_fn *ceiling) {
    if (ceiling == NULL) return 0;
    double begun = cpu_seconds(), macs = ceiling(50000);
    return macs / (cpu_seconds() - begun) / 1e9;
}

/* ---- samples ----------------------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double samples[SAMPLES]) {
    qsort(samples, SAMPLES, sizeof *samples, by_size);
    return samples[SAMPLES / 2];
}

/* GB/s of a loop that only reads, with `ahead` bytes fetched ahead if it is not 0. */
static double read_rate(const uint8_t *bytes, size_t n, size_t ahead) {
    typedef uint64_t vector __attribute__((vector_size(16)));
    vector sum[4] = {{0}};
    double begun = cpu_seconds();
    for (size_t i = 0; i + sizeof sum <= n; i += sizeof sum) {
        if (ahead) __builtin_prefetch(bytes + (i + ahead < n ? i + ahead : i));
        PL_UNROLL
        for (int j = 0; j < 4; j++) sum[j] ^= ((const vector *)(bytes + i))[j];
    }
    double seconds = cpu_seconds() - begun;
    __asm__ volatile("" : : "r"(sum) : "memory");
    return (double)n / seconds / 1e9;
}

/* The better of the two: which it is depends on the processor. */
static double memory_rate(const uint8_t *bytes, size_t n) {
    double plain = read_rate(bytes, n, 0), fetched = read_rate(bytes, n, 4096);
    return plain > fetched ? plain : fetched;
}

/* Seconds of one product, over at least a millisecond. */
static double product_seconds(pl_matmul_fn *matmul, const uint8_t *strips, int64_t count, const pl_acts *x, int64_t n,
                              float *y) {
    double begun = cpu_seconds(), elapsed = 0;
    int64_t turns = 0;
    for (; elapsed < 1e-3; turns++, elapsed = cpu_seconds() - begun) {
        matmul(strips, count, x, 0, n, y, count * PL_STRIP, 0);
    }
    return elapsed / (double)turns;
}

typedef struct bench {
    const pl_kernels *kernels;
    const float *f;
    uint8_t *strips; /* STREAMED_BYTES */
    float *y;
    int8_t *q;
    pl_act_block *blocks;
} bench;

static void measure(const bench *b, pl_packing packing, int32_t planes, int64_t n) {
    pl_acts x = {b->f, K, b->q, pl_acts_ldq(K, planes), b->blocks, K, planes, 0};
    for (int64_t c = 0; c < n && planes > 0; c++) {
        b->kernels->quantize(b->f + c * K, K, planes, b->q + c * x.ldq, b->blocks + c * (K / PL_BLOCK));
    }
    const int64_t bytes = pl_strip_bytes(packing, K), many = STREAMED_BYTES / bytes;
    pl_matmul_fn *matmul = pl_matmul_of(b->kernels, packing);
    ceiling_fn *ceiling = ceiling_of(b->kernels->name, planes == 0);
    double cached[SAMPLES], ceilings[SAMPLES], streamed[SAMPLES], memory[SAMPLES];
    for (int i = 0; i < SAMPLES; i++) {
        ceilings[i] = ceiling_rate(ceiling) / (planes == 2 ? 2 : 1);
        double seconds = product_seconds(matmul, b->strips, CACHED_STRIPS, &x, n, b->y);
        cached[i] = (double)(CACHED_STRIPS * PL_STRIP * K * n) / seconds / 1e9;
        memory[i] = memory_rate(b->strips, (size_t)(many * bytes));
        streamed[i] = (double)(many * bytes) / product_seconds(matmul, b->strips, many, &x, n, b->y) / 1e9;
    }
    printf("%d %.6g %.6g %.6g %.6g\n", (int)n, median(cached), median(ceilings), median(streamed), median(memory));
}

/* kernels LEVEL TYPE PLANES [COLUMNS...] */
int main(int argc, char **argv) {
    if (argc < 4) return 2;
    const pl_type *type = pl_type_row(atoi(argv[2]));
    if (type == NULL) return 3;
    printf("%d\n", type->packing);
    if (argc == 4) return 0;
    const size_t most_rows = STREAMED_BYTES / K * 4; /* at 2 bits a weight */
    float *f = get(MOST_COLUMNS * K * sizeof *f);
    bench b = {.kernels = pl_kernels_by_name(argv[1]), .f = f, .strips = get(STREAMED_BYTES)};
    if (b.kernels == NULL) return 4;
    b.y = get(most_rows * MOST_COLUMNS * sizeof *b.y);
    b.q = get((size_t)(MOST_COLUMNS * pl_acts_ldq(K, 2)));
    b.blocks = get(MOST_COLUMNS * (K / PL_BLOCK) * sizeof *b.blocks);
    for (int i = 0; i < MOST_COLUMNS * K; i++) f[i] = (float)(rand() % 2001 - 1000) / 1000;
    for (int i = 0; i < STREAMED_BYTES; i++)
        b.strips[i] = (uint8_t)(0x10 + (i * 2654435761u >> 28)); /* finite floats */
    for (int i = 4; i < argc; i++) measure(&b, type->packing, atoi(argv[3]), atoi(argv[i]));
    return 0;
}
