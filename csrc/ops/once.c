/* Kernels one at a time, as tests and benchmarks ask for them. */
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "base/threads.h"
#include "ops/matmul.h"

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
        status =
            pl_fail(err, PL_INVALID, "%lld columns in %d planes; expected at least 1, in 1 or 2", (long long)n, planes);
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
