/* Words, by the regular expressions of the families' own tokenizers.
 *
 * A text is cut by one step after another, each cutting what the step before has left: at the matches of a pattern, or
 * into groups of three digits. A pattern is a short program for a backtracking matcher. All its jumps go forward, so
 * it ends, and each instruction has at most one choice pending: the pending ones fit an array. What repeats is one set
 * of characters, whose choices are a range of places in the text, or a group that is never given back. Where a run of
 * a set's characters led nowhere is remembered, so that a text of one long run is not read again from each place in
 * it. */
#include "text/words.h"

#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "text/unicode.h"

#define MAX_CODE 256
#define MAX_STEPS 8
#define MAX_DEPTH 8
static const size_t NONE = SIZE_MAX;

/* Characters: those of some kinds, or in some ranges; or all others. */
typedef struct set {
    uint32_t kinds;     /* bit k: characters of kind k, before ranges and negation */
    uint8_t ascii[128]; /* the answer for these */
    int32_t negated;
    size_t first_range, n_ranges;
} set;

/* What a match can begin with: never says no to what the program would take. */
typedef struct beginning {
    uint32_t kinds;
    uint8_t ascii[128];
} beginning;

struct pl_words {
    uint8_t kinds[65536]; /* of the first plane's code points */
    int32_t n_steps, n_code, n_sets;
    pl_word_step steps[MAX_STEPS];
    pl_word_code code[MAX_CODE];
    beginning branches[MAX_CODE];  /* of the branch behind each PL_SPLIT, which must take something */
    beginning patterns[MAX_STEPS]; /* of each step's pattern */
    set *sets;                     /* (n_sets) */
    uint32_t *ranges;              /* (n_ranges, 2) first and last code point */
};

/* The stretch that is being cut. mapped: its bytes stand for the characters of GPT-2's alphabet. */
typedef struct stretch {
    const uint8_t *text;
    size_t end;
    int32_t mapped;
} stretch;

/* ---- characters -------------------------------------------------------------------------------------------------- */

static uint32_t character(const stretch *s, size_t at, size_t *next) {
    if (!s->mapped) return pl_decode(s->text, at, s->end, next);
    *next = at + 1;
    return pl_byte_character(s->text[at]);
}

static uint8_t kind_of(const pl_words *w, uint32_t c) { return c < 65536 ? w->kinds[c] : pl_kind_of(c); }

static int in_ranges(const uint32_t *ranges, size_t n, uint32_t c) {
    for (size_t i = 0; i < n; i++)
        if (ranges[2 * i] <= c && c <= ranges[2 * i + 1]) return 1;
    return 0;
}

static int in_set_by_definition(const pl_words *w, const set *set, uint32_t c) {
    int in = set->kinds >> kind_of(w, c) & 1 || in_ranges(w->ranges + 2 * set->first_range, set->n_ranges, c);
    return in != set->negated;
}

static int in_set(const pl_words *w, const set *set, uint32_t c) {
    return c < 128 ? set->ascii[c] : in_set_by_definition(w, set, c);
}

static int may_begin(const pl_words *w, const beginning *b, uint32_t c) {
    return c < 128 ? b->ascii[c] : b->kinds >> kind_of(w, c) & 1;
}

/* ---- matching ---------------------------------------------------------------------------------------------------- */

/* What follows a run of a set's characters failed to match at every place from `first` to `end`, where the run ends.
 * That does not depend on where the run began: a match that begins later in it must fail as well, and is not tried. */
typedef struct failure { const uint8_t *first, *end; } failure;

/* A stretch, and what is known of its text. */
typedef struct matcher {
    const pl_words *words;
    const stretch *s;
    failure *failures; /* (words->n_code) the last one of each PL_TAKE and PL_KEEP without limit */
} matcher;

/* Another way to go on from instruction pc. At a PL_SPLIT: its target, from `at`. At characters of a set, which begin
 * at `first` and end at `end`: fewer of them, if they do not end at `at` yet but at one of the places from `low` on. */
typedef struct choice { size_t pc, at, low, first, end; } choice;

