#include "base/slabs.h"

#include <stdint.h>
#include <unistd.h>

#include "base/memory.h"

/* At the beginning of a slab, which lies at a multiple of its size: that is how a piece finds it. A slab stays until
 * all are freed; where nothing is taken of it, it is but a range of addresses. */
struct pl_slab {
    struct pl_slab *before;
    atomic_ullong taken; /* bit i: piece i */
};

enum {
    LEAST_SLAB = 1 << 24, /* bytes */
    WORTH_HUGE = 1 << 19, /* bytes of a piece: less, and a huge page would be much more than was asked for */
};

static unsigned long long all_of(const pl_slabs *s) {
    size_t n = (s->slab - s->head) / s->piece;
    return n < 64 ? (1ULL << n) - 1 : ~0ULL;
}

void pl_slabs_init(pl_slabs *s, size_t piece_bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    *s = (pl_slabs){.head = page, .piece = (piece_bytes + page - 1) / page * page, .slab = LEAST_SLAB};
    while (s->slab < s->head + s->piece) s->slab *= 2;
    atomic_init(&s->last, NULL);
}

/* The first piece of a slab that is free, or NULL. */
static void *take_of(const pl_slabs *s, struct pl_slab *slab) {
    unsigned long long taken = atomic_load(&slab->taken), all = all_of(s);
    while (taken != all) {
        unsigned long long bit = ~taken & (taken + 1);
        if (!atomic_compare_exchange_weak(&slab->taken, &taken, taken | bit)) continue;
        return (char *)slab + s->head + (size_t)__builtin_ctzll(bit) * s->piece;
    }
    return NULL;
}

void *pl_slabs_take(pl_slabs *s) {
    for (struct pl_slab *slab = atomic_load(&s->last); slab != NULL; slab = slab->before) {
        void *piece = take_of(s, slab);
        if (piece != NULL) return piece;
    }
    struct pl_slab *slab = pl_map_aligned(s->slab, s->piece >= WORTH_HUGE);
    if (slab == NULL) return NULL;
    atomic_init(&slab->taken, 1);
    slab->before = atomic_load(&s->last);
    while (!atomic_compare_exchange_weak(&s->last, &slab->before, slab)) continue;
    return (char *)slab + s->head;
}

void pl_slabs_give(pl_slabs *s, void *piece) {
    struct pl_slab *slab = (struct pl_slab *)((uintptr_t)piece & ~(uintptr_t)(s->slab - 1));
    size_t index = ((size_t)((char *)piece - (char *)slab) - s->head) / s->piece;
    pl_clear(piece, s->piece);
    atomic_fetch_and(&slab->taken, ~(1ULL << index));
}

void pl_slabs_free(pl_slabs *s) {
    struct pl_slab *slab = atomic_exchange(&s->last, NULL);
    while (slab != NULL) {
        struct pl_slab *before = slab->before;
        pl_unmap_aligned(slab, s->slab);
        slab = before;
    }
}
