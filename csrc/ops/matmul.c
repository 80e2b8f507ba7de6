#include "ops/matmul.h"

#include <string.h>

#include "base/error.h"
#include "base/memory.h"

/* ---- packing ---------------------------------------------------------------------------------------------------- */

typedef struct pack_job {
    const pl_source *source;
    pl_matrix *out;
    pl_row_order order;
    const void *context;
    float *scratch; /* (threads, cols) */
} pack_job;

enum { WORTH_SHARING = 1 << 17 }; /* bytes: less is packed before a second thread has woken up */

static void pack_share(void *argument, const pl_worker *worker) {
    const pack_job *job = argument;
    int64_t begin, end, strip_bytes = pl_strip_bytes(job->out->packing, job->out->cols);
    pl_share(worker, job->out->rows, PL_STRIP, &begin, &end);
    for (int64_t row = begin; row < end; row++) {
        int64_t from = job->order ? job->order(job->context, row) : row;
        pl_source_pack_row(job->source, from, job->out->strips + row / PL_STRIP * strip_bytes, row % PL_STRIP,
                           job->scratch + worker->index * job->out->cols);
    }
}

int32_t pl_matrix_pack(pl_matrix *out, pl_arena *arena, const pl_source *source, pl_row_order order,
                       const void *context, int32_t threads, pl_error *err) {
    int32_t status = pl_source_check(source, err);
    if (status != PL_OK) return status;
    pl_matrix matrix = {.packing = pl_source_packing(source), .rows = source->rows, .cols = source->cols};
    int64_t strips = (matrix.rows + PL_STRIP - 1) / PL_STRIP;
    matrix.nbytes = (size_t)strips * (size_t)pl_strip_bytes(matrix.packing, matrix.cols);
    float *scratch = pl_alloc((size_t)threads * (size_t)matrix.cols, sizeof(float));
    matrix.strips = pl_arena_take(arena, matrix.nbytes);
    if (matrix.strips == NULL || scratch == NULL) {
        pl_free(scratch);
        return pl_fail(err, PL_MEMORY, "no memory to pack a (%lld, %lld) matrix: %zu bytes", (long long)matrix.rows,
                       (long long)matrix.cols, matrix.nbytes);
    }
    pack_job job = {source, &matrix, order, context, scratch};
    pl_parallel(matrix.nbytes < WORTH_SHARING ? 1 : threads, pack_share, &job);
    pl_free(scratch);
    *out = matrix;
    return PL_OK;
}

void pl_matrix_row(const pl_matrix *m, int64_t row, float *out) {
    const uint8_t *strip = m->strips + row / PL_STRIP * pl_strip_bytes(m->packing, m->cols);
    pl_strip_row(m->packing, strip, m->cols, (int32_t)(row % PL_STRIP), out);
}

/* ---- activations ------------------------------------------------------------------------------------------------ */

int32_t pl_act_buffer_init(pl_act_buffer *b, int64_t n, int64_t widest, pl_error *err) {
    size_t ld = (size_t)pl_pad(widest), tokens = (size_t)n, blocks = ld / PL_BLOCK + 1;
    *b = (pl_act_buffer){.ld = (int64_t)ld};
    b->f = pl_alloc(tokens * ld, sizeof *b->f);
    b->q = pl_alloc(tokens, (size_t)pl_acts_ldq((int64_t)ld, 2));
    b->blocks = pl_alloc(tokens * blocks, sizeof *b->blocks);
    if (b->f && b->q && b->blocks) return PL_OK;
    pl_act_buffer_free(b);
    return pl_fail(err, PL_MEMORY, "no memory for the activations of %lld tokens of width %lld", (long long)n,
                   (long long)widest);
}

void pl_act_buffer_free(pl_act_buffer *b) {
    pl_free(b->f);
    pl_free(b->q);
    pl_free(b->blocks);
    *b = (pl_act_buffer){0};
}

void pl_acts_set(const pl_kernels *kernels, pl_act_buffer *b, int64_t c, const float *x, int64_t k, int32_t planes) {
    if (planes > 0) {
        kernels->quantize(x, k, planes, b->q + c * pl_acts_ldq(k, planes), b->blocks + c * (k / PL_BLOCK));
    } else if (x != pl_acts_column(b, c)) {
        memcpy(pl_acts_column(b, c), x, (size_t)k * sizeof *x);
    }
}

