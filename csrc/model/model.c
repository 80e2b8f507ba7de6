#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "base/memory.h"
#include "model/config.h"
#include "model/scratch.h"

/* ---- slots: where each tensor goes and what shape it must have ----------------------------------------------------- */

typedef enum place { IN_MODEL, IN_LAYER, IN_EXPERT } place;
typedef enum form { MATRIX, VECTOR } form;

typedef struct slot {
    const char *name;
    place place;
    form form;
    size_t offset; /* in pl_model, pl_layer or pl_feed_forward */
} slot;

#define OF_MODEL(form, field) {#field, IN_MODEL, form, offsetof(pl_model, field)}
#define OF_LAYER(form, field) {#field, IN_LAYER, form, offsetof(pl_layer, field)}
#define OF_EXPERT(form, field) {"expert." #field, IN_EXPERT, form, offsetof(pl_feed_forward, field)}

static const slot slots[PL_SLOT_COUNT] = {
    [PL_SLOT_EMBEDDING] = OF_MODEL(MATRIX, embedding),
    [PL_SLOT_POSITION_EMBEDDING] = OF_MODEL(MATRIX, position_embedding),
    [PL_SLOT_EMBEDDING_NORM] = OF_MODEL(VECTOR, embedding_norm.weight),
    [PL_SLOT_EMBEDDING_NORM_BIAS] = OF_MODEL(VECTOR, embedding_norm.bias),
    [PL_SLOT_ATTENTION_NORM] = OF_LAYER(VECTOR, attention_norm.weight),
    [PL_SLOT_ATTENTION_NORM_BIAS] = OF_LAYER(VECTOR, attention_norm.bias),
    [PL_SLOT_WQ] = OF_LAYER(MATRIX, wq),
    [PL_SLOT_WK] = OF_LAYER(MATRIX, wk),
    [PL_SLOT_WV] = OF_LAYER(MATRIX, wv),
    [PL_SLOT_BQ] = OF_LAYER(VECTOR, wq.bias),
    [PL_SLOT_BK] = OF_LAYER(VECTOR, wk.bias),
    [PL_SLOT_BV] = OF_LAYER(VECTOR, wv.bias),
    [PL_SLOT_Q_NORM] = OF_LAYER(VECTOR, q_norm),
    [PL_SLOT_K_NORM] = OF_LAYER(VECTOR, k_norm),
    [PL_SLOT_SINKS] = OF_LAYER(VECTOR, sinks),
    [PL_SLOT_WO] = OF_LAYER(MATRIX, wo),
    [PL_SLOT_BO] = OF_LAYER(VECTOR, wo.bias),
    [PL_SLOT_ATTENTION_POST_NORM] = OF_LAYER(VECTOR, attention_post_norm.weight),
    [PL_SLOT_ATTENTION_POST_NORM_BIAS] = OF_LAYER(VECTOR, attention_post_norm.bias),
    [PL_SLOT_FFN_NORM] = OF_LAYER(VECTOR, ffn_norm.weight),
    [PL_SLOT_FFN_NORM_BIAS] = OF_LAYER(VECTOR, ffn_norm.bias),
    [PL_SLOT_GATE] = OF_LAYER(MATRIX, dense.gate),
    [PL_SLOT_UP] = OF_LAYER(MATRIX, dense.up),
    [PL_SLOT_DOWN] = OF_LAYER(MATRIX, dense.down),
    [PL_SLOT_GATE_BIAS] = OF_LAYER(VECTOR, dense.gate.bias),
    [PL_SLOT_UP_BIAS] = OF_LAYER(VECTOR, dense.up.bias),
    [PL_SLOT_DOWN_BIAS] = OF_LAYER(VECTOR, dense.down.bias),
    [PL_SLOT_ROUTER] = OF_LAYER(MATRIX, router),
    [PL_SLOT_ROUTER_BIAS] = OF_LAYER(VECTOR, router.bias),
    [PL_SLOT_CHOICE_BIAS] = OF_LAYER(VECTOR, choice_bias),
    [PL_SLOT_EXPERT_GATE] = OF_EXPERT(MATRIX, gate),
    [PL_SLOT_EXPERT_UP] = OF_EXPERT(MATRIX, up),
    [PL_SLOT_EXPERT_DOWN] = OF_EXPERT(MATRIX, down),
    [PL_SLOT_EXPERT_GATE_BIAS] = OF_EXPERT(VECTOR, gate.bias),
    [PL_SLOT_EXPERT_UP_BIAS] = OF_EXPERT(VECTOR, up.bias),
    [PL_SLOT_EXPERT_DOWN_BIAS] = OF_EXPERT(VECTOR, down.bias),
    [PL_SLOT_SHARED_GATE] = OF_LAYER(MATRIX, shared.gate),
    [PL_SLOT_SHARED_UP] = OF_LAYER(MATRIX, shared.up),
    [PL_SLOT_SHARED_DOWN] = OF_LAYER(MATRIX, shared.down),
    [PL_SLOT_SHARED_ROUTER] = OF_LAYER(MATRIX, shared_router),
    [PL_SLOT_FFN_POST_NORM] = OF_LAYER(VECTOR, ffn_post_norm.weight),
    [PL_SLOT_FFN_POST_NORM_BIAS] = OF_LAYER(VECTOR, ffn_post_norm.bias),
    [PL_SLOT_FINAL_NORM] = OF_MODEL(VECTOR, final_norm.weight),
    [PL_SLOT_FINAL_NORM_BIAS] = OF_MODEL(VECTOR, final_norm.bias),
    [PL_SLOT_HEAD] = OF_MODEL(MATRIX, own_head),
    [PL_SLOT_HEAD_BIAS] = OF_MODEL(VECTOR, own_head.bias),
    [PL_SLOT_ROPE_FACTORS] = OF_MODEL(VECTOR, rope_factors),
    [PL_SLOT_ROPE_FACTORS_LONG] = OF_MODEL(VECTOR, rope_factors_long),
};

