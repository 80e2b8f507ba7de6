#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "pyllm.h"

/* Arrivals and releases on lines of their own, so that waiting threads do not slow the arriving ones. */
struct pl_barrier {
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int generation;
    _Alignas(64) atomic_int stalls; /* waits that outlasted the spinning: somebody was not running */
};

enum { SPINS = 4000, YIELDS = 200, SLEEP_NANOSECONDS = 50000 };

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Spin a little (the others are usually there within microseconds), then let others run, then sleep. */
static void wait_a_little(int32_t tries) {
    if (tries < SPINS) {
        relax();
    } else if (tries < SPINS + YIELDS) {
        sched_yield();
    } else {
        nanosleep(&(struct timespec){.tv_nsec = SLEEP_NANOSECONDS}, NULL);
    }
}

void pl_barrier_wait(const pl_worker *worker) {
    if (worker->count == 1) return;
    pl_barrier *b = worker->barrier;
    int generation = atomic_load_explicit(&b->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) + 1 == worker->count) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&b->generation, generation + 1, memory_order_release);
        return;
    }
    for (int32_t tries = 0; atomic_load_explicit(&b->generation, memory_order_acquire) == generation;) {
        wait_a_little(tries);
        if (tries == SPINS) atomic_fetch_add_explicit(&b->stalls, 1, memory_order_relaxed);
        if (tries < SPINS + YIELDS) tries++;
    }
}

void pl_share(const pl_worker *worker, int64_t n, int64_t grain, int64_t *begin, int64_t *end) {
    int64_t units = (n + grain - 1) / grain;
    int64_t first = units * worker->index / worker->count * grain;
    int64_t last = units * (worker->index + 1) / worker->count * grain;
    *begin = first < n ? first : n;
    *end = last < n ? last : n;
}

double pl_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- regions ---------------------------------------------------------------------------------------------------- */

typedef struct region {
    int32_t threads;
    pl_task_fn fn;
    void *argument;
    int32_t stalls; /* out: how often a thread was waited for that was not running */
} region;

/* Longer than this between asking for threads and having them, or between the work's end and the region's, and a
 * thread was not running. Starting threads for the first time takes less. */
static const double late_seconds = 300e-6;

static void run_region(region *r) {
    pl_barrier barrier = {0};
#ifdef _OPENMP
    double opened = pl_seconds(), late = 0, done = 0;
#pragma omp parallel num_threads(r->threads)
    {
        pl_worker worker = {omp_get_thread_num(), omp_get_num_threads(), &barrier};
        pl_barrier_wait(&worker);
        if (worker.index == 0) late = pl_seconds() - opened;
        r->fn(r->argument, &worker);
        pl_barrier_wait(&worker);
        if (worker.index == 0) done = pl_seconds();
    }
    r->stalls = atomic_load(&barrier.stalls) + (late > late_seconds) + (pl_seconds() - done > late_seconds);
#else
    r->fn(r->argument, &(pl_worker){0, 1, &barrier});
#endif
}

static void *run_region_on_host(void *r) {
    run_region(r);
    return NULL;
}

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static bool forked; /* written before any thread of the child exists */

static void after_fork_in_child(void) {
    pthread_mutex_init(&turn, NULL); /* its holder, if any, does not exist here */
    forked = true;
}

static void register_fork_handler(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }

/* libgomp keeps a pool of threads for each thread that opens a region. In a forked child the pools are gone but the
 * surviving thread still believes in its own and would wait for it for ever; a fresh thread starts with none. */
static void run_region_in_child(region *r) {
    pthread_t host;
    if (pthread_create(&host, NULL, run_region_on_host, r) == 0) {
        pthread_join(host, NULL);
    } else {
        r->fn(r->argument, &(pl_worker){0, 1, NULL});
    }
}

/* ---- company ---------------------------------------------------------------------------------------------------- */

/* On a core that another process is using, a thread of ours is late at every barrier, and all wait for it: two threads
 * are then many times slower than one. Results do not depend on the number of threads, so after two regions in a row
 * with stalls work goes on alone for a while, longer each time a new try stalls again. Guarded by `turn`. */
static int32_t stalled_regions;
static double alone_until, alone_for;
static const double shortest_alone = 0.05, longest_alone = 2.0;

static atomic_int insisting;

void pl_insist_on_threads(int32_t on) { atomic_store(&insisting, on); }

static int must_work_alone(void) { return pl_seconds() < alone_until && !atomic_load(&insisting); }

static void learn_from(const region *r) {
    if (r->stalls == 0) {
        stalled_regions = 0;
        alone_for = 0;
    } else if (++stalled_regions >= 2) {
        alone_for = alone_for == 0 ? shortest_alone : 2 * alone_for;
        if (alone_for > longest_alone) alone_for = longest_alone;
        alone_until = pl_seconds() + alone_for;
        stalled_regions = 1; /* one more stall after this is enough */
    }
}

void pl_parallel(int32_t threads, pl_task_fn fn, void *argument) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_fork_handler);
    region r = {threads, fn, argument, 0};
    if (threads > 1) pthread_mutex_lock(&turn);
    if (threads <= 1 || must_work_alone()) {
        fn(argument, &(pl_worker){0, 1, NULL});
    } else if (forked) {
        run_region_in_child(&r);
    } else {
        run_region(&r);
        learn_from(&r);
    }
    if (threads > 1) pthread_mutex_unlock(&turn);
}
