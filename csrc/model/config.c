#include "model/config.h"

#include <math.h>
#include <stddef.h>

#include "base/error.h"

/* Bounds that no model reaches, but that keep every product of two fields far inside 64 bits. */
enum { MAX_WIDTH = 1 << 24, MAX_LAYERS = 1 << 14, MAX_HEADS = 1 << 14, MAX_EXPERTS = 1 << 12 };
/* Experts of all layers together: each takes memory before its weights are there. */
enum { MAX_EXPERTS_IN_ALL = 1 << 18 };

typedef struct range {
    const char *name;
    size_t offset;
    int32_t low, high;
} range;

#define RANGE(field, low, high) {#field, offsetof(pl_config, field), low, high}

static const range ranges[] = {
    RANGE(dim, 1, MAX_WIDTH),
    RANGE(hidden_dim, 0, MAX_WIDTH),
    RANGE(n_layers, 1, MAX_LAYERS),
    RANGE(n_heads, 1, MAX_HEADS),
    RANGE(n_kv_heads, 1, MAX_HEADS),
    RANGE(head_dim, 2, 1 << 14),
    RANGE(vocab_size, 1, MAX_WIDTH),
    RANGE(context_length, 1, INT32_MAX),
    RANGE(norm, PL_NORM_RMS, PL_NORM_LAYER),
    RANGE(norm_after_sum, 0, 1),
    RANGE(parallel, 0, 1),
    RANGE(causal, 0, 1),
    RANGE(qk_norm, PL_QK_NORM_NONE, PL_QK_NORM_WIDE),
    RANGE(activation, PL_ACTIVATION_SILU, PL_ACTIVATION_SILU_CLAMPED),
    RANGE(gated, 0, 1),
    RANGE(rope_dims, 0, 1 << 14),
    RANGE(rope_interleaved, 0, 1),
    RANGE(rope_original, 0, INT32_MAX),
    RANGE(n_experts, 0, MAX_EXPERTS),
    RANGE(n_experts_used, 0, MAX_EXPERTS),
    RANGE(expert_dim, 0, MAX_WIDTH),
    RANGE(shared_dim, 0, MAX_WIDTH),
    RANGE(routing, PL_ROUTING_SOFTMAX, PL_ROUTING_SIGMOID),
    RANGE(expert_renormalise, 0, 1),
    RANGE(planes, 1, 2),
};

/* Numbers lie in (above, below); 0 too where the field's absence is written so. */
typedef struct interval {
    const char *name;
    size_t offset;
    float above, below;
    int32_t or_zero;
} interval;

#define INTERVAL(field, above, below, or_zero) {#field, offsetof(pl_config, field), above, below, or_zero}

static const interval intervals[] = {
    INTERVAL(norm_eps, 0, 1, 1),
    INTERVAL(activation_limit, 0, 1e30f, 1),
    INTERVAL(rope_base, 0, 1e30f, 0),
    INTERVAL(rope_local_base, 0, 1e30f, 1),
    INTERVAL(rope_scale, 0, 1e30f, 0),
    INTERVAL(attention_scale, 0, 1e30f, 1),
    INTERVAL(attention_softcap, 0, 1e30f, 1),
    INTERVAL(logit_softcap, 0, 1e30f, 1),
    INTERVAL(embedding_scale, 0, 1e30f, 0),
    INTERVAL(residual_scale, 0, 1e30f, 0),
    INTERVAL(logit_scale, 0, 1e30f, 0),
    INTERVAL(expert_scale, 0, 1e30f, 0),
};

static int32_t check_ranges(const pl_config *c, pl_error *err) {
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        int32_t value = *(const int32_t *)((const char *)c + ranges[i].offset);
        if (value >= ranges[i].low && value <= ranges[i].high) continue;
        return pl_fail(err, PL_FORMAT, "%s is %d; expected %d to %d", ranges[i].name, value, ranges[i].low,
                       ranges[i].high);
    }
    for (size_t i = 0; i < sizeof intervals / sizeof *intervals; i++) {
        const interval *allowed = &intervals[i];
        float value = *(const float *)((const char *)c + allowed->offset);
        if ((value > allowed->above && value < allowed->below) || (value == 0 && allowed->or_zero)) continue;
        return pl_fail(err, PL_FORMAT, "%s is %g; expected a number between %g and %g", allowed->name, (double)value,
                       (double)allowed->above, (double)allowed->below);
    }
    return PL_OK;
}

