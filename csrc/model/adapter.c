#include "model/adapter.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "model/session.h"

enum { LARGEST_RANK = 4096 };

int32_t pl_adapter_new(pl_model *m, pl_adapter **out, pl_error *err) {
    if (!m->finished) return pl_fail(err, PL_INVALID, "the model is not finished");
    pl_adapter *a = pl_alloc(1, sizeof *a);
    pl_low_rank *pairs = pl_alloc((size_t)m->n_linears, sizeof *pairs);
    if (a == NULL || pairs == NULL) {
        pl_free(a);
        pl_free(pairs);
        return pl_fail(err, PL_MEMORY, "no memory for an adapter of %d matrices", m->n_linears);
    }
    pl_model_retain(m);
    a->model = m;
    a->pairs = pairs;
    atomic_init(&a->references, 1);
    *out = a;
    return PL_OK;
}

void pl_adapter_release(pl_adapter *a) {
    if (a == NULL || atomic_fetch_sub(&a->references, 1) != 1) return;
    pl_arena_free(&a->weights);
    pl_free(a->pairs);
    pl_model_release(a->model);
    pl_free(a);
}

static int32_t check_shapes(const pl_matrix *w, const pl_source *a, const pl_source *b, pl_error *err) {
    if (a->cols == w->cols && b->rows == w->rows && a->rows == b->cols && a->rows > 0 && a->rows <= LARGEST_RANK) {
        return PL_OK;
    }
    return pl_fail(err, PL_FORMAT, "low ranks (%lld, %lld) and (%lld, %lld) do not fit a matrix (%lld, %lld)",
                   (long long)a->rows, (long long)a->cols, (long long)b->rows, (long long)b->cols, (long long)w->rows,
                   (long long)w->cols);
}

/* Both as fp32, whatever they were: they are small, and their products are not rounded. */
static int32_t pack_floats(pl_matrix *out, pl_arena *arena, const pl_source *source, pl_row_order order,
                           const pl_config *c, pl_error *err) {
    int32_t status = pl_source_check(source, err);
    if (status != PL_OK) return status;
    float *values = pl_alloc((size_t)source->rows * (size_t)source->cols, sizeof *values);
    if (values == NULL) return pl_fail(err, PL_MEMORY, "no memory for an adapter's matrix");
    status = pl_dequantize(source, values, err);
    pl_source floats = {.type = PL_TYPE_F32, .rows = source->rows, .cols = source->cols, .data = values};
    floats.nbytes = (size_t)source->rows * (size_t)source->cols * sizeof *values;
    if (status == PL_OK) status = pl_matrix_pack(out, arena, &floats, order, c, 1, err);
    pl_free(values);
    return status;
}

int32_t pl_adapter_bind(pl_adapter *adapter, int32_t slot, int32_t layer, int32_t expert, const pl_source *a,
                        const pl_source *b, pl_error *err) {
    pl_row_order order;
    const pl_linear *linear = pl_model_linear(adapter->model, slot, layer, expert, &order);
    if (linear == NULL || atomic_load(&adapter->in_use)) {
        return pl_fail(err, PL_INVALID, "an adapter cannot be bound to slot %d of layer %d", slot, layer);
    }
    pl_low_rank *pair = &adapter->pairs[linear->index];
    if (pair->b.strips != NULL) return pl_fail(err, PL_FORMAT, "slot %d of layer %d is adapted twice", slot, layer);
    const pl_config *c = &adapter->model->config;
    int32_t status = check_shapes(&linear->matrix, a, b, err);
    if (status == PL_OK) status = pack_floats(&pair->a, &adapter->weights, a, NULL, c, err);
    if (status == PL_OK) status = pack_floats(&pair->b, &adapter->weights, b, order, c, err);
    if (status == PL_OK && adapter->rank < a->rows) adapter->rank = a->rows;
    return status;
}

/* ---- sessions ---------------------------------------------------------------------------------------------------- */

int32_t pl_adaptations_copy(const pl_adaptations *from, pl_adaptations *out, pl_error *err) {
    pl_adaptation *list = pl_alloc((size_t)from->n, sizeof *list);
    if (list == NULL) return pl_fail(err, PL_MEMORY, "no memory for %d adapters", from->n);
    for (int32_t i = 0; i < from->n; i++) {
        list[i] = from->list[i];
        atomic_fetch_add(&list[i].adapter->references, 1);
        atomic_store(&list[i].adapter->in_use, 1);
    }
    *out = (pl_adaptations){list, from->n};
    return PL_OK;
}

void pl_adaptations_free(pl_adaptations *a) {
    for (int32_t i = 0; i < a->n; i++) pl_adapter_release(a->list[i].adapter);
    pl_free(a->list);
    *a = (pl_adaptations){0};
}

static int32_t check_adaptation(const pl_session *s, const pl_adapter *adapter, float scale, pl_error *err) {
    if (adapter == NULL || adapter->model != s->model) {
        return pl_fail(err, PL_INVALID, "the adapter belongs to another model");
    }
    if (!isfinite(scale)) return pl_fail(err, PL_INVALID, "an adapter's scale is %g", (double)scale);
    return PL_OK;
}

int32_t pl_session_adapt(pl_session *s, pl_adapter *const *adapters, const float *scales, int32_t n, pl_error *err) {
    if (s->position > 0) return pl_fail(err, PL_INVALID, "only an empty session takes other adapters");
    if (n < 0) return pl_fail(err, PL_INVALID, "%d adapters", n);
    pl_adaptations next = {pl_alloc((size_t)n, sizeof(pl_adaptation)), n}, copy;
    if (next.list == NULL) return pl_fail(err, PL_MEMORY, "no memory for %d adapters", n);
    int32_t status = PL_OK;
    for (int32_t i = 0; i < n && status == PL_OK; i++) {
        status = check_adaptation(s, adapters[i], scales[i], err);
        next.list[i] = (pl_adaptation){adapters[i], scales[i]};
    }
    if (status == PL_OK) status = pl_adaptations_copy(&next, &copy, err);
    pl_free(next.list);
    if (status != PL_OK) return status;
    pl_adaptations_free(&s->adaptations);
    s->adaptations = copy;
    return PL_OK;
}
