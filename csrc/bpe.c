/* Score-driven byte pair merges: the tokenizer of llama2.c's run.c and of SentencePiece-style vocabularies.
 *
 * The definition is run.c's. The text is cut into code points; one that is a piece becomes its id, any other becomes
 * the fallback pieces of its bytes, which take no part in merging. Then, again and again, the adjacent pair whose
 * bytes together are the piece with the highest score is merged, the leftmost on ties, until no pair is a piece.
 *
 * run.c scans all pairs before each merge. Here a heap holds the candidate pairs, so n symbols cost O(n log n); and
 * since a merge can only cross a place whose two bytes also adjoin inside some piece, the text is first cut at all
 * other places, into words that cannot influence each other. In most text these really are words, and heaps stay in
 * the fastest cache. */
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "pyllm.h"

static const float LOWEST_SCORE = -1e10f; /* run.c merges only above this */
static const size_t NONE = SIZE_MAX;

/* One place of the hash table: the id of a piece plus one, so that 0 is an empty place, and its hash. */
typedef struct slot {
    uint32_t hash;
    uint32_t id_plus_1;
} slot;

struct pl_bpe {
    int32_t n;
    uint8_t *bytes;  /* all pieces, one after another */
    size_t *offsets; /* (n + 1) */
    float *scores;   /* (n) */
    slot *slots;     /* (mask + 1), open addressing; at most half full */
    size_t mask;
    uint64_t seed;
    size_t longest;      /* bytes of the longest mergeable piece */
    uint8_t joins[8192]; /* bit (a << 8 | b): some mergeable piece has byte b right after byte a */
    int32_t byte_ids[256];
    int32_t unknown_id;
};

/* ---- the table of pieces ------------------------------------------------------------------------------------------ */

/* The seed is an address, which a crafted vocabulary cannot know: it cannot make its pieces collide. The hash decides
 * where a piece is kept, never which piece is found. */
static uint64_t hash_bytes(uint64_t seed, const uint8_t *bytes, size_t n) {
    const uint64_t multiplier = 0x9E3779B97F4A7C15ULL;
    uint64_t h = seed ^ (n * multiplier);
    for (size_t i = 0; i < n; i += 8) {
        uint64_t word = 0;
        memcpy(&word, bytes + i, n - i < 8 ? n - i : 8);
        h = (h ^ word) * multiplier;
        h ^= h >> 29;
    }
    h *= multiplier;
    return h ^ (h >> 32);
}

/* The place where these bytes are, or the empty one where they would be. */
static size_t find_slot(const pl_bpe *bpe, const uint8_t *bytes, size_t n, uint64_t hash) {
    size_t at = (size_t)(hash >> 32) & bpe->mask;
    for (; bpe->slots[at].id_plus_1 != 0; at = (at + 1) & bpe->mask) {
        size_t id = bpe->slots[at].id_plus_1 - 1;
        size_t start = bpe->offsets[id], length = bpe->offsets[id + 1] - start;
        if (bpe->slots[at].hash == (uint32_t)hash && length == n && memcmp(bpe->bytes + start, bytes, n) == 0) break;
    }
    return at;
}

/* The id of the mergeable piece with these bytes, or -1. */
static int32_t find_piece(const pl_bpe *bpe, const uint8_t *bytes, size_t n) {
    if (n > bpe->longest) return -1;
    size_t at = find_slot(bpe, bytes, n, hash_bytes(bpe->seed, bytes, n));
    return (int32_t)bpe->slots[at].id_plus_1 - 1;
}

