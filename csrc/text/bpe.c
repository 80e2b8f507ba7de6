/* Byte pair merges.
 *
 * A text is cut into words, and each word into symbols: code points, or bytes. Then, again and again, the best
 * adjacent pair is merged, the leftmost on ties, until no pair can be.
 *
 * By scores, as in llama2.c's run.c, which is the definition, and SentencePiece: a pair can be merged if its bytes
 * together are a piece, whose score says how good it is; a code point that is no piece becomes the fallback pieces of
 * its bytes, which take no part in merging. By ranks, as in GPT-2: a pair can be merged if it is in the list of
 * merges, and the earlier it stands there, the better it is.
 *
 * run.c scans all pairs before each merge. Here a heap holds the candidate pairs, so n symbols cost O(n log n). Where
 * no patterns say what words are, the text is cut at all places whose two bytes adjoin inside no piece, for no merge
 * can cross them. In most text these really are words, and heaps stay in the fastest cache. */
#include <stdatomic.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/threads.h"
#include "text/unicode.h"
#include "text/words.h"

static const float LOWEST_SCORE = -1e10f;   /* run.c merges only above this */
static const int32_t MOST_MERGES = 1 << 24; /* whose numbers a float holds */
static const size_t NONE = SIZE_MAX;

/* One place of the hash table: the id of a piece plus one, so that 0 is an empty place, and its hash. */
typedef struct slot {
    uint32_t hash;
    uint32_t id_plus_1;
} slot;

/* The same for pairs that can be merged. */
typedef struct pair_slot {
    int32_t left, right, id;
    uint32_t rank_plus_1;
} pair_slot;

/* What merging makes of a word that is a piece: not known yet, that piece, or something else. */
enum { UNKNOWN, ITSELF, OTHERWISE };

struct pl_bpe {
    int32_t n;
    uint8_t *bytes;  /* all pieces, one after another */
    size_t *offsets; /* (n + 1) */
    float *scores;   /* (n), NULL where merges have ranks */
    slot *slots;     /* (mask + 1), open addressing; at most half full */
    size_t mask;
    pair_slot *pairs; /* (pair_mask + 1) likewise, NULL where pieces have scores */
    size_t pair_mask;
    uint64_t seed;
    size_t longest;         /* bytes of the longest mergeable piece */
    uint8_t joins[8192];    /* bit (a << 8 | b): some mergeable piece has byte b right after byte a */
    _Atomic uint8_t *whole; /* (n) a memo: what becomes of this piece; all threads write the same */
    const pl_words *words;  /* or NULL */
    int32_t byte_level, whole_words;
    int32_t byte_ids[256];
    int32_t unknown_id;
};

/* ---- the table of pieces ----------------------------------------------------------------------------------------- */

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

/* ---- the table of pairs ------------------------------------------------------------------------------------------ */

/* The place where this pair is, or the empty one where it would be. */
static size_t find_pair(const pl_bpe *bpe, int32_t left, int32_t right) {
    uint64_t h = bpe->seed ^ ((uint64_t)(uint32_t)left << 32 | (uint32_t)right);
    h *= 0x9E3779B97F4A7C15ULL;
    h ^= h >> 32;
    h *= 0x9E3779B97F4A7C15ULL;
    size_t at = (size_t)(h >> 32) & bpe->pair_mask;
    for (; bpe->pairs[at].rank_plus_1 != 0; at = (at + 1) & bpe->pair_mask)
        if (bpe->pairs[at].left == left && bpe->pairs[at].right == right) break;
    return at;
}

/* Of equal pairs the last one counts, as in the `tokenizers` library. */
static void insert_pair(pl_bpe *bpe, int32_t left, int32_t right, int32_t id, int32_t rank) {
    bpe->pairs[find_pair(bpe, left, right)] = (pair_slot){left, right, id, (uint32_t)rank + 1};
}

/* ---- making and freeing ------------------------------------------------------------------------------------------ */

static int32_t check_strings(const pl_strings *strings, const char *what, pl_error *err) {
    for (int32_t i = 0; i < strings->n; i++)
        if (strings->starts[i] < 0 || strings->ends[i] < strings->starts[i])
            return pl_fail(err, PL_INVALID, "%s %d ends before it starts", what, (int)i);
    return PL_OK;
}

