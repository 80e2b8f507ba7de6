/* The functions Python reaches: arguments are checked here, and the work is done elsewhere. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "base/memory.h"
#include "base/threads.h"
#include "model/forward.h"
#include "ops/probability.h"
#include "pyllm.h"

enum { MOST_THREADS = 1024 };

/* ---- weight types ----------------------------------------------------------------------------------------------- */

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
    if (first < 0 || n < 1 || n > source->rows - first || threads < 1 || threads > MOST_THREADS) {
        return pl_fail(err, PL_INVALID, "%lld rows from %lld on of %lld, on %d threads", (long long)n, (long long)first,
                       (long long)source->rows, threads);
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

/* ---- kernels, one at a time ------------------------------------------------------------------------------------- */

static int32_t find_kernels(const char *isa, const pl_kernels **out, pl_error *err) {
    *out = pl_kernels_by_name(isa);
    return *out ? PL_OK : pl_fail(err, PL_INVALID, "kernel level '%s' is unknown or not runnable here", isa);
}

int32_t pl_matmul_once(const char *isa, const pl_source *source, const float *x, int64_t n, int32_t planes, float *y,
                       pl_error *err) {
    const pl_kernels *kernels;
    pl_arena arena = {0};
    pl_matrix matrix = {0};
    pl_act_buffer acts = {0};
    int32_t status = find_kernels(isa, &kernels, err);
    if (status == PL_OK && (n < 1 || planes < 1 || planes > 2)) {
        status = pl_fail(err, PL_INVALID, "n is %lld and planes is %d", (long long)n, planes);
    }
    if (status == PL_OK) status = pl_matrix_pack(&matrix, &arena, source, NULL, NULL, 1, err);
    if (status == PL_OK) status = pl_act_buffer_init(&acts, n, matrix.cols, err);
    if (status == PL_OK) {
        for (int64_t i = 0; i < n; i++) {
            int32_t wanted = pl_packings[matrix.packing].floats ? 0 : planes;
            pl_acts_set(kernels, &acts, i, x + i * matrix.cols, matrix.cols, wanted);
        }
        pl_acts view = pl_acts_view(&acts, 0, matrix.cols, planes);
        pl_matmul(kernels, &(pl_worker){0, 1, NULL}, &matrix, &view, n, &(pl_output){.base = y, .ld = matrix.rows});
    }
    pl_arena_free(&arena);
    pl_act_buffer_free(&acts);
    return status;
}

static int activation_of(const char *name) {
    static const char *const names[] = {[PL_ACTIVATION_SILU] = "silu",
                                        [PL_ACTIVATION_GELU] = "gelu",
                                        [PL_ACTIVATION_GELU_TANH] = "gelu_tanh",
                                        [PL_ACTIVATION_RELU_SQUARED] = "relu_squared",
                                        [PL_ACTIVATION_SILU_CLAMPED] = "silu_clamped"};
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++) {
        if (strcmp(name, names[i]) == 0) return i;
    }
    return -1;
}

int32_t pl_vector_once(const char *isa, const char *kernel, const float *a, const float *b, int64_t n, float parameter,
                       float *out, pl_error *err) {
    const pl_kernels *kernels;
    int32_t status = find_kernels(isa, &kernels, err);
    if (status != PL_OK) return status;
    if (n < 1 || n % 16 != 0) return pl_fail(err, PL_INVALID, "n is %lld; expected a multiple of 16", (long long)n);
    memcpy(out, a, (size_t)n * sizeof *out);
    if (activation_of(kernel) >= 0) {
        kernels->activate(activation_of(kernel), parameter, a, b, n, out);
    } else if (strcmp(kernel, "rmsnorm") == 0) {
        kernels->rmsnorm(a, b, n, parameter, out);
    } else if (strcmp(kernel, "swiglu") == 0) {
        kernels->swiglu(a, b, n, out);
    } else if (strcmp(kernel, "softmax") == 0) {
        out[n] = kernels->softmax(out, n, parameter, &out[n + 1]);
    } else if (strcmp(kernel, "softcap") == 0) {
        kernels->softcap(out, n, 1.0f, parameter);
    } else if (strcmp(kernel, "centre") == 0) {
        pl_centre(a, (int64_t)parameter, out);
    } else if (strcmp(kernel, "erf") == 0) {
        for (int64_t i = 0; i < n; i++) out[i] = pl_erff(a[i]);
    } else if (strcmp(kernel, "tanh") == 0) {
        for (int64_t i = 0; i < n; i++) out[i] = pl_tanhf(a[i]);
    } else {
        return pl_fail(err, PL_INVALID, "'%s' is no vector kernel", kernel);
    }
    return PL_OK;
}

