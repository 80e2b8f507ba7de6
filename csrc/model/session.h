/* A session: one sequence's keys and values, and its position. One thread at a time. */
#ifndef PL_MODEL_SESSION_H
#define PL_MODEL_SESSION_H

#include "model/adapter.h"
#include "model/model.h"
#include "model/pages.h"

struct pl_session {
    pl_model *model; /* holds a reference */
    int64_t context_length, position;
    int64_t expected;  /* length that its sequence is going to have; 0: what it has after each evaluation */
    int32_t long_rope; /* its keys are rotated by the long factors */
    pl_page_table table;
    pl_adaptations adaptations;
};

/* Whether n tokens more may be evaluated with the RoPE factors that the session has used so far. */
int32_t pl_session_rope_fits(const pl_session *session, int64_t n);
/* Which RoPE factors an empty session that is about to evaluate n tokens uses from now on. */
void pl_session_choose_rope(pl_session *session, int64_t n);

#endif
