/* Draws a token from logits. With only temperature and top_p set this is the sampler of llama2.c's run.c: the same
 * generator, the same cut, the same sums in the same order. The other options come in this order: bias, penalties,
 * what is allowed at all, temperature, top_k, min_p, top_p; each works on what the one before it left. */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "kernels/kernels.h"

/* What may still be drawn: n ids with a value each, a logit at first and a probability after softmax(). Ids ascend
 * until select_best() has put them in descending order of value. */
typedef struct candidates {
    float *value; /* (n), with room for a multiple of 16 */
    int32_t *id;  /* (n) */
    int64_t n;
} candidates;

/* ---- llama2.c's generator: xorshift64* --------------------------------------------------------------------------- */

static uint32_t random_u32(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (uint32_t)((*state * 0x2545F4914F6CDD1DULL) >> 32);
}

/* In [0, 1), 24 bits. */
static float random_f32(uint64_t *state) { return (float)(random_u32(state) >> 8) / 16777216.0f; }

/* ---- checks ------------------------------------------------------------------------------------------------------ */

static int32_t check_options(const pl_sampling *s, const uint64_t *rng, pl_error *err) {
    if (!(s->temperature >= 0.0f) || isinf(s->temperature))
        return pl_fail(err, PL_INVALID, "temperature %g is not a finite number of at least 0", (double)s->temperature);
    if (isnan(s->top_p)) return pl_fail(err, PL_INVALID, "top_p is NaN");
    if (!(s->min_p >= 0.0f && s->min_p <= 1.0f))
        return pl_fail(err, PL_INVALID, "min_p %g is outside [0, 1]", (double)s->min_p);
    if (s->top_k < 0) return pl_fail(err, PL_INVALID, "top_k %d is negative", (int)s->top_k);
    if (!(s->repetition_penalty > 0.0f) || isinf(s->repetition_penalty))
        return pl_fail(err, PL_INVALID, "repetition_penalty %g is not a finite number above 0",
                       (double)s->repetition_penalty);
    if (!isfinite(s->presence_penalty) || !isfinite(s->frequency_penalty))
        return pl_fail(err, PL_INVALID, "presence_penalty and frequency_penalty must be finite numbers");
    if (s->temperature > 0.0f && *rng == 0)
        return pl_fail(err, PL_INVALID, "random state 0 never moves: seed it with another number");
    return PL_OK;
}

static int32_t check_ids(const int32_t *ids, int64_t n, int64_t vocab, const char *what, pl_error *err) {
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return pl_fail(err, PL_INVALID, "%s: token id %d is outside [0, %lld)", what, (int)ids[i],
                           (long long)vocab);
    return PL_OK;
}

/* ---- searches ---------------------------------------------------------------------------------------------------- */

/* Values looked at together. Without a branch between them any compiler makes vectors of the loop. */
enum { TOGETHER = 32 };

/* The end of the values from `i` on that are below `floor`, or nearly: it may be up to TOGETHER - 1 positions early. */
static int64_t end_below(const float *x, int64_t i, int64_t n, float floor) {
    for (; i + TOGETHER <= n; i += TOGETHER) {
        int any = 0;
        for (int j = 0; j < TOGETHER; j++) any |= x[i + j] >= floor;
        if (any) break;
    }
    return i;
}

/* The greatest value; *unordered: whether one is NaN. */
static float greatest(const float *x, int64_t n, int *unordered) {
    float best = -INFINITY;
    int nan = 0;
#pragma omp simd reduction(max : best) reduction(| : nan)
    for (int64_t i = 0; i < n; i++) {
        best = x[i] > best ? x[i] : best;
        nan |= x[i] != x[i];
    }
    *unordered = nan;
    return best;
}

/* The position of the greatest value, the lowest id on ties. Fails where there is none to speak of. */
static int32_t find_best(const candidates *c, int64_t *best, pl_error *err) {
    int unordered;
    float value = greatest(c->value, c->n, &unordered);
    if (unordered) {
        for (*best = 0; !isnan(c->value[*best]);) ++*best;
        return pl_fail(err, PL_INVALID, "logits contain NaN (token id %d)", (int)c->id[*best]);
    }
    if (value == -INFINITY) return pl_fail(err, PL_INVALID, "no token can be drawn: every logit is -inf");
    *best = end_below(c->value, 0, c->n, value);
    while (c->value[*best] != value) ++*best;
    return PL_OK;
}

/* ---- bias and penalties: on logits, before the temperature ------------------------------------------------------- */

