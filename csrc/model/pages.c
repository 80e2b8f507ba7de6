#include "model/pages.h"

#include <string.h>

#include "base/error.h"
#include "base/memory.h"

static atomic_int *owners(uint8_t *page) { return (atomic_int *)(void *)(page - PL_PAGE_HEADER); }

/* Counts a page in, unless there are as many as there may be: not even for a moment does anybody see more. */
static int count_in(pl_model *m) {
    long long pages = atomic_load(&m->pages);
    while (pages < atomic_load(&m->page_limit)) {
        if (atomic_compare_exchange_weak(&m->pages, &pages, pages + 1)) return 1;
    }
    return 0;
}

static uint8_t *page_new(pl_model *m) {
    if (!count_in(m)) return NULL;
    uint8_t *memory = pl_slabs_take(&m->page_memory);
    if (memory == NULL) {
        atomic_fetch_sub(&m->pages, 1);
        return NULL;
    }
    atomic_init(owners(memory + PL_PAGE_HEADER), 1);
    return memory + PL_PAGE_HEADER;
}

static void page_release(pl_model *m, uint8_t *page) {
    if (atomic_fetch_sub(owners(page), 1) != 1) return;
    pl_slabs_give(&m->page_memory, page - PL_PAGE_HEADER);
    atomic_fetch_sub(&m->pages, 1);
}

static int32_t grow(pl_page_table *t, int64_t n, pl_error *err) {
    if (n <= t->capacity) return PL_OK;
    int64_t capacity = n > 2 * t->capacity ? n : 2 * t->capacity;
    uint8_t **pages = pl_alloc((size_t)capacity, sizeof *pages);
    if (pages == NULL) return pl_fail(err, PL_MEMORY, "no memory for a table of %lld KV pages", (long long)capacity);
    if (t->n > 0) memcpy(pages, t->pages, (size_t)t->n * sizeof *pages);
    pl_free(t->pages);
    t->pages = pages;
    t->capacity = capacity;
    return PL_OK;
}

/* The page for writing: a copy where others own it too. */
static uint8_t *page_own(pl_model *m, uint8_t *page) {
    if (atomic_load(owners(page)) == 1) return page;
    uint8_t *copy = page_new(m);
    if (copy == NULL) return NULL;
    memcpy(copy, page, m->kv.page_bytes);
    page_release(m, page);
    return copy;
}

static int32_t no_page(pl_model *m, pl_error *err) {
    long long pages = atomic_load(&m->pages), limit = atomic_load(&m->page_limit);
    if (pages < limit) {
        return pl_fail(err, PL_MEMORY, "no memory for a KV page of %zu bytes beside %lld", m->kv.page_bytes, pages);
    }
    return pl_fail(err, PL_MEMORY, "no KV page is left of the %lld of %zu bytes that there may be", limit,
                   m->kv.page_bytes);
}

int32_t pl_pages_reserve(pl_model *m, pl_page_table *t, int64_t begin, int64_t end, pl_error *err) {
    int64_t n = (end + PL_PAGE - 1) / PL_PAGE;
    int32_t status = grow(t, n, err);
    if (status != PL_OK) return status;
    for (int64_t i = begin / PL_PAGE; i < n; i++) {
        uint8_t *page = i < t->n ? page_own(m, t->pages[i]) : page_new(m);
        if (page == NULL) return no_page(m, err);
        t->pages[i] = page;
        if (i >= t->n) t->n = i + 1;
    }
    return PL_OK;
}

void pl_pages_truncate(pl_model *m, pl_page_table *t, int64_t end) {
    int64_t n = (end + PL_PAGE - 1) / PL_PAGE;
    while (t->n > n) page_release(m, t->pages[--t->n]);
}

int32_t pl_pages_share(const pl_page_table *from, pl_page_table *to, int64_t end, pl_error *err) {
    int64_t n = (end + PL_PAGE - 1) / PL_PAGE;
    int32_t status = grow(to, n, err);
    if (status != PL_OK) return status;
    for (to->n = 0; to->n < n; to->n++) {
        atomic_fetch_add(owners(from->pages[to->n]), 1);
        to->pages[to->n] = from->pages[to->n];
    }
    return PL_OK;
}

void pl_pages_unite(pl_model *m, pl_page_table *t, const pl_page_table *with, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        atomic_fetch_add(owners(with->pages[i]), 1);
        page_release(m, t->pages[i]);
        t->pages[i] = with->pages[i];
    }
}

void pl_pages_free(pl_model *m, pl_page_table *t) {
    pl_pages_truncate(m, t, 0);
    pl_free(t->pages);
    *t = (pl_page_table){0};
}
