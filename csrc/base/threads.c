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
    _Alignas(64) atomic_llong waited; /* nanoseconds, of all threads together, in waits that were not short */
};

enum { SHORT = 200 /* tries that need no clock */, SPINS = 4000, YIELDS = 200, SLEEP_NANOSECONDS = 50000 };

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
    double since = 0;
    for (int32_t tries = 0; atomic_load_explicit(&b->generation, memory_order_acquire) == generation;) {
        wait_a_little(tries);
        if (tries == SHORT) since = pl_seconds();
        if (tries < SPINS + YIELDS) tries++;
    }
    if (since > 0) atomic_fetch_add(&b->waited, (long long)((pl_seconds() - since) * 1e9));
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
    int32_t stalled; /* out: whether its threads mostly waited for one that was not running */
} region;

/* Threads started for one region: they begin when it is known how many there are. */
typedef struct crew {
    const region *region;
    pl_barrier barrier;
    atomic_int count; /* 0 until then */
} crew;

typedef struct hand {
    crew *crew;
    int32_t index;
    pthread_t thread;
} hand;

static void *lend_hand(void *argument) {
    const hand *h = argument;
    int32_t count, tries = 0;
    while ((count = atomic_load(&h->crew->count)) == 0) wait_a_little(tries++);
    h->crew->region->fn(h->crew->region->argument, &(pl_worker){h->index, count, &h->crew->barrier});
    return NULL;
}

/* Runs the region on threads started for it, as many as the system gives, and returns how many they were. */
static int32_t run_on_own_threads(const region *r) {
    enum { MOST = 1024 };
    hand hands[MOST];
    crew c = {.region = r};
    int32_t started = 0;
    while (started < r->threads - 1 && started < MOST) {
        hands[started] = (hand){.crew = &c, .index = started + 1};
        if (pthread_create(&hands[started].thread, NULL, lend_hand, &hands[started]) != 0) break;
        started++;
    }
    atomic_store(&c.count, started + 1);
    r->fn(r->argument, &(pl_worker){0, started + 1, &c.barrier});
    for (int32_t i = 0; i < started; i++) pthread_join(hands[i].thread, NULL);
    return started + 1;
}

#ifdef _OPENMP
static void do_nothing(void *argument, const pl_worker *worker) { (void)argument, (void)worker; }

/* With one thread always waiting for another, all would be done as soon by one alone. Regions that are over at once say
 * nothing: threads may have had to start. */
static const double mostly = 0.6, shortest_judged = 300e-6;

/* libgomp ends the process where it cannot have a thread, so before it starts some for this calling thread (each has
 * its own pool there) it is tried whether they are to be had. */
static int32_t obtainable(int32_t threads) {
    static _Thread_local int32_t granted = 1;
    if (threads > granted) granted = run_on_own_threads(&(region){threads, do_nothing, NULL, 0});
    return threads < granted ? threads : granted;
}

static void run_region(region *r) {
    pl_barrier barrier = {0};
    int32_t threads = obtainable(r->threads);
    double opened = pl_seconds(), begun = opened, done = opened;
#pragma omp parallel num_threads(threads)
    {
        pl_worker worker = {omp_get_thread_num(), omp_get_num_threads(), &barrier};
        pl_barrier_wait(&worker);
        if (worker.index == 0) begun = pl_seconds();
        r->fn(r->argument, &worker);
        pl_barrier_wait(&worker);
        if (worker.index == 0) done = pl_seconds();
    }
    double closed = pl_seconds(), waited = 1e-9 * (double)atomic_load(&barrier.waited);
    waited += (begun - opened) + (closed - done);
    r->stalled = closed - opened > shortest_judged && waited > mostly * (threads - 1) * (closed - opened);
}
#else
static void run_region(region *r) { run_on_own_threads(r); }
#endif

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local bool inside; /* this thread has the turn: what it is asked between layers may evaluate too */

/* In a forked child the threads of libgomp's pools are gone, but a surviving thread still believes in its own and would
 * wait for it for ever: there we start our own. */
static bool forked; /* written before any thread of the child exists */

static void after_fork_in_child(void) {
    pthread_mutex_init(&turn, NULL); /* its holder, if any, does not exist here */
    forked = true;
    inside = false;
}

static void register_fork_handler(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }

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
    if (!r->stalled) {
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
    if (threads <= 1 || inside) {
        fn(argument, &(pl_worker){0, 1, NULL});
        return;
    }
    region r = {threads, fn, argument, 0};
    pthread_mutex_lock(&turn);
    inside = true;
    if (must_work_alone()) {
        fn(argument, &(pl_worker){0, 1, NULL});
    } else if (forked) {
        run_on_own_threads(&r);
    } else {
        run_region(&r);
        learn_from(&r);
    }
    inside = false;
    pthread_mutex_unlock(&turn);
}