static void add_bias(float *logits, const int32_t *ids, const float *bias, int64_t n) {
    for (int64_t i = 0; i < n; i++) logits[ids[i]] += bias[i];
}

static float penalized(float logit, int32_t count, const pl_sampling *s) {
    logit = logit > 0.0f ? logit / s->repetition_penalty : logit * s->repetition_penalty;
    return logit - (float)count * s->frequency_penalty - s->presence_penalty;
}

/* Each distinct id of history (n) once, with the number of its occurrences. counts (vocab) is scratch, and only the
 * entries of history's ids are touched, so the cost does not depend on the vocabulary. */
static void apply_penalties(float *logits, int32_t *counts, const pl_sampling *s, const int32_t *history, int64_t n) {
    if (s->repetition_penalty == 1.0f && s->presence_penalty == 0.0f && s->frequency_penalty == 0.0f) return;
    for (int64_t i = 0; i < n; i++) counts[history[i]] = 0;
    for (int64_t i = 0; i < n; i++) counts[history[i]]++;
    for (int64_t i = 0; i < n; i++) {
        int32_t id = history[i];
        if (counts[id] > 0) logits[id] = penalized(logits[id], counts[id], s);
        counts[id] = 0;
    }
}

/* ---- what may be drawn ------------------------------------------------------------------------------------------- */

/* Keeps the values of the ids whose bits are set, and lists these. */
static void admit(candidates *c, const uint8_t *allowed) {
    int64_t vocab = c->n;
    c->n = 0;
    for (int64_t i = 0; i < vocab; i++) {
        if (i % 8 == 0 && allowed[i / 8] == 0) {
            i += 7;
        } else if (allowed[i / 8] >> i % 8 & 1) {
            c->value[c->n] = c->value[i], c->id[c->n++] = (int32_t)i;
        }
    }
}

/* ---- selection: a heap, so that only as much is sorted as is kept ------------------------------------------------ */

static int comes_before(const candidates *c, int64_t a, int64_t b) {
    return c->value[a] > c->value[b] || (c->value[a] == c->value[b] && c->id[a] < c->id[b]);
}

static void swap(candidates *c, int64_t a, int64_t b) {
    float value = c->value[a];
    int32_t id = c->id[a];
    c->value[a] = c->value[b], c->id[a] = c->id[b];
    c->value[b] = value, c->id[b] = id;
}

/* worst: whether the root of the heap is the worst of it, not the best. */
static void sift_down(candidates *c, int worst, int64_t root, int64_t n) {
    for (int64_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && comes_before(c, child + 1, child) != worst) child++;
        if (comes_before(c, child, root) == worst) return;
        swap(c, child, root);
    }
}

static void heapify(candidates *c, int worst, int64_t n) {
    for (int64_t i = n / 2; i-- > 0;) sift_down(c, worst, i, n);
}

/* Moves the root of the heap's first n elements to position n - 1. */
static void pop(candidates *c, int worst, int64_t n) {
    swap(c, 0, n - 1);
    sift_down(c, worst, 0, n - 1);
}

/* Keeps the k best, best first. The heap holds the k best of those seen, and mostly the next one is none of them. */
static void select_best(candidates *c, int64_t k) {
    heapify(c, 1, k);
    for (int64_t i = k; (i = end_below(c->value, i, c->n, c->value[0])) < c->n; i++) {
        if (!comes_before(c, i, 0)) continue;
        swap(c, i, 0);
        sift_down(c, 1, 0, k);
    }
    for (int64_t n = k; n > 1; n--) pop(c, 1, n);
    c->n = k;
}

/* Keeps those of at least `floor`, in their order. */
static void keep_from(candidates *c, float floor) {
    int64_t kept = 0;
    for (int64_t i = 0, end; i < c->n; i = end) {
        i = end_below(c->value, i, c->n, floor);
        end = i + TOGETHER < c->n ? i + TOGETHER : c->n;
        for (; i < end; i++) {
            if (c->value[i] >= floor) c->value[kept] = c->value[i], c->id[kept++] = c->id[i];
        }
    }
    c->n = kept;
}

/* ---- probabilities and the draw ---------------------------------------------------------------------------------- */

/* Logits to e^(logit - best), in (0, 1]. The kernel's own sum is in another order than run.c's, and not used. */
static void exponentiate(candidates *c) {
    int64_t n16 = pl_pad(c->n);
    float best;
    for (int64_t i = c->n; i < n16; i++) c->value[i] = -INFINITY;
    pl_kernels_current()->softmax(c->value, n16, 1.0f, &best);
}

