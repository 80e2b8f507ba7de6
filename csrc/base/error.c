#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>

int32_t pl_fail(pl_error *err, int32_t status, const char *format, ...) {
    err->status = status;
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    return status;
}