/* Takes characters of a set, as many as may be; *low is where the least number of them ends. 0 if there are fewer. */
static int take(const pl_words *w, const stretch *s, const pl_word_code *i, size_t *at, size_t *low) {
    const set *set = &w->sets[i->set];
    int32_t n = 0;
    *low = *at;
    for (size_t next = *at; (i->most < 0 || n < i->most) && *at < s->end; *at = next) {
        uint8_t byte = s->text[*at];
        if (byte < 128 && !s->mapped) {
            if (!set->ascii[byte]) break;
            next = *at + 1;
        } else if (!in_set(w, set, character(s, *at, &next))) {
            break;
        }
        if (++n == i->least) *low = next;
    }
    return n >= i->least;
}

static int is_word_character(const pl_words *w, uint32_t c) {
    return pl_kind_properties(kind_of(w, c)) >> PL_WORD_CHARACTER & 1;
}

/* Whether behind a digit, at `at`, a word ends. */
static int word_ends_at(const pl_words *w, const stretch *s, size_t at) {
    size_t next;
    return at == s->end || !is_word_character(w, character(s, at, &next));
}

static size_t match(const matcher *m, size_t pc, size_t at);

/* Takes matches of the group behind instruction pc, none of which is given back. Each takes something. */
static size_t repeat(const matcher *m, size_t pc, size_t at) {
    int32_t n = 0;
    for (size_t end; (end = match(m, pc + 1, at)) != NONE && end > at; n++) at = end;
    return n >= m->words->code[pc].least ? at : NONE;
}

static int may_begin_at(const pl_words *w, const beginning *b, const stretch *s, size_t at) {
    size_t next;
    return at < s->end && may_begin(w, b, character(s, at, &next));
}

static int failed_before(const matcher *m, size_t pc, size_t at) {
    const uint8_t *here = m->s->text + at;
    return m->failures[pc].first <= here && here < m->failures[pc].end;
}

/* Takes characters of a set, from *at on, and notes the choice in that. 0 if it cannot be, or leads nowhere. */
static int take_and_note(const matcher *m, size_t pc, size_t *at, choice *noted, size_t *n_noted) {
    const pl_word_code *i = &m->words->code[pc];
    size_t first = *at, low;
    if (failed_before(m, pc, first) || !take(m->words, m->s, i, at, &low)) return 0;
    if (i->op == PL_KEEP) low = *at;
    if (low < *at || i->most < 0) noted[(*n_noted)++] = (choice){pc, *at, low, first, *at};
    return 1;
}

/* Goes on with the last choice that is left; 0 if none is. */
static int go_back(const matcher *m, choice *choices, size_t *n, size_t *pc, size_t *at) {
    for (; *n > 0; --*n) {
        choice *last = &choices[*n - 1];
        const pl_word_code *i = &m->words->code[last->pc];
        if (i->op == PL_SPLIT) {
            *pc = (size_t)i->target;
            *at = last->at;
            --*n;
            return 1;
        }
        if (last->low < last->at) {
            last->at = m->s->mapped ? last->at - 1 : pl_previous(m->s->text, last->low, last->at);
            *pc = last->pc + 1;
            *at = last->at;
            return 1;
        }
        if (i->most < 0) m->failures[last->pc] = (failure){m->s->text + last->first, m->s->text + last->end};
    }
    return 0;
}

