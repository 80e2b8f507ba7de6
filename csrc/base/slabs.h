/* Memory for many equal pieces that come and go, such as KV pages: side by side in slabs, so that huge pages serve
 * pieces smaller than one. Without locks, since a process may fork at any time. */
#ifndef PL_BASE_SLABS_H
#define PL_BASE_SLABS_H

#include <stdatomic.h>
#include <stddef.h>

typedef struct pl_slabs {
    size_t head, piece, slab; /* bytes: before the first piece, of one, of all */
    _Atomic(struct pl_slab *) last;
} pl_slabs;

void pl_slabs_init(pl_slabs *slabs, size_t piece_bytes);
/* A piece of zeros, aligned to a page; NULL if it cannot be had. Any thread. */
void *pl_slabs_take(pl_slabs *slabs);
/* Gives a piece back; what it held goes to the system at once. */
void pl_slabs_give(pl_slabs *slabs, void *piece);
/* Every piece has been given back. */
void pl_slabs_free(pl_slabs *slabs);

#endif
