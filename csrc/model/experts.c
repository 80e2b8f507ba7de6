/* A mixture of experts. A router's logits choose some experts for each token; every expert that is chosen by some
 * computes its tokens together, and a token's answers are added up in the order in which it chose:
 *
 *   y = w_1 e_1(n) + w_2 e_2(n) + ... (+ sigmoid(shared_router n) shared(n)),   n = norm(x)
 *
 * Chosen are those with the largest scores, the largest first; of equals the one with the lower index. So nothing
 * depends on which tokens are computed together. */
#include <math.h>
#include <string.h>

#include "base/math.h"
#include "model/pass.h"

/* ---- choosing ---------------------------------------------------------------------------------------------------- */

static float sigmoid(float x) { return 1.0f / (1.0f + pl_expf(-x)); }

/* What experts are weighed with, scores (n_experts), from their logits. */
static void score(const pl_pass *p, const float *logits, float *scores) {
    int64_t n = p->config->n_experts, n16 = pl_pad(n);
    float max;
    memcpy(scores, logits, (size_t)n * sizeof *scores);
    if (p->config->routing == PL_ROUTING_SIGMOID) {
        for (int64_t e = 0; e < n; e++) scores[e] = sigmoid(scores[e]);
    } else if (p->config->routing == PL_ROUTING_SOFTMAX) {
        for (int64_t e = n; e < n16; e++) scores[e] = -INFINITY;
        pl_scale(scores, 1.0f / p->kernels->softmax(scores, n16, 1.0f, &max), n);
    }
}

/* The expert with the largest rank of those not taken; of equals the first, and one in any case. */
static int32_t best_of(const float *rank, const float *taken, int32_t n) {
    int32_t best = -1;
    for (int32_t e = 0; e < n; e++) {
        if (taken[e] == 0 && (best < 0 || rank[e] > rank[best])) best = e;
    }
    return best;
}

/* The weights of the experts chosen, which begin as their scores. */
static void weigh(const pl_config *c, pl_choice *chosen) {
    float sum = 0, top = -INFINITY;
    int among_chosen = c->routing == PL_ROUTING_SOFTMAX_CHOSEN;
    for (int32_t j = 0; j < c->n_experts_used; j++) top = chosen[j].weight > top ? chosen[j].weight : top;
    for (int32_t j = 0; j < c->n_experts_used; j++) {
        if (among_chosen) chosen[j].weight = pl_expf(chosen[j].weight - top);
        sum += chosen[j].weight;
    }
    for (int32_t j = 0; j < c->n_experts_used; j++) {
        if (among_chosen || c->expert_renormalise) chosen[j].weight /= sum;
        chosen[j].weight *= c->expert_scale;
    }
}

/* The experts of one token; room (3, n_experts). */
static void choose_of(const pl_pass *p, const pl_layer *l, const float *logits, float *room, pl_choice *chosen) {
    const pl_config *c = p->config;
    int64_t n16 = pl_pad(c->n_experts);
    float *scores = room, *rank = room + n16, *taken = room + 2 * n16;
    score(p, logits, scores);
    memcpy(rank, scores, (size_t)c->n_experts * sizeof *rank);
    memset(taken, 0, (size_t)c->n_experts * sizeof *taken);
    if (l->choice_bias) pl_add(rank, l->choice_bias, c->n_experts);
    for (int32_t j = 0; j < c->n_experts_used; j++) {
        int32_t best = best_of(rank, taken, c->n_experts);
        chosen[j] = (pl_choice){best, scores[best]};
        taken[best] = 1;
    }
    weigh(c, chosen);
}

/* choices of the worker's tokens, from the router's logits */
static void choose(const pl_pass *p, const pl_worker *w, const pl_layer *l) {
    const pl_expert_scratch *s = &p->scratch->experts;
    int64_t n16 = pl_pad(p->config->n_experts), used = p->config->n_experts_used;
    pl_token_share share = pl_share_tokens(w, p->n);
    for (int64_t i = share.begin; i < share.end; i++) {
        choose_of(p, l, s->router + i * n16, s->ranking + w->index * 3 * n16, s->choices + (i + share.shift) * used);
    }
    pl_tokens_shared(w, p->n);
}

/* ---- pairs of a token and an expert ------------------------------------------------------------------------------ */

/* Pairs lie expert by expert, those of one expert in the order of the tokens. */
typedef struct plan {
    int32_t *begin; /* (n_experts + 1): where each expert's pairs begin */
    int32_t *token; /* (pairs) */
    int32_t *place; /* (tokens, used): where each token's pairs lie, in the order of its choices */
} plan;

static plan plan_of(const pl_pass *p, const pl_worker *w) {
    const pl_config *c = p->config;
    int32_t *room = p->scratch->experts.plans + w->index * pl_plan_size(c, p->scratch->tokens);
    int32_t *tokens = room + c->n_experts + 1;
    return (plan){room, tokens, tokens + p->n * c->n_experts_used};
}