static int32_t check_vocabulary(const pl_vocabulary *v, pl_error *err) {
    int32_t n = v->pieces.n;
    if (n < 1) return pl_fail(err, PL_INVALID, "a vocabulary of %d pieces", (int)n);
    for (int32_t b = 0; b < 256 && !v->byte_level; b++)
        if (v->byte_ids[b] < -1 || v->byte_ids[b] >= n)
            return pl_fail(err, PL_INVALID, "the piece of byte %d is %d, outside [-1, %d)", (int)b, (int)v->byte_ids[b],
                           (int)n);
    if (v->unknown_id < -1 || v->unknown_id >= n)
        return pl_fail(err, PL_INVALID, "the unknown piece is %d, outside [-1, %d)", (int)v->unknown_id, (int)n);
    if (v->merges.n > MOST_MERGES)
        return pl_fail(err, PL_INVALID, "%d merges, more than %d", (int)v->merges.n, (int)MOST_MERGES);
    int32_t status = check_strings(&v->pieces, "piece", err);
    return status == PL_OK ? check_strings(&v->merges, "merge", err) : status;
}

/* Places of an open table for n entries, less one. */
static size_t mask_for(size_t n) {
    size_t places = 16;
    while (places < 2 * n) places *= 2;
    return places - 1;
}

static size_t total_bytes(const pl_strings *strings) {
    size_t total = 0;
    for (int32_t i = 0; i < strings->n; i++) total += (size_t)(strings->ends[i] - strings->starts[i]);
    return total;
}

static int allocate(pl_bpe *bpe, const pl_vocabulary *v) {
    size_t n = (size_t)bpe->n;
    bpe->mask = mask_for(n);
    bpe->bytes = pl_alloc(total_bytes(&v->pieces) + 1, 1);
    bpe->offsets = pl_alloc(n + 1, sizeof *bpe->offsets);
    bpe->slots = pl_alloc(bpe->mask + 1, sizeof *bpe->slots);
    bpe->whole = pl_alloc(n, sizeof *bpe->whole);
    if (v->scores) {
        bpe->scores = pl_alloc(n, sizeof *bpe->scores);
    } else {
        bpe->pair_mask = mask_for((size_t)v->merges.n);
        bpe->pairs = pl_alloc(bpe->pair_mask + 1, sizeof *bpe->pairs);
    }
    return bpe->bytes && bpe->offsets && bpe->slots && bpe->whole && (bpe->scores || bpe->pairs);
}

/* Copies n bytes, those that are written in GPT-2's alphabet as the bytes they mean. Where another character is among
 * them, *odd is set. Returns how many were written, at most n. */
static size_t copy_bytes(uint8_t *to, const uint8_t *from, size_t n, int32_t byte_level, int *odd) {
    if (!byte_level) {
        if (n > 0) memcpy(to, from, n);
        return n;
    }
    size_t written = 0;
    for (size_t at = 0; at < n;) {
        int32_t byte = pl_character_byte(pl_decode(from, at, n, &at));
        if (byte < 0) *odd = 1;
        else to[written++] = (uint8_t)byte;
    }
    return written;
}

static void insert_pieces(pl_bpe *bpe, const pl_vocabulary *v) {
    for (int32_t i = 0; i < bpe->n; i++) {
        size_t nbytes = (size_t)(v->pieces.ends[i] - v->pieces.starts[i]);
        int odd = 0; /* such a piece is no word's: bytes make only what the alphabet can write */
        size_t written = copy_bytes(bpe->bytes + bpe->offsets[i], v->pieces.bytes + v->pieces.starts[i], nbytes,
                                    bpe->byte_level, &odd);
        bpe->offsets[i + 1] = bpe->offsets[i] + written;
        if (v->mergeable[i] && !odd) insert_piece(bpe, i);
    }
    for (int b = 0; b < 256 && bpe->byte_level; b++) bpe->byte_ids[b] = find_piece(bpe, &(uint8_t){(uint8_t)b}, 1);
}

