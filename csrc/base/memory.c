#include "base/memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { CACHE_LINE = 64 };

void *pl_alloc(size_t count, size_t size) {
    size_t nbytes;
    void *memory = NULL;
    if (__builtin_mul_overflow(count, size, &nbytes)) return NULL;
    if (posix_memalign(&memory, CACHE_LINE, nbytes ? nbytes : 1) != 0) return NULL;
    return memset(memory, 0, nbytes);
}

void pl_free(void *memory) { free(memory); }

void *pl_map(size_t nbytes) {
    if (nbytes == 0) nbytes = 1;
    void *memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    /* Advice only: where huge pages are off, ordinary ones serve. */
    if (nbytes >= (size_t)4 << 20) madvise(memory, nbytes, MADV_HUGEPAGE);
#endif
    return memory;
}

void pl_unmap(void *memory, size_t nbytes) {
    if (memory != NULL) munmap(memory, nbytes ? nbytes : 1);
}
