/* Failures travel as values: a status and one sentence, in a struct the caller owns. */
#ifndef PL_BASE_ERROR_H
#define PL_BASE_ERROR_H

#include "pyllm.h"

/* Writes the sentence and returns `status`, so that a check reads `return pl_fail(err, PL_INVALID, "...")`. */
int32_t pl_fail(pl_error *err, int32_t status, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
