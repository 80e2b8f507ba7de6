/* How a kernel file raises its own instruction set: everything between PL_TARGET_BEGIN("avx2,fma") and PL_TARGET_END is
 * compiled for it, whatever the flags of the build, so one library holds all levels and starts on any CPU.
 *
 * Rules: include <immintrin.h> and our headers before the region; one target a file; no OpenMP inside (its outlined
 * functions take the target along, and Clang refuses them); no test of __AVX2__ and the like, which Clang leaves
 * undefined inside a region. */
#ifndef PL_KERNELS_TARGET_H
#define PL_KERNELS_TARGET_H

#define PL_PRAGMA(text) _Pragma(#text)

/* PL_UNROLL stands before a loop with a small constant count: an array of vectors indexed by the loop's variable lives
 * in registers only if the loop is gone before the compiler splits arrays. */
#if defined(__clang__)
#define PL_TARGET_BEGIN(features) \
    PL_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define PL_TARGET_END PL_PRAGMA(clang attribute pop)
#define PL_UNROLL PL_PRAGMA(clang loop unroll(full))
#else
#define PL_TARGET_BEGIN(features) PL_PRAGMA(GCC push_options) PL_PRAGMA(GCC target(features))
#define PL_TARGET_END PL_PRAGMA(GCC pop_options)
#define PL_UNROLL PL_PRAGMA(GCC unroll 64)
#endif

/* Templates: functions whose constant arguments make one instance each. */
#define PL_INLINE static inline __attribute__((always_inline))

/* Runs its body with `width` set to the widths of tiles that make up n, nearly equal and none above `most`: full tiles
 * and a thin rest would be slower. */
#define PL_FOR_TILES(width, most, n) \
    for (int64_t left = (n), tiles = (left + (most) - 1) / (most), width; \
         tiles > 0 && (width = (left + tiles - 1) / tiles) > 0; left -= width, tiles--)

#endif