void pl_acts_copy(pl_act_buffer *b, int64_t to, const pl_act_buffer *from, int64_t c, int64_t k, int32_t planes) {
    size_t ldq = (size_t)pl_acts_ldq(k, planes), blocks = (size_t)(k / PL_BLOCK);
    memcpy(pl_acts_column(b, to), pl_acts_column(from, c), (size_t)pl_pad(k) * sizeof *b->f);
    if (planes == 0) return;
    memcpy(b->q + (size_t)to * ldq, from->q + (size_t)c * ldq, (size_t)(k * planes));
    memcpy(b->blocks + (size_t)to * blocks, from->blocks + (size_t)c * blocks, blocks * sizeof *b->blocks);
}

pl_acts pl_acts_view(const pl_act_buffer *b, int64_t first, int64_t k, int32_t planes) {
    int64_t ldq = pl_acts_ldq(k, planes);
    return (pl_acts){.f = b->f + first * b->ld,
                     .ld = b->ld,
                     .q = b->q + first * ldq,
                     .ldq = ldq,
                     .blocks = b->blocks + first * (k / PL_BLOCK),
                     .k = k,
                     .planes = planes};
}

/* ---- products --------------------------------------------------------------------------------------------------- */

/* Columns per pass over the strips: their activations should stay in the L2 cache beside a strip. */
enum { COLUMNS_PER_PASS = 96, PASS_BYTES = 512 * 1024 };

static int64_t columns_per_pass(const pl_matrix *w, const pl_acts *x) {
    int64_t bytes = pl_packings[w->packing].floats ? 4 * x->k : x->planes * x->k;
    int64_t columns = PASS_BYTES / bytes;
    return columns < 8 ? 8 : columns > COLUMNS_PER_PASS ? COLUMNS_PER_PASS : columns;
}

/* Rows [row, row + rows) of columns [c, c + n) where they can't be written in whole strips: by way of a tile. */
static void deliver(const pl_kernels *kernels, const pl_matrix *w, const uint8_t *strips, const pl_acts *x, int64_t c,
                    int64_t n, int64_t row, int64_t rows, const pl_output *y) {
    float tile[2 * PL_STRIP * COLUMNS_PER_PASS];
    pl_matmul_of(kernels, w->packing)(strips, (rows + PL_STRIP - 1) / PL_STRIP, x, c, n, tile, 2 * PL_STRIP, 0);
    for (int64_t i = 0; i < n; i++) {
        float *to = (y->columns ? y->columns[c + i] : y->base + (c + i) * y->ld) + row;
        if (y->add) {
            pl_add(to, tile + i * 2 * PL_STRIP, rows);
        } else {
            memcpy(to, tile + i * 2 * PL_STRIP, (size_t)rows * sizeof *to);
        }
    }
}

/* Rows [begin, end) of columns [c, c + n): whole strips straight to where they go, if that is one array. */
static void multiply(const pl_kernels *kernels, const pl_matrix *w, const pl_acts *x, int64_t c, int64_t n,
                     int64_t begin, int64_t end, const pl_output *y) {
    int64_t strip_bytes = pl_strip_bytes(w->packing, w->cols), whole = (end - begin) / PL_STRIP;
    const uint8_t *strips = w->strips + begin / PL_STRIP * strip_bytes;
    if (y->columns && n > 1) whole = 0;
    if (whole > 0) {
        float *to = y->columns ? y->columns[c] : y->base + c * y->ld;
        pl_matmul_of(kernels, w->packing)(strips, whole, x, c, n, to + begin, y->ld, y->add);
    }
    for (int64_t row = begin + whole * PL_STRIP; row < end; row += 2 * PL_STRIP) {
        int64_t rows = end - row < 2 * PL_STRIP ? end - row : 2 * PL_STRIP;
        deliver(kernels, w, strips + (row - begin) / PL_STRIP * strip_bytes, x, c, n, row, rows, y);
    }
}

void pl_matmul(const pl_kernels *kernels, const pl_worker *worker, const pl_matrix *w, const pl_acts *x, int64_t n,
               const pl_output *y) {
    int64_t begin, end, step = columns_per_pass(w, x);
    pl_share(worker, w->rows, PL_STRIP, &begin, &end);
    for (int64_t c = 0; c < n && begin < end; c += step) {
        multiply(kernels, w, x, c, n - c < step ? n - c : step, begin, end, y);
    }
}
