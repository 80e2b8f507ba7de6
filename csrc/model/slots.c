#include "model/slots.h"

#include <stddef.h>

#define OF_MODEL(form, field) {#field, PL_IN_MODEL, form, offsetof(pl_model, field)}
#define OF_LAYER(form, field) {#field, PL_IN_LAYER, form, offsetof(pl_layer, field)}
#define OF_EXPERT(form, field) {"expert." #field, PL_IN_EXPERT, form, offsetof(pl_feed_forward, field)}

const pl_slot pl_slots[PL_SLOT_COUNT] = {
    [PL_SLOT_EMBEDDING] = OF_MODEL(PL_MATRIX, embedding),
    [PL_SLOT_POSITION_EMBEDDING] = OF_MODEL(PL_MATRIX, position_embedding),
    [PL_SLOT_EMBEDDING_NORM] = OF_MODEL(PL_VECTOR, embedding_norm.weight),
    [PL_SLOT_EMBEDDING_NORM_BIAS] = OF_MODEL(PL_VECTOR, embedding_norm.bias),
    [PL_SLOT_ATTENTION_NORM] = OF_LAYER(PL_VECTOR, attention_norm.weight),
    [PL_SLOT_ATTENTION_NORM_BIAS] = OF_LAYER(PL_VECTOR, attention_norm.bias),
    [PL_SLOT_WQ] = OF_LAYER(PL_MATRIX, wq),
    [PL_SLOT_WK] = OF_LAYER(PL_MATRIX, wk),
    [PL_SLOT_WV] = OF_LAYER(PL_MATRIX, wv),
    [PL_SLOT_BQ] = OF_LAYER(PL_VECTOR, wq.bias),
    [PL_SLOT_BK] = OF_LAYER(PL_VECTOR, wk.bias),
    [PL_SLOT_BV] = OF_LAYER(PL_VECTOR, wv.bias),
    [PL_SLOT_Q_NORM] = OF_LAYER(PL_VECTOR, q_norm),
    [PL_SLOT_K_NORM] = OF_LAYER(PL_VECTOR, k_norm),
    [PL_SLOT_SINKS] = OF_LAYER(PL_VECTOR, sinks),
    [PL_SLOT_WO] = OF_LAYER(PL_MATRIX, wo),
    [PL_SLOT_BO] = OF_LAYER(PL_VECTOR, wo.bias),
    [PL_SLOT_ATTENTION_POST_NORM] = OF_LAYER(PL_VECTOR, attention_post_norm.weight),
    [PL_SLOT_ATTENTION_POST_NORM_BIAS] = OF_LAYER(PL_VECTOR, attention_post_norm.bias),
    [PL_SLOT_FFN_NORM] = OF_LAYER(PL_VECTOR, ffn_norm.weight),
    [PL_SLOT_FFN_NORM_BIAS] = OF_LAYER(PL_VECTOR, ffn_norm.bias),
    [PL_SLOT_GATE] = OF_LAYER(PL_MATRIX, dense.gate),
    [PL_SLOT_UP] = OF_LAYER(PL_MATRIX, dense.up),
    [PL_SLOT_DOWN] = OF_LAYER(PL_MATRIX, dense.down),
    [PL_SLOT_GATE_BIAS] = OF_LAYER(PL_VECTOR, dense.gate.bias),
    [PL_SLOT_UP_BIAS] = OF_LAYER(PL_VECTOR, dense.up.bias),
    [PL_SLOT_DOWN_BIAS] = OF_LAYER(PL_VECTOR, dense.down.bias),
    [PL_SLOT_ROUTER] = OF_LAYER(PL_MATRIX, router),
    [PL_SLOT_ROUTER_BIAS] = OF_LAYER(PL_VECTOR, router.bias),
    [PL_SLOT_CHOICE_BIAS] = OF_LAYER(PL_VECTOR, choice_bias),
    [PL_SLOT_EXPERT_GATE] = OF_EXPERT(PL_MATRIX, gate),
    [PL_SLOT_EXPERT_UP] = OF_EXPERT(PL_MATRIX, up),
    [PL_SLOT_EXPERT_DOWN] = OF_EXPERT(PL_MATRIX, down),
    [PL_SLOT_EXPERT_GATE_BIAS] = OF_EXPERT(PL_VECTOR, gate.bias),
    [PL_SLOT_EXPERT_UP_BIAS] = OF_EXPERT(PL_VECTOR, up.bias),
    [PL_SLOT_EXPERT_DOWN_BIAS] = OF_EXPERT(PL_VECTOR, down.bias),
    [PL_SLOT_SHARED_GATE] = OF_LAYER(PL_MATRIX, shared.gate),
    [PL_SLOT_SHARED_UP] = OF_LAYER(PL_MATRIX, shared.up),
    [PL_SLOT_SHARED_DOWN] = OF_LAYER(PL_MATRIX, shared.down),
    [PL_SLOT_SHARED_ROUTER] = OF_LAYER(PL_MATRIX, shared_router),
    [PL_SLOT_FFN_POST_NORM] = OF_LAYER(PL_VECTOR, ffn_post_norm.weight),
    [PL_SLOT_FFN_POST_NORM_BIAS] = OF_LAYER(PL_VECTOR, ffn_post_norm.bias),
    [PL_SLOT_FINAL_NORM] = OF_MODEL(PL_VECTOR, final_norm.weight),
    [PL_SLOT_FINAL_NORM_BIAS] = OF_MODEL(PL_VECTOR, final_norm.bias),
    [PL_SLOT_HEAD] = OF_MODEL(PL_MATRIX, own_head),
    [PL_SLOT_HEAD_BIAS] = OF_MODEL(PL_VECTOR, own_head.bias),
    [PL_SLOT_ROPE_FACTORS] = OF_MODEL(PL_VECTOR, rope_factors),
    [PL_SLOT_ROPE_FACTORS_LONG] = OF_MODEL(PL_VECTOR, rope_factors_long),
};