/* The weights of the norms of queries or keys, of `width` in all heads. */
static int64_t qk_norm_width(const pl_config *c, int64_t width) {
    return c->qk_norm == PL_QK_NORM_HEAD ? c->head_dim : width;
}

static void slot_shape(const pl_config *c, int32_t s, int64_t *rows, int64_t *cols) {
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

/* Whether a model of this config has a slot: with NEVER it has no place for it. */
typedef enum need { NEVER, MAYBE, ALWAYS } need;

static need where(int32_t condition, need then) { return condition ? then : NEVER; }

static need slot_need(const pl_config *c, const pl_layer_config *layer, int32_t s) {
    switch (s) {
        case PL_SLOT_EMBEDDING:
        case PL_SLOT_WQ:
        case PL_SLOT_WK:
        case PL_SLOT_WV:
        case PL_SLOT_WO: return ALWAYS;
        case PL_SLOT_Q_NORM:
        case PL_SLOT_K_NORM: return where(c->qk_norm != PL_QK_NORM_NONE, ALWAYS);
        case PL_SLOT_ATTENTION_POST_NORM:
        case PL_SLOT_ATTENTION_POST_NORM_BIAS:
        case PL_SLOT_FFN_POST_NORM:
        case PL_SLOT_FFN_POST_NORM_BIAS: return where(!c->parallel, MAYBE);
        case PL_SLOT_GATE: return where(!layer->experts && c->gated, ALWAYS);
        case PL_SLOT_UP:
        case PL_SLOT_DOWN: return where(!layer->experts, ALWAYS);
        case PL_SLOT_GATE_BIAS: return where(!layer->experts && c->gated, MAYBE);
        case PL_SLOT_UP_BIAS:
        case PL_SLOT_DOWN_BIAS: return where(!layer->experts, MAYBE);
        case PL_SLOT_ROUTER:
        case PL_SLOT_EXPERT_UP:
        case PL_SLOT_EXPERT_DOWN: return where(layer->experts, ALWAYS);
        case PL_SLOT_EXPERT_GATE: return where(layer->experts && c->gated, ALWAYS);
        case PL_SLOT_EXPERT_GATE_BIAS: return where(layer->experts && c->gated, MAYBE);
        case PL_SLOT_ROUTER_BIAS:
        case PL_SLOT_CHOICE_BIAS:
        case PL_SLOT_EXPERT_UP_BIAS:
        case PL_SLOT_EXPERT_DOWN_BIAS: return where(layer->experts, MAYBE);
        case PL_SLOT_SHARED_GATE: return where(layer->experts && c->shared_dim > 0 && c->gated, ALWAYS);
        case PL_SLOT_SHARED_UP:
        case PL_SLOT_SHARED_DOWN: return where(layer->experts && c->shared_dim > 0, ALWAYS);
        case PL_SLOT_SHARED_ROUTER: return where(layer->experts && c->shared_dim > 0, MAYBE);
        case PL_SLOT_ROPE_FACTORS: return where(c->rope_dims > 0, MAYBE);
        case PL_SLOT_ROPE_FACTORS_LONG: return where(c->rope_dims > 0 && c->rope_original > 0, ALWAYS);
        default: return MAYBE;
    }
}

/* What an optional slot is nothing without; PL_SLOT_COUNT for those that stand for themselves. */
static int32_t slot_owner(int32_t s) {
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

static void *slot_address(const pl_model *m, int32_t s, int32_t layer, int32_t expert) {
    char *base = (char *)m;
    if (slots[s].place == IN_LAYER) base = (char *)&m->layers[layer];
    if (slots[s].place == IN_EXPERT) base = (char *)&m->layers[layer].experts[expert];
    return base + slots[s].offset;
}

static int slot_is_filled(const pl_model *m, int32_t s, int32_t layer, int32_t expert) {
    void *address = slot_address(m, s, layer, expert);
    return slots[s].form == MATRIX ? pl_is_bound(address) : *(float **)address != NULL;
}

static int32_t slot_layers(const pl_model *m, int32_t s) { return slots[s].place == IN_MODEL ? 1 : m->config.n_layers; }

static int32_t slot_experts(const pl_model *m, int32_t s, int32_t layer) {
    if (slots[s].place != IN_EXPERT) return 1;
    return m->layers[layer].experts ? m->config.n_experts : 0;
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

/* Room for the experts of the layers that have some. */
static int add_experts(pl_model *m) {
    for (int32_t i = 0; i < m->config.n_layers; i++) {
        pl_layer *l = &m->layers[i];
        if (!l->config.experts) continue;
        l->experts = pl_alloc((size_t)m->config.n_experts, sizeof *l->experts);
        if (l->experts == NULL) return 0;
    }
    return 1;
}

int32_t pl_model_new(const pl_config *config, const pl_layer_config *layers, pl_model **out, pl_error *err) {
    int32_t status = pl_config_check(config, layers, err);
    if (status != PL_OK) return status;
    pl_model *m = pl_alloc(1, sizeof *m);
    if (m == NULL) return pl_fail(err, PL_MEMORY, "no memory for a model");
    m->config = *config;
    m->kv = pl_kv_layout_of(config);
    atomic_init(&m->references, 1);
    atomic_init(&m->page_limit, INT64_MAX);
    m->layers = pl_alloc((size_t)config->n_layers, sizeof *m->layers);
    for (int32_t i = 0; i < config->n_layers && m->layers != NULL; i++) m->layers[i].config = layers[i];
    if (m->layers == NULL || !add_experts(m)) {
        pl_model_release(m);
        return pl_fail(err, PL_MEMORY, "no memory for a model of %d layers", config->n_layers);
    }
    *out = m;
    return PL_OK;
}

void pl_model_retain(pl_model *m) { atomic_fetch_add(&m->references, 1); }

/* What is not in the arena: vectors, and the experts' list. */
static void free_vectors(pl_model *m) {
    for (int32_t s = 0; s < PL_SLOT_COUNT; s++) {
        for (int32_t layer = 0; layer < slot_layers(m, s) && slots[s].form == VECTOR; layer++) {
            for (int32_t e = 0; e < slot_experts(m, s, layer); e++) pl_free(*(float **)slot_address(m, s, layer, e));
        }
    }
    for (int32_t layer = 0; layer < m->config.n_layers; layer++) pl_free(m->layers[layer].experts);
}

void pl_model_release(pl_model *m) {
    if (m == NULL || atomic_fetch_sub(&m->references, 1) != 1) return;
    if (m->layers != NULL) free_vectors(m);
    pl_scratch_return(m, NULL);
    pl_arena_free(&m->weights);
    pl_free(m->rope_main);
    pl_free(m->rope_long);
    pl_free(m->rope_local);
    pl_free(m->layers);
    pl_free(m);
}

/* ---- binding ---------------------------------------------------------------------------------------------------- */

/* Files that pair dimensions (2 i, 2 i + 1) are straightened here: within each head, row i + half * j of the packed
 * matrix is the file's row 2 i + j, so that the forward pass knows one pairing, (i, i + half). */
static int64_t straighten_rope(const void *context, int64_t row) {
    const pl_config *c = context;
    int64_t d = row % c->head_dim, half = c->rope_dims / 2;
    if (d >= c->rope_dims) return row;
    return row - d + (d < half ? 2 * d : 2 * (d - half) + 1);
}

/* Whether a slot's rows (of a matrix) or elements (of a vector) are dimensions of heads that rotate. */
static int is_rotated(const pl_config *c, int32_t s) {
    int rotated = s == PL_SLOT_WQ || s == PL_SLOT_WK || s == PL_SLOT_BQ || s == PL_SLOT_BK || s == PL_SLOT_Q_NORM ||
                  s == PL_SLOT_K_NORM;
    return c->rope_interleaved && rotated;
}

static int32_t bind_vector(float **out, const pl_source *source, pl_row_order order, const pl_config *c,
                           pl_error *err) {
    int32_t status = pl_source_check(source, err);
    if (status != PL_OK) return status;
    /* A strip more than the vector: a head's part of it is read in whole vectors. */
    float *vector = pl_alloc((size_t)pl_pad(source->cols) + PL_STRIP, sizeof *vector);
    float *straight = pl_alloc((size_t)pl_pad(source->cols) + PL_STRIP, sizeof *straight);
    if (vector == NULL || straight == NULL) {
        pl_free(vector);
        pl_free(straight);
        return pl_fail(err, PL_MEMORY, "no memory for a vector of %lld", (long long)source->cols);
    }
    pl_type_row(source->type)->dequantize_row(source, 0, vector);
    for (int64_t i = 0; i < source->cols; i++) straight[i] = vector[order ? order(c, i) : i];
    pl_free(vector);
    *out = straight;
    return PL_OK;
}

/* What a message calls a tensor. */
typedef struct label { char text[80]; } label;

static label label_of(int32_t s, int32_t layer, int32_t expert) {
    label l;
    const char *name = slots[s].name;
    switch (slots[s].place) {
        case IN_MODEL: snprintf(l.text, sizeof l.text, "tensor '%s'", name); break;
        case IN_LAYER: snprintf(l.text, sizeof l.text, "tensor '%s' of layer %d", name, layer); break;
        case IN_EXPERT: snprintf(l.text, sizeof l.text, "tensor '%s' %d of layer %d", name, expert, layer); break;
    }
    return l;
}

/* Puts the tensor's name before what the lower level had to say. */
static int32_t name_failure(int32_t status, label name, pl_error *err) {
    if (status == PL_OK) return status;
    char reason[sizeof err->message];
    memcpy(reason, err->message, sizeof reason);
    return pl_fail(err, status, "%s: %.160s", name.text, reason);
}

static int32_t check_place(const pl_model *m, int32_t s, int32_t layer, int32_t expert, pl_error *err) {
    if (m->finished || s < 0 || s >= PL_SLOT_COUNT || layer < 0 || layer >= slot_layers(m, s)) {
        return pl_fail(err, PL_INVALID, "slot %d of layer %d cannot be bound", s, layer);
    }
    if (slot_need(&m->config, &m->layers[layer].config, s) == NEVER) {
        return pl_fail(err, PL_FORMAT, "%s has no place in a model of this config", label_of(s, layer, expert).text);
    }
    if (expert < 0 || expert >= slot_experts(m, s, layer)) {
        return pl_fail(err, PL_INVALID, "slot %d of expert %d of layer %d cannot be bound", s, expert, layer);
    }
    return PL_OK;
}

int32_t pl_model_bind(pl_model *m, int32_t s, int32_t layer, int32_t expert, const pl_source *source, int32_t threads,
                      pl_error *err) {
    int32_t status = check_place(m, s, layer, expert, err);
    if (status != PL_OK) return status;
    label name = label_of(s, layer, expert);
    if (slot_is_filled(m, s, layer, expert)) return pl_fail(err, PL_FORMAT, "%s is there twice", name.text);
    int64_t rows, cols;
    slot_shape(&m->config, s, &rows, &cols);
    if (source->rows != rows || source->cols != cols) {
        return pl_fail(err, PL_FORMAT, "%s has shape (%lld, %lld); expected (%lld, %lld)", name.text,
                       (long long)source->rows, (long long)source->cols, (long long)rows, (long long)cols);
    }
    void *address = slot_address(m, s, layer, expert);
    pl_row_order order = is_rotated(&m->config, s) ? straighten_rope : NULL;
    if (slots[s].form == VECTOR) return name_failure(bind_vector(address, source, order, &m->config, err), name, err);
    pl_matrix *matrix = &((pl_linear *)address)->matrix;
    return name_failure(pl_matrix_pack(matrix, &m->weights, source, order, &m->config, threads, err), name, err);
}

/* ---- finishing --------------------------------------------------------------------------------------------------- */

/* Radians a position: pl_sincos is exact up to PL_LONGEST_CONTEXT times this. */
static const float FASTEST_ROTATION = 1.5f;

/* theta_i = base^(-2 i / dims) / factor_i, rounded to float as the original and transformers do. */
static int32_t make_rope(const pl_config *c, float base, const float *factors, float **out, pl_error *err) {
    int32_t half = c->rope_dims / 2;
    float *theta = pl_alloc((size_t)half, sizeof *theta);
    pl_free(*out); /* of an attempt that failed */
    *out = theta;
    if (theta == NULL) return pl_fail(err, PL_MEMORY, "no memory for %d RoPE frequencies", half);
    double log_base = pl_log((double)base);
    for (int32_t i = 0; i < half; i++) {
        float frequency = (float)(1.0 / (double)(float)pl_exp(log_base * (2.0 * i) / c->rope_dims));
        theta[i] = factors ? frequency / factors[i] : frequency;
        if (!(fabsf(theta[i]) <= FASTEST_ROTATION)) {
            return pl_fail(err, PL_FORMAT, "RoPE frequency %d is %g, from base %g and its factor; expected at most %g",
                           i, (double)theta[i], (double)base, (double)FASTEST_ROTATION);
        }
    }
    return PL_OK;
}

static int32_t make_ropes(pl_model *m, pl_error *err) {
    const pl_config *c = &m->config;
    int32_t status = make_rope(c, c->rope_base, m->rope_factors, &m->rope_main, err);
    if (status == PL_OK && c->rope_original > 0 && c->rope_dims > 0) {
        status = make_rope(c, c->rope_base, m->rope_factors_long, &m->rope_long, err);
    }
    if (status == PL_OK && c->rope_local_base > 0) {
        status = make_rope(c, c->rope_local_base, NULL, &m->rope_local, err);
    }
    return status;
}

/* Whether a slot holds what it must, and nothing that means nothing. */
static int32_t check_slot(const pl_model *m, int32_t s, int32_t layer, int32_t expert, pl_error *err) {
    int32_t needed = slot_need(&m->config, &m->layers[layer].config, s) == ALWAYS, owner = slot_owner(s);
    if (!slot_is_filled(m, s, layer, expert)) {
        return needed ? pl_fail(err, PL_FORMAT, "%s is missing", label_of(s, layer, expert).text) : PL_OK;
    }
    if (owner == PL_SLOT_COUNT || slot_is_filled(m, owner, layer, expert)) return PL_OK;
    return pl_fail(err, PL_FORMAT, "%s is missing, though there is %s", label_of(owner, layer, expert).text,
                   label_of(s, layer, expert).text);
}

static int is_quantised(const pl_linear *l) { return pl_is_bound(l) && !pl_packings[l->matrix.packing].floats; }

/* What the norm before a mixture of experts has to prepare: their types may differ. */
static void note_input_of_experts(const pl_config *c, pl_layer *l) {
    l->quantised_input = is_quantised(&l->router) || is_quantised(&l->shared_router) || is_quantised(&l->shared.gate) ||
                         is_quantised(&l->shared.up);
    for (int32_t e = 0; e < c->n_experts && l->experts != NULL; e++) {
        l->quantised_input |= is_quantised(&l->experts[e].gate) || is_quantised(&l->experts[e].up);
    }
}

int32_t pl_model_finish(pl_model *m, pl_error *err) {
    if (m->finished) return PL_OK;
    for (int32_t s = 0; s < PL_SLOT_COUNT; s++) {
        for (int32_t layer = 0; layer < slot_layers(m, s); layer++) {
            for (int32_t expert = 0; expert < slot_experts(m, s, layer); expert++) {
                int32_t status = check_slot(m, s, layer, expert, err);
                if (status != PL_OK) return status;
            }
        }
    }
    for (int32_t layer = 0; layer < m->config.n_layers; layer++) note_input_of_experts(&m->config, &m->layers[layer]);
    int32_t status = make_ropes(m, err);
    m->finished = status == PL_OK;
    return status;
}

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

static size_t feed_forward_bytes(const pl_feed_forward *f) {
    return f->gate.matrix.nbytes + f->up.matrix.nbytes + f->down.matrix.nbytes;
}

/* Bytes of a layer's matrices; of the experts' only as many as are `counted`. */
static size_t layer_bytes(const pl_layer *l, int32_t counted) {
    size_t bytes = l->wq.matrix.nbytes + l->wk.matrix.nbytes + l->wv.matrix.nbytes + l->wo.matrix.nbytes;
    bytes += feed_forward_bytes(&l->dense) + feed_forward_bytes(&l->shared);
    bytes += l->router.matrix.nbytes + l->shared_router.matrix.nbytes;
    for (int32_t e = 0; e < counted && l->experts != NULL; e++) bytes += feed_forward_bytes(&l->experts[e]);
    return bytes;
}

/* Experts are of one shape; where their types differ, the first speak for all. */
size_t pl_model_token_bytes(const pl_model *m) {
    size_t bytes = pl_model_head(m) ? pl_model_head(m)->nbytes : 0;
    for (int32_t i = 0; i < m->config.n_layers; i++) bytes += layer_bytes(&m->layers[i], m->config.n_experts_used);
    return bytes;
}

size_t pl_model_nbytes(const pl_model *m) {
    size_t bytes = m->embedding.matrix.nbytes + m->position_embedding.matrix.nbytes + m->own_head.matrix.nbytes;
    for (int32_t i = 0; i < m->config.n_layers; i++) bytes += layer_bytes(&m->layers[i], m->config.n_experts);
    return bytes;
}

int64_t pl_model_kv_pages(const pl_model *m) { return atomic_load(&((pl_model *)m)->pages); }

size_t pl_model_kv_page_bytes(const pl_model *m) { return m->kv.page_bytes; }

void pl_model_limit_kv(pl_model *m, int64_t pages) { atomic_store(&m->page_limit, pages); }