/* Finds the pieces of "LEFT RIGHT", which must be there, and of both together. scratch has room for all of it. */
static int read_merge(const pl_bpe *bpe, const uint8_t *merge, size_t n, uint8_t *scratch, int32_t found[3]) {
    const uint8_t *space = n > 1 ? memchr(merge + 1, ' ', n - 1) : NULL;
    if (!space) return 0;
    size_t left = (size_t)(space - merge);
    int odd = 0;
    size_t nleft = copy_bytes(scratch, merge, left, bpe->byte_level, &odd);
    size_t nright = copy_bytes(scratch + nleft, space + 1, n - left - 1, bpe->byte_level, &odd);
    found[0] = find_piece(bpe, scratch, nleft);
    found[1] = find_piece(bpe, scratch + nleft, nright);
    found[2] = find_piece(bpe, scratch, nleft + nright);
    return !odd && found[0] >= 0 && found[1] >= 0 && found[2] >= 0;
}

static int32_t insert_pairs(pl_bpe *bpe, const pl_strings *merges, pl_error *err) {
    size_t longest = 0;
    for (int32_t i = 0; i < merges->n; i++) {
        size_t n = (size_t)(merges->ends[i] - merges->starts[i]);
        if (n > longest) longest = n;
    }
    uint8_t *scratch = pl_alloc(longest + 1, 1);
    if (!scratch) return pl_fail(err, PL_MEMORY, "no memory for a merge of %zu bytes", longest);
    int32_t status = PL_OK;
    for (int32_t i = 0; i < merges->n && status == PL_OK; i++) {
        int32_t found[3];
        size_t n = (size_t)(merges->ends[i] - merges->starts[i]);
        if (read_merge(bpe, merges->bytes + merges->starts[i], n, scratch, found))
            insert_pair(bpe, found[0], found[1], found[2], i);
        else status = pl_fail(err, PL_INVALID, "merge %d is not of two pieces that make a piece", (int)i);
    }
    pl_free(scratch);
    return status;
}

int32_t pl_bpe_new(const pl_vocabulary *v, const pl_words *words, pl_bpe **out, pl_error *err) {
    int32_t status = check_vocabulary(v, err);
    if (status != PL_OK) return status;
    pl_bpe *bpe = pl_alloc(1, sizeof *bpe);
    if (bpe) bpe->n = v->pieces.n;
    if (!bpe || !allocate(bpe, v)) {
        pl_bpe_free(bpe);
        return pl_fail(err, PL_MEMORY, "no memory for a vocabulary of %d pieces", (int)v->pieces.n);
    }
    bpe->seed = (uint64_t)(uintptr_t)bpe;
    bpe->words = words;
    bpe->byte_level = v->byte_level;
    bpe->whole_words = v->whole_words;
    bpe->unknown_id = v->unknown_id;
    if (!v->byte_level) memcpy(bpe->byte_ids, v->byte_ids, sizeof bpe->byte_ids);
    if (v->scores) memcpy(bpe->scores, v->scores, (size_t)bpe->n * sizeof *v->scores);
    insert_pieces(bpe, v);
    if (!v->scores) status = insert_pairs(bpe, &v->merges, err);
    if (status == PL_OK) *out = bpe;
    else pl_bpe_free(bpe);
    return status;
}

void pl_bpe_free(pl_bpe *bpe) {
    if (!bpe) return;
    pl_free(bpe->bytes);
    pl_free(bpe->offsets);
    pl_free(bpe->scores);
    pl_free(bpe->slots);
    pl_free(bpe->pairs);
    pl_free((void *)bpe->whole);
    pl_free(bpe);
}

/* ---- cutting the text -------------------------------------------------------------------------------------------- */

/* Bytes of the code point at `text` (nbytes > 0): any byte and the continuation bytes after it, four in all at most.
 * Bytes that are no UTF-8 are cut as run.c cuts them. */
static size_t code_point_length(const uint8_t *text, size_t nbytes) {
    size_t n = 1;
    while (n < 4 && n < nbytes && (text[n] & 0xC0) == 0x80) n++;
    return n;
}

