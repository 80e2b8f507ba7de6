/* What the files of the AVX2 and the AVX-VNNI level share: the matrix kernels that avx2.c puts into their tables. */
#ifndef PL_KERNELS_AVX2_H
#define PL_KERNELS_AVX2_H

#include "kernels/kernels.h"

pl_matmul_fn pl_avx2_matmul_f32, pl_avx2_matmul_f16, pl_avx2_matmul_bf16;
#define PL_DECLARE(type, ...) pl_matmul_fn pl_avx2_matmul_##type, pl_avxvnni_matmul_##type;
PL_QUANTISED_PACKINGS(PL_DECLARE)
#undef PL_DECLARE

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
