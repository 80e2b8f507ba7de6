/* The level "i8mm": neon with smmla, two rows times two columns and 8 k at once (the int8 matrix extension of Armv8.6).
 * One column alone is the level dotprod's. */
#include "kernels/kernels.h"

#if defined(PL_HAS_I8MM_LEVEL)
#include <arm_neon.h>
#include <stddef.h>

#include "kernels/target.h"

PL_TARGET_BEGIN("arch=armv8.2-a+dotprod+i8mm")
enum { TOGETHER = 2 };
static const pl_kernels *const lone = &pl_kernels_dotprod;
#include "kernels/neon.h" /* in here: its templates are instances of this level */

/* Groups g and g + 1 (g even) of 4 rows become 8 k of the first two rows, and of the others. */
PL_INLINE void arrange(half_block *w) {
    for (int i = 0; i < 8; i++) {
        int8x16_t *even = &w->code[i / 2 * 2][i % 2], *odd = &w->code[i / 2 * 2 + 1][i % 2];
        int32x4_t first = vreinterpretq_s32_s8(*even), second = vreinterpretq_s32_s8(*odd);
        *even = vreinterpretq_s8_s32(vzip1q_s32(first, second));
        *odd = vreinterpretq_s8_s32(vzip2q_s32(first, second));
    }
}

PL_INLINE void dot(const half_block *w, int begin, int groups, int chain, const int8_t *a, int64_t lda,
                   int32x4_t sum[TOGETHER][2]) {
    int32x4_t pair[2][2]; /* rows 4 r + 2 i and the next one, either times both columns */
    (void)chain;          /* sums straight into 32 bits */
    for (int i = 0; i < 4; i++) pair[i / 2][i % 2] = vdupq_n_s32(0);
    for (int g = begin; g < begin + groups; g += 2) {
        int8x16_t both = vcombine_s8(vld1_s8(a + 4 * g), vld1_s8(a + lda + 4 * g));
        for (int i = 0; i < 4; i++)
            pair[i / 2][i % 2] = vmmlaq_s32(pair[i / 2][i % 2], w->code[g + i % 2][i / 2], both);
    }
    for (int r = 0; r < 2; r++) {
        sum[0][r] = vuzp1q_s32(pair[r][0], pair[r][1]);
        sum[1][r] = vuzp2q_s32(pair[r][0], pair[r][1]);
    }
}

const pl_kernels pl_kernels_i8mm = PL_NEON_TABLE("i8mm");

PL_TARGET_END
#endif