/* Bytes of the word at `text` (nbytes > 0), up to the first place that no merge can cross. */
static size_t word_length(const pl_bpe *bpe, const uint8_t *text, size_t nbytes) {
    size_t n = code_point_length(text, nbytes);
    while (n < nbytes && may_join(bpe, text[n - 1], text[n])) n += code_point_length(text + n, nbytes - n);
    return n;
}

/* ---- merging one word -------------------------------------------------------------------------------------------- */

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
    size_t heap_size, capacity;
} workspace;

static void free_workspace(workspace *w) {
    pl_free(w->symbols);
    pl_free(w->heap);
    *w = (workspace){0};
}

/* Makes room for n symbols. */
static int32_t reserve(workspace *w, size_t n, pl_error *err) {
    if (n <= w->capacity) return PL_OK;
    free_workspace(w);
    size_t capacity = n < 64 ? 64 : n + n / 2;
    w->symbols = pl_alloc(capacity, sizeof *w->symbols);
    /* A symbol is larger than half a candidate: where the first array fits, 2 * capacity cannot overflow. */
    if (w->symbols) w->heap = pl_alloc(2 * capacity, sizeof *w->heap);
    if (!w->heap) {
        free_workspace(w);
        return pl_fail(err, PL_MEMORY, "no memory to encode a word of %zu characters", n);
    }
    w->capacity = capacity;
    return PL_OK;
}

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

