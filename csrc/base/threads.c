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
    atomic_int asleep; /* threads that must be woken */
    pthread_mutex_t mutex;
    pthread_cond_t released;
    _Alignas(64) atomic_llong worked; /* CPU nanoseconds of all threads, without waits that were not short */
};

#define NEW_BARRIER {.mutex = PTHREAD_MUTEX_INITIALIZER, .released = PTHREAD_COND_INITIALIZER}

enum { SHORT = 200 /* tries that need no clock */, SPINS = 1000, YIELDS = 20 };

/* Of this thread. */
static long long cpu_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (long long)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static void sleep_until_released(pl_barrier *b, int generation) {
    pthread_mutex_lock(&b->mutex);
    atomic_fetch_add(&b->asleep, 1); /* before the generation is looked at, as release() looks in the other order */
    while (atomic_load(&b->generation) == generation) pthread_cond_wait(&b->released, &b->mutex);
    atomic_fetch_sub(&b->asleep, 1);
    pthread_mutex_unlock(&b->mutex);
}

static void release(pl_barrier *b, int generation) {
    atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
    atomic_store(&b->generation, generation + 1);
    if (atomic_load(&b->asleep) == 0) return;
    pthread_mutex_lock(&b->mutex);
    pthread_cond_broadcast(&b->released);
    pthread_mutex_unlock(&b->mutex);
}

/* Spins a little (the others are usually there within microseconds), then lets others run, then sleeps. */
void pl_barrier_wait(const pl_worker *worker) {
    if (worker->count == 1) return;
    pl_barrier *b = worker->barrier;
    int generation = atomic_load_explicit(&b->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) + 1 == worker->count) {
        release(b, generation);
        return;
    }
    long long since = 0;
    for (int32_t tries = 0; atomic_load_explicit(&b->generation, memory_order_acquire) == generation; tries++) {
        if (tries == SHORT) since = cpu_nanoseconds();
        if (tries < SPINS) {
            relax();
        } else if (tries < SPINS + YIELDS) {
            sched_yield();
        } else {
            sleep_until_released(b, generation);
        }
    }
    if (since > 0) atomic_fetch_sub(&b->worked, cpu_nanoseconds() - since);
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
    bool judged;
    double worked; /* out, if judged: CPU seconds of all threads, without waits for one another */
} region;

/* One thread's part of a region. The last wait is here, not in libgomp, which spins. */
static void work(const region *r, const pl_worker *worker) {
    long long begun = r->judged ? cpu_nanoseconds() : 0;
    r->fn(r->argument, worker);
    pl_barrier_wait(worker);
    if (r->judged) atomic_fetch_add(&worker->barrier->worked, cpu_nanoseconds() - begun);
}

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
    int32_t count;
    while ((count = atomic_load(&h->crew->count)) == 0) sched_yield();
    work(h->crew->region, &(pl_worker){h->index, count, &h->crew->barrier});
    return NULL;
}

/* Runs the region on threads started for it, as many as the system gives, and returns how many they were. */
static int32_t run_on_own_threads(region *r) {
    hand hands[PL_MOST_THREADS];
    crew c = {.region = r, .barrier = NEW_BARRIER};
    int32_t started = 0;
    while (started < r->threads - 1 && started < PL_MOST_THREADS) {
        hands[started] = (hand){.crew = &c, .index = started + 1};
        if (pthread_create(&hands[started].thread, NULL, lend_hand, &hands[started]) != 0) break;
        started++;
    }
    atomic_store(&c.count, started + 1);
    work(r, &(pl_worker){0, started + 1, &c.barrier});
    for (int32_t i = 0; i < started; i++) pthread_join(hands[i].thread, NULL);
    r->worked = 1e-9 * (double)atomic_load(&c.barrier.worked);
    return started + 1;
}

#ifdef _OPENMP
static void do_nothing(void *argument, const pl_worker *worker) { (void)argument, (void)worker; }

/* libgomp ends the process where it cannot have a thread, so before it starts some for this calling thread (each has
 * its own pool there) it is tried whether they are to be had. */
static int32_t obtainable(int32_t threads) {
    static _Thread_local int32_t granted = 1;
    if (threads > granted) granted = run_on_own_threads(&(region){.threads = threads, .fn = do_nothing});
    return threads < granted ? threads : granted;
}

