#include "quant/fit.h"

#include <math.h>

#include "quant/f16.h"

enum { HALVES = PL_FIT_HALVES, LANES = PL_FIT_LANES, STEPS = 21, REFINEMENTS = 2, ROUNDS = 3 };

/* ---- lanes ------------------------------------------------------------------------------------------------------ */

typedef int32_t mask4 __attribute__((vector_size(16))); /* all bits of a lane, or none */

#define FOR_EACH_HALF for (int h = 0; h < HALVES; h++)

static inline pl_f4 all(float x) { return (pl_f4){x, x, x, x}; }

static inline pl_f4 pick(mask4 mask, pl_f4 yes, pl_f4 no) { return (pl_f4)(((mask4)yes & mask) | ((mask4)no & ~mask)); }

static inline pl_f4 smaller(pl_f4 a, pl_f4 b) { return pick(a < b, a, b); }

static inline pl_f4 larger(pl_f4 a, pl_f4 b) { return pick(a > b, a, b); }

static inline pl_f4 magnitude(pl_f4 x) { return (pl_f4)((mask4)x & 0x7fffffff); }

/* To the nearest integer in [low, high], ties to even. */
static inline pl_f4 rounded(pl_f4 x, float low, float high) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: there is no room for a fraction beside it */
    x = smaller(larger(x, all(low)), all(high));
    return (x + shift) - shift;
}

static inline pl_f4 inverses(pl_f4 scale) {
    pl_f4 inverse = 1.0f / scale;
    return pick(magnitude(inverse) < INFINITY, inverse, all(0));
}

/* ---- groups ----------------------------------------------------------------------------------------------------- */

void pl_fit_weights(const float *x, int n, float *weight) {
    float squares = 0;
    for (int i = 0; i < n; i++) squares += x[i] * x[i];
    float size = sqrtf(squares / (float)n);
    for (int i = 0; i < n; i++) weight[i] = size + fabsf(x[i]);
}

void pl_groups_load(pl_groups *g, const float *x, int n, int count) {
    const float least = 0x1p-26f; /* below it half precision has no scale, and sums of products would vanish */
    g->n = n;
    for (int l = 0; l < LANES; l++) {
        float group[PL_FIT_LONGEST] = {0}, weight[PL_FIT_LONGEST];
        for (int i = 0; i < n && l < count; i++) group[i] = fabsf(x[l * n + i]) < least ? 0 : x[l * n + i];
        pl_fit_weights(group, n, weight);
        for (int i = 0; i < n; i++) g->x[i][l / 4][l % 4] = group[i], g->weight[i][l / 4][l % 4] = weight[i];
    }
}

/* ---- a scale ---------------------------------------------------------------------------------------------------- */

/* Step s of a search: codes of the largest weight from one below the largest code to one above. */
static float stretch(int s) { return 0.1f * (float)(s - STEPS / 2); }

/* The best scale for the codes that `inverse` gives, where its gain, what it takes off the error of scale 0, is above
 * that of `out`. */
static void try_scale(const pl_groups *g, const pl_f4 inverse[HALVES], int low, int high, pl_fits *out,
                      pl_f4 gain[HALVES]) {
    pl_f4 wqq[HALVES] = {{0}}, wxq[HALVES] = {{0}};
    for (int i = 0; i < g->n; i++) {
        FOR_EACH_HALF {
            pl_f4 q = rounded(g->x[i][h] * inverse[h], (float)low, (float)high), wq = g->weight[i][h] * q;
            wqq[h] += wq * q;
            wxq[h] += wq * g->x[i][h];
        }
    }
    FOR_EACH_HALF {
        pl_f4 scale = wxq[h] / wqq[h], gained = scale * wxq[h];
        mask4 better = gained > gain[h]; /* not where all codes are 0 and the scale is no number */
        out->scale[h] = pick(better, scale, out->scale[h]);
        gain[h] = pick(better, gained, gain[h]);
    }
}

void pl_fit_scale(const pl_groups *g, int low, int high, pl_fits *out) {
    pl_f4 largest[HALVES] = {{0}}, gain[HALVES] = {{0}}, inverse[HALVES];
    *out = (pl_fits){{{0}}, {{0}}};
    for (int i = 0; i < g->n; i++) {
        FOR_EACH_HALF largest[h] = pick(magnitude(g->x[i][h]) > magnitude(largest[h]), g->x[i][h], largest[h]);
    }
    for (int s = 0; s < 2 * STEPS; s++) {
        float end = s < STEPS ? (float)low - stretch(s) : (float)high + stretch(s - STEPS);
        FOR_EACH_HALF inverse[h] = end * inverses(largest[h]);
        try_scale(g, inverse, low, high, out, gain);
    }
    for (int r = 0; r < REFINEMENTS; r++) {
        FOR_EACH_HALF inverse[h] = inverses(out->scale[h]);
        try_scale(g, inverse, low, high, out, gain);
    }
}

