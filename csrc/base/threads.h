/* Threads behind one door: threads.c is the only file that includes <omp.h>. One parallel region per evaluation, with
 * a light barrier inside; what runs in it knows its index and splits rows or tokens by itself. */
#ifndef PL_BASE_THREADS_H
#define PL_BASE_THREADS_H

#include <stdint.h>

typedef struct pl_barrier pl_barrier;

/* What a thread knows inside a region. */
typedef struct pl_worker {
    int32_t index, count; /* 0 is the calling thread */
    pl_barrier *barrier;
} pl_worker;

typedef void (*pl_task_fn)(void *argument, const pl_worker *worker);

/* Runs fn on `threads` threads at once, or on fewer where the system has no more or its cores are busy with others,
 * and returns when all are done. What fn computes must not depend on the number. Callers from several threads take
 * turns: the machine's cores serve one region at a time. Works in forked children. */
void pl_parallel(int32_t threads, pl_task_fn fn, void *argument);

/* Everything written before it by any thread of the region is seen by all after it. */
void pl_barrier_wait(const pl_worker *worker);

/* The worker's contiguous share [*begin, *end) of n items, in units of `grain` items. */
void pl_share(const pl_worker *worker, int64_t n, int64_t grain, int64_t *begin, int64_t *end);

/* Seconds on a clock that only moves forward. */
double pl_seconds(void);

#endif