/* The weights of the norms of queries or keys, of `width` in all heads. */
static int64_t qk_norm_width(const pl_config *c, int64_t width) {
    return c->qk_norm == PL_QK_NORM_HEAD ? c->head_dim : width;
}

void pl_slot_shape(const pl_config *c, int32_t s, int64_t *rows, int64_t *cols) {
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    *rows = 1;
    *cols = c->dim;
    switch (s) {
        case PL_SLOT_EMBEDDING:
        case PL_SLOT_HEAD: *rows = c->vocab_size; break;
        case PL_SLOT_HEAD_BIAS: *cols = c->vocab_size; break;
        case PL_SLOT_POSITION_EMBEDDING: *rows = c->context_length; break;
        case PL_SLOT_WQ: *rows = q; break;
        case PL_SLOT_WK:
        case PL_SLOT_WV: *rows = kv; break;
        case PL_SLOT_BQ: *cols = q; break;
        case PL_SLOT_BK:
        case PL_SLOT_BV: *cols = kv; break;
        case PL_SLOT_Q_NORM: *cols = qk_norm_width(c, q); break;
        case PL_SLOT_K_NORM: *cols = qk_norm_width(c, kv); break;
        case PL_SLOT_SINKS: *cols = c->n_heads; break;
        case PL_SLOT_WO: *rows = c->dim, *cols = q; break;
        case PL_SLOT_GATE:
        case PL_SLOT_UP: *rows = c->hidden_dim; break;
        case PL_SLOT_DOWN: *rows = c->dim, *cols = c->hidden_dim; break;
        case PL_SLOT_GATE_BIAS:
        case PL_SLOT_UP_BIAS: *cols = c->hidden_dim; break;
        case PL_SLOT_ROUTER: *rows = c->n_experts; break;
        case PL_SLOT_ROUTER_BIAS:
        case PL_SLOT_CHOICE_BIAS: *cols = c->n_experts; break;
        case PL_SLOT_EXPERT_GATE:
        case PL_SLOT_EXPERT_UP: *rows = c->expert_dim; break;
        case PL_SLOT_EXPERT_DOWN: *rows = c->dim, *cols = c->expert_dim; break;
        case PL_SLOT_EXPERT_GATE_BIAS:
        case PL_SLOT_EXPERT_UP_BIAS: *cols = c->expert_dim; break;
        case PL_SLOT_SHARED_GATE:
        case PL_SLOT_SHARED_UP: *rows = c->shared_dim; break;
        case PL_SLOT_SHARED_DOWN: *rows = c->dim, *cols = c->shared_dim; break;
        case PL_SLOT_ROPE_FACTORS:
        case PL_SLOT_ROPE_FACTORS_LONG: *cols = c->rope_dims / 2; break;
        default: break; /* norms, and biases of what ends in the residual stream: (1, dim) */
    }
}

static pl_need where(int32_t condition, pl_need then) { return condition ? then : PL_NEVER; }

