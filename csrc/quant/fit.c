#include "quant/fit.h"

#include <math.h>
#include <string.h>

#include "quant/f16.h"

enum { LANES = 8, STEPS = 21, REFINEMENTS = 4, ROUNDS = 3, LARGEST_GROUP = 32 };

/* ---- sums over a group: in lanes, so that compilers may use vectors --------------------------------------------- */

static double fold(const float lane[LANES]) {
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += (double)lane[l];
    return sum;
}

/* To the nearest integer in [low, high], ties to even. */
static inline float rounded(float x, float low, float high) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: there is no room for a fraction beside it */
    x = x < low ? low : x > high ? high : x;
    return (x + shift) - shift;
}

typedef struct moments {
    double w, wx, wxx;   /* of the weights */
    double wq, wqq, wxq; /* of them and their codes */
} moments;

static void sum_weights(const float *x, const float *weight, int n, moments *m) {
    float w[LANES] = {0}, wx[LANES] = {0}, wxx[LANES] = {0};
    for (int i = 0; i < n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            float product = weight[i + l] * x[i + l];
            w[l] += weight[i + l];
            wx[l] += product;
            wxx[l] += product * x[i + l];
        }
    }
    m->w = fold(w), m->wx = fold(wx), m->wxx = fold(wxx);
}

/* The codes are those of (x - origin) * inverse. */
static void sum_codes(const float *x, const float *weight, int n, float inverse, float origin, int low, int high,
                      moments *m) {
    float wq[LANES] = {0}, wqq[LANES] = {0}, wxq[LANES] = {0};
    for (int i = 0; i < n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            float q = rounded((x[i + l] - origin) * inverse, (float)low, (float)high), product = weight[i + l] * q;
            wq[l] += product;
            wqq[l] += product * q;
            wxq[l] += product * x[i + l];
        }
    }
    m->wq = fold(wq), m->wqq = fold(wqq), m->wxq = fold(wxq);
}

/* ---- one group -------------------------------------------------------------------------------------------------- */

/* The best scale for the codes that m was made of. */
static pl_fit solve_scale(const moments *m) {
    if (!(m->wqq > 0)) return (pl_fit){0, 0, m->wxx};
    double scale = m->wxq / m->wqq;
    return (pl_fit){(float)scale, 0, m->wxx - scale * m->wxq};
}

/* The best scale and minimum for them. */
static pl_fit solve_affine(const moments *m, int any_minimum) {
    double determinant = m->w * m->wqq - m->wq * m->wq;
    if (!(determinant > 0)) return solve_scale(m); /* one code for all */
    double scale = (m->w * m->wxq - m->wx * m->wq) / determinant;
    double minimum = (m->wq * m->wxq - m->wqq * m->wx) / determinant;
    if (minimum < 0 && !any_minimum) return solve_scale(m);
    double error = m->wxx - scale * m->wxq + minimum * m->wx;
    return (pl_fit){(float)scale, (float)minimum, scale > 0 ? error : INFINITY};
}

static void keep_better(pl_fit *best, pl_fit other) {
    if (other.error < best->error) *best = other;
}

/* Step s of the search: codes of the largest weight from one below the largest code to one above. */
static float stretch(int s) { return 0.1f * (float)(s - STEPS / 2); }

pl_fit pl_fit_scale(const float *x, const float *weight, int n, int low, int high) {
    float largest = 0;
    for (int i = 0; i < n; i++) largest = fabsf(x[i]) > fabsf(largest) ? x[i] : largest;
    moments m;
    sum_weights(x, weight, n, &m);
    pl_fit best = {0, 0, m.wxx};
    if (largest == 0) return best;
    for (int s = 0; s < 2 * STEPS; s++) {
        float end = s < STEPS ? (float)low - stretch(s) : (float)high + stretch(s - STEPS);
        sum_codes(x, weight, n, end / largest, 0, low, high, &m);
        keep_better(&best, solve_scale(&m));
    }
    for (int r = 0; r < REFINEMENTS && best.scale != 0; r++) {
        sum_codes(x, weight, n, 1 / best.scale, 0, low, high, &m);
        pl_fit refined = solve_scale(&m);
        if (!(refined.error < best.error)) break;
        best = refined;
    }
    return best;
}

pl_fit pl_fit_affine(const float *x, const float *weight, int n, int high, int any_minimum) {
    float least = any_minimum ? x[0] : 0, most = x[0];
    for (int i = 0; i < n; i++) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
    }
    pl_fit best = {0, -least, INFINITY};
    if (!(most > least)) return best;
    moments m;
    sum_weights(x, weight, n, &m);
    for (int s = 0; s < STEPS; s++) {
        sum_codes(x, weight, n, ((float)high + stretch(s)) / (most - least), least, 0, high, &m);
        keep_better(&best, solve_affine(&m, any_minimum));
    }
    for (int r = 0; r < REFINEMENTS && best.scale > 0; r++) {
        sum_codes(x, weight, n, 1 / best.scale, -best.minimum, 0, high, &m);
        pl_fit refined = solve_affine(&m, any_minimum);
        if (!(refined.error < best.error)) break;
        best = refined;
    }
    return best;
}

float pl_fit_inverse(float scale) {
    float inverse = 1 / scale;
    return isfinite(inverse) ? inverse : 0;
}

void pl_fit_codes(const float *x, int n, float scale, float minimum, int low, int high, int8_t *code) {
    float inverse = pl_fit_inverse(scale);
    for (int i = 0; i < n; i++) code[i] = (int8_t)rounded((x[i] + minimum) * inverse, (float)low, (float)high);
}

