#include "base/memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CACHE_LINE = 64 };

void *pl_alloc(size_t count, size_t size) {
    size_t nbytes;
    void *memory = NULL;
    if (__builtin_mul_overflow(count, size, &nbytes)) return NULL;
    if (posix_memalign(&memory, CACHE_LINE, nbytes ? nbytes : 1) != 0) return NULL;
    return memset(memory, 0, nbytes);
}

void pl_free(void *memory) { free(memory); }

enum { HUGE_PAGE = 2 << 20, WORTH_HUGE_PAGES = 4 << 20 };

/* Anonymous memory at a multiple of `alignment`, a power of two no smaller than a page. */
static char *map_aligned(size_t nbytes, size_t alignment) {
    size_t total;
    if (__builtin_add_overflow(nbytes, alignment, &total)) return NULL;
    char *memory = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    size_t before = (alignment - (uintptr_t)memory % alignment) % alignment;
    if (before > 0) munmap(memory, before);
    munmap(memory + before + nbytes, alignment - before);
    return memory + before;
}

static size_t rounded_up(size_t nbytes, size_t to) { return nbytes > SIZE_MAX - to ? 0 : (nbytes + to - 1) / to * to; }

/* Advice only: where huge pages are off, ordinary ones serve. */
static void want_huge_pages(void *memory, size_t nbytes) {
#ifdef MADV_HUGEPAGE
    madvise(memory, nbytes, MADV_HUGEPAGE);
#else
    (void)memory, (void)nbytes;
#endif
}

/* What is mapped for an array: whole huge pages, or whole ordinary ones. */
static size_t mapped_bytes(size_t nbytes) {
    return rounded_up(nbytes ? nbytes : 1, nbytes >= WORTH_HUGE_PAGES ? HUGE_PAGE : (size_t)sysconf(_SC_PAGESIZE));
}

void *pl_map(size_t nbytes) {
    size_t total = mapped_bytes(nbytes);
    if (total == 0) return NULL;
    if (nbytes < WORTH_HUGE_PAGES) {
        void *memory = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return memory == MAP_FAILED ? NULL : memory;
    }
    char *memory = map_aligned(total, HUGE_PAGE);
    if (memory != NULL) want_huge_pages(memory, total);
    return memory;
}

void pl_unmap(void *memory, size_t nbytes) {
    if (memory != NULL) munmap(memory, mapped_bytes(nbytes));
}

void *pl_map_aligned(size_t nbytes, int huge) {
    char *memory = map_aligned(nbytes, nbytes);
    if (memory != NULL && huge) want_huge_pages(memory, nbytes);
    return memory;
}

void pl_unmap_aligned(void *memory, size_t nbytes) { munmap(memory, nbytes); }

void pl_clear(void *memory, size_t nbytes) {
#ifdef __linux__ /* elsewhere the advice does not promise zeros */
    if (madvise(memory, nbytes, MADV_DONTNEED) == 0) return;
#endif
    memset(memory, 0, nbytes);
}

/* ---- arenas ----------------------------------------------------------------------------------------------------- */

struct pl_arena_block {
    struct pl_arena_block *before;
    size_t nbytes;
};

enum { FIRST_BLOCK = 1 << 20, LARGEST_BLOCK = 64 << 20 };

/* Each block is twice the one before, so that what is not used of the last is little beside what is used of all; what
 * is never touched takes no memory anyway. */
static int add_block(pl_arena *arena, size_t nbytes) {
    size_t size = arena->last ? 2 * arena->last->nbytes : FIRST_BLOCK;
    if (size > LARGEST_BLOCK) size = LARGEST_BLOCK;
    if (size < nbytes + CACHE_LINE) size = nbytes + CACHE_LINE;
    struct pl_arena_block *block = pl_map(size);
    if (block == NULL) return 0;
    *block = (struct pl_arena_block){arena->last, size};
    arena->last = block;
    arena->used = CACHE_LINE;
    return 1;
}

void *pl_arena_take(pl_arena *arena, size_t nbytes) {
    if (nbytes > SIZE_MAX / 2) return NULL;
    nbytes = rounded_up(nbytes, CACHE_LINE);
    int fits = arena->last != NULL && nbytes <= arena->last->nbytes - arena->used;
    if (!fits && !add_block(arena, nbytes)) return NULL;
    void *memory = (char *)arena->last + arena->used;
    arena->used += nbytes;
    return memory;
}

void pl_arena_free(pl_arena *arena) {
    for (struct pl_arena_block *block = arena->last; block != NULL;) {
        struct pl_arena_block *before = block->before;
        pl_unmap(block, block->nbytes);
        block = before;
    }
    *arena = (pl_arena){0};
}