/* Where the match of the program from pc on ends that begins at `at`; NONE if there is none. */
static size_t match(const matcher *m, size_t pc, size_t at) {
    choice choices[MAX_CODE];
    size_t n = 0;
    for (;;) {
        const pl_word_code *i = &m->words->code[pc];
        int matched = 1;
        switch (i->op) {
            case PL_MATCH: return at;
            case PL_TAKE:
            case PL_KEEP:
                matched = take_and_note(m, pc, &at, choices, &n);
                pc++;
                break;
            case PL_SPLIT:
                if (may_begin_at(m->words, &m->words->branches[pc], m->s, at)) {
                    choices[n++] = (choice){.pc = pc, .at = at};
                    pc++;
                } else {
                    pc = (size_t)i->target;
                }
                break;
            case PL_JUMP: pc = (size_t)i->target; break;
            case PL_AHEAD:
            case PL_NOT_AHEAD:
                matched = (match(m, pc + 1, at) != NONE) == (i->op == PL_AHEAD);
                pc = (size_t)i->target;
                break;
            default: /* PL_REPEAT */
                at = repeat(m, pc, at);
                matched = at != NONE;
                pc = (size_t)i->target;
        }
        if (!matched && !go_back(m, choices, &n, &pc, &at)) return NONE;
    }
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

typedef struct cutter {
    const pl_words *words;
    failure
        *failures; /* (words->n_code) as in matcher: steps have code of their own, and stretches follow each other */
    pl_word_fn fn;
    void *context;
    pl_error *err;
} cutter;

static int32_t cut(const cutter *c, int32_t step, const uint8_t *text, size_t nbytes);

/* Hands [*done, at) and then [at, end) on to the next step. */
static int32_t cut_out(const cutter *c, int32_t step, const uint8_t *text, size_t *done, size_t at, size_t end) {
    int32_t status = PL_OK;
    if (at > *done) status = cut(c, step + 1, text + *done, at - *done);
    if (status == PL_OK && end > at) status = cut(c, step + 1, text + at, end - at);
    *done = end;
    return status;
}

static int32_t cut_by_pattern(const cutter *c, int32_t step, const uint8_t *text, size_t nbytes) {
    const pl_words *w = c->words;
    const stretch s = {text, nbytes, w->steps[step].kind == PL_CUT_BYTES};
    const matcher m = {w, &s, c->failures};
    size_t pc = (size_t)w->steps[step].code, done = 0, next;
    int32_t status = PL_OK;
    for (size_t at = 0; at < nbytes && status == PL_OK; at = next) {
        size_t end = may_begin_at(w, &w->patterns[step], &s, at) ? match(&m, pc, at) : NONE;
        if (end == NONE || end == at) {
            character(&s, at, &next);
            continue;
        }
        status = cut_out(c, step, text, &done, at, end);
        next = end;
    }
    return status == PL_OK ? cut_out(c, step, text, &done, nbytes, nbytes) : status;
}

/* Cuts a run of n digits, from `at` to `end`, into groups: all but the first, which may be shorter, have three. */
static int32_t cut_digits(const cutter *c, int32_t step, const stretch *s, size_t *done, size_t at, size_t end,
                          size_t n) {
    int32_t status = PL_OK, kind = c->words->steps[step].kind;
    for (size_t group = n % 3 ? n % 3 : 3, next = at; at < end && status == PL_OK; at = next, group = 3) {
        for (size_t i = 0; i < group; i++) character(s, next, &next);
        if (kind == PL_CUT_THREES) status = cut_out(c, step, s->text, done, at, next);
        if (kind == PL_CUT_BEFORE_THREES && group == 3) status = cut_out(c, step, s->text, done, at, at);
        if (kind == PL_CUT_AFTER_THREES) status = cut_out(c, step, s->text, done, next, next);
    }
    return status;
}

static int32_t cut_by_threes(const cutter *c, int32_t step, const uint8_t *text, size_t nbytes) {
    const pl_words *w = c->words;
    const stretch s = {text, nbytes, 0};
    const set *digits = &w->sets[w->steps[step].code];
    size_t done = 0;
    int32_t status = PL_OK;
    for (size_t at = 0, next; at < nbytes && status == PL_OK; at = next) {
        size_t n = 0, end = at;
        for (next = at; next < nbytes && in_set(w, digits, character(&s, next, &next)); end = next) n++;
        if (n == 0) continue;
        next = end;
        if (w->steps[step].kind != PL_CUT_THREES || word_ends_at(w, &s, end))
            status = cut_digits(c, step, &s, &done, at, end, n);
    }
    return status == PL_OK ? cut_out(c, step, text, &done, nbytes, nbytes) : status;
}

static int cuts_by_pattern(int32_t kind) { return kind == PL_CUT || kind == PL_CUT_BYTES; }

static int32_t cut(const cutter *c, int32_t step, const uint8_t *text, size_t nbytes) {
    if (step == c->words->n_steps) return c->fn(c->context, text, nbytes, c->err);
    return cuts_by_pattern(c->words->steps[step].kind) ? cut_by_pattern(c, step, text, nbytes)
                                                       : cut_by_threes(c, step, text, nbytes);
}

int32_t pl_words_each(const pl_words *words, const uint8_t *text, size_t nbytes, pl_word_fn fn, void *context,
                      pl_error *err) {
    failure failures[MAX_CODE];
    memset(failures, 0, (size_t)words->n_code * sizeof *failures); /* of no text: NULL to NULL */
    const cutter c = {words, failures, fn, context, err};
    return nbytes > 0 ? cut(&c, 0, text, nbytes) : PL_OK;
}

/* ---- for tests: where words end ---------------------------------------------------------------------------------- */

typedef struct endings {
    const uint8_t *text;
    int64_t *ends, *n;
} endings;

static int32_t note_end(void *context, const uint8_t *word, size_t n, pl_error *err) {
    (void)err;
    endings *e = context;
    e->ends[(*e->n)++] = (word - e->text) + (int64_t)n;
    return PL_OK;
}

int32_t pl_words_ends(const pl_words *words, const uint8_t *text, size_t nbytes, int64_t *ends, int64_t *n,
                      pl_error *err) {
    endings e = {text, ends, n};
    *n = 0;
    return pl_words_each(words, text, nbytes, note_end, &e, err);
}

/* ---- making ------------------------------------------------------------------------------------------------------ */

static void fill_set(pl_words *w, set *set, const pl_word_set *from) {
    *set = (struct set){.negated = from->negated != 0};
    set->first_range = (size_t)from->first_range;
    set->n_ranges = (size_t)from->n_ranges;
    for (int32_t kind = 0; kind < pl_kind_count(); kind++) {
        uint32_t has = pl_kind_properties(kind);
        if (has & from->any && !(has & from->none)) set->kinds |= 1u << kind;
    }
    for (uint32_t c = 0; c < 128; c++) set->ascii[c] = (uint8_t)in_set_by_definition(w, set, c);
}

/* All that a set may hold: ranges hold characters of any kind. */
static void add_set(beginning *b, const set *set) {
    b->kinds |= set->n_ranges > 0 ? UINT32_MAX : set->negated ? ~set->kinds : set->kinds;
    for (int c = 0; c < 128; c++) b->ascii[c] |= set->ascii[c];
}

/* Adds what the program from pc on can begin with; everything where that is not one of a set's characters. */
static void add_beginnings(const pl_words *w, beginning *b, int32_t pc) {
    for (;; pc++) {
        const pl_word_code *i = &w->code[pc];
        if (i->op == PL_TAKE || i->op == PL_KEEP) {
            add_set(b, &w->sets[i->set]);
            if (i->least > 0) return;
        } else if (i->op == PL_SPLIT) {
            add_beginnings(w, b, pc + 1);
            pc = i->target - 1;
        } else if (i->op == PL_JUMP) {
            pc = i->target - 1;
        } else {
            memset(b, 0xFF, sizeof *b);
            return;
        }
    }
}

/* How many groups matched by themselves, each with its choices on the stack, instruction pc is inside of. */
static int depth_of(const pl_word_code *code, int32_t pc) {
    int depth = 0;
    for (int32_t i = 0; i < pc; i++) {
        int by_itself = code[i].op == PL_AHEAD || code[i].op == PL_NOT_AHEAD || code[i].op == PL_REPEAT;
        if (by_itself && code[i].target > pc) depth++;
    }
    return depth;
}

static int32_t check_code(const pl_word_code *code, int32_t n_code, int32_t n_sets, pl_error *err) {
    if (n_code < 1 || n_code > MAX_CODE || code[n_code - 1].op != PL_MATCH)
        return pl_fail(err, PL_INVALID, "a program of %d instructions, or one without end", (int)n_code);
    for (int32_t pc = 0; pc < n_code; pc++) {
        const pl_word_code *i = &code[pc];
        int takes = i->op == PL_TAKE || i->op == PL_KEEP, jumps = i->op >= PL_SPLIT && i->op <= PL_REPEAT;
        if (!takes && !jumps && i->op != PL_MATCH)
            return pl_fail(err, PL_INVALID, "instruction %d is %d, unknown", (int)pc, (int)i->op);
        if (takes && (i->set < 0 || i->set >= n_sets || i->least < 0))
            return pl_fail(err, PL_INVALID, "instruction %d takes of set %d", (int)pc, (int)i->set);
        if (jumps && (i->target <= pc || i->target >= n_code))
            return pl_fail(err, PL_INVALID, "instruction %d jumps to %d", (int)pc, (int)i->target);
        if (depth_of(code, pc) > MAX_DEPTH)
            return pl_fail(err, PL_INVALID, "instruction %d is inside more than %d groups", (int)pc, MAX_DEPTH);
    }
    return PL_OK;
}

static int32_t check_steps(const pl_word_pattern *p, pl_error *err) {
    if (p->n_steps < 1 || p->n_steps > MAX_STEPS)
        return pl_fail(err, PL_INVALID, "%d steps, expected 1 to %d", (int)p->n_steps, MAX_STEPS);
    for (int32_t i = 0; i < p->n_steps; i++) {
        const pl_word_step *step = &p->steps[i];
        int by_pattern = cuts_by_pattern(step->kind);
        int known = by_pattern || (step->kind >= PL_CUT_THREES && step->kind <= PL_CUT_AFTER_THREES);
        if (!known || step->code < 0 || step->code >= (by_pattern ? p->n_code : p->n_sets))
            return pl_fail(err, PL_INVALID, "step %d is of kind %d at %d", (int)i, (int)step->kind, (int)step->code);
    }
    for (int32_t i = 0; i < p->n_sets; i++) {
        const pl_word_set *set = &p->sets[i];
        if (set->first_range < 0 || set->n_ranges < 0 || set->first_range > p->n_ranges - set->n_ranges)
            return pl_fail(err, PL_INVALID, "set %d has ranges beyond the %d there are", (int)i, (int)p->n_ranges);
    }
    return check_code(p->code, p->n_code, p->n_sets, err);
}

int32_t pl_words_new(const pl_word_pattern *p, pl_words **out, pl_error *err) {
    int32_t status = check_steps(p, err);
    if (status != PL_OK) return status;
    pl_words *w = pl_alloc(1, sizeof *w);
    if (w) {
        w->sets = pl_alloc((size_t)p->n_sets + 1, sizeof *w->sets);
        w->ranges = pl_alloc(2 * (size_t)p->n_ranges + 1, sizeof *w->ranges);
    }
    if (!w || !w->sets || !w->ranges) {
        pl_words_free(w);
        return pl_fail(err, PL_MEMORY, "no memory for the patterns of words");
    }
    pl_kinds_of_first_plane(w->kinds);
    w->n_steps = p->n_steps;
    w->n_code = p->n_code;
    w->n_sets = p->n_sets;
    memcpy(w->steps, p->steps, (size_t)p->n_steps * sizeof *p->steps);
    memcpy(w->code, p->code, (size_t)p->n_code * sizeof *p->code);
    if (p->n_ranges > 0) memcpy(w->ranges, p->ranges, 2 * (size_t)p->n_ranges * sizeof *p->ranges);
    for (int32_t i = 0; i < p->n_sets; i++) fill_set(w, &w->sets[i], &p->sets[i]);
    for (int32_t pc = 0; pc < p->n_code; pc++)
        if (w->code[pc].op == PL_SPLIT) add_beginnings(w, &w->branches[pc], pc + 1);
    for (int32_t i = 0; i < p->n_steps; i++)
        if (cuts_by_pattern(w->steps[i].kind)) add_beginnings(w, &w->patterns[i], w->steps[i].code);
    *out = w;
    return PL_OK;
}

void pl_words_free(pl_words *words) {
    if (!words) return;
    pl_free(words->sets);
    pl_free(words->ranges);
    pl_free(words);
}
