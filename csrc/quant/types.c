#include "quant/types.h"

#include "base/error.h"
#include "quant/rows.h"

static const pl_type *const table[] = {
    &pl_type_f32,   &pl_type_f16,   &pl_type_bf16,    &pl_type_q8_0,   &pl_type_q4_0,   &pl_type_q4_1,
    &pl_type_q5_0,  &pl_type_q5_1,  &pl_type_q4_k,    &pl_type_q5_k,   &pl_type_q6_k,   &pl_type_llama2c_q8,
    &pl_type_q2_k,  &pl_type_q3_k,  &pl_type_q8_k,    &pl_type_iq4_nl, &pl_type_iq4_xs, &pl_type_mxfp4,
    &pl_type_tq1_0, &pl_type_tq2_0, &pl_type_iq2_xxs, &pl_type_iq2_xs, &pl_type_iq2_s,  &pl_type_iq3_xxs,
    &pl_type_iq3_s, &pl_type_iq1_s, &pl_type_iq1_m,   &pl_type_nvfp4,  &pl_type_q2_0,   &pl_type_q1_0,
};
enum { TABLE_SIZE = sizeof table / sizeof *table };

const pl_type_info *pl_type_at(int32_t index) { return index >= 0 && index < TABLE_SIZE ? &table[index]->info : NULL; }

const pl_type *pl_type_row(int32_t id) {
    for (int i = 0; i < TABLE_SIZE; i++) {
        if (table[i]->info.id == id) return table[i];
    }
    return NULL;
}

const pl_type_info *pl_type_find(int32_t id) {
    const pl_type *type = pl_type_row(id);
    return type ? &type->info : NULL;
}

/* What a (rows, cols) tensor takes in a file; 0 if that overflows. */
static size_t source_bytes(const pl_source *s, const pl_type *type) {
    size_t elements, bytes, scales;
    if (__builtin_mul_overflow((size_t)s->rows, (size_t)s->cols, &elements)) return 0;
    size_t blocks = elements / (size_t)type->info.block_elements;
    if (__builtin_mul_overflow(blocks, (size_t)type->info.block_bytes, &bytes)) return 0;
    if (s->group > 0) {
        if (__builtin_mul_overflow(elements / (size_t)s->group, sizeof(float), &scales)) return 0;
        if (__builtin_add_overflow(bytes, scales, &bytes)) return 0;
    }
    return bytes;
}

int32_t pl_source_check(const pl_source *s, pl_error *err) {
    const pl_type *type = pl_type_row(s->type);
    if (type == NULL) return pl_fail(err, PL_UNSUPPORTED, "weight type %d is unknown", s->type);
    if (s->data == NULL || s->rows < 1 || s->cols < 1 || s->rows > INT32_MAX || s->cols > INT32_MAX) {
        return pl_fail(err, PL_FORMAT, "shape (%lld, %lld) is out of range", (long long)s->rows, (long long)s->cols);
    }
    if (s->cols % type->info.block_elements != 0) {
        return pl_fail(err, PL_FORMAT, "rows of %lld weights are not whole blocks of %d as %s needs",
                       (long long)s->cols, type->info.block_elements, type->info.name);
    }
    if ((s->type == PL_TYPE_LLAMA2C_Q8) != (s->group > 0) || (s->group > 0 && s->rows * s->cols % s->group != 0)) {
        return pl_fail(err, PL_FORMAT, "group size %lld does not divide %lld weights", (long long)s->group,
                       (long long)(s->rows * s->cols));
    }
    size_t wanted = source_bytes(s, type);
    if (wanted == 0 || wanted != s->nbytes) {
        return pl_fail(err, PL_FORMAT, "%s of shape (%lld, %lld) takes %zu bytes, not %zu", type->info.name,
                       (long long)s->rows, (long long)s->cols, wanted, s->nbytes);
    }
    return PL_OK;
}

/* llama2.c's groups need not line up with blocks; NVFP4 has blocks of 64 and strips of 256. */
pl_packing pl_source_packing(const pl_source *s) {
    pl_packing packing = pl_type_row(s->type)->packing;
    int fits = s->group % PL_BLOCK == 0 && s->cols % pl_packings[packing].elements == 0;
    return fits ? packing : PL_PACK_F32;
}

void pl_source_pack_row(const pl_source *s, int64_t row, void *strip, int32_t lane, float *scratch) {
    const pl_type *type = pl_type_row(s->type);
    if (pl_source_packing(s) == type->packing) {
        type->pack_row(s, row, strip, lane);
    } else {
        type->dequantize_row(s, row, scratch);
        pl_pack_float_row(scratch, s->cols, strip, lane);
    }
}
