#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* Arrivals and releases on lines of their own, so that waiting threads do not slow the arriving ones. */
struct pl_barrier {
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int generation;
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

/* ---- regions ---- */

typedef struct region {
    int32_t threads;
    pl_task_fn fn;
    void *argument;
} region;

static void run_region(const region *r) {
    pl_barrier barrier = {0};
#ifdef _OPENMP
#pragma omp parallel num_threads(r->threads)
    {
        pl_worker worker = {omp_get_thread_num(), omp_get_num_threads(), &barrier};
        r->fn(r->argument, &worker);
    }
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

void pl_parallel(int32_t threads, pl_task_fn fn, void *argument) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_fork_handler);
    if (threads <= 1) {
        fn(argument, &(pl_worker){0, 1, NULL});
        return;
    }
    region r = {threads, fn, argument};
    pthread_mutex_lock(&turn);
    if (forked) {
        run_region_in_child(&r);
    } else {
        run_region(&r);
    }
    pthread_mutex_unlock(&turn);
}
