#include "model/model.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "base/memory.h"
#include "model/config.h"
#include "model/scratch.h"

/* ---- slots: where each tensor goes and what shape it must have ----------------------------------------------------- */

typedef enum place { IN_MODEL, IN_LAYER } place;
typedef enum form { MATRIX, VECTOR } form;

typedef struct slot {
    const char *name;
    place place;
    form form;
    size_t offset; /* in pl_model or pl_layer */
    int required;
} slot;

static const slot slots[PL_SLOT_COUNT] = {
    [PL_SLOT_EMBEDDING] = {"embedding", IN_MODEL, MATRIX, offsetof(pl_model, embedding), 1},
    [PL_SLOT_ATTENTION_NORM] = {"attention_norm", IN_LAYER, VECTOR, offsetof(pl_layer, attention_norm), 1},
    [PL_SLOT_WQ] = {"wq", IN_LAYER, MATRIX, offsetof(pl_layer, wq), 1},
    [PL_SLOT_WK] = {"wk", IN_LAYER, MATRIX, offsetof(pl_layer, wk), 1},
    [PL_SLOT_WV] = {"wv", IN_LAYER, MATRIX, offsetof(pl_layer, wv), 1},
    [PL_SLOT_WO] = {"wo", IN_LAYER, MATRIX, offsetof(pl_layer, wo), 1},
    [PL_SLOT_FFN_NORM] = {"ffn_norm", IN_LAYER, VECTOR, offsetof(pl_layer, ffn_norm), 1},
    [PL_SLOT_GATE] = {"gate", IN_LAYER, MATRIX, offsetof(pl_layer, gate), 1},
    [PL_SLOT_UP] = {"up", IN_LAYER, MATRIX, offsetof(pl_layer, up), 1},
    [PL_SLOT_DOWN] = {"down", IN_LAYER, MATRIX, offsetof(pl_layer, down), 1},
    [PL_SLOT_FINAL_NORM] = {"final_norm", IN_MODEL, VECTOR, offsetof(pl_model, final_norm), 1},
    [PL_SLOT_HEAD] = {"head", IN_MODEL, MATRIX, offsetof(pl_model, own_head), 0},
    [PL_SLOT_ROPE_FACTORS] = {"rope_factors", IN_MODEL, VECTOR, offsetof(pl_model, rope_factors), 0},
};

static void slot_shape(const pl_config *c, int32_t s, int64_t *rows, int64_t *cols) {
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    *rows = 1;
    *cols = c->dim;
    switch (s) {
        case PL_SLOT_EMBEDDING:
        case PL_SLOT_HEAD: *rows = c->vocab_size; break;
        case PL_SLOT_WQ: *rows = q; break;
        case PL_SLOT_WK:
        case PL_SLOT_WV: *rows = kv; break;
        case PL_SLOT_WO: *rows = c->dim, *cols = q; break;
        case PL_SLOT_GATE:
        case PL_SLOT_UP: *rows = c->hidden_dim; break;
        case PL_SLOT_DOWN: *rows = c->dim, *cols = c->hidden_dim; break;
        case PL_SLOT_ROPE_FACTORS: *cols = c->rope_dims / 2; break;
        default: break; /* the norms: (1, dim) */
    }
}

static void *slot_address(pl_model *m, int32_t s, int32_t layer) {
    char *base = slots[s].place == IN_LAYER ? (char *)&m->layers[layer] : (char *)m;
    return base + slots[s].offset;
}

static int slot_is_filled(pl_model *m, int32_t s, int32_t layer) {
    void *address = slot_address(m, s, layer);
    return slots[s].form == MATRIX ? ((pl_matrix *)address)->strips != NULL : *(float **)address != NULL;
}

static int32_t slot_layers(const pl_model *m, int32_t s) { return slots[s].place == IN_LAYER ? m->config.n_layers : 1; }

/* ---- life ------------------------------------------------------------------------------------------------------- */

int32_t pl_model_new(const pl_config *config, pl_model **out, pl_error *err) {
    int32_t status = pl_config_check(config, err);
    if (status != PL_OK) return status;
    pl_model *m = pl_alloc(1, sizeof *m);
    pl_layer *layers = pl_alloc((size_t)config->n_layers, sizeof *layers);
    if (m == NULL || layers == NULL) {
        pl_free(m);
        pl_free(layers);
        return pl_fail(err, PL_MEMORY, "no memory for a model of %d layers", config->n_layers);
    }
    m->config = *config;
    m->kv = pl_kv_layout_of(config);
    m->layers = layers;
    atomic_init(&m->references, 1);
    atomic_init(&m->page_limit, INT64_MAX);
    *out = m;
    return PL_OK;
}

void pl_model_retain(pl_model *m) { atomic_fetch_add(&m->references, 1); }

