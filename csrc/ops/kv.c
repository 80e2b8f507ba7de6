#include "ops/kv.h"

#include <math.h>
#include <string.h>

#include "quant/f16.h"
#include "quant/pack.h"

static pl_packing packing_of(int32_t type) {
    return type == PL_TYPE_Q8_0 ? PL_PACK_Q8 : type == PL_TYPE_F16 ? PL_PACK_F16 : PL_PACK_F32;
}

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

pl_kv_layout pl_kv_layout_of(const pl_config *c) {
    pl_kv_layout l = {.type = c->kv_type, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim};
    l.packing = packing_of(l.type);
    l.d16 = round_up(l.head_dim, 16);
    l.width = round_up(l.head_dim, l.type == PL_TYPE_Q8_0 ? PL_BLOCK : 4);
    l.head_bytes = (size_t)pl_value_bytes(l.type, l.head_dim);
    l.value_bytes = (size_t)pl_value_bytes(l.type, l.d16);
    l.strip_bytes = (size_t)pl_strip_bytes(l.packing, l.width);
    l.key_bytes = PL_PAGE / PL_STRIP * l.strip_bytes;
    l.unit_bytes = l.key_bytes + PL_PAGE * l.value_bytes;
    l.page_bytes = (size_t)c->n_layers * (size_t)c->n_kv_heads * l.unit_bytes;
    return l;
}

static uint8_t *strip_at(const pl_kv_layout *l, const uint8_t *unit, int64_t slot) {
    return (uint8_t *)unit + (size_t)(slot / PL_STRIP) * l->strip_bytes;
}

static uint8_t *value_at(const pl_kv_layout *l, const uint8_t *unit, int64_t slot) {
    return (uint8_t *)unit + l->key_bytes + (size_t)slot * l->value_bytes;
}

/* ---- floats: element by element ---------------------------------------------------------------------------------- */

static size_t element(const pl_kv_layout *l) { return l->type == PL_TYPE_F16 ? sizeof(uint16_t) : sizeof(float); }

static uint8_t *key_element(const pl_kv_layout *l, const uint8_t *unit, int64_t slot, int64_t d) {
    return strip_at(l, unit, slot) + (size_t)(d * PL_STRIP + slot % PL_STRIP) * element(l);
}

static uint8_t *value_element(const pl_kv_layout *l, const uint8_t *unit, int64_t slot, int64_t d) {
    return value_at(l, unit, slot) + (size_t)d * element(l);
}

static void put(const pl_kv_layout *l, void *at, float x) {
    if (l->type == PL_TYPE_F16) {
        *(uint16_t *)at = pl_f16_from_float(x);
    } else {
        *(float *)at = x;
    }
}

static float get(const pl_kv_layout *l, const void *at) {
    return l->type == PL_TYPE_F16 ? pl_float_from_f16(*(const uint16_t *)at) : *(const float *)at;
}

static void store_elements(const pl_kv_layout *l, uint8_t *unit, int64_t slot, const float *k, const float *v) {
    for (int64_t d = 0; d < l->head_dim; d++) put(l, key_element(l, unit, slot, d), k[d]);
    for (int64_t d = 0; d < l->head_dim; d++) put(l, value_element(l, unit, slot, d), v[d]);
}

static void load_elements(const pl_kv_layout *l, const uint8_t *unit, int64_t slot, float *k, float *v) {
    for (int64_t d = 0; d < l->head_dim; d++) k[d] = get(l, key_element(l, unit, slot, d));
    for (int64_t d = 0; d < l->head_dim; d++) v[d] = get(l, value_element(l, unit, slot, d));
}

/* ---- Q8_0: block by block ---------------------------------------------------------------------------------------- */

static pl_strip_q8 *key_block(const pl_kv_layout *l, const uint8_t *unit, int64_t slot, int64_t b) {
    return (pl_strip_q8 *)(void *)strip_at(l, unit, slot) + b;
}

static pl_block_q8_0 *value_block(const pl_kv_layout *l, const uint8_t *unit, int64_t slot, int64_t b) {
    return (pl_block_q8_0 *)value_at(l, unit, slot) + b;
}

/* Of block b: 32, or what there is of the last one. */
static int64_t length(const pl_kv_layout *l, int64_t b) {
    int64_t left = l->head_dim - b * PL_BLOCK;
    return left < PL_BLOCK ? left : PL_BLOCK;
}

