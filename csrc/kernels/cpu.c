#include "kernels/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>

/* Which register files the operating system saves on a task switch: a CPU's own word is not enough. */
static uint64_t saved_state(void) {
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE)) return 0;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

int pl_cpu_has_avx2(void) {
    const uint64_t ymm = 0x6;
    const uint32_t fma_f16c_avx = bit_FMA | bit_F16C | bit_AVX;
    uint32_t eax, ebx, ecx, edx;
    if ((saved_state() & ymm) != ymm) return 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & fma_f16c_avx) != fma_f16c_avx) return 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & bit_AVX2);
}

int pl_cpu_has_avx512(void) {
    const uint64_t zmm = 0xe6;
    const uint32_t f_bw_dq_vl = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    uint32_t eax, ebx, ecx, edx;
    if (!pl_cpu_has_avx2() || (saved_state() & zmm) != zmm) return 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return 0;
    return (ebx & f_bw_dq_vl) == f_bw_dq_vl && (ecx & bit_AVX512VNNI);
}

int pl_cpu_has_avxvnni(void) {
#if defined(PL_AVXVNNI_BY_AVX512) /* avx2.h */
    return pl_cpu_has_avx512();
#else
    const uint32_t avxvnni = 1u << 4; /* of EAX; older compilers have no name for it */
    uint32_t eax, ebx, ecx, edx;
    if (!pl_cpu_has_avx2() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || eax < 1) return 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & avxvnni);
#endif
}
#else
int pl_cpu_has_avx2(void) { return 0; }
int pl_cpu_has_avxvnni(void) { return 0; }
int pl_cpu_has_avx512(void) { return 0; }
#endif

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

/* Bits as the kernel's asm/hwcap.h has them. */
int pl_cpu_has_dotprod(void) {
    const unsigned long asimddp = 1ul << 20;
    return (getauxval(AT_HWCAP) & asimddp) != 0;
}

int pl_cpu_has_i8mm(void) {
    const unsigned long i8mm = 1ul << 13;
    return pl_cpu_has_dotprod() && (getauxval(AT_HWCAP2) & i8mm) != 0;
}
#elif defined(__aarch64__) && defined(__APPLE__)
#include <stddef.h>
#include <sys/sysctl.h>

static int has_feature(const char *name) {
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname(name, &has, &size, NULL, 0) == 0 && has;
}

int pl_cpu_has_dotprod(void) { return has_feature("hw.optional.arm.FEAT_DotProd"); }
int pl_cpu_has_i8mm(void) { return pl_cpu_has_dotprod() && has_feature("hw.optional.arm.FEAT_I8MM"); }
#else
int pl_cpu_has_dotprod(void) { return 0; }
int pl_cpu_has_i8mm(void) { return 0; }
#endif