void pl_model_release(pl_model *m) {
    if (m == NULL || atomic_fetch_sub(&m->references, 1) != 1) return;
    for (int32_t s = 0; s < PL_SLOT_COUNT; s++) {
        for (int32_t layer = 0; layer < slot_layers(m, s); layer++) {
            if (slots[s].form == VECTOR) pl_free(*(float **)slot_address(m, s, layer));
        }
    }
    pl_scratch_return(m, NULL);
    pl_arena_free(&m->weights);
    pl_free(m->rope_frequencies);
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

static int32_t bind_vector(float **out, const pl_source *source, pl_error *err) {
    int32_t status = pl_source_check(source, err);
    if (status != PL_OK) return status;
    float *vector = pl_alloc((size_t)pl_pad(source->cols), sizeof *vector);
    if (vector == NULL) return pl_fail(err, PL_MEMORY, "no memory for a vector of %lld", (long long)source->cols);
    pl_type_row(source->type)->dequantize_row(source, 0, vector);
    *out = vector;
    return PL_OK;
}

/* Puts the tensor's name before what the lower level had to say. */
static int32_t name_failure(int32_t status, int32_t s, int32_t layer, pl_error *err) {
    if (status == PL_OK) return status;
    char reason[sizeof err->message];
    memcpy(reason, err->message, sizeof reason);
    return pl_fail(err, status, "tensor '%s' of layer %d: %.200s", slots[s].name, layer, reason);
}

int32_t pl_model_bind(pl_model *m, int32_t s, int32_t layer, const pl_source *source, int32_t threads, pl_error *err) {
    if (m->finished || s < 0 || s >= PL_SLOT_COUNT || layer < 0 || layer >= slot_layers(m, s)) {
        return pl_fail(err, PL_INVALID, "slot %d of layer %d cannot be bound", s, layer);
    }
    if (slot_is_filled(m, s, layer)) {
        return pl_fail(err, PL_FORMAT, "tensor '%s' of layer %d is there twice", slots[s].name, layer);
    }
    int64_t rows, cols;
    slot_shape(&m->config, s, &rows, &cols);
    if (source->rows != rows || source->cols != cols) {
        return pl_fail(err, PL_FORMAT, "tensor '%s' of layer %d has shape (%lld, %lld); expected (%lld, %lld)",
                       slots[s].name, layer, (long long)source->rows, (long long)source->cols, (long long)rows,
                       (long long)cols);
    }
    void *address = slot_address(m, s, layer);
    if (slots[s].form == VECTOR) return name_failure(bind_vector(address, source, err), s, layer, err);
    int rotated = m->config.rope_interleaved && (s == PL_SLOT_WQ || s == PL_SLOT_WK);
    pl_row_order order = rotated ? straighten_rope : NULL;
    return name_failure(pl_matrix_pack(address, &m->weights, source, order, &m->config, threads, err), s, layer, err);
}

/* theta_i = base^(-2 i / dims) / factor_i, rounded to float as the original and transformers do. */
static const float FASTEST_ROTATION =
    1.5f; /* radians a position: pl_sincos is exact up to PL_LONGEST_CONTEXT times this */

static int32_t make_rope_frequencies(pl_model *m, pl_error *err) {
    int32_t half = m->config.rope_dims / 2;
    pl_free(m->rope_frequencies); /* of an attempt that failed */
    m->rope_frequencies = pl_alloc((size_t)half, sizeof(float));
    if (m->rope_frequencies == NULL) return pl_fail(err, PL_MEMORY, "no memory for %d RoPE frequencies", half);
    double log_base = pl_log((double)m->config.rope_base);
    for (int32_t i = 0; i < half; i++) {
        float frequency = (float)(1.0 / (double)(float)pl_exp(log_base * (2.0 * i) / m->config.rope_dims));
        m->rope_frequencies[i] = m->rope_factors ? frequency / m->rope_factors[i] : frequency;
        if (!(fabsf(m->rope_frequencies[i]) <= FASTEST_ROTATION)) {
            return pl_fail(err, PL_FORMAT, "RoPE frequency %d is %g, from base %g and its factor; expected at most %g",
                           i, (double)m->rope_frequencies[i], (double)m->config.rope_base, (double)FASTEST_ROTATION);
        }
    }
    return PL_OK;
}

int32_t pl_model_finish(pl_model *m, pl_error *err) {
    for (int32_t s = 0; s < PL_SLOT_COUNT; s++) {
        for (int32_t layer = 0; layer < slot_layers(m, s) && slots[s].required; layer++) {
            if (slot_is_filled(m, s, layer)) continue;
            return pl_fail(err, PL_FORMAT, "tensor '%s' of layer %d is missing", slots[s].name, layer);
        }
    }
    if (m->finished) return PL_OK;
    int32_t status = make_rope_frequencies(m, err);
    m->finished = status == PL_OK;
    return status;
}

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

/* Bytes of all matrices but the embedding. */
static size_t layers_and_head(const pl_model *m) {
    size_t bytes = pl_model_head(m)->nbytes;
    for (int32_t i = 0; i < m->config.n_layers; i++) {
        const pl_layer *l = &m->layers[i];
        bytes += l->wq.nbytes + l->wk.nbytes + l->wv.nbytes + l->wo.nbytes;
        bytes += l->gate.nbytes + l->up.nbytes + l->down.nbytes;
    }
    return bytes;
}

size_t pl_model_token_bytes(const pl_model *m) { return layers_and_head(m); }

size_t pl_model_nbytes(const pl_model *m) {
    return layers_and_head(m) + (m->own_head.strips ? m->embedding.nbytes : 0);
}

int64_t pl_model_kv_pages(const pl_model *m) { return atomic_load(&((pl_model *)m)->pages); }

size_t pl_model_kv_page_bytes(const pl_model *m) { return m->kv.page_bytes; }

void pl_model_limit_kv(pl_model *m, int64_t pages) { atomic_store(&m->page_limit, pages); }
