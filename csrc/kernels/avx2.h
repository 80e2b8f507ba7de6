/* What the files of the AVX2 and the AVX-VNNI level share: the matrix kernels that avx2.c puts into their tables. */
#ifndef PL_KERNELS_AVX2_H
#define PL_KERNELS_AVX2_H

#include "kernels/kernels.h"

pl_matmul_fn pl_avx2_matmul_f32, pl_avx2_matmul_f16, pl_avx2_matmul_bf16;
pl_matmul_fn pl_avx2_matmul_q8, pl_avx2_matmul_q8f, pl_avx2_matmul_q4, pl_avx2_matmul_q4m, pl_avx2_matmul_q5;
pl_matmul_fn pl_avx2_matmul_q5m, pl_avx2_matmul_q4k, pl_avx2_matmul_q5k, pl_avx2_matmul_q6k;
pl_matmul_fn pl_avx2_matmul_q8h, pl_avx2_matmul_q2k;

pl_matmul_fn pl_avxvnni_matmul_q8, pl_avxvnni_matmul_q8f, pl_avxvnni_matmul_q4, pl_avxvnni_matmul_q4m;
pl_matmul_fn pl_avxvnni_matmul_q5, pl_avxvnni_matmul_q5m, pl_avxvnni_matmul_q4k, pl_avxvnni_matmul_q5k;
pl_matmul_fn pl_avxvnni_matmul_q6k, pl_avxvnni_matmul_q8h, pl_avxvnni_matmul_q2k;

/* vpdpbusd of 256 bits. Processors with AVX-512 know the same instruction in another encoding, so that tests can have
 * the level's bits looked at where there is no AVX-VNNI: they build with PL_AVXVNNI_BY_AVX512. */
#if defined(PL_AVXVNNI_BY_AVX512)
#define PL_AVXVNNI_TARGET "avx2,fma,f16c,avx512vl,avx512vnni"
#define pl_dpbusd _mm256_dpbusd_epi32
#else
#define PL_AVXVNNI_TARGET "avx2,fma,f16c,avxvnni"
#define pl_dpbusd _mm256_dpbusd_avx_epi32
#endif

#endif