/* Sorts the pairs by counting. Each worker does it for itself, rather than wait for another. */
static plan make_plan(const pl_pass *p, const pl_worker *w) {
    plan plan = plan_of(p, w);
    int64_t n_experts = p->config->n_experts, used = p->config->n_experts_used, pairs = p->n * used;
    const pl_choice *choices = p->scratch->experts.choices + pl_share_tokens(w, p->n).shift * used;
    memset(plan.begin, 0, (size_t)(n_experts + 1) * sizeof *plan.begin);
    for (int64_t j = 0; j < pairs; j++) plan.begin[choices[j].expert + 1]++;
    for (int64_t e = 0; e < n_experts; e++) plan.begin[e + 1] += plan.begin[e];
    for (int64_t j = 0; j < pairs; j++) {
        plan.place[j] = plan.begin[choices[j].expert]++; /* moves each begin to the next one's */
        plan.token[plan.place[j]] = (int32_t)(j / used);
    }
    memmove(plan.begin + 1, plan.begin, (size_t)n_experts * sizeof *plan.begin);
    plan.begin[0] = 0;
    return plan;
}

/* The experts' acts = copies of their tokens' columns. A lone token's column every expert reads where it is. */
static void gather(const pl_pass *p, const pl_worker *w, const pl_layer *l, const plan *plan) {
    int64_t begin, end;
    if (p->n == 1) return;
    pl_share(w, p->n * p->config->n_experts_used, 1, &begin, &end);
    for (int64_t pair = begin; pair < end; pair++) {
        pl_acts_copy(&p->scratch->experts.acts, pair, &p->scratch->acts, plan->token[pair], p->config->dim,
                     l->quantised_input ? p->config->planes : 0);
    }
    pl_barrier_wait(w);
}

/* ---- the layer --------------------------------------------------------------------------------------------------- */

typedef enum side { INTO, OUT_OF } side;

/* The products of every expert that some token takes: into its hidden layer, or out of it. */
static void expert_products(const pl_pass *p, const pl_worker *w, const pl_layer *l, const plan *plan, side side) {
    const pl_config *c = p->config;
    const pl_expert_scratch *s = &p->scratch->experts;
    int64_t hidden = pl_pad(c->expert_dim), dim = pl_pad(c->dim);
    for (int32_t e = 0; e < c->n_experts; e++) {
        const pl_feed_forward *f = &l->experts[e];
        int64_t first = plan->begin[e], n = plan->begin[e + 1] - first;
        const int32_t *tokens = plan->token + first;
        if (n == 0) continue;
        if (side == OUT_OF) {
            pl_acts x = pl_acts_view(&s->acts, first, c->expert_dim, c->planes);
            pl_product(p, w, &f->down, &x, tokens, n, s->out + first * dim, 0);
            continue;
        }
        pl_acts x = p->n == 1 ? pl_input(p, w, c->dim) : pl_acts_view(&s->acts, first, c->dim, c->planes);
        if (c->gated) pl_product(p, w, &f->gate, &x, tokens, n, s->gate + first * hidden, 0);
        pl_product(p, w, &f->up, &x, tokens, n, s->up + first * hidden, 0);
    }
}

/* The experts' acts = activation(gate) * up */
static void experts_activated(const pl_pass *p, const pl_worker *w, const pl_layer *l, const plan *plan) {
    pl_expert_scratch *s = &p->scratch->experts;
    int64_t begin, end, e = 0, width = p->config->expert_dim, ld = pl_pad(width);
    pl_share(w, p->n * p->config->n_experts_used, 1, &begin, &end);
    for (int64_t pair = begin; pair < end; pair++) {
        while (plan->begin[e + 1] <= pair) e++; /* the expert it belongs to */
        int32_t planes = pl_planes(p, &l->experts[e].down);
        pl_activated(p, &s->acts, pair, s->gate + pair * ld, s->up + pair * ld, width, planes);
    }
}

void pl_experts(const pl_pass *p, const pl_worker *w, const pl_layer *l) {
    const pl_config *c = p->config;
    pl_scratch *s = p->scratch;
    pl_acts x = pl_input(p, w, c->dim);
    pl_product(p, w, &l->router, &x, NULL, p->n, s->experts.router, 0);
    if (pl_is_bound(&l->shared_router)) pl_product(p, w, &l->shared_router, &x, NULL, p->n, s->experts.shared, 0);
    if (c->shared_dim > 0) pl_hidden(p, w, &l->shared);
    pl_barrier_wait(w);
    choose(p, w, l);
    plan plan = make_plan(p, w);
    gather(p, w, l, &plan);
    expert_products(p, w, l, &plan, INTO);
    pl_barrier_wait(w);
    experts_activated(p, w, l, &plan);
    if (c->shared_dim > 0) pl_hidden_activated(p, w, &l->shared);
    pl_barrier_wait(w);
    expert_products(p, w, l, &plan, OUT_OF);
    if (c->shared_dim == 0) return;
    x = pl_input(p, w, c->shared_dim);
    pl_product(p, w, &l->shared.down, &x, NULL, p->n, s->y, 0);
}

float *pl_experts_sum(const pl_pass *p, const pl_worker *w, const pl_layer *l, int64_t i, int64_t shift, float *out) {
    const pl_config *c = p->config;
    const pl_expert_scratch *s = &p->scratch->experts;
    int64_t dim = pl_pad(c->dim), used = c->n_experts_used;
    const pl_choice *chosen = s->choices + (i + shift) * used;
    const int32_t *place = plan_of(p, w).place + i * used;
    memset(out, 0, (size_t)dim * sizeof *out);
    for (int64_t j = 0; j < used; j++) pl_add_scaled(out, s->out + place[j] * dim, chosen[j].weight, dim);
    if (c->shared_dim > 0) {
        float weight = pl_is_bound(&l->shared_router) ? sigmoid(s->shared[i * pl_pad(1)]) : 1.0f;
        pl_add_scaled(out, p->scratch->y + i * dim, weight, dim);
    }
    return out;
}