static void run_region(region *r) {
    pl_barrier barrier = NEW_BARRIER;
    int32_t threads = obtainable(r->threads);
#pragma omp parallel num_threads(threads)
    {
        pl_worker worker = {omp_get_thread_num(), omp_get_num_threads(), &barrier};
        work(r, &worker);
    }
    r->worked = 1e-9 * (double)atomic_load(&barrier.worked);
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
 * can be many times slower than one. Results do not depend on the number of threads, so work goes on alone for a while
 * where that is faster. What tells is the pace: CPU time spent on work, per time that passed. Together it is up to the
 * number of threads, alone up to 1, and less where others want the cores. */
typedef struct pace { double mean, seen; /* over the last seconds, which are `remembered` at most */ } pace;

static struct {
    pace together, alone;
    double alone_until, alone_for;
    bool asleep;                                    /* the other threads, from which they wake slowly */
    bool brief;                                     /* the last region that was judged */
} company = {.alone = {.mean = 1}, .asleep = true}; /* guarded by `turn` */

/* Seconds: what is brief, what is seen before it is judged, what is remembered, and how long work goes on alone: twice
 * as long after each try that fails, and ten times as long as the try, so that tries cost next to nothing. */
static const double brief_region = 200e-6, judged_after = 0.01, remembered = 0.04, shortest_alone = 0.05,
                    longest_alone = 2.0;

/* How much faster together must be: its CPU time is a little dearer, since caches and memory are shared. */
static const double worthwhile = 1.15;

static void see(pace *p, double worked, double elapsed) {
    p->mean += (worked - p->mean * elapsed) / (p->seen + elapsed);
    p->seen = p->seen + elapsed < remembered ? p->seen + elapsed : remembered;
}

static void learn_together(double worked, double elapsed) {
    if (!company.asleep) see(&company.together, worked, elapsed);
    company.asleep = false;
    if (company.together.seen < judged_after) return;
    if (company.together.mean > worthwhile * company.alone.mean) {
        company.alone_for -= company.alone_for < elapsed ? company.alone_for : elapsed;
        see(&company.alone, elapsed / 20, elapsed / 20); /* for others may have left since */
        return;
    }
    double longer = 2 * company.alone_for, tried = 10 * company.together.seen;
    if (longer > longest_alone) longer = longest_alone;
    if (tried < shortest_alone) tried = shortest_alone;
    company.alone_for = longer > tried ? longer : tried;
    company.alone_until = pl_seconds() + company.alone_for;
    company.together = (pace){0};
    company.asleep = true;
}

static atomic_int insisting;

void pl_insist_on_threads(int32_t on) { atomic_store(&insisting, on); }

static int must_work_alone(void) { return pl_seconds() < company.alone_until && !atomic_load(&insisting); }

/* ---- the door --------------------------------------------------------------------------------------------------- */

static void run_alone(const region *r) { r->fn(r->argument, &(pl_worker){0, 1, NULL}); }

/* Where regions are brief, one in sixteen is judged: to read the clocks of all threads takes a microsecond. */
static int is_judged(void) {
    static int32_t passed; /* guarded by `turn` */
    if (!company.brief || ++passed == 16) passed = 0;
    return passed == 0;
}

/* The region on as many threads as it is good for. */
static void run_judged(region *r) {
    double opened = pl_seconds();
    if (must_work_alone()) {
        long long begun = cpu_nanoseconds();
        run_alone(r);
        see(&company.alone, 1e-9 * (double)(cpu_nanoseconds() - begun), pl_seconds() - opened);
        return;
    }
    r->judged = is_judged();
    if (forked) {
        run_on_own_threads(r);
    } else {
        run_region(r);
    }
    if (!r->judged) return;
    double elapsed = pl_seconds() - opened;
    company.brief = elapsed < brief_region;
    learn_together(r->worked, elapsed);
}

void pl_parallel(int32_t threads, pl_task_fn fn, void *argument) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_fork_handler);
    region r = {.threads = threads, .fn = fn, .argument = argument};
    if (threads <= 1 || inside) {
        run_alone(&r);
        return;
    }
    pthread_mutex_lock(&turn);
    inside = true;
    run_judged(&r);
    inside = false;
    pthread_mutex_unlock(&turn);
}
