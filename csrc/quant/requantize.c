/* From one weight type to floats, and to another type: rows at a time, on several threads. */
#include <math.h>
#include <stdatomic.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/threads.h"
#include "quant/types.h"

int32_t pl_dequantize(const pl_source *source, float *out, pl_error *err) {
    int32_t status = pl_source_check(source, err);
    if (status != PL_OK) return status;
    const pl_type *type = pl_type_row(source->type);
    for (int64_t row = 0; row < source->rows; row++) type->dequantize_row(source, row, out + row * source->cols);
    return PL_OK;
}

typedef struct quantize_job {
    const pl_source *source;
    const pl_type *type;
    int64_t first, n;
    size_t row_bytes;
    uint8_t *out;
    float *scratch;   /* (threads, cols) */
    atomic_llong bad; /* a row that cannot be quantised, or -1 */
} quantize_job;

/* Every half-precision scale of such a row is finite. */
static int is_quantizable(const float *x, int64_t n) {
    int fits = 1;
    for (int64_t i = 0; i < n; i++) fits &= fabsf(x[i]) <= 65504.0f;
    return fits;
}

static void quantize_share(void *argument, const pl_worker *worker) {
    quantize_job *job = argument;
    int64_t begin, end, cols = job->source->cols;
    float *x = job->scratch + worker->index * cols;
    pl_share(worker, job->n, 1, &begin, &end);
    for (int64_t row = begin; row < end; row++) {
        pl_type_row(job->source->type)->dequantize_row(job->source, job->first + row, x);
        if (is_quantizable(x, cols)) {
            job->type->quantize_row(x, cols, job->out + (size_t)row * job->row_bytes);
        } else {
            atomic_store(&job->bad, job->first + row);
        }
    }
}

int32_t pl_quantize(const pl_source *source, int64_t first, int64_t n, int32_t type_id, int32_t threads, void *out,
                    size_t nbytes, pl_error *err) {
    int32_t status = pl_source_check(source, err);
    if (status != PL_OK) return status;
    const pl_type *type = pl_type_row(type_id);
    if (type == NULL || type->quantize_row == NULL) {
        return pl_fail(err, PL_UNSUPPORTED, "weight type %d cannot be made", type_id);
    }
    if (first < 0 || n < 1 || n > source->rows - first || threads < 1 || threads > PL_MOST_THREADS) {
        return pl_fail(err, PL_INVALID,
                       "%lld rows from %lld on of %lld on %d threads; expected some of them, on 1 to %d", (long long)n,
                       (long long)first, (long long)source->rows, threads, PL_MOST_THREADS);
    }
    if (source->cols % type->info.block_elements != 0) {
        return pl_fail(err, PL_INVALID, "rows of %lld weights are not whole blocks of %d as %s needs",
                       (long long)source->cols, type->info.block_elements, type->info.name);
    }
    size_t row_bytes = (size_t)(source->cols / type->info.block_elements) * (size_t)type->info.block_bytes;
    if (nbytes != (size_t)n * row_bytes) {
        return pl_fail(err, PL_INVALID, "%lld rows take %zu bytes, not %zu", (long long)n, (size_t)n * row_bytes,
                       nbytes);
    }
    float *scratch = pl_alloc((size_t)threads * (size_t)source->cols, sizeof *scratch);
    if (scratch == NULL) return pl_fail(err, PL_MEMORY, "no memory for %d rows of weights", threads);
    quantize_job job = {source, type, first, n, row_bytes, out, scratch, -1};
    pl_parallel(threads, quantize_share, &job);
    pl_free(scratch);
    int64_t bad = atomic_load(&job.bad);
    if (bad < 0) return PL_OK;
    return pl_fail(err, PL_FORMAT, "row %lld has weights that are not finite, or beyond 65504", (long long)bad);
}
