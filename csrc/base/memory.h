/* Checked memory: sizes are multiplied with overflow checks, everything is 64-byte aligned and starts as zeros. */
#ifndef PL_BASE_MEMORY_H
#define PL_BASE_MEMORY_H

#include <stddef.h>

/* count * size zeroed bytes, aligned to a cache line; NULL if that overflows or cannot be had. Caller: pl_free. */
void *pl_alloc(size_t count, size_t size);
void pl_free(void *memory);

/* The same for large, long-lived arrays: whole pages straight from the system, huge ones where it offers them, so
 * that untouched memory costs nothing and freed memory goes back at once. Caller: pl_unmap with the same nbytes. */
void *pl_map(size_t nbytes);
void pl_unmap(void *memory, size_t nbytes);

/* Such memory at a multiple of nbytes, which is a power of two and no less than a page; `huge`: in huge pages, where
 * the system offers them. */
void *pl_map_aligned(size_t nbytes, int huge);
void pl_unmap_aligned(void *memory, size_t nbytes);
/* Makes mapped memory zeros again, whole pages of it, and gives it to the system until it is touched. */
void pl_clear(void *memory, size_t nbytes);

/* Arrays that live and die together, such as a model's weights: side by side in a few blocks that grow, so that small
 * ones share huge pages too. {0} is an empty arena; one thread at a time takes from it. */
typedef struct pl_arena {
    struct pl_arena_block *last;
    size_t used;
} pl_arena;

/* nbytes of zeros, aligned to a cache line; NULL if they cannot be had. */
void *pl_arena_take(pl_arena *arena, size_t nbytes);
void pl_arena_free(pl_arena *arena);

#endif
