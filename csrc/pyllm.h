/* The public C header: the declarations of pyllm_api.h with their guard and types. */
#ifndef PYLLM_H
#define PYLLM_H

#include <stddef.h>
#include <stdint.h>

#include "pyllm_api.h"

#endif