static void normalize(candidates *c) {
    float sum = 0.0f;
    for (int64_t i = 0; i < c->n; i++) sum += c->value[i];
    for (int64_t i = 0; i < c->n; i++) c->value[i] /= sum;
}

static int32_t draw_from_all(const candidates *c, float coin) {
    float cumulative = 0.0f;
    int64_t last = 0;
    for (int64_t i = 0; i < c->n; i++) {
        cumulative += c->value[i];
        if (coin < cumulative) return c->id[i];
        if (c->value[i] > 0.0f) last = i;
    }
    return c->id[last]; /* the sum was rounded below the coin: the last one that is possible at all */
}

/* The smallest set of most probable tokens whose sum exceeds top_p. Nothing below (1 - top_p) / (n - 1) can be in it:
 * even n - 1 such tokens would not fill what the set leaves over. Popped tokens pile up at the end, best last. In a
 * nearly flat distribution rounding can put every token below that floor: then it is `best`. */
static int32_t draw_from_nucleus(candidates *c, float top_p, float coin, int32_t best) {
    if (c->n > 1) keep_from(c, (1.0f - top_p) / (float)(c->n - 1));
    if (c->n == 0) return best;
    heapify(c, 0, c->n);
    float cumulative = 0.0f;
    int64_t end = c->n;
    while (end > 0 && cumulative <= top_p) {
        pop(c, 0, end);
        cumulative += c->value[--end];
    }
    float target = coin * cumulative, passed = 0.0f;
    for (int64_t i = c->n - 1; i > end; i--) {
        passed += c->value[i];
        if (target < passed) return c->id[i];
    }
    return c->id[end];
}

/* best: the position of the greatest logit. */
static int32_t draw(candidates *c, const pl_sampling *s, float coin, int64_t best) {
    float best_value = c->value[best];
    int32_t best_id = c->id[best];
    if (isinf(best_value)) return best_id; /* +inf, or a temperature so small that it became so: certain */
    if (s->top_k > 0 && s->top_k < c->n) select_best(c, s->top_k);
    exponentiate(c);
    if (s->min_p > 0.0f) keep_from(c, s->min_p); /* the best one is 1 here */
    normalize(c);
    if (s->top_p > 0.0f && s->top_p < 1.0f) return draw_from_nucleus(c, s->top_p, coin, best_id);
    return draw_from_all(c, coin);
}

static int32_t choose(candidates *c, const pl_sampling *s, uint64_t *rng, int32_t *token, pl_error *err) {
    int64_t best;
    int32_t status = find_best(c, &best, err);
    if (status) return status;
    *token = c->id[best];
    if (s->temperature == 0.0f) return PL_OK;
    for (int64_t i = 0; i < c->n && s->temperature != 1.0f; i++) c->value[i] /= s->temperature;
    *token = draw(c, s, random_f32(rng), best);
    return PL_OK;
}

/* ---- the boundary ------------------------------------------------------------------------------------------------ */

int32_t pl_sample(pl_sampler *sampler, const float *logits, int64_t vocab, const int32_t *history, int64_t n_history,
                  const uint8_t *allowed, int32_t *token, pl_error *err) {
    const pl_sampling *sampling = &sampler->sampling;
    if (vocab < 1 || vocab > INT32_MAX)
        return pl_fail(err, PL_INVALID, "%lld logits: at least one is needed", (long long)vocab);
    int32_t status = check_options(sampling, &sampler->rng, err);
    if (!status) status = check_ids(history, n_history, vocab, "history", err);
    if (!status) status = check_ids(sampler->bias_ids, sampler->n_bias, vocab, "logit_bias", err);
    if (status) return status;

    candidates c = {sampler->work, (int32_t *)(sampler->work + pl_pad(vocab)), vocab};
    memcpy(c.value, logits, (size_t)vocab * sizeof *logits);
    add_bias(c.value, sampler->bias_ids, sampler->bias, sampler->n_bias);
    apply_penalties(c.value, c.id, sampling, history, n_history);
    if (allowed == NULL) {
        for (int64_t i = 0; i < vocab; i++) c.id[i] = (int32_t)i;
    } else {
        admit(&c, allowed);
    }
    if (c.n == 0) return pl_fail(err, PL_INVALID, "no token can be drawn: none is allowed");
    return choose(&c, sampling, &sampler->rng, token, err);
}