static pl_block_q8_0 block_of(const pl_kernels *kernels, const float *x, int64_t n) {
    float values[PL_BLOCK] = {0};
    pl_act_block common;
    pl_block_q8_0 out;
    memcpy(values, x, (size_t)n * sizeof *values);
    kernels->quantize(values, PL_BLOCK, 1, out.qs, &common);
    uint16_t d = pl_f16_from_float(common.scale);
    if (d == 0x7c00) d = pl_f16_from_float(NAN); /* zero times infinity is a NaN of another sign on each processor */
    memcpy(out.d, &d, sizeof d);
    return out;
}

static void open_block(const pl_block_q8_0 *block, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) out[i] = pl_load_f16(block->d) * (float)block->qs[i];
}

static void put_key(pl_strip_q8 *strip, int64_t lane, const pl_block_q8_0 *block) {
    strip->d[lane] = pl_load16(block->d);
    pl_pack_codes8(&strip->codes, (int32_t)lane, block->qs);
}

static pl_block_q8_0 get_key(const pl_strip_q8 *strip, int64_t lane) {
    pl_block_q8_0 out;
    memcpy(out.d, &strip->d[lane], sizeof out.d);
    pl_unpack_codes8(&strip->codes, (int32_t)lane, out.qs);
    return out;
}

static void store_blocks(const pl_kernels *kernels, const pl_kv_layout *l, uint8_t *unit, int64_t slot, const float *k,
                         const float *v) {
    for (int64_t b = 0; b < l->width / PL_BLOCK; b++) {
        pl_block_q8_0 key = block_of(kernels, k + b * PL_BLOCK, length(l, b));
        put_key(key_block(l, unit, slot, b), slot % PL_STRIP, &key);
        *value_block(l, unit, slot, b) = block_of(kernels, v + b * PL_BLOCK, length(l, b));
    }
}

static void load_blocks(const pl_kv_layout *l, const uint8_t *unit, int64_t slot, float *k, float *v) {
    for (int64_t b = 0; b < l->width / PL_BLOCK; b++) {
        pl_block_q8_0 key = get_key(key_block(l, unit, slot, b), slot % PL_STRIP);
        open_block(&key, length(l, b), k + b * PL_BLOCK);
        open_block(value_block(l, unit, slot, b), length(l, b), v + b * PL_BLOCK);
    }
}

/* ---- either ------------------------------------------------------------------------------------------------------ */

void pl_kv_store(const pl_kernels *kernels, const pl_kv_layout *l, uint8_t *unit, int64_t slot, const float *k,
                 const float *v) {
    if (l->type == PL_TYPE_Q8_0) {
        store_blocks(kernels, l, unit, slot, k, v);
    } else {
        store_elements(l, unit, slot, k, v);
    }
}

void pl_kv_load(const pl_kv_layout *l, const uint8_t *unit, int64_t slot, float *k, float *v) {
    if (l->type == PL_TYPE_Q8_0) {
        load_blocks(l, unit, slot, k, v);
    } else {
        load_elements(l, unit, slot, k, v);
    }
}

void pl_kv_pack(const pl_kv_layout *l, const uint8_t *unit, int64_t slot, uint8_t *out) {
    memcpy(out + l->head_bytes, value_at(l, unit, slot), l->head_bytes);
    if (l->type == PL_TYPE_Q8_0) {
        for (int64_t b = 0; b < l->width / PL_BLOCK; b++) {
            ((pl_block_q8_0 *)out)[b] = get_key(key_block(l, unit, slot, b), slot % PL_STRIP);
        }
    } else {
        for (int64_t d = 0; d < l->head_dim; d++, out += element(l)) {
            memcpy(out, key_element(l, unit, slot, d), element(l));
        }
    }
}

void pl_kv_unpack(const pl_kv_layout *l, uint8_t *unit, int64_t slot, const uint8_t *in) {
    memcpy(value_at(l, unit, slot), in + l->head_bytes, l->head_bytes);
    if (l->type == PL_TYPE_Q8_0) {
        for (int64_t b = 0; b < l->width / PL_BLOCK; b++) {
            put_key(key_block(l, unit, slot, b), slot % PL_STRIP, (const pl_block_q8_0 *)in + b);
        }
    } else {
        for (int64_t d = 0; d < l->head_dim; d++, in += element(l)) {
            memcpy(key_element(l, unit, slot, d), in, element(l));
        }
    }
}
