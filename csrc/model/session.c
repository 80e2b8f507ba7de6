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

int32_t pl_session_fork(const pl_session *from, int64_t position, int64_t context_length, pl_session **out,
                        pl_error *err) {
    if (position < 0 || position > from->position || position > context_length) {
        return pl_fail(err, PL_INVALID, "cannot fork at position %lld for %lld: the session is at %lld",
                       (long long)position, (long long)context_length, (long long)from->position);
    }
    pl_session *to = NULL;
    int32_t status = pl_session_new(from->model, context_length, &to, err);
    if (status != PL_OK) return status;
    to->position = position;
    to->long_rope = from->long_rope;
    status = pl_adaptations_copy(&from->adaptations, &to->adaptations, err);
    if (status == PL_OK) status = pl_pages_share(&from->table, &to->table, position, err);
    if (status != PL_OK) {
        pl_session_free(to);
        return status;
    }
    *out = to;
    return PL_OK;
}

int32_t pl_session_unite(pl_session *s, const pl_session *with, int64_t position, pl_error *err) {
    if (s->model != with->model || position < 0 || position > s->position || position > with->position) {
        return pl_fail(err, PL_INVALID, "sessions at %lld and %lld cannot share %lld positions", (long long)s->position,
                       (long long)with->position, (long long)position);
    }
    pl_pages_unite(s->model, &s->table, &with->table, position / PL_PAGE);
    return PL_OK;
}

/* ---- state: per position, layer and KV head, key then value as the pages hold them ------------------------------- */

static size_t unit_bytes(const pl_model *m) { return 2 * m->kv.head_bytes; }

static size_t position_bytes(const pl_model *m) {
    return (size_t)m->config.n_layers * (size_t)m->kv.n_kv_heads * unit_bytes(m);
}

size_t pl_session_state_bytes(const pl_session *s) { return (size_t)s->position * position_bytes(s->model); }

/* Where unit (layer, head) of a position lies in its page. */
static uint8_t *unit_at(const pl_session *s, int64_t position, int64_t unit) {
    int64_t heads = s->model->kv.n_kv_heads;
    return s->table.pages[position / PL_PAGE] + pl_kv_unit(&s->model->kv, unit / heads, unit % heads);
}

int32_t pl_session_state_read(const pl_session *s, void *data, size_t nbytes, pl_error *err) {
    if (nbytes != pl_session_state_bytes(s)) return pl_fail(err, PL_INVALID, "state is %zu bytes", nbytes);
    const pl_kv_layout *kv = &s->model->kv;
    int64_t units = s->model->config.n_layers * kv->n_kv_heads;
    uint8_t *out = data;
    for (int64_t i = 0; i < s->position * units; i++, out += unit_bytes(s->model)) {
        pl_kv_pack(kv, unit_at(s, i / units, i % units), i / units % PL_PAGE, out);
    }
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
    const pl_kv_layout *kv = &s->model->kv;
    int64_t units = s->model->config.n_layers * kv->n_kv_heads;
    const uint8_t *in = data;
    for (int64_t i = 0; i < position * units; i++, in += unit_bytes(s->model)) {
        pl_kv_unpack(kv, unit_at(s, i / units, i % units), i / units % PL_PAGE, in);
    }
    s->position = position;
    return PL_OK;
}

int32_t pl_session_kv_read(const pl_session *s, int32_t layer, float *keys, float *values, pl_error *err) {
    const pl_kv_layout *kv = &s->model->kv;
    if (layer < 0 || layer >= s->model->config.n_layers) {
        return pl_fail(err, PL_INVALID, "layer %d is out of range: the model has 0 to %d", layer,
                       s->model->config.n_layers - 1);
    }
    for (int64_t head = 0; head < kv->n_kv_heads; head++) {
        for (int64_t p = 0; p < s->position; p++, keys += kv->head_dim, values += kv->head_dim) {
            const uint8_t *unit = s->table.pages[p / PL_PAGE] + pl_kv_unit(kv, layer, head);
            pl_kv_load(kv, unit, p % PL_PAGE, keys, values);
        }
    }
    return PL_OK;
}