/* ---- a scale and a minimum -------------------------------------------------------------------------------------- */

/* Sums over groups whose x is taken from `middle`, and codes from high / 2: small numbers, which lose little. */
typedef struct sums { pl_f4 middle[HALVES], w[HALVES], wx[HALVES], wxx[HALVES]; } sums;

static void sum_weights(const pl_groups *g, sums *m) {
    FOR_EACH_HALF m->w[h] = m->wx[h] = m->wxx[h] = all(0);
    for (int i = 0; i < g->n; i++) {
        FOR_EACH_HALF {
            pl_f4 x = g->x[i][h] - m->middle[h], wx = g->weight[i][h] * x;
            m->w[h] += g->weight[i][h];
            m->wx[h] += wx;
            m->wxx[h] += wx * x;
        }
    }
}

/* One half of the lanes' best scale and minimum, and their error, for codes with these sums. */
static void solve_affine(const sums *m, int h, pl_f4 wq, pl_f4 wqq, pl_f4 wxq, float half_high, int any_minimum,
                         pl_f4 *scale, pl_f4 *minimum, pl_f4 *error) {
    pl_f4 w = m->w[h], wx = m->wx[h], middle = m->middle[h], determinant = w * wqq - wq * wq;
    mask4 one_code = ~(determinant > 1e-5f * (w * wqq)); /* for all of a group: nothing tells scale from minimum */
    *scale = pick(one_code, all(0), (w * wxq - wx * wq) / determinant);
    pl_f4 offset = (wx - *scale * wq) / w;
    *minimum = *scale * half_high - middle - offset;
    *error = m->wxx[h] - *scale * wxq - offset * wx;
    if (any_minimum) return;
    /* Where that minimum is negative, the best scale without one: x and codes from 0. */
    pl_f4 raw_wx = wx + middle * w, raw_wxx = m->wxx[h] + middle * (wx + raw_wx);
    pl_f4 raw_wqq = wqq + half_high * (2.0f * wq + half_high * w), raw_wxq = wxq + middle * wq + half_high * raw_wx;
    pl_f4 alone = raw_wxq / raw_wqq;
    mask4 below = (*minimum < 0.0f) | one_code;
    *scale = pick(below, alone, *scale);
    *minimum = pick(below, all(0), *minimum);
    *error = pick(below, raw_wxx - alone * raw_wxq, *error);
}

/* The best scale and minimum for the codes of (x - origin) * inverse, where they are better than `out`. */
static void try_affine(const pl_groups *g, const sums *m, const pl_f4 inverse[HALVES], const pl_f4 origin[HALVES],
                       int high, int any_minimum, pl_fits *out, pl_f4 error[HALVES]) {
    pl_f4 wq[HALVES] = {{0}}, wqq[HALVES] = {{0}}, wxq[HALVES] = {{0}};
    float half_high = 0.5f * (float)high;
    for (int i = 0; i < g->n; i++) {
        FOR_EACH_HALF {
            pl_f4 q = rounded((g->x[i][h] - origin[h]) * inverse[h], 0, (float)high) - half_high;
            pl_f4 product = g->weight[i][h] * q;
            wq[h] += product;
            wqq[h] += product * q;
            wxq[h] += product * (g->x[i][h] - m->middle[h]);
        }
    }
    FOR_EACH_HALF {
        pl_f4 scale, minimum, off;
        solve_affine(m, h, wq[h], wqq[h], wxq[h], half_high, any_minimum, &scale, &minimum, &off);
        mask4 better = (off < error[h]) & (scale > 0.0f);
        out->scale[h] = pick(better, scale, out->scale[h]);
        out->minimum[h] = pick(better, minimum, out->minimum[h]);
        error[h] = pick(better, off, error[h]);
    }
}

void pl_fit_affine(const pl_groups *g, int high, int any_minimum, pl_fits *out) {
    pl_f4 least[HALVES], most[HALVES], error[HALVES], inverse[HALVES], origin[HALVES];
    sums m;
    FOR_EACH_HALF least[h] = any_minimum ? g->x[0][h] : all(0), most[h] = g->x[0][h];
    for (int i = 0; i < g->n; i++) {
        FOR_EACH_HALF least[h] = smaller(g->x[i][h], least[h]), most[h] = larger(g->x[i][h], most[h]);
    }
    FOR_EACH_HALF {
        m.middle[h] = 0.5f * (least[h] + most[h]);
        out->scale[h] = all(0), out->minimum[h] = -least[h], error[h] = all(INFINITY);
    }
    sum_weights(g, &m);
    for (int s = 0; s < STEPS; s++) {
        FOR_EACH_HALF inverse[h] = ((float)high + stretch(s)) * inverses(most[h] - least[h]);
        try_affine(g, &m, inverse, least, high, any_minimum, out, error);
    }
    for (int r = 0; r < REFINEMENTS; r++) {
        FOR_EACH_HALF inverse[h] = inverses(out->scale[h]), origin[h] = -out->minimum[h];
        try_affine(g, &m, inverse, origin, high, any_minimum, out, error);
    }
}

