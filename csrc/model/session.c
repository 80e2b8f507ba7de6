#include "model/session.h"

#include <string.h>

#include "base/error.h"
#include "base/memory.h"

int32_t pl_session_new(pl_model *m, int64_t context_length, pl_session **out, pl_error *err) {
    if (!m->finished) return pl_fail(err, PL_INVALID, "the model is not finished");
    if (context_length < 1 || context_length > PL_LONGEST_CONTEXT) {
        return pl_fail(err, PL_INVALID, "context length %lld is out of range: expected 1 to %d",
                       (long long)context_length, PL_LONGEST_CONTEXT);
    }
    pl_session *s = pl_alloc(1, sizeof *s);
    if (s == NULL) return pl_fail(err, PL_MEMORY, "no memory for a session");
    pl_model_retain(m);
    s->model = m;
    s->context_length = context_length;
    *out = s;
    return PL_OK;
}

void pl_session_free(pl_session *s) {
    if (s == NULL) return;
    pl_pages_free(s->model, &s->table);
    pl_adaptations_free(&s->adaptations);
    pl_scratch_free(&s->scratch);
    pl_model_release(s->model);
    pl_free(s);
}

int64_t pl_session_position(const pl_session *s) { return s->position; }

static int32_t is_long(const pl_session *s, int64_t length) {
    return s->model->config.rope_original > 0 && length > s->model->config.rope_original;
}

void pl_session_expect(pl_session *s, int64_t length) {
    if (s->long_rope != is_long(s, length)) pl_session_truncate(s, 0, NULL);
    s->expected = length;
}

int32_t pl_session_rope_fits(const pl_session *s, int64_t n) {
    int64_t length = s->expected > s->position + n ? s->expected : s->position + n;
    return s->position == 0 || s->long_rope == is_long(s, length);
}

void pl_session_choose_rope(pl_session *s, int64_t n) {
    if (s->position == 0) s->long_rope = is_long(s, s->expected > n ? s->expected : n);
}

int32_t pl_session_truncate(pl_session *s, int64_t position, pl_error *err) {
    if (position < 0 || position > s->position) {
        return pl_fail(err, PL_INVALID, "cannot truncate to position %lld: the session is at %lld", (long long)position,
                       (long long)s->position);
    }
    s->position = position;
    s->expected = 0;
    pl_pages_truncate(s->model, &s->table, position);
    return PL_OK;
}

int32_t pl_session_fork(const pl_session *from, pl_session **out, pl_error *err) {
    pl_session *to = NULL;
    int32_t status = pl_session_new(from->model, from->context_length, &to, err);
    if (status != PL_OK) return status;
    to->position = from->position;
    to->long_rope = from->long_rope;
    status = pl_adaptations_copy(&from->adaptations, &to->adaptations, err);
    if (status == PL_OK) status = pl_pages_share(&from->table, &to->table, err);
    if (status != PL_OK) {
        pl_session_free(to);
        return status;
    }
    *out = to;
    return PL_OK;
}

/* ---- state: per position, layer and KV head, key then value as fp32 ------------------------------------------------ */

static size_t position_bytes(const pl_model *m) {
    const pl_config *c = &m->config;
    return (size_t)c->n_layers * (size_t)c->n_kv_heads * 2 * (size_t)c->head_dim * sizeof(float);
}

size_t pl_session_state_bytes(const pl_session *s) { return (size_t)s->position * position_bytes(s->model); }

/* Calls pl_kv_load (write == 0) or pl_kv_store for every unit of one position; floats is its part of the state. */
static void move_position(pl_session *s, int64_t position, float *floats, int write) {
    const pl_kv_layout *kv = &s->model->kv;
    uint8_t *page = s->table.pages[position / PL_PAGE];
    for (int64_t layer = 0; layer < s->model->config.n_layers; layer++) {
        for (int64_t head = 0; head < kv->n_kv_heads; head++, floats += 2 * kv->head_dim) {
            uint8_t *unit = page + pl_kv_unit(kv, layer, head);
            if (write) {
                pl_kv_store(kv, unit, position % PL_PAGE, floats, floats + kv->head_dim);
            } else {
                pl_kv_load(kv, unit, position % PL_PAGE, floats, floats + kv->head_dim);
            }
        }
    }
}

int32_t pl_session_state_read(const pl_session *s, void *out, size_t nbytes, pl_error *err) {
    if (nbytes != pl_session_state_bytes(s)) return pl_fail(err, PL_INVALID, "state is %zu bytes", nbytes);
    size_t step = position_bytes(s->model) / sizeof(float);
    for (int64_t p = 0; p < s->position; p++) move_position((pl_session *)s, p, (float *)out + (size_t)p * step, 0);
    return PL_OK;
}

int32_t pl_session_state_write(pl_session *s, const void *data, size_t nbytes, int64_t position, pl_error *err) {
    if (position < 0 || position > s->context_length || nbytes / position_bytes(s->model) != (size_t)position ||
        nbytes % position_bytes(s->model) != 0) {
        return pl_fail(err, PL_FORMAT, "a state of %zu bytes does not hold %lld positions of this model", nbytes,
                       (long long)position);
    }
    int32_t status = pl_pages_reserve(s->model, &s->table, 0, position, err);
    if (status != PL_OK) return status;
    s->position = s->expected = 0;
    pl_session_choose_rope(s, position);
    size_t step = position_bytes(s->model) / sizeof(float);
    for (int64_t p = 0; p < position; p++) move_position(s, p, (float *)data + (size_t)p * step, 1);
    s->position = position;
    return PL_OK;
}