pl_need pl_slot_need(const pl_config *c, const pl_layer_config *layer, int32_t s) {
    switch (s) {
        case PL_SLOT_EMBEDDING:
        case PL_SLOT_WQ:
        case PL_SLOT_WK:
        case PL_SLOT_WV:
        case PL_SLOT_WO: return PL_ALWAYS;
        case PL_SLOT_Q_NORM:
        case PL_SLOT_K_NORM: return where(c->qk_norm != PL_QK_NORM_NONE, PL_ALWAYS);
        case PL_SLOT_ATTENTION_POST_NORM:
        case PL_SLOT_ATTENTION_POST_NORM_BIAS:
        case PL_SLOT_FFN_POST_NORM:
        case PL_SLOT_FFN_POST_NORM_BIAS: return where(!c->parallel, PL_MAYBE);
        case PL_SLOT_GATE: return where(!layer->experts && c->gated, PL_ALWAYS);
        case PL_SLOT_UP:
        case PL_SLOT_DOWN: return where(!layer->experts, PL_ALWAYS);
        case PL_SLOT_GATE_BIAS: return where(!layer->experts && c->gated, PL_MAYBE);
        case PL_SLOT_UP_BIAS:
        case PL_SLOT_DOWN_BIAS: return where(!layer->experts, PL_MAYBE);
        case PL_SLOT_ROUTER:
        case PL_SLOT_EXPERT_UP:
        case PL_SLOT_EXPERT_DOWN: return where(layer->experts, PL_ALWAYS);
        case PL_SLOT_EXPERT_GATE: return where(layer->experts && c->gated, PL_ALWAYS);
        case PL_SLOT_EXPERT_GATE_BIAS: return where(layer->experts && c->gated, PL_MAYBE);
        case PL_SLOT_ROUTER_BIAS:
        case PL_SLOT_CHOICE_BIAS:
        case PL_SLOT_EXPERT_UP_BIAS:
        case PL_SLOT_EXPERT_DOWN_BIAS: return where(layer->experts, PL_MAYBE);
        case PL_SLOT_SHARED_GATE: return where(layer->experts && c->shared_dim > 0 && c->gated, PL_ALWAYS);
        case PL_SLOT_SHARED_UP:
        case PL_SLOT_SHARED_DOWN: return where(layer->experts && c->shared_dim > 0, PL_ALWAYS);
        case PL_SLOT_SHARED_ROUTER: return where(layer->experts && c->shared_dim > 0, PL_MAYBE);
        case PL_SLOT_ROPE_FACTORS: return where(c->rope_dims > 0, PL_MAYBE);
        case PL_SLOT_ROPE_FACTORS_LONG: return where(c->rope_dims > 0 && c->rope_original > 0, PL_ALWAYS);
        default: return PL_MAYBE;
    }
}

int32_t pl_slot_owner(int32_t s) {
    switch (s) {
        case PL_SLOT_EMBEDDING_NORM_BIAS: return PL_SLOT_EMBEDDING_NORM;
        case PL_SLOT_ATTENTION_NORM_BIAS: return PL_SLOT_ATTENTION_NORM;
        case PL_SLOT_ATTENTION_POST_NORM_BIAS: return PL_SLOT_ATTENTION_POST_NORM;
        case PL_SLOT_FFN_NORM_BIAS: return PL_SLOT_FFN_NORM;
        case PL_SLOT_FFN_POST_NORM_BIAS: return PL_SLOT_FFN_POST_NORM;
        case PL_SLOT_FINAL_NORM_BIAS: return PL_SLOT_FINAL_NORM;
        default: return PL_SLOT_COUNT;
    }
}

void *pl_slot_address(const pl_model *m, int32_t s, int32_t layer, int32_t expert) {
    char *base = (char *)m;
    if (pl_slots[s].place == PL_IN_LAYER) base = (char *)&m->layers[layer];
    if (pl_slots[s].place == PL_IN_EXPERT) base = (char *)&m->layers[layer].experts[expert];
    return base + pl_slots[s].offset;
}

int pl_slot_is_filled(const pl_model *m, int32_t s, int32_t layer, int32_t expert) {
    void *address = pl_slot_address(m, s, layer, expert);
    return pl_slots[s].form == PL_MATRIX ? pl_is_bound(address) : *(float **)address != NULL;
}

int32_t pl_slot_layers(const pl_model *m, int32_t s) {
    return pl_slots[s].place == PL_IN_MODEL ? 1 : m->config.n_layers;
}

int32_t pl_slot_experts(const pl_model *m, int32_t s, int32_t layer) {
    if (pl_slots[s].place != PL_IN_EXPERT) return 1;
    return m->layers[layer].experts ? m->config.n_experts : 0;
}