/* Of pieces with equal bytes the lowest id is kept. */
static void insert_piece(pl_bpe *bpe, int32_t id) {
    const uint8_t *bytes = bpe->bytes + bpe->offsets[id];
    size_t n = bpe->offsets[id + 1] - bpe->offsets[id];
    if (n == 0) return;
    uint64_t hash = hash_bytes(bpe->seed, bytes, n);
    size_t at = find_slot(bpe, bytes, n, hash);
    if (bpe->slots[at].id_plus_1 == 0) bpe->slots[at] = (slot){(uint32_t)hash, (uint32_t)id + 1};
    if (n > bpe->longest) bpe->longest = n;
    for (size_t i = 1; i < n; i++) bpe->joins[bytes[i - 1] << 5 | bytes[i] >> 3] |= (uint8_t)(1u << (bytes[i] & 7));
}

static int may_join(const pl_bpe *bpe, uint8_t left, uint8_t right) {
    return bpe->joins[left << 5 | right >> 3] >> (right & 7) & 1;
}

/* ---- making and freeing ------------------------------------------------------------------------------------------- */

static int32_t check_vocabulary(const int64_t *offsets, int32_t n, const int32_t *byte_ids, int32_t unknown_id,
                                pl_error *err) {
    if (n < 1) return pl_fail(err, PL_INVALID, "a vocabulary of %d pieces", (int)n);
    if (offsets[0] != 0) return pl_fail(err, PL_INVALID, "the first piece starts at %lld", (long long)offsets[0]);
    for (int32_t i = 0; i < n; i++)
        if (offsets[i + 1] < offsets[i]) return pl_fail(err, PL_INVALID, "piece %d ends before it starts", (int)i);
    for (int32_t b = 0; b < 256; b++)
        if (byte_ids[b] < -1 || byte_ids[b] >= n)
            return pl_fail(err, PL_INVALID, "the piece of byte %d is %d, outside [-1, %d)", (int)b, (int)byte_ids[b],
                           (int)n);
    if (unknown_id < -1 || unknown_id >= n)
        return pl_fail(err, PL_INVALID, "the unknown piece is %d, outside [-1, %d)", (int)unknown_id, (int)n);
    return PL_OK;
}

static int allocate(pl_bpe *bpe, size_t nbytes) {
    size_t n = (size_t)bpe->n, places = 16;
    while (places < 2 * n) places *= 2;
    bpe->mask = places - 1;
    bpe->bytes = pl_alloc(nbytes > 0 ? nbytes : 1, 1);
    bpe->offsets = pl_alloc(n + 1, sizeof *bpe->offsets);
    bpe->scores = pl_alloc(n, sizeof *bpe->scores);
    bpe->slots = pl_alloc(places, sizeof *bpe->slots);
    return bpe->bytes && bpe->offsets && bpe->scores && bpe->slots;
}

int32_t pl_bpe_new(const uint8_t *pieces, const int64_t *offsets, const float *scores, const uint8_t *mergeable,
                   int32_t n, const int32_t *byte_ids, int32_t unknown_id, pl_bpe **out, pl_error *err) {
    int32_t status = check_vocabulary(offsets, n, byte_ids, unknown_id, err);
    if (status != PL_OK) return status;
    size_t nbytes = (size_t)offsets[n];
    pl_bpe *bpe = pl_alloc(1, sizeof *bpe);
    if (bpe) bpe->n = n;
    if (!bpe || !allocate(bpe, nbytes)) {
        pl_bpe_free(bpe);
        return pl_fail(err, PL_MEMORY, "no memory for a vocabulary of %d pieces, %zu bytes", (int)n, nbytes);
    }
    memcpy(bpe->byte_ids, byte_ids, sizeof bpe->byte_ids);
    memcpy(bpe->scores, scores, (size_t)n * sizeof *scores);
    if (nbytes > 0) memcpy(bpe->bytes, pieces, nbytes);
    for (int32_t i = 0; i <= n; i++) bpe->offsets[i] = (size_t)offsets[i];
    bpe->unknown_id = unknown_id;
    bpe->seed = (uint64_t)(uintptr_t)bpe;
    for (int32_t i = 0; i < n; i++)
        if (mergeable[i]) insert_piece(bpe, i);
    *out = bpe;
    return PL_OK;
}