void pl_fit_weights(const float *x, int n, float *weight) {
    float squares[LANES] = {0};
    for (int i = 0; i < n; i += LANES) {
        for (int l = 0; l < LANES; l++) squares[l] += x[i + l] * x[i + l];
    }
    float size = (float)sqrt(fold(squares) / n);
    for (int i = 0; i < n; i++) weight[i] = size + fabsf(x[i]);
}

/* ---- a block of sub-blocks -------------------------------------------------------------------------------------- */

/* The error of one sub-block under a scale and minimum as they will be read. */
static double group_error(const float *x, const float *weight, int n, float scale, float minimum, int low, int high) {
    float inverse = pl_fit_inverse(scale), sum[LANES] = {0};
    for (int i = 0; i < n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            float q = rounded((x[i + l] + minimum) * inverse, (float)low, (float)high);
            float off = x[i + l] - (scale * q - minimum);
            sum[l] += weight[i + l] * off * off;
        }
    }
    return fold(sum);
}

static int clamp(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

/* The integer nearest to value / unit within [low, high]; 0 for a unit of 0. */
static int in_units(float value, float unit, int low, int high) {
    return (int)rounded(value * pl_fit_inverse(unit), (float)low, (float)high);
}

/* What a search over the integers of a block works on. */
typedef struct block {
    const float *x;    /* (256) */
    float weight[256]; /* what errors cost */
    pl_fit fit[16];    /* each sub-block alone */
    double error;      /* of all, under the integers found */
} block;

/* The best integers for sub-block s near those its own fit asks for. Returns its error. */
static double choose_integers(const block *b, const pl_nesting *t, int s, pl_nested *out) {
    const float *x = b->x + s * t->size, *weight = b->weight + s * t->size;
    float d = pl_float_from_f16(out->d), dmin = pl_float_from_f16(out->dmin);
    int scale = in_units(b->fit[s].scale, d, t->scale_low, t->scale_high);
    int minimum = in_units(b->fit[s].minimum, dmin, 0, t->minimum_high), reach = t->minimum_high ? 1 : 0;
    double best = INFINITY;
    for (int i = -1; i <= 1; i++) {
        for (int j = -reach; j <= reach; j++) {
            int sc = clamp(scale + i, t->scale_low, t->scale_high), mn = clamp(minimum + j, 0, t->minimum_high);
            double error = group_error(x, weight, t->size, d * (float)sc, dmin * (float)mn, t->low, t->high);
            if (!(error < best)) continue;
            best = error;
            out->scale[s] = (int16_t)sc;
            out->minimum[s] = (int16_t)mn;
        }
    }
    return best;
}

static void choose_codes(const block *b, const pl_nesting *t, pl_nested *out) {
    float d = pl_float_from_f16(out->d), dmin = pl_float_from_f16(out->dmin);
    for (int s = 0; s < 256 / t->size; s++) {
        pl_fit_codes(b->x + s * t->size, t->size, d * (float)out->scale[s], dmin * (float)out->minimum[s], t->low,
                     t->high, out->code + s * t->size);
    }
}

/* d and dmin anew, by least squares over the whole block with its integers as they are. */
static void solve_units(const block *b, const pl_nesting *t, pl_nested *out) {
    double pp = 0, pr = 0, rr = 0, xp = 0, xr = 0; /* x ~ d p - dmin r */
    for (int i = 0; i < 256; i++) {
        double p = out->scale[i / t->size] * out->code[i], r = out->minimum[i / t->size], w = (double)b->weight[i];
        pp += w * p * p, pr += w * p * r, rr += w * r * r;
        xp += w * (double)b->x[i] * p, xr += w * (double)b->x[i] * r;
    }
    double determinant = pp * rr - pr * pr;
    if (determinant > 1e-9 * pp * rr) {
        out->d = pl_f16_from_float((float)((xp * rr - xr * pr) / determinant));
        out->dmin = pl_f16_from_float((float)((xp * pr - xr * pp) / determinant));
    } else if (pp > 0) {
        out->d = pl_f16_from_float((float)(xp / pp));
    }
}

/* All integers and codes under the units d and dmin. */
static void fill(block *b, const pl_nesting *t, pl_nested *out) {
    b->error = 0;
    for (int s = 0; s < 256 / t->size; s++) b->error += choose_integers(b, t, s, out);
    choose_codes(b, t, out);
}

/* The units with which the largest scale and minimum just fit. */
static void first_units(const block *b, const pl_nesting *t, pl_nested *out) {
    float scale = 0, minimum = 0;
    for (int s = 0; s < 256 / t->size; s++) {
        scale = fabsf(b->fit[s].scale) > fabsf(scale) ? b->fit[s].scale : scale;
        minimum = b->fit[s].minimum > minimum ? b->fit[s].minimum : minimum;
    }
    out->d = pl_f16_from_float(scale / (float)(t->scale_low < 0 ? t->scale_low : t->scale_high));
    out->dmin = t->minimum_high ? pl_f16_from_float(minimum / (float)t->minimum_high) : 0;
}

void pl_fit_nested(const float *x, const pl_nesting *t, pl_nested *out) {
    block b = {.x = x};
    for (int s = 0; s < 256 / t->size; s++) {
        const float *group = x + s * t->size;
        float *weight = b.weight + s * t->size;
        pl_fit_weights(group, t->size, weight);
        b.fit[s] = t->minimum_high ? pl_fit_affine(group, weight, t->size, t->high, 0)
                                   : pl_fit_scale(group, weight, t->size, t->low, t->high);
    }
    first_units(&b, t, out);
    fill(&b, t, out);
    for (int r = 0; r < ROUNDS; r++) {
        pl_nested other = *out;
        double error = b.error;
        solve_units(&b, t, &other);
        fill(&b, t, &other);
        if (!(b.error < error)) break;
        *out = other;
    }
}
