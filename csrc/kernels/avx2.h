/* What the files of the AVX2 level share: the matrix kernels that avx2.c puts into the table. */
#ifndef PL_KERNELS_AVX2_H
#define PL_KERNELS_AVX2_H

#include "kernels/kernels.h"

pl_matmul_fn pl_avx2_matmul_f32, pl_avx2_matmul_f16, pl_avx2_matmul_bf16;
pl_matmul_fn pl_avx2_matmul_q8, pl_avx2_matmul_q8f, pl_avx2_matmul_q4, pl_avx2_matmul_q4m, pl_avx2_matmul_q5;
pl_matmul_fn pl_avx2_matmul_q5m, pl_avx2_matmul_q4k, pl_avx2_matmul_q5k, pl_avx2_matmul_q6k;
pl_matmul_fn pl_avx2_matmul_q8h, pl_avx2_matmul_q2k;

#endif
