#include "model/config.h"

#include <stddef.h>

#include "base/error.h"

/* Bounds that no model reaches, but that keep every product of two fields far inside 64 bits. */
enum { MAX_WIDTH = 1 << 24, MAX_LAYERS = 1 << 14, MAX_HEADS = 1 << 14 };

typedef struct range {
    const char *name;
    size_t offset;
    int32_t low, high;
} range;

#define RANGE(field, low, high) {#field, offsetof(pl_config, field), low, high}

static const range ranges[] = {
    RANGE(dim, 1, MAX_WIDTH),
    RANGE(hidden_dim, 1, MAX_WIDTH),
    RANGE(n_layers, 1, MAX_LAYERS),
    RANGE(n_heads, 1, MAX_HEADS),
    RANGE(n_kv_heads, 1, MAX_HEADS),
    RANGE(head_dim, 2, 1 << 14),
    RANGE(vocab_size, 1, MAX_WIDTH),
    RANGE(context_length, 1, INT32_MAX),
    RANGE(rope_dims, 0, 1 << 14),
    RANGE(rope_interleaved, 0, 1),
    RANGE(planes, 1, 2),
};

int32_t pl_config_check(const pl_config *c, pl_error *err) {
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        int32_t value = *(const int32_t *)((const char *)c + ranges[i].offset);
        if (value < ranges[i].low || value > ranges[i].high) {
            return pl_fail(err, PL_FORMAT, "%s is %d; expected %d to %d", ranges[i].name, value, ranges[i].low,
                           ranges[i].high);
        }
    }
    if (c->n_heads % c->n_kv_heads != 0) {
        return pl_fail(err, PL_FORMAT, "n_heads %d is not a multiple of n_kv_heads %d", c->n_heads, c->n_kv_heads);
    }
    if (c->head_dim % 2 != 0 || c->rope_dims % 2 != 0 || c->rope_dims > c->head_dim) {
        return pl_fail(err, PL_FORMAT, "rope_dims %d and head_dim %d must be even, the first not above the second",
                       c->rope_dims, c->head_dim);
    }
    if (!(c->norm_eps >= 0 && c->norm_eps < 1) || !(c->rope_base > 0 && c->rope_base < 1e30f)) {
        return pl_fail(err, PL_FORMAT, "norm_eps %g or rope_base %g is out of range", (double)c->norm_eps,
                       (double)c->rope_base);
    }
    if (c->kv_type != PL_TYPE_F16 && c->kv_type != PL_TYPE_F32) {
        return pl_fail(err, PL_INVALID, "kv_type %d is neither F16 nor F32", c->kv_type);
    }
    return PL_OK;
}
