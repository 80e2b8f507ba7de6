/* The machine's own speed: what it reads from memory, and what it takes for threads to meet. */
#include "base/threads.h"
#include "pyllm.h"

typedef struct reading {
    const uint64_t *words;
    int64_t n;
    uint64_t sums[PL_MOST_THREADS];
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
    if (threads < 1 || threads > PL_MOST_THREADS || repeats < 1) return 0;
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
    if (threads < 1 || threads > PL_MOST_THREADS || crossings < 1) return 0;
    meeting m = {.crossings = crossings};
    pl_parallel(threads, meet, &m);
    return m.seconds;
}