void pl_bpe_free(pl_bpe *bpe) {
    if (!bpe) return;
    pl_free(bpe->bytes);
    pl_free(bpe->offsets);
    pl_free(bpe->scores);
    pl_free(bpe->slots);
    pl_free(bpe);
}

/* ---- cutting the text --------------------------------------------------------------------------------------------- */

/* Bytes of the code point at `text` (nbytes > 0): any byte and the continuation bytes after it, four in all at most.
 * Bytes that are no UTF-8 are cut as run.c cuts them. */
static size_t code_point_length(const uint8_t *text, size_t nbytes) {
    size_t n = 1;
    while (n < 4 && n < nbytes && (text[n] & 0xC0) == 0x80) n++;
    return n;
}

/* Bytes of the word at `text` (nbytes > 0), up to the first place that no merge can cross; *n_symbols code points. */
static size_t word_length(const pl_bpe *bpe, const uint8_t *text, size_t nbytes, size_t *n_symbols) {
    size_t n = code_point_length(text, nbytes);
    *n_symbols = 1;
    while (n < nbytes && may_join(bpe, text[n - 1], text[n])) {
        n += code_point_length(text + n, nbytes - n);
        ++*n_symbols;
    }
    return n;
}

static size_t longest_word(const pl_bpe *bpe, const uint8_t *text, size_t nbytes) {
    size_t longest = 0, n_symbols;
    for (size_t at = 0; at < nbytes;) {
        at += word_length(bpe, text + at, nbytes - at, &n_symbols);
        if (n_symbols > longest) longest = n_symbols;
    }
    return longest;
}

/* ---- merging one word --------------------------------------------------------------------------------------------- */

/* A stretch of the word in a doubly linked list. Merged into its left neighbour, it has length 0. */
typedef struct symbol {
    size_t start, length; /* bytes of the word */
    size_t previous, next;
    int32_t id; /* -1: no piece; falls back to its bytes */
} symbol;

/* A pair that may be merged: symbol `left` and its neighbour, into piece `id` of `length` bytes. */
typedef struct candidate {
    float score;
    int32_t id;
    size_t left, length;
} candidate;

typedef struct workspace {
    symbol *symbols; /* (capacity) */
    candidate *heap; /* (2 * capacity): n - 1 pairs at first, and each of at most n - 1 merges pops one, adds two */
    size_t heap_size;
} workspace;

