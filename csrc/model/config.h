#ifndef PL_MODEL_CONFIG_H
#define PL_MODEL_CONFIG_H

#include "pyllm.h"

/* Checks every field against its range and the others; names the first that does not fit. layers (n_layers). */
int32_t pl_config_check(const pl_config *config, const pl_layer_config *layers, pl_error *err);

#endif
