/* A session: one sequence's keys and values, and its position. One thread at a time. */
#ifndef PL_MODEL_SESSION_H
#define PL_MODEL_SESSION_H

#include "model/model.h"
#include "model/pages.h"

struct pl_session {
    pl_model *model; /* holds a reference */
    int64_t context_length, position;
    pl_page_table table;
};

#endif
