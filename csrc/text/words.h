/* Cutting text into words, inside which alone pieces are merged. */
#ifndef PL_TEXT_WORDS_H
#define PL_TEXT_WORDS_H

#include <stddef.h>
#include <stdint.h>

#include "pyllm.h"

/* What is done with a word of n > 0 bytes. A status other than PL_OK ends the cutting and is handed on. */
typedef int32_t (*pl_word_fn)(void *context, const uint8_t *word, size_t n, pl_error *err);

/* Hands each word of text (nbytes) to fn, in order; together they are the text. Reads `words` only. */
int32_t pl_words_each(const pl_words *words, const uint8_t *text, size_t nbytes, pl_word_fn fn, void *context,
                      pl_error *err);

#endif
