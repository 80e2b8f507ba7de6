/* In place of the compiler's header, for cpu_probe.c: the processor is what the probe was told. */
#include_next <cpuid.h>
#ifndef FAKED_CPUID_H
#define FAKED_CPUID_H

int faked_cpuid(unsigned leaf, unsigned subleaf, unsigned *eax, unsigned *ebx, unsigned *ecx, unsigned *edx);

#define __get_cpuid(leaf, ...) faked_cpuid(leaf, 0, __VA_ARGS__)
#define __get_cpuid_count faked_cpuid

#endif
