/* What this processor and its operating system can run. */
#ifndef PL_KERNELS_CPU_H
#define PL_KERNELS_CPU_H

int pl_cpu_has_avx2(void);    /* with FMA and F16C */
int pl_cpu_has_avxvnni(void); /* the VEX form of vpdpbusd, and all of AVX2's */
int pl_cpu_has_avx512(void);  /* F, BW, DQ, VL, VNNI, and all of AVX2's */
int pl_cpu_has_dotprod(void); /* sdot */
int pl_cpu_has_i8mm(void);    /* smmla, and sdot */

#endif