static int32_t check_shape(const pl_config *c, pl_error *err) {
    if (c->n_heads % c->n_kv_heads != 0) {
        return pl_fail(err, PL_FORMAT, "n_heads %d is not a multiple of n_kv_heads %d", c->n_heads, c->n_kv_heads);
    }
    if (c->head_dim % 2 != 0 || c->rope_dims % 2 != 0 || c->rope_dims > c->head_dim) {
        return pl_fail(err, PL_FORMAT, "rope_dims %d and head_dim %d must be even, the first not above the second",
                       c->rope_dims, c->head_dim);
    }
    if (c->activation == PL_ACTIVATION_SILU_CLAMPED && (!c->gated || c->activation_limit == 0)) {
        return pl_fail(err, PL_FORMAT, "a clamped activation needs a gate and an activation_limit");
    }
    if (c->kv_type != PL_TYPE_F16 && c->kv_type != PL_TYPE_F32 && c->kv_type != PL_TYPE_Q8_0) {
        return pl_fail(err, PL_INVALID, "kv_type %d is none of F32, F16 and Q8_0", c->kv_type);
    }
    return PL_OK;
}

static int32_t check_experts(const pl_config *c, int64_t layers_with_experts, pl_error *err) {
    if (c->n_experts_used > c->n_experts || (c->n_experts > 0 && (c->n_experts_used < 1 || c->expert_dim < 1))) {
        return pl_fail(err, PL_FORMAT, "n_experts %d, n_experts_used %d and expert_dim %d do not fit together",
                       c->n_experts, c->n_experts_used, c->expert_dim);
    }
    if (layers_with_experts * c->n_experts > MAX_EXPERTS_IN_ALL) {
        return pl_fail(err, PL_FORMAT, "%lld layers of %d experts are more than %d experts",
                       (long long)layers_with_experts, c->n_experts, MAX_EXPERTS_IN_ALL);
    }
    if (layers_with_experts > 0 && c->parallel) { return pl_fail(err, PL_UNSUPPORTED, "experts in a parallel block"); }
    if (layers_with_experts < c->n_layers && c->hidden_dim < 1) {
        return pl_fail(err, PL_FORMAT, "hidden_dim is 0, but there are layers without experts");
    }
    return PL_OK;
}

static int32_t check_layer(const pl_config *c, const pl_layer_config *layer, int32_t index, pl_error *err) {
    if (layer->window < 0 || layer->experts < 0 || layer->experts > 1 || layer->rope < PL_ROPE_NONE ||
        layer->rope > PL_ROPE_LOCAL) {
        return pl_fail(err, PL_FORMAT, "layer %d: window %d, rope %d or experts %d is out of range", index,
                       layer->window, layer->rope, layer->experts);
    }
    if (layer->experts && c->n_experts == 0) {
        return pl_fail(err, PL_FORMAT, "layer %d has experts, but n_experts is 0", index);
    }
    if (layer->rope != PL_ROPE_NONE && c->rope_dims == 0) {
        return pl_fail(err, PL_FORMAT, "layer %d rotates, but rope_dims is 0", index);
    }
    if (layer->rope == PL_ROPE_LOCAL && c->rope_local_base == 0) {
        return pl_fail(err, PL_FORMAT, "layer %d rotates by rope_local_base, which is 0", index);
    }
    return PL_OK;
}

int32_t pl_config_check(const pl_config *c, const pl_layer_config *layers, pl_error *err) {
    int64_t layers_with_experts = 0;
    int32_t status = check_ranges(c, err);
    if (status == PL_OK) status = check_shape(c, err);
    for (int32_t i = 0; i < c->n_layers && status == PL_OK; i++) {
        status = check_layer(c, &layers[i], i, err);
        layers_with_experts += layers[i].experts;
    }
    return status == PL_OK ? check_experts(c, layers_with_experts, err) : status;
}
