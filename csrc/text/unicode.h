/* UTF-8, and what kind of character a code point is. The kinds are those of the `tokenizers` library, whose words ours
 * must equal: unicode_table.inc was made by asking it. */
#ifndef PL_TEXT_UNICODE_H
#define PL_TEXT_UNICODE_H

#include <stddef.h>
#include <stdint.h>

/* Kinds are numbers from 0; what a kind's characters are is a mask of the bits that unicode_table.inc names. */
#define PL_MAX_KINDS 32
int32_t pl_kind_count(void);
uint16_t pl_kind_properties(int32_t kind);

/* The kind of any number, also of those that are no code points. O(log n). */
uint8_t pl_kind_of(uint32_t code_point);

/* Fills kinds (65536) with the kinds of the first code points. */
void pl_kinds_of_first_plane(uint8_t *kinds);

/* GPT-2's alphabet, in which pieces of bytes are written: the character of a byte, and the byte of a character or
 * -1. */
uint32_t pl_byte_character(uint8_t byte);
int32_t pl_character_byte(uint32_t code_point);

/* The code point at text[at], at < end, and where the next one begins. Any bytes give some number, none beyond `end`
 * is read: what is no UTF-8 is cut somehow. */
static inline uint32_t pl_decode(const uint8_t *text, size_t at, size_t end, size_t *next) {
    uint8_t lead = text[at++];
    uint32_t code_point = lead;
    if (lead >= 0xC0) {
        int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
        code_point = lead & (0x3Fu >> more);
        for (; more > 0 && at < end && (text[at] & 0xC0) == 0x80; more--)
            code_point = code_point << 6 | (text[at++] & 0x3F);
    }
    *next = at;
    return code_point;
}

/* Where the character before `at` begins, low < at. */
static inline size_t pl_previous(const uint8_t *text, size_t low, size_t at) {
    do at--;
    while (at > low && (text[at] & 0xC0) == 0x80);
    return at;
}

#endif
