/* What adapters add to a product in a pass. Every thread makes the few elements of A x for itself, rather than wait for
 * others; then it adds its rows of B times them. */
#include <string.h>

#include "model/pass.h"

static const pl_session *session_of(const pl_pass *p, const int32_t *tokens, int64_t c) {
    return p->rows[tokens ? tokens[c] : c].session;
}

/* y += B (scale (A x)) for columns [c, c + n) of x, at most PL_ADAPTED. */
static void add_low_rank(const pl_pass *p, const pl_worker *w, const pl_low_rank *pair, float scale, const pl_acts *x,
                         int64_t c, int64_t n, float *y) {
    int64_t rank = pair->a.rows, ld = pl_pad(rank), ldy = pl_pad(pair->b.rows);
    float *inner = p->low_rank + w->index * PL_ADAPTED * p->rank;
    pl_acts columns = {.f = x->f + c * x->ld, .ld = x->ld, .k = x->k, .ahead = x->ahead};
    pl_matmul(p->kernels, &(pl_worker){0, 1, NULL}, &pair->a, &columns, n, &(pl_output){.base = inner, .ld = ld});
    for (int64_t i = 0; i < n; i++) {
        pl_scale(inner + i * ld, scale, rank);
        memset(inner + i * ld + rank, 0, (size_t)(ld - rank) * sizeof *inner);
    }
    columns = (pl_acts){.f = inner, .ld = ld, .k = rank, .ahead = x->ahead};
    pl_matmul(p->kernels, w, &pair->b, &columns, n, &(pl_output){.base = y + c * ldy, .ld = ldy, .add = 1});
}

void pl_adapt(const pl_pass *p, const pl_worker *w, const pl_linear *linear, const pl_acts *x, const int32_t *tokens,
              int64_t n, float *y) {
    int64_t end;
    for (int64_t c = 0; c < n; c = end) {
        const pl_session *s = session_of(p, tokens, c);
        for (end = c + 1; end < n && end - c < PL_ADAPTED && session_of(p, tokens, end) == s;) end++;
        for (int32_t i = 0; i < s->adaptations.n; i++) {
            const pl_low_rank *pair = &s->adaptations.list[i].adapter->pairs[linear->index];
            if (pair->b.strips == NULL) continue;
            add_low_rank(p, w, pair, s->adaptations.list[i].scale, x, c, end - c, y);
        }
    }
}
