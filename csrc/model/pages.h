/* KV pages: counted, shared between sessions, copied when one of several owners writes. */
#ifndef PL_MODEL_PAGES_H
#define PL_MODEL_PAGES_H

#include "model/model.h"

/* The pages of one sequence: page i holds positions [i * PL_PAGE, (i + 1) * PL_PAGE). */
typedef struct pl_page_table {
    uint8_t **pages; /* (n): the pages' bytes */
    int64_t n, capacity;
} pl_page_table;

/* Makes positions [begin, end) writable: adds pages that are missing, copies those that are shared. */
int32_t pl_pages_reserve(pl_model *model, pl_page_table *table, int64_t begin, int64_t end, pl_error *err);
/* Gives back the pages behind position `end`. */
void pl_pages_truncate(pl_model *model, pl_page_table *table, int64_t end);
/* A second table over the same pages. */
int32_t pl_pages_share(const pl_page_table *from, pl_page_table *to, pl_error *err);
void pl_pages_free(pl_model *model, pl_page_table *table);

#endif