uint16_t pl_fit_half(float x) {
    const float most = 65504;
    return pl_f16_from_float(x < -most ? -most : x > most ? most : x);
}

float pl_fit_inverse(float scale) {
    float inverse = 1 / scale;
    return isfinite(inverse) ? inverse : 0;
}

void pl_fit_codes(const float *x, int n, float scale, float minimum, int low, int high, int8_t *code) {
    const float shift = 12582912.0f;
    float inverse = pl_fit_inverse(scale), least = (float)low, most = (float)high;
    for (int i = 0; i < n; i++) {
        float q = (x[i] + minimum) * inverse;
        q = q < least ? least : q > most ? most : q;
        code[i] = (int8_t)((q + shift) - shift);
    }
}

/* ---- a block of sub-blocks -------------------------------------------------------------------------------------- */

/* What a search over the integers of a block works on: its sub-blocks as one or two bundles of eight. */
typedef struct block {
    const pl_nesting *nesting;
    int bundles;
    pl_groups groups[2];
    pl_fits fit[2]; /* each sub-block alone */
} block;

/* The integers of a block, lane by lane, under units d and dmin as they will be read; and their error in all. */
typedef struct integers {
    uint16_t d, dmin; /* f16 */
    pl_f4 scale[2][HALVES], minimum[2][HALVES];
    double error;
} integers;

/* The weighted squares that scale and minimum leave. */
static void measure(const pl_groups *g, const pl_nesting *t, const pl_f4 scale[HALVES], const pl_f4 minimum[HALVES],
                    pl_f4 error[HALVES]) {
    pl_f4 inverse[HALVES];
    FOR_EACH_HALF inverse[h] = inverses(scale[h]), error[h] = all(0);
    for (int i = 0; i < g->n; i++) {
        FOR_EACH_HALF {
            pl_f4 shifted = g->x[i][h] + minimum[h];
            pl_f4 off = shifted - scale[h] * rounded(shifted * inverse[h], (float)t->low, (float)t->high);
            error[h] += g->weight[i][h] * (off * off);
        }
    }
}

/* The best integers for bundle b, each near what its sub-block alone asks for; adds their errors. */
static void choose_integers(const block *b, int bundle, integers *out) {
    const pl_nesting *t = b->nesting;
    const float d = pl_float_from_f16(out->d), dmin = pl_float_from_f16(out->dmin);
    pl_f4 *sc = out->scale[bundle], *mn = out->minimum[bundle];
    pl_f4 scale[HALVES], minimum[HALVES], near_sc[HALVES], near_mn[HALVES], error[HALVES], best[HALVES];
    FOR_EACH_HALF {
        near_sc[h] = b->fit[bundle].scale[h] * pl_fit_inverse(d);
        near_mn[h] = b->fit[bundle].minimum[h] * pl_fit_inverse(dmin);
        best[h] = all(INFINITY), sc[h] = mn[h] = all(0);
    }
    int reach = t->minimum_high ? 1 : 0;
    for (int i = -1; i <= 1; i++) {
        for (int j = -reach; j <= reach; j++) {
            pl_f4 try_sc[HALVES], try_mn[HALVES];
            FOR_EACH_HALF {
                try_sc[h] = rounded(near_sc[h] + (float)i, (float)t->scale_low, (float)t->scale_high);
                try_mn[h] = rounded(near_mn[h] + (float)j, 0, (float)t->minimum_high);
                scale[h] = d * try_sc[h], minimum[h] = dmin * try_mn[h];
            }
            measure(&b->groups[bundle], t, scale, minimum, error);
            FOR_EACH_HALF {
                mask4 better = error[h] < best[h];
                best[h] = pick(better, error[h], best[h]);
                sc[h] = pick(better, try_sc[h], sc[h]), mn[h] = pick(better, try_mn[h], mn[h]);
            }
        }
    }
    for (int l = 0; l < LANES; l++) out->error += (double)best[l / 4][l % 4];
}

static void choose_all(const block *b, integers *out) {
    out->error = 0;
    for (int i = 0; i < b->bundles; i++) choose_integers(b, i, out);
}

/* Sums of x ~ d p - dmin r over a block, p = scale * code and r = minimum. */
typedef struct moments { double pp, pr, rr, xp, xr; } moments;

