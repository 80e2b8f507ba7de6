#ifndef PL_MODEL_FORWARD_H
#define PL_MODEL_FORWARD_H

#include "model/scratch.h"
#include "model/session.h"

/* See pl_eval in pyllm_api.h. The arguments are checked and every run's pages are reserved. */
int32_t pl_forward(pl_model *model, pl_scratch *scratch, const pl_run *runs, int32_t n_runs, int32_t threads,
                   pl_poll_fn poll, void *context, pl_error *err);

#endif