double pl_log_probability(const float *logits, int64_t vocab, int32_t token) {
    return pl_log_softmax_at(pl_kernels_current(), logits, vocab, token);
}

/* ---- the machine's own speed ------------------------------------------------------------------------------------ */

typedef struct reading {
    const uint64_t *words;
    int64_t n;
    uint64_t sums[MOST_THREADS];
} reading;

static void read_share(void *argument, const pl_worker *worker) {
    reading *r = argument;
    int64_t begin, end;
    pl_share(worker, r->n, 8, &begin, &end);
    uint64_t sum[8] = {0}; /* wide enough for the compiler to fill vectors with */
    for (int64_t i = begin; i + 8 <= end; i += 8) {
        __builtin_prefetch(r->words + i + 512);
        for (int j = 0; j < 8; j++) sum[j] += r->words[i + j];
    }
    for (int j = 0; j < 8; j++) r->sums[worker->index] += sum[j];
}

double pl_read_bandwidth(const void *data, size_t nbytes, int32_t threads, int32_t repeats) {
    if (threads < 1 || threads > MOST_THREADS || repeats < 1) return 0;
    reading r = {.words = data, .n = (int64_t)(nbytes / sizeof(uint64_t))};
    double best = 0;
    for (int32_t i = 0; i < repeats; i++) {
        double start = pl_seconds();
        pl_parallel(threads, read_share, &r);
        double rate = (double)nbytes / (pl_seconds() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

typedef struct meeting {
    int32_t crossings;
    double seconds; /* out: of one; stays 0 where the region has one thread */
} meeting;

static void meet(void *argument, const pl_worker *worker) {
    meeting *m = argument;
    if (worker->count == 1) return;
    pl_barrier_wait(worker);
    double start = pl_seconds();
    for (int32_t i = 0; i < m->crossings; i++) pl_barrier_wait(worker);
    if (worker->index == 0) m->seconds = (pl_seconds() - start) / m->crossings;
}

double pl_barrier_seconds(int32_t threads, int32_t crossings) {
    if (threads < 1 || threads > MOST_THREADS || crossings < 1) return 0;
    meeting m = {.crossings = crossings};
    pl_parallel(threads, meet, &m);
    return m.seconds;
}

/* ---- evaluation ------------------------------------------------------------------------------------------------- */

static int32_t check_answers(const pl_model *model, const pl_run *run, pl_error *err) {
    int32_t wanted = run->n_logits, somewhere = run->logits != NULL || run->states != NULL;
    if (wanted < 0 || wanted > run->n || (wanted > 0 && !somewhere)) {
        return pl_fail(err, PL_INVALID, "%d logits of %lld tokens", wanted, (long long)run->n);
    }
    if (wanted > 0 && run->logits != NULL && pl_model_head(model) == NULL) {
        return pl_fail(err, PL_UNSUPPORTED, "the model has no head: it gives hidden states, not logits");
    }
    if (run->n_hidden < 0 || (run->n_hidden > 0 && (run->hidden_layers == NULL || run->hidden == NULL))) {
        return pl_fail(err, PL_INVALID, "the residual stream after %d layers", run->n_hidden);
    }
    for (int32_t j = 0; j < run->n_hidden; j++) {
        if (run->hidden_layers[j] >= 0 && run->hidden_layers[j] <= model->config.n_layers) continue;
        return pl_fail(err, PL_INVALID, "layer %d is out of range: the model has 0 (the embedding) to %d",
                       run->hidden_layers[j], model->config.n_layers);
    }
    return PL_OK;
}

/* Whether the session can go on by n tokens. */
static int32_t check_length(const pl_model *model, const pl_session *s, int64_t n, pl_error *err) {
    const pl_config *c = &model->config;
    int64_t limit = s->context_length;
    if (pl_is_bound(&model->position_embedding) && c->context_length < limit) limit = c->context_length;
    if (n > limit - s->position) {
        return pl_fail(err, PL_CONTEXT, "%lld tokens at position %lld exceed the context of %lld", (long long)n,
                       (long long)s->position, (long long)limit);
    }
    if (!c->causal && s->position > 0) {
        return pl_fail(err, PL_INVALID, "the model sees a sequence as a whole: it cannot go on at position %lld",
                       (long long)s->position);
    }
    if (!pl_session_rope_fits(s, n)) {
        return pl_fail(err, PL_INVALID, "RoPE's factors change at %d positions: the sequence must be evaluated again",
                       c->rope_original);
    }
    return PL_OK;
}

static int32_t check_run(const pl_model *model, const pl_run *run, pl_error *err) {
    const pl_session *s = run->session;
    if (s == NULL || s->model != model) return pl_fail(err, PL_INVALID, "the session belongs to another model");
    if (run->n < 1 || run->tokens == NULL) return pl_fail(err, PL_INVALID, "there are no tokens to evaluate");
    for (int64_t i = 0; i < run->n; i++) {
        if (run->tokens[i] >= 0 && run->tokens[i] < model->config.vocab_size) continue;
        return pl_fail(err, PL_INVALID, "token id %d is out of range: the vocabulary has ids 0 to %d", run->tokens[i],
                       model->config.vocab_size - 1);
    }
    int32_t status = check_length(model, s, run->n, err);
    return status == PL_OK ? check_answers(model, run, err) : status;
}

static int32_t check_runs(const pl_model *model, const pl_run *runs, int32_t n_runs, pl_error *err) {
    for (int32_t r = 0; r < n_runs; r++) {
        int32_t status = check_run(model, &runs[r], err);
        if (status != PL_OK) return status;
        for (int32_t other = 0; other < r; other++) {
            if (runs[other].session == runs[r].session) return pl_fail(err, PL_INVALID, "a session stands twice");
        }
    }
    return PL_OK;
}

/* Small steps are done before a second thread has woken up. */
static int32_t useful_threads(const pl_model *model, const pl_run *runs, int32_t n_runs, int32_t threads) {
    const double worth_sharing = 4e6; /* bytes of weights times tokens */
    double work = 0;
    for (int32_t r = 0; r < n_runs; r++) work += (double)runs[r].n * (double)pl_model_token_bytes(model);
    return work < worth_sharing ? 1 : threads;
}

int32_t pl_eval(pl_model *model, const pl_run *runs, int32_t n_runs, int32_t threads, pl_poll_fn poll, void *context,
                pl_error *err) {
    if (n_runs < 1 || threads < 1 || threads > MOST_THREADS) {
        return pl_fail(err, PL_INVALID, "%d sequences on %d threads", n_runs, threads);
    }
    int32_t status = check_runs(model, runs, n_runs, err);
    for (int32_t r = 0; r < n_runs && status == PL_OK; r++) {
        pl_session *s = runs[r].session;
        pl_session_choose_rope(s, runs[r].n);
        status = pl_pages_reserve(model, &s->table, s->position, s->position + runs[r].n, err);
    }
    if (status != PL_OK) return status;
    pl_scratch *scratch = pl_scratch_borrow(model);
    if (scratch == NULL) return pl_fail(err, PL_MEMORY, "no memory for a forward pass");
    threads = useful_threads(model, runs, n_runs, threads);
    status = pl_forward(model, scratch, runs, n_runs, threads, poll, context, err);
    pl_scratch_return(model, scratch);
    for (int32_t r = 0; r < n_runs && status == PL_OK; r++) runs[r].session->position += runs[r].n;
    return status;
}
