/* Chooses the table of kernels: the best level this machine runs, or the one asked for. */
#include <stdatomic.h>
#include <string.h>

#include "base/error.h"
#include "kernels/cpu.h"
#include "kernels/kernels.h"

/* The levels this machine runs, best first. */
static const pl_kernels *level(int32_t index) {
    const pl_kernels *levels[5];
    int32_t n = 0;
#if defined(__x86_64__)
    if (pl_cpu_has_avx512()) levels[n++] = &pl_kernels_avx512;
#if defined(PL_HAS_AVXVNNI_LEVEL)
    if (pl_cpu_has_avxvnni()) levels[n++] = &pl_kernels_avxvnni;
#endif
    if (pl_cpu_has_avx2()) levels[n++] = &pl_kernels_avx2;
#elif defined(__aarch64__)
#if defined(PL_HAS_I8MM_LEVEL)
    if (pl_cpu_has_i8mm()) levels[n++] = &pl_kernels_i8mm;
#endif
#if defined(PL_HAS_DOTPROD_LEVEL)
    if (pl_cpu_has_dotprod()) levels[n++] = &pl_kernels_dotprod;
#endif
    levels[n++] = &pl_kernels_neon;
#endif
    levels[n++] = &pl_kernels_scalar;
    return index >= 0 && index < n ? levels[index] : NULL;
}

static const pl_kernels *_Atomic current; /* NULL until first asked: the best */

const pl_kernels *pl_kernels_current(void) {
    const pl_kernels *chosen = atomic_load(&current);
    if (chosen == NULL) {
        chosen = level(0);
        atomic_store(&current, chosen);
    }
    return chosen;
}

const pl_kernels *pl_kernels_by_name(const char *name) {
    const pl_kernels *kernels;
    for (int32_t i = 0; (kernels = level(i)) != NULL; i++) {
        if (strcmp(kernels->name, name) == 0) return kernels;
    }
    return NULL;
}

const char *pl_isa_name(int32_t index) {
    const pl_kernels *kernels = level(index);
    return kernels ? kernels->name : NULL;
}

const char *pl_isa_current(void) { return pl_kernels_current()->name; }

int32_t pl_isa_select(const char *name, pl_error *err) {
    const pl_kernels *kernels = pl_kernels_by_name(name);
    if (kernels == NULL) return pl_fail(err, PL_INVALID, "kernel level '%s' is unknown or not runnable here", name);
    atomic_store(&current, kernels);
    return PL_OK;
}
