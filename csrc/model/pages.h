/* KV pages: counted, shared between sessions, copied when one of several owners writes. */
#ifndef PL_MODEL_PAGES_H
#define PL_MODEL_PAGES_H

#include "model/model.h"

enum { PL_PAGE_HEADER = 64 }; /* bytes before a page's own: the count of its owners, on a line to itself */

/* The pages of one sequence: page i holds positions [i * PL_PAGE, (i + 1) * PL_PAGE). */
typedef struct pl_page_table {
    uint8_t **pages; /* (n): the pages' bytes */
    int64_t n, capacity;
} pl_page_table;

/* Makes positions [begin, end) writable: adds pages that are missing, copies those that are shared. */
int32_t pl_pages_reserve(pl_model *model, pl_page_table *table, int64_t begin, int64_t end, pl_error *err);
/* Gives back the pages behind position `end`. */
void pl_pages_truncate(pl_model *model, pl_page_table *table, int64_t end);
/* A second table, empty before, over the pages that hold positions [0, end). */
int32_t pl_pages_share(const pl_page_table *from, pl_page_table *to, int64_t end, pl_error *err);
/* The first n pages become those of another table, which hold the same. */
void pl_pages_unite(pl_model *model, pl_page_table *table, const pl_page_table *with, int64_t n);
void pl_pages_free(pl_model *model, pl_page_table *table);

#endif
