/* What kernels/cpu.c makes of processors that this one is not. An argument "leaf.subleaf=eax,ebx,ecx,edx" for each leaf
 * that there is, all in hexadecimal; prints the levels that such a processor has. What the operating system saves is
 * asked of the real one. */
#include <stdio.h>

#include "kernels/cpu.h"

static int n_leaves;
static char **leaves;

int faked_cpuid(unsigned leaf, unsigned subleaf, unsigned *eax, unsigned *ebx, unsigned *ecx, unsigned *edx) {
    for (int i = 0; i < n_leaves; i++) {
        unsigned at, sub;
        int read = sscanf(leaves[i], "%x.%x=%x,%x,%x,%x", &at, &sub, eax, ebx, ecx, edx);
        if (read == 6 && at == leaf && sub == subleaf) return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    n_leaves = argc - 1, leaves = argv + 1;
    if (pl_cpu_has_avx512()) puts("avx512");
    if (pl_cpu_has_avxvnni()) puts("avxvnni");
    if (pl_cpu_has_avx2()) puts("avx2");
    return 0;
}