/* Symbols never change their order, so a lower index is further left. */
static int comes_first(const candidate *a, const candidate *b) {
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static void heap_push(workspace *w, candidate c) {
    size_t at = w->heap_size++;
    while (at > 0 && comes_first(&c, &w->heap[(at - 1) / 2])) {
        w->heap[at] = w->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    w->heap[at] = c;
}

static candidate heap_pop(workspace *w) {
    candidate top = w->heap[0], last = w->heap[--w->heap_size];
    size_t at = 0;
    for (size_t child = 1; child < w->heap_size; child = 2 * at + 1) {
        if (child + 1 < w->heap_size && comes_first(&w->heap[child + 1], &w->heap[child])) child++;
        if (!comes_first(&w->heap[child], &last)) break;
        w->heap[at] = w->heap[child];
        at = child;
    }
    w->heap[at] = last;
    return top;
}

/* Makes a candidate of the symbol `left` and its neighbour, if together they are a piece. */
static void consider(const pl_bpe *bpe, workspace *w, const uint8_t *word, size_t left) {
    if (left == NONE || w->symbols[left].next == NONE) return;
    const symbol *a = &w->symbols[left], *b = &w->symbols[a->next];
    if (a->id < 0 || b->id < 0) return;
    size_t length = a->length + b->length;
    int32_t id = find_piece(bpe, word + a->start, length);
    if (id >= 0 && bpe->scores[id] > LOWEST_SCORE) heap_push(w, (candidate){bpe->scores[id], id, left, length});
}

/* A candidate is stale once either of its symbols was merged: then the lengths no longer add up. */
static int is_stale(const workspace *w, const candidate *c) {
    const symbol *a = &w->symbols[c->left];
    return a->length == 0 || a->next == NONE || a->length + w->symbols[a->next].length != c->length;
}

static void merge(const pl_bpe *bpe, workspace *w, const uint8_t *word, const candidate *c) {
    symbol *a = &w->symbols[c->left], *b = &w->symbols[a->next];
    a->length = c->length;
    a->id = c->id;
    a->next = b->next;
    b->length = 0;
    if (a->next != NONE) w->symbols[a->next].previous = c->left;
    consider(bpe, w, word, a->previous);
    consider(bpe, w, word, c->left);
}

static void merge_word(const pl_bpe *bpe, workspace *w, const uint8_t *word, size_t nbytes, size_t n_symbols) {
    for (size_t i = 0, at = 0; i < n_symbols; i++) {
        size_t length = code_point_length(word + at, nbytes - at);
        size_t next = i + 1 < n_symbols ? i + 1 : NONE, previous = i > 0 ? i - 1 : NONE;
        w->symbols[i] = (symbol){at, length, previous, next, find_piece(bpe, word + at, length)};
        at += length;
    }
    w->heap_size = 0;
    for (size_t i = 0; i + 1 < n_symbols; i++) consider(bpe, w, word, i);
    while (w->heap_size > 0) {
        candidate best = heap_pop(w);
        if (!is_stale(w, &best)) merge(bpe, w, word, &best);
    }
}

/* ---- writing the ids ---------------------------------------------------------------------------------------------- */

static int32_t write_bytes(const pl_bpe *bpe, const uint8_t *bytes, size_t n, int32_t *out, int64_t *n_out,
                           pl_error *err) {
    for (size_t i = 0; i < n; i++) {
        int32_t id = bpe->byte_ids[bytes[i]] >= 0 ? bpe->byte_ids[bytes[i]] : bpe->unknown_id;
        if (id < 0) return pl_fail(err, PL_INVALID, "the vocabulary has no piece for byte 0x%02X", bytes[i]);
        out[(*n_out)++] = id;
    }
    return PL_OK;
}

static int32_t write_word(const pl_bpe *bpe, const workspace *w, const uint8_t *word, int32_t *out, int64_t *n_out,
                          pl_error *err) {
    int32_t status = PL_OK;
    for (size_t i = 0; i != NONE && status == PL_OK; i = w->symbols[i].next) {
        const symbol *s = &w->symbols[i];
        if (s->id >= 0) out[(*n_out)++] = s->id;
        else status = write_bytes(bpe, word + s->start, s->length, out, n_out, err);
    }
    return status;
}

int32_t pl_bpe_encode(const pl_bpe *bpe, const uint8_t *text, size_t nbytes, int32_t *out, int64_t *n_out,
                      pl_error *err) {
    *n_out = 0;
    if (nbytes == 0) return PL_OK;
    size_t capacity = longest_word(bpe, text, nbytes), n_symbols;
    workspace w = {pl_alloc(capacity, sizeof *w.symbols), NULL, 0};
    /* A symbol is larger than half a candidate: where the first array fits, 2 * capacity cannot overflow. */
    if (w.symbols) w.heap = pl_alloc(2 * capacity, sizeof *w.heap);
    int32_t status = PL_OK;
    if (!w.heap) status = pl_fail(err, PL_MEMORY, "no memory to encode a word of %zu characters", capacity);
    for (size_t at = 0, length; at < nbytes && status == PL_OK; at += length) {
        length = word_length(bpe, text + at, nbytes - at, &n_symbols);
        merge_word(bpe, &w, text + at, length, n_symbols);
        status = write_word(bpe, &w, text + at, out, n_out, err);
    }
    pl_free(w.symbols);
    pl_free(w.heap);
    return status;
}
