/* Where each tensor of a model goes, what shape it must have, and which models have it. */
#ifndef PL_MODEL_SLOTS_H
#define PL_MODEL_SLOTS_H

#include "model/model.h"

typedef enum pl_place { PL_IN_MODEL, PL_IN_LAYER, PL_IN_EXPERT } pl_place;
typedef enum pl_form { PL_MATRIX /* a pl_linear */, PL_VECTOR /* a float pointer */ } pl_form;

typedef struct pl_slot {
    const char *name;
    pl_place place;
    pl_form form;
    size_t offset; /* in pl_model, pl_layer or pl_feed_forward */
} pl_slot;

extern const pl_slot pl_slots[PL_SLOT_COUNT];

void pl_slot_shape(const pl_config *config, int32_t slot, int64_t *rows, int64_t *cols);

/* Whether a model of this config has a slot: with PL_NEVER it has no place for it. */
typedef enum pl_need { PL_NEVER, PL_MAYBE, PL_ALWAYS } pl_need;
pl_need pl_slot_need(const pl_config *config, const pl_layer_config *layer, int32_t slot);
/* What an optional slot is nothing without; PL_SLOT_COUNT for those that stand for themselves. */
int32_t pl_slot_owner(int32_t slot);

/* How many layers have the slot, and how many experts of a layer: 1 where it is not per layer, or not per expert. */
int32_t pl_slot_layers(const pl_model *model, int32_t slot);
int32_t pl_slot_experts(const pl_model *model, int32_t slot, int32_t layer);
/* The pl_linear, or the float pointer, that a slot is bound to. */
void *pl_slot_address(const pl_model *model, int32_t slot, int32_t layer, int32_t expert);
int pl_slot_is_filled(const pl_model *model, int32_t slot, int32_t layer, int32_t expert);

#endif
