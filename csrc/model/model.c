#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "base/memory.h"
#include "model/config.h"
#include "model/pages.h"
#include "model/scratch.h"
#include "model/slots.h"

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
    pl_slabs_init(&m->page_memory, m->kv.page_bytes + PL_PAGE_HEADER);
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
        for (int32_t layer = 0; layer < pl_slot_layers(m, s) && pl_slots[s].form == PL_VECTOR; layer++) {
            for (int32_t e = 0; e < pl_slot_experts(m, s, layer); e++)
                pl_free(*(float **)pl_slot_address(m, s, layer, e));
        }
    }
    for (int32_t layer = 0; layer < m->config.n_layers; layer++) pl_free(m->layers[layer].experts);
}

void pl_model_release(pl_model *m) {
    if (m == NULL || atomic_fetch_sub(&m->references, 1) != 1) return;
    if (m->layers != NULL) free_vectors(m);
    pl_scratch_return(m, NULL);
    pl_slabs_free(&m->page_memory);
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
    const char *name = pl_slots[s].name;
    switch (pl_slots[s].place) {
        case PL_IN_MODEL: snprintf(l.text, sizeof l.text, "tensor '%s'", name); break;
        case PL_IN_LAYER: snprintf(l.text, sizeof l.text, "tensor '%s' of layer %d", name, layer); break;
        case PL_IN_EXPERT: snprintf(l.text, sizeof l.text, "tensor '%s' %d of layer %d", name, expert, layer); break;
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
    if (m->finished || s < 0 || s >= PL_SLOT_COUNT || layer < 0 || layer >= pl_slot_layers(m, s)) {
        return pl_fail(err, PL_INVALID, "slot %d of layer %d cannot be bound", s, layer);
    }
    if (pl_slot_need(&m->config, &m->layers[layer].config, s) == PL_NEVER) {
        return pl_fail(err, PL_FORMAT, "%s has no place in a model of this config", label_of(s, layer, expert).text);
    }
    if (expert < 0 || expert >= pl_slot_experts(m, s, layer)) {
        return pl_fail(err, PL_INVALID, "slot %d of expert %d of layer %d cannot be bound", s, expert, layer);
    }
    return PL_OK;
}

int32_t pl_model_bind(pl_model *m, int32_t s, int32_t layer, int32_t expert, const pl_source *source, int32_t threads,
                      pl_error *err) {
    int32_t status = check_place(m, s, layer, expert, err);
    if (status != PL_OK) return status;
    label name = label_of(s, layer, expert);
    if (pl_slot_is_filled(m, s, layer, expert)) return pl_fail(err, PL_FORMAT, "%s is there twice", name.text);
    int64_t rows, cols;
    pl_slot_shape(&m->config, s, &rows, &cols);
    if (source->rows != rows || source->cols != cols) {
        return pl_fail(err, PL_FORMAT, "%s has shape (%lld, %lld); expected (%lld, %lld)", name.text,
                       (long long)source->rows, (long long)source->cols, (long long)rows, (long long)cols);
    }
    void *address = pl_slot_address(m, s, layer, expert);
    pl_row_order order = is_rotated(&m->config, s) ? straighten_rope : NULL;
    if (pl_slots[s].form == PL_VECTOR)
        return name_failure(bind_vector(address, source, order, &m->config, err), name, err);
    pl_linear *linear = address;
    linear->index = m->n_linears++;
    return name_failure(pl_matrix_pack(&linear->matrix, &m->weights, source, order, &m->config, threads, err), name,
                        err);
}

const pl_linear *pl_model_linear(const pl_model *m, int32_t s, int32_t layer, int32_t expert, pl_row_order *order) {
    if (s < 0 || s >= PL_SLOT_COUNT || pl_slots[s].form != PL_MATRIX || pl_slots[s].place == PL_IN_MODEL) return NULL;
    if (layer < 0 || layer >= pl_slot_layers(m, s) || expert < 0 || expert >= pl_slot_experts(m, s, layer)) return NULL;
    *order = is_rotated(&m->config, s) ? straighten_rope : NULL;
    return pl_slot_is_filled(m, s, layer, expert) ? pl_slot_address(m, s, layer, expert) : NULL;
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
    int32_t needed = pl_slot_need(&m->config, &m->layers[layer].config, s) == PL_ALWAYS, owner = pl_slot_owner(s);
    if (!pl_slot_is_filled(m, s, layer, expert)) {
        return needed ? pl_fail(err, PL_FORMAT, "%s is missing", label_of(s, layer, expert).text) : PL_OK;
    }
    if (owner == PL_SLOT_COUNT || pl_slot_is_filled(m, owner, layer, expert)) return PL_OK;
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
        for (int32_t layer = 0; layer < pl_slot_layers(m, s); layer++) {
            for (int32_t expert = 0; expert < pl_slot_experts(m, s, layer); expert++) {
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
