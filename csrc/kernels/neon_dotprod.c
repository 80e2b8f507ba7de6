/* The level "dotprod": neon with sdot, four products and their sum at once (Armv8.2's dot product extension). */
#include "kernels/kernels.h"

#if defined(PL_HAS_DOTPROD_LEVEL)
#include <arm_neon.h>
#include <stddef.h>

#include "kernels/target.h"

PL_TARGET_BEGIN("arch=armv8.2-a+dotprod")
enum { TOGETHER = 1 };
static const pl_kernels *const lone = NULL;
#include "kernels/neon.h" /* in here: its templates are instances of this level */

PL_INLINE int32x4_t dot16(const int8x16_t code[4][2], int r, int8x16_t a, int32x4_t sum) {
    sum = vdotq_laneq_s32(sum, code[0][r], a, 0);
    sum = vdotq_laneq_s32(sum, code[1][r], a, 1);
    sum = vdotq_laneq_s32(sum, code[2][r], a, 2);
    return vdotq_laneq_s32(sum, code[3][r], a, 3);
}

PL_INLINE void arrange(half_block *w) { (void)w; }

PL_INLINE void dot(const half_block *w, int begin, int groups, int chain, const int8_t *a, int64_t lda,
                   int32x4_t sum[TOGETHER][2]) {
    (void)chain, (void)lda; /* sums straight into 32 bits */
    for (int r = 0; r < 2; r++) {
        sum[0][r] = dot16(w->code + begin, r, vld1q_s8(a + 4 * begin), vdupq_n_s32(0));
        if (groups == 8) sum[0][r] = dot16(w->code + 4, r, vld1q_s8(a + 16), sum[0][r]);
    }
}

const pl_kernels pl_kernels_dotprod = PL_NEON_TABLE("dotprod");

PL_TARGET_END
#endif