/* Makes a candidate of the symbol `left` and its neighbour, if they can be merged. */
static void consider(const pl_bpe *bpe, workspace *w, const uint8_t *word, size_t left) {
    if (left == NONE || w->symbols[left].next == NONE) return;
    const symbol *a = &w->symbols[left], *b = &w->symbols[a->next];
    if (a->id < 0 || b->id < 0) return;
    size_t length = a->length + b->length;
    if (bpe->pairs) {
        const pair_slot *pair = &bpe->pairs[find_pair(bpe, a->id, b->id)];
        if (pair->rank_plus_1 > 0) heap_push(w, (candidate){-(float)pair->rank_plus_1, pair->id, left, length});
        return;
    }
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

/* Cuts a word into symbols; returns their number, at most nbytes. Bytes without a piece vanish, as in GPT-2. */
static size_t cut_symbols(const pl_bpe *bpe, workspace *w, const uint8_t *word, size_t nbytes) {
    size_t n = 0;
    for (size_t at = 0, length; at < nbytes; at += length) {
        length = bpe->byte_level ? 1 : code_point_length(word + at, nbytes - at);
        int32_t id = bpe->byte_level ? bpe->byte_ids[word[at]] : find_piece(bpe, word + at, length);
        if (bpe->byte_level && id < 0) continue;
        w->symbols[n] = (symbol){at, length, n > 0 ? n - 1 : NONE, n + 1, id};
        n++;
    }
    if (n > 0) w->symbols[n - 1].next = NONE;
    return n;
}

/* Returns 0 if nothing is left of the word, and 1 if symbols[0] begins what became of it. */
static int merge_word(const pl_bpe *bpe, workspace *w, const uint8_t *word, size_t nbytes) {
    size_t n_symbols = cut_symbols(bpe, w, word, nbytes);
    w->heap_size = 0;
    for (size_t i = 0; i + 1 < n_symbols; i++) consider(bpe, w, word, i);
    while (w->heap_size > 0) {
        candidate best = heap_pop(w);
        if (!is_stale(w, &best)) merge(bpe, w, word, &best);
    }
    return n_symbols > 0;
}

/* ---- writing the ids --------------------------------------------------------------------------------------------- */

/* Where ids go, and the memory to find them with: one for each thread. */
typedef struct writer {
    const pl_bpe *bpe;
    workspace space;
    int32_t *out;
    int64_t n_out;
} writer;

static int32_t write_bytes(writer *w, const uint8_t *bytes, size_t n, pl_error *err) {
    for (size_t i = 0; i < n; i++) {
        int32_t id = w->bpe->byte_ids[bytes[i]] >= 0 ? w->bpe->byte_ids[bytes[i]] : w->bpe->unknown_id;
        if (id < 0) return pl_fail(err, PL_INVALID, "the vocabulary has no piece for byte 0x%02X", bytes[i]);
        w->out[w->n_out++] = id;
    }
    return PL_OK;
}

static int32_t write_merged(writer *w, const uint8_t *word, size_t nbytes, pl_error *err) {
    int32_t status = reserve(&w->space, nbytes, err);
    if (status != PL_OK) return status;
    size_t i = merge_word(w->bpe, &w->space, word, nbytes) ? 0 : NONE;
    for (const symbol *s; i != NONE && status == PL_OK; i = s->next) {
        s = &w->space.symbols[i];
        if (s->id >= 0) w->out[w->n_out++] = s->id;
        else status = write_bytes(w, word + s->start, s->length, err);
    }
    return status;
}

/* A pl_word_fn. Most words are pieces, and most pieces are what merging makes of them: that is found out once. */
static int32_t write_word(void *context, const uint8_t *word, size_t nbytes, pl_error *err) {
    writer *w = context;
    const pl_bpe *bpe = w->bpe;
    int32_t id = find_piece(bpe, word, nbytes);
    uint8_t known = id >= 0 ? atomic_load_explicit(&bpe->whole[id], memory_order_relaxed) : OTHERWISE;
    if (id >= 0 && (bpe->whole_words || known == ITSELF)) {
        w->out[w->n_out++] = id;
        return PL_OK;
    }
    int64_t before = w->n_out;
    int32_t status = write_merged(w, word, nbytes, err);
    if (known == UNKNOWN && status == PL_OK) {
        int itself = w->n_out == before + 1 && w->out[before] == id;
        atomic_store_explicit(&bpe->whole[id], itself ? ITSELF : OTHERWISE, memory_order_relaxed);
    }
    return status;
}

static int32_t write_text(writer *w, const uint8_t *text, size_t nbytes, pl_error *err) {
    if (w->bpe->words) return pl_words_each(w->bpe->words, text, nbytes, write_word, w, err);
    int32_t status = PL_OK;
    for (size_t at = 0, length; at < nbytes && status == PL_OK; at += length) {
        length = word_length(w->bpe, text + at, nbytes - at);
        status = write_word(w, text + at, length, err);
    }
    return status;
}

/* ---- many texts -------------------------------------------------------------------------------------------------- */

typedef struct batch {
    const pl_bpe *bpe;
    const uint8_t *text;
    const int64_t *ends;
    int32_t n;
    int32_t *out;
    int64_t *counts; /* (n) -1 where it failed */
    _Atomic int32_t next;
} batch;

static int32_t encode_one(const batch *b, writer *w, int32_t i, pl_error *err) {
    int64_t start = i > 0 ? b->ends[i - 1] : 0;
    w->out = b->out + start;
    w->n_out = 0;
    int32_t status = write_text(w, b->text + start, (size_t)(b->ends[i] - start), err);
    b->counts[i] = status == PL_OK ? w->n_out : -1;
    return status;
}

/* Takes one text after another until none is left. */
static void encode_share(void *argument, const pl_worker *worker) {
    (void)worker;
    batch *b = argument;
    writer w = {.bpe = b->bpe};
    pl_error unused;
    for (int32_t i; (i = atomic_fetch_add(&b->next, 1)) < b->n;) encode_one(b, &w, i, &unused);
    free_workspace(&w.space);
}

int32_t pl_bpe_encode(const pl_bpe *bpe, const uint8_t *text, const int64_t *ends, int32_t n, int32_t threads,
                      int32_t *out, int64_t *counts, pl_error *err) {
    for (int32_t i = 0; i < n; i++)
        if (ends[i] < (i > 0 ? ends[i - 1] : 0))
            return pl_fail(err, PL_INVALID, "text %d ends before it starts", (int)i);
    batch b = {bpe, text, ends, n, out, counts, 0};
    if (threads > 1 && n > 1) pl_parallel(threads < n ? threads : n, encode_share, &b);
    else encode_share(&b, NULL);
    for (int32_t i = 0; i < n; i++) {
        if (counts[i] >= 0) continue;
        writer w = {.bpe = bpe}; /* once more, to say what is wrong */
        int32_t status = encode_one(&b, &w, i, err);
        free_workspace(&w.space);
        if (status != PL_OK) return status;
    }
    return PL_OK;
}
