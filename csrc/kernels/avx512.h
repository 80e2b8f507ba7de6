/* What the files of the AVX-512 level share. A lane is an output row; all sums run in the order of scalar.c. */
#ifndef PL_KERNELS_AVX512_H
#define PL_KERNELS_AVX512_H

#include <immintrin.h>

#include "kernels/kernels.h"
#include "kernels/target.h"

#define PL_AVX512_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"

pl_matmul_fn pl_avx512_matmul_f32, pl_avx512_matmul_f16, pl_avx512_matmul_bf16;
#define PL_DECLARE(type, ...) pl_matmul_fn pl_avx512_matmul_##type;
PL_QUANTISED_PACKINGS(PL_DECLARE)
#undef PL_DECLARE

PL_TARGET_BEGIN(PL_AVX512_TARGET)

PL_INLINE __m512 pl_load_halves(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

PL_INLINE void pl_put(float *y, __m512 sum, int add) {
    _mm512_storeu_ps(y, add ? _mm512_add_ps(_mm512_loadu_ps(y), sum) : sum);
}

PL_INLINE __m512 pl_negate(__m512 x) { return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f)); }

/* p + bytes, past the end of what p points into too: a prefetch cannot fault, wherever it goes. */
PL_INLINE const uint8_t *pl_ahead(const uint8_t *p, int64_t bytes) {
    return (const uint8_t *)((uintptr_t)p + (uintptr_t)bytes);
}

/* How far ahead of a weight to fetch where nobody says it. `waits`: see pl_prefetch. */
PL_INLINE int64_t pl_distance(int64_t ahead, int waits) { return ahead ? ahead : waits ? 4096 : 8192; }

/* The lines of `bytes` (a constant) that lie `ahead` of p: the hardware alone loses a stream that has several fields.
 * All the way into the first cache where the kernel waits for memory. One with more to compute would hold the few
 * places for misses there until its turn comes: it asks into the second cache, early enough for that. */
PL_INLINE void pl_prefetch(const uint8_t *p, int64_t ahead, int bytes, int waits) {
    PL_UNROLL
    for (int i = 0; i < bytes; i += 64) {
        const char *line = (const char *)pl_ahead(p, ahead + i);
        if (waits) {
            _mm_prefetch(line, _MM_HINT_T0);
        } else {
            _mm_prefetch(line, _MM_HINT_T1);
        }
    }
}

PL_TARGET_END

#endif