static void add_moments(const block *b, int bundle, const integers *in, moments *m) {
    const pl_groups *g = &b->groups[bundle];
    const float d = pl_float_from_f16(in->d), dmin = pl_float_from_f16(in->dmin);
    pl_f4 inverse[HALVES], w[HALVES] = {{0}}, wx[HALVES] = {{0}}, wq[HALVES] = {{0}}, wqq[HALVES] = {{0}};
    pl_f4 wxq[HALVES] = {{0}};
    FOR_EACH_HALF inverse[h] = inverses(d * in->scale[bundle][h]);
    for (int i = 0; i < g->n; i++) {
        FOR_EACH_HALF {
            pl_f4 x = g->x[i][h], weight = g->weight[i][h], shifted = x + dmin * in->minimum[bundle][h];
            pl_f4 q = rounded(shifted * inverse[h], (float)b->nesting->low, (float)b->nesting->high);
            w[h] += weight, wx[h] += weight * x;
            wq[h] += weight * q, wqq[h] += weight * q * q, wxq[h] += weight * x * q;
        }
    }
    for (int l = 0; l < LANES; l++) {
        double sc = (double)in->scale[bundle][l / 4][l % 4], mn = (double)in->minimum[bundle][l / 4][l % 4];
        m->pp += sc * sc * (double)wqq[l / 4][l % 4], m->pr += sc * mn * (double)wq[l / 4][l % 4];
        m->rr += mn * mn * (double)w[l / 4][l % 4];
        m->xp += sc * (double)wxq[l / 4][l % 4], m->xr += mn * (double)wx[l / 4][l % 4];
    }
}

/* d and dmin anew, by least squares over the whole block with its integers as they are. */
static void solve_units(const block *b, integers *out) {
    moments m = {0};
    for (int i = 0; i < b->bundles; i++) add_moments(b, i, out, &m);
    double determinant = m.pp * m.rr - m.pr * m.pr;
    if (determinant > 1e-6 * m.pp * m.rr) {
        out->d = pl_fit_half((float)((m.xp * m.rr - m.xr * m.pr) / determinant));
        out->dmin = pl_fit_half((float)((m.xp * m.pr - m.xr * m.pp) / determinant));
    } else if (m.pp > 0) {
        out->d = pl_fit_half((float)(m.xp / m.pp));
    }
}

/* The units with which the largest scale and minimum just fit. */
static void first_units(const block *b, integers *out) {
    const pl_nesting *t = b->nesting;
    float scale = 0, minimum = 0;
    for (int s = 0; s < b->bundles * LANES; s++) {
        const pl_fits *fit = &b->fit[s / LANES];
        float sc = fit->scale[s % LANES / 4][s % 4], mn = fit->minimum[s % LANES / 4][s % 4];
        scale = fabsf(sc) > fabsf(scale) ? sc : scale;
        minimum = mn > minimum ? mn : minimum;
    }
    out->d = pl_fit_half(scale / (float)(t->scale_low < 0 ? t->scale_low : t->scale_high));
    out->dmin = t->minimum_high ? pl_fit_half(minimum / (float)t->minimum_high) : 0;
}

static void unload(const block *b, const float *x, const integers *in, pl_nested *out) {
    const pl_nesting *t = b->nesting;
    out->d = in->d, out->dmin = in->dmin;
    for (int s = 0; s < 256 / t->size; s++) {
        out->scale[s] = (int16_t)in->scale[s / LANES][s % LANES / 4][s % 4];
        out->minimum[s] = (int16_t)in->minimum[s / LANES][s % LANES / 4][s % 4];
        float scale = pl_float_from_f16(in->d) * (float)out->scale[s];
        float minimum = pl_float_from_f16(in->dmin) * (float)out->minimum[s];
        pl_fit_codes(x + s * t->size, t->size, scale, minimum, t->low, t->high, out->code + s * t->size);
    }
}

void pl_fit_nested(const float *x, const pl_nesting *t, pl_nested *out) {
    block b = {.nesting = t, .bundles = 256 / t->size / LANES};
    for (int i = 0; i < b.bundles; i++) {
        pl_groups_load(&b.groups[i], x + i * LANES * t->size, t->size, LANES);
        if (t->minimum_high) {
            pl_fit_affine(&b.groups[i], t->high, 0, &b.fit[i]);
        } else {
            pl_fit_scale(&b.groups[i], t->low, t->high, &b.fit[i]);
        }
    }
    integers best, other;
    first_units(&b, &best);
    choose_all(&b, &best);
    for (int r = 0; r < ROUNDS; r++) {
        other = best;
        solve_units(&b, &other);
        choose_all(&b, &other);
        if (!(other.error < best.error)) break;
        best = other;
    }
    unload(&b, x, &best, out);
}
