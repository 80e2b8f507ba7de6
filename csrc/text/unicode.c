#include "text/unicode.h"

#include "text/unicode_table.inc"

_Static_assert(PL_KINDS <= PL_MAX_KINDS, "kinds are bits of a word");

int32_t pl_kind_count(void) { return PL_KINDS; }

uint16_t pl_kind_properties(int32_t kind) { return KIND_PROPERTIES[kind]; }

/* The last run that does not begin after `code_point`. */
static size_t run_of(uint32_t code_point) {
    size_t low = 0, high = PL_RUNS;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (RUNS[middle] >> 5 <= code_point) low = middle;
        else high = middle;
    }
    return low;
}

uint8_t pl_kind_of(uint32_t code_point) { return RUNS[run_of(code_point)] & 31; }

void pl_kinds_of_first_plane(uint8_t *kinds) {
    for (uint32_t c = 0, run = 0; c < 65536; c++) {
        if (run + 1 < PL_RUNS && RUNS[run + 1] >> 5 <= c) run++;
        kinds[c] = RUNS[run] & 31;
    }
}

/* Printable bytes of Latin-1 stand for themselves; the other 68 are, in order, the characters from U+0100 on. */
static int is_printable(uint32_t byte) {
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

static uint32_t unprintable_number(uint32_t byte) { return byte < 0x21 ? byte : byte < 0xA1 ? 0x21 + byte - 0x7F : 67; }

uint32_t pl_byte_character(uint8_t byte) { return is_printable(byte) ? byte : 0x100 + unprintable_number(byte); }

int32_t pl_character_byte(uint32_t c) {
    if (c < 0x100) return is_printable(c) ? (int32_t)c : -1;
    uint32_t n = c - 0x100;
    if (n > 67) return -1;
    return (int32_t)(n < 0x21 ? n : n < 67 ? 0x7F + n - 0x21 : 0xAD);
}
