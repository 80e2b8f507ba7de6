/* The boundary of the C library. Declarations only: this text is both the body of pyllm.h and the cdef() given to cffi,
 * so the two cannot drift. Python reaches nothing else.
 *
 * Contract. Every function that can fail returns a pl_status, as int32_t, and, on failure, writes one sentence into
 * *err, which the caller owns and may not be NULL. Nothing here exits, prints, or touches file descriptors,
 * environment, signal or floating-point state. Shapes stand beside pointers; matrices are row-major, W is (rows, cols)
 * and y = W x. A pl_model is frozen after pl_model_finish: any number of threads may use it at once. A pl_session is
 * one mutable timeline: one thread at a time (the caller's lock keeps that). */

/* ---- errors ---------------------------------------------------------------------------------------------------- */

typedef enum pl_status {
    PL_OK = 0,
    PL_INVALID = 1,     /* an argument is out of its range                        -> ValueError             */
    PL_FORMAT = 2,      /* the file's tensors do not fit together                 -> ModelFormatError       */
    PL_UNSUPPORTED = 3, /* well-formed, but this library cannot run it            -> UnsupportedModelError  */
    PL_MEMORY = 4,      /* an allocation failed                                   -> OutOfMemoryError       */
    PL_CONTEXT = 5,     /* the session's context length is exceeded               -> ContextLengthError     */
    PL_INTERRUPTED = 6, /* the poll callback asked to stop; the session is as it was before the call        */
} pl_status;

typedef struct pl_error {
    int32_t status;
    char message[252];
} pl_error;

/* ---- the machine ----------------------------------------------------------------------------------------------- */

enum { PL_MOST_THREADS = 1024 };

/* Names of the kernel levels this machine can run, best first ("avx512", "avxvnni", "avx2", "scalar"; "i8mm",
 * "dotprod", "neon", "scalar"; NULL past the end). */
const char *pl_isa_name(int32_t index);
/* The level in use. It starts at the best one; selecting is for tests and PYLLM_ISA, and takes effect for the
 * evaluations that start after it. Every level gives the same bits. */
const char *pl_isa_current(void);
int32_t pl_isa_select(const char *name, pl_error *err);

/* Where the cores are busy with others, work goes on alone for a while instead of waiting at every step for a thread
 * that is not running. With on != 0 it never does: for tests of what several threads compute. */
void pl_insist_on_threads(int32_t on);

/* Reads nbytes at data with `threads` threads; the best of `repeats` rates, in bytes per second. */
double pl_read_bandwidth(const void *data, size_t nbytes, int32_t threads, int32_t repeats);

/* Seconds that `threads` threads take for one barrier, over `crossings` of them in a row: it tells whether the cores
 * they run on share a cache. 0 where there was only one thread to be had. */
double pl_barrier_seconds(int32_t threads, int32_t crossings);

/* ---- weight types ---------------------------------------------------------------------------------------------- */

/* One row of the table of weight types. Ids are GGUF's; those above GGUF's are pyllm's own. */
typedef struct pl_type_info {
    int32_t id;
    const char *name;       /* "Q4_K" */
    int32_t block_elements; /* consecutive weights of one row that share a block; 1 for float types */
    int32_t block_bytes;
} pl_type_info;

enum {
    PL_TYPE_F32 = 0,
    PL_TYPE_F16 = 1,
    PL_TYPE_Q4_0 = 2,
    PL_TYPE_Q4_1 = 3,
    PL_TYPE_Q5_0 = 6,
    PL_TYPE_Q5_1 = 7,
    PL_TYPE_Q8_0 = 8,
    PL_TYPE_Q2_K = 10,
    PL_TYPE_Q3_K = 11,
    PL_TYPE_Q4_K = 12,
    PL_TYPE_Q5_K = 13,
    PL_TYPE_Q6_K = 14,
    PL_TYPE_Q8_K = 15,
    PL_TYPE_IQ2_XXS = 16,
    PL_TYPE_IQ2_XS = 17,
    PL_TYPE_IQ3_XXS = 18,
    PL_TYPE_IQ1_S = 19,
    PL_TYPE_IQ4_NL = 20,
    PL_TYPE_IQ3_S = 21,
    PL_TYPE_IQ2_S = 22,
    PL_TYPE_IQ4_XS = 23,
    PL_TYPE_IQ1_M = 29,
    PL_TYPE_BF16 = 30,
    PL_TYPE_TQ1_0 = 34,
    PL_TYPE_TQ2_0 = 35,
    PL_TYPE_MXFP4 = 39,
    PL_TYPE_NVFP4 = 40,
    PL_TYPE_Q1_0 = 41,
    PL_TYPE_Q2_0 = 42,
    PL_TYPE_LLAMA2C_Q8 = 1000, /* llama2.c v2: int8[n] then fp32 scales[n / group], groups run over the flat tensor */
};

const pl_type_info *pl_type_at(int32_t index); /* NULL past the end */
const pl_type_info *pl_type_find(int32_t id);  /* NULL if unknown */

/* A matrix as it lies in a file. `group` is 0 except for PL_TYPE_LLAMA2C_Q8. data needs no alignment. */
typedef struct pl_source {
    int32_t type;
    int64_t rows, cols;
    int64_t group;
    const void *data;
    size_t nbytes;
} pl_source;

/* The reference dequantiser: out (rows, cols) fp32, the values the file means. */
int32_t pl_dequantize(const pl_source *source, float *out, pl_error *err);

/* Rows [first, first + n) of `source` as weights of another type, out (nbytes: n rows of it). Deterministic, whatever
 * the number of threads. Not every type can be made: those without a quantiser are PL_UNSUPPORTED. Weights that are not
 * finite, or too large for a half-precision scale, are PL_FORMAT. */
int32_t pl_quantize(const pl_source *source, int64_t first, int64_t n, int32_t type, int32_t threads, void *out,
                    size_t nbytes, pl_error *err);

/* One matrix product through the kernels of one level, for tests and benchmarks: packs `source`, prepares x as the
 * forward pass would (planes: 2 for precision "high", 1 for "fast"), and computes y = x W^T.
 * x (n, cols), y (n, rows) fp32. */
int32_t pl_matmul_once(const char *isa, const pl_source *source, const float *x, int64_t n, int32_t planes, float *y,
                       pl_error *err);

/* One vector kernel of one level, for tests. kernel: "rmsnorm" (b: weights, parameter: eps), "swiglu" (a: gate, b: up),
 * "softmax" (parameter: scale; out (n + 2) ends with the sum and the maximum), "softcap" (parameter: cap), "centre" (of
 * the first `parameter` elements), "erf", "tanh", or an activation: "silu", "gelu", "gelu_tanh", "relu_squared",
 * "silu_clamped" (parameter: limit). a, b, out (n), n a multiple of 16; of activations b, up, may be NULL. */
int32_t pl_vector_once(const char *isa, const char *kernel, const float *a, const float *b, int64_t n, float parameter,
                       float *out, pl_error *err);

/* ---- the model ------------------------------------------------------------------------------------------------- */

/* How a vector is normalised, and what is normalised of queries and keys (before they are rotated). */
enum { PL_NORM_RMS = 0, PL_NORM_LAYER };
enum {
    PL_QK_NORM_NONE = 0,
    PL_QK_NORM_HEAD, /* each head, all with the same (head_dim) weights */
    PL_QK_NORM_EACH, /* each head, with weights of its own: (heads * head_dim) */
    PL_QK_NORM_WIDE, /* all heads as one vector, (heads * head_dim) */
};

/* What stands between the matrices of a feed-forward layer. Gated: activation(gate) * up; else activation(up). */
enum {
    PL_ACTIVATION_SILU = 0,
    PL_ACTIVATION_GELU,         /* x * Phi(x), by erf */
    PL_ACTIVATION_GELU_TANH,    /* its approximation by tanh */
    PL_ACTIVATION_RELU_SQUARED, /* max(x, 0)^2 */
    PL_ACTIVATION_SILU_CLAMPED, /* g = min(gate, limit), u = clamp(up, -limit, limit): g sigmoid(1.702 g) (u + 1) */
};

/* How the experts of a token are weighed, by the router's logits. */
enum {
    PL_ROUTING_SOFTMAX = 0,    /* probabilities among all experts; the largest are taken */
    PL_ROUTING_SOFTMAX_CHOSEN, /* the largest logits are taken; probabilities among those */
    PL_ROUTING_SIGMOID,        /* sigmoids; the largest are taken */
};

/* Orthogonal switches, no family names. Every field is checked by pl_model_new. */
typedef struct pl_config {
    int32_t dim;        /* width of the residual stream */
    int32_t hidden_dim; /* width of the feed-forward layer, where it has no experts */
    int32_t n_layers;
    int32_t n_heads; /* query heads; a multiple of n_kv_heads */
    int32_t n_kv_heads;
    int32_t head_dim; /* even */
    int32_t vocab_size;
    int32_t context_length; /* positions the model was made for */
    int32_t norm;           /* PL_NORM_* */
    float norm_eps;
    int32_t norm_after_sum; /* 1: x = post_norm(x + block(x)), as BERT; 0: x = x + post_norm(block(norm(x))) */
    int32_t parallel;       /* 1: attention and feed-forward read the same x, and both are added to it */
    int32_t causal;         /* 0: every token sees the whole sequence, which comes in one run */
    int32_t qk_norm;        /* PL_QK_NORM_* */
    int32_t activation;     /* PL_ACTIVATION_* */
    int32_t gated;
    float activation_limit;   /* of PL_ACTIVATION_SILU_CLAMPED */
    float rope_base;          /* theta */
    float rope_local_base;    /* theta of layers whose rope is PL_ROPE_LOCAL; 0 where there are none */
    float rope_scale;         /* what the main rope's cosines and sines are multiplied with; 1 but for YaRN's kin */
    int32_t rope_dims;        /* leading dimensions of a head that rotate; even, at most head_dim */
    int32_t rope_interleaved; /* 1: the file pairs dimensions (2i, 2i+1); 0: (i, i + rope_dims / 2) */
    int32_t rope_original;    /* sequences longer than this use PL_SLOT_ROPE_FACTORS_LONG; 0: none do */
    float attention_scale;    /* what scores are multiplied with; 0: 1 / sqrt(head_dim) */
    float attention_softcap;  /* scores become cap * tanh(score / cap); 0: they do not */
    float logit_softcap;      /* the same of logits */
    float embedding_scale;    /* multipliers of the embedding, of what each block adds, and of the logits */
    float residual_scale;
    float logit_scale;
    int32_t n_experts; /* 0: none */
    int32_t n_experts_used;
    int32_t expert_dim;         /* width of an expert */
    int32_t shared_dim;         /* width of the expert that every token takes; 0: none */
    int32_t routing;            /* PL_ROUTING_* */
    int32_t expert_renormalise; /* 1: weights of the experts taken are divided by their sum */
    float expert_scale;         /* and multiplied with this */
    int32_t planes;             /* 2: precision "high" (16-bit activations); 1: "fast" (8-bit) */
    int32_t kv_type;            /* PL_TYPE_F32, PL_TYPE_F16 or PL_TYPE_Q8_0 */
} pl_config;

/* Which rotation a layer's queries and keys get. */
enum { PL_ROPE_NONE = 0, PL_ROPE_MAIN, PL_ROPE_LOCAL };

/* What may differ from layer to layer. */
typedef struct pl_layer_config {
    int32_t window;  /* positions a token sees, its own among them; 0: all. Not causal: window / 2 on either side */
    int32_t rope;    /* PL_ROPE_* */
    int32_t experts; /* 1: its feed-forward layer is a mixture of experts */
} pl_layer_config;

/* Places a tensor can be bound to. Vectors are (1, n). The order is the order of the forward pass. Those marked with *
 * may be absent, and then do nothing; a model has the others wherever its config needs them. q = n_heads * head_dim,
 * kv = n_kv_heads * head_dim. */
enum {
    PL_SLOT_EMBEDDING = 0,      /* (vocab, dim) */
    PL_SLOT_POSITION_EMBEDDING, /* * (context, dim), added to it */
    PL_SLOT_EMBEDDING_NORM,     /* * (dim) */
    PL_SLOT_EMBEDDING_NORM_BIAS,
    /* per layer */
    PL_SLOT_ATTENTION_NORM,           /* * (dim) */
    PL_SLOT_ATTENTION_NORM_BIAS,      /* * */
    PL_SLOT_WQ,                       /* (q, dim) */
    PL_SLOT_WK,                       /* (kv, dim) */
    PL_SLOT_WV,                       /* (kv, dim) */
    PL_SLOT_BQ,                       /* * (q) */
    PL_SLOT_BK,                       /* * (kv) */
    PL_SLOT_BV,                       /* * (kv) */
    PL_SLOT_Q_NORM,                   /* as PL_QK_NORM_* says */
    PL_SLOT_K_NORM,                   /* likewise */
    PL_SLOT_SINKS,                    /* * (n_heads): a score that each head's softmax counts, and that has no value */
    PL_SLOT_WO,                       /* (dim, q) */
    PL_SLOT_BO,                       /* * (dim) */
    PL_SLOT_ATTENTION_POST_NORM,      /* * (dim) */
    PL_SLOT_ATTENTION_POST_NORM_BIAS, /* * */
    PL_SLOT_FFN_NORM,                 /* * (dim); absent in a parallel block: it reads what attention reads */
    PL_SLOT_FFN_NORM_BIAS,            /* * */
    PL_SLOT_GATE,                     /* (hidden, dim), if gated; llama2.c's w1 */
    PL_SLOT_UP,                       /* (hidden, dim); w3 */
    PL_SLOT_DOWN,                     /* (dim, hidden); w2 */
    PL_SLOT_GATE_BIAS,                /* * (hidden) */
    PL_SLOT_UP_BIAS,                  /* * (hidden) */
    PL_SLOT_DOWN_BIAS,                /* * (dim) */
    PL_SLOT_ROUTER,                   /* (experts, dim), where a layer has experts, and so on */
    PL_SLOT_ROUTER_BIAS,              /* * (experts), added to the router's logits */
    PL_SLOT_CHOICE_BIAS,              /* * (experts), added to what experts are chosen by, not to their weights */
    PL_SLOT_EXPERT_GATE,              /* (expert_dim, dim), per expert, if gated */
    PL_SLOT_EXPERT_UP,                /* (expert_dim, dim), per expert */
    PL_SLOT_EXPERT_DOWN,              /* (dim, expert_dim), per expert */
    PL_SLOT_EXPERT_GATE_BIAS,         /* * (expert_dim), per expert */
    PL_SLOT_EXPERT_UP_BIAS,           /* * (expert_dim), per expert */
    PL_SLOT_EXPERT_DOWN_BIAS,         /* * (dim), per expert */
    PL_SLOT_SHARED_GATE,              /* (shared_dim, dim), if gated */
    PL_SLOT_SHARED_UP,                /* (shared_dim, dim) */
    PL_SLOT_SHARED_DOWN,              /* (dim, shared_dim) */
    PL_SLOT_SHARED_ROUTER,            /* * (1, dim): its sigmoid weighs the shared expert */
    PL_SLOT_FFN_POST_NORM,            /* * (dim) */
    PL_SLOT_FFN_POST_NORM_BIAS,       /* * */
    /* once */
    PL_SLOT_FINAL_NORM,        /* * (dim) */
    PL_SLOT_FINAL_NORM_BIAS,   /* * */
    PL_SLOT_HEAD,              /* * (vocab, dim); absent: the embedding is tied, or if not causal there are no logits */
    PL_SLOT_HEAD_BIAS,         /* * (vocab) */
    PL_SLOT_ROPE_FACTORS,      /* * (rope_dims / 2); absent: ones. The main rope's frequencies are divided by them */
    PL_SLOT_ROPE_FACTORS_LONG, /* (rope_dims / 2), where rope_original is set */
    PL_SLOT_COUNT
};

typedef struct pl_model pl_model;

/* layers (n_layers). */
int32_t pl_model_new(const pl_config *config, const pl_layer_config *layers, pl_model **out, pl_error *err);
/* Checks shape and size, then packs the tensor into the model's own memory with `threads` threads; `source` may be
 * unmapped afterwards. `layer` and `expert` are 0 for slots that are not per layer or per expert. */
int32_t pl_model_bind(pl_model *model, int32_t slot, int32_t layer, int32_t expert, const pl_source *source,
                      int32_t threads, pl_error *err);
/* Names the first slot that is missing; after it the model is frozen. */
int32_t pl_model_finish(pl_model *model, pl_error *err);
size_t pl_model_nbytes(const pl_model *model);      /* packed weights held in memory */
size_t pl_model_token_bytes(const pl_model *model); /* weight bytes read to decode one token */
enum { PL_PAGE = 64 };                              /* positions whose keys and values lie in one page */
int64_t pl_model_kv_pages(const pl_model *model);   /* KV pages alive in all its sessions */
size_t pl_model_kv_page_bytes(const pl_model *model);
/* From now on sessions may hold `pages` KV pages in all; more are PL_MEMORY. At first as many as memory has. */
void pl_model_limit_kv(pl_model *model, int64_t pages);
void pl_model_release(pl_model *model); /* drops the caller's reference; sessions hold their own */

/* ---- sessions -------------------------------------------------------------------------------------------------- */

typedef struct pl_session pl_session;

enum { PL_LONGEST_CONTEXT = 1048576 }; /* positions; RoPE's angles are exact up to here */

int32_t pl_session_new(pl_model *model, int64_t context_length, pl_session **out, pl_error *err);
void pl_session_free(pl_session *session);
int64_t pl_session_position(const pl_session *session); /* tokens evaluated so far */
/* The sequence is going to be `length` long, which decides between RoPE's factors (rope_original); otherwise the length
 * after each evaluation does. A session that was evaluated with the others is emptied: all of it has to be evaluated
 * again. pl_eval refuses to go on with the wrong ones. Truncating and forking end the expectation. */
void pl_session_expect(pl_session *session, int64_t length);
int32_t pl_session_truncate(pl_session *session, int64_t position, pl_error *err);
/* A second session, over the first `position` positions: pages are shared, and copied when either writes to them. */
int32_t pl_session_fork(const pl_session *session, int64_t position, int64_t context_length, pl_session **out,
                        pl_error *err);
/* Two sessions that came to the same first `position` tokens in their own ways, so that law 1 makes their whole pages
 * there equal: `session` gives its own up for those of `with`. */
int32_t pl_session_unite(pl_session *session, const pl_session *with, int64_t position, pl_error *err);
/* KV of positions [0, position) as bytes, in the type that the pages have, the same whatever pages they lie in; and
 * back. */
size_t pl_session_state_bytes(const pl_session *session);
int32_t pl_session_state_read(const pl_session *session, void *out, size_t nbytes, pl_error *err);
int32_t pl_session_state_write(pl_session *session, const void *data, size_t nbytes, int64_t position, pl_error *err);

/* Keys (rotated) and values of one layer as fp32, each (n_kv_heads, position, head_dim). The dimensions of a key that
 * rotate together are i and i + rope_dims / 2, whatever the file's order. */
int32_t pl_session_kv_read(const pl_session *session, int32_t layer, float *keys, float *values, pl_error *err);
/* ---- adapters --------------------------------------------------------------------------------------------------- */

/* Low-rank additions (LoRA) to some of a model's matrices: y = W x + b becomes y + B (scale (A x)), in fp32. */
typedef struct pl_adapter pl_adapter;

int32_t pl_adapter_new(pl_model *model, pl_adapter **out, pl_error *err);
/* a (rank, cols) and b (rows, rank) for a bound matrix (rows, cols) of a layer, its rows in the order of the model's
 * own file. An adapter that a session has had is frozen. */
int32_t pl_adapter_bind(pl_adapter *adapter, int32_t slot, int32_t layer, int32_t expert, const pl_source *a,
                        const pl_source *b, pl_error *err);
void pl_adapter_release(pl_adapter *adapter); /* drops the caller's reference; sessions hold their own */
/* What an empty session and its forks are evaluated with from now on: n adapters, added in this order. 0: none. */
int32_t pl_session_adapt(pl_session *session, pl_adapter *const *adapters, const float *scales, int32_t n,
                         pl_error *err);

/* ---- evaluation -------------------------------------------------------------------------------------------------- */

/* One sequence's share of a forward pass. */
typedef struct pl_run {
    pl_session *session;   /* each session at most once per call */
    const int32_t *tokens; /* (n) */
    int64_t n;
    int32_t n_logits;             /* answers wanted for the last n_logits tokens; 0 for none */
    float *logits;                /* (n_logits, vocab), or NULL */
    float *states;                /* (n_logits, dim) or NULL: what the head reads, the normalised end of the stream */
    const int32_t *hidden_layers; /* (n_hidden), each in [0, n_layers] */
    int32_t n_hidden;             /* 0 for none */
    float *hidden;                /* (n_hidden, n, dim): the residual stream after so many layers; 0 is the embedding */
} pl_run;

/* Asked between layers, at most every 20 ms, on the calling thread; nonzero stops the evaluation. */
typedef int32_t (*pl_poll_fn)(void *context);

/* The forward pass: one token or many, one sequence or several, same arithmetic. On failure no session has moved. */
int32_t pl_eval(pl_model *model, const pl_run *runs, int32_t n_runs, int32_t threads, pl_poll_fn poll, void *context,
                pl_error *err);

/* log softmax(logits)[token], in double, same bits everywhere. logits (vocab). */
double pl_log_probability(const float *logits, int64_t vocab, int32_t token);

/* ---- sampling -------------------------------------------------------------------------------------------------- */

typedef struct pl_sampling {
    float temperature;        /* 0: greedy, lowest id wins ties */
    float top_p;              /* (0, 1): nucleus; otherwise off */
    float min_p;              /* 0: off */
    int32_t top_k;            /* 0: off */
    float repetition_penalty; /* 1: off */
    float presence_penalty;
    float frequency_penalty;
} pl_sampling;

/* A sampler at work on one text. */
typedef struct pl_sampler {
    pl_sampling sampling;
    const int32_t *bias_ids; /* (n_bias): bias (n_bias) is added to their logits first */
    const float *bias;
    int64_t n_bias;
    float *work;  /* (2 * vocab + 16) floats of scratch */
    uint64_t rng; /* llama2.c's xorshift64* state: moves by one draw where one is drawn */
} pl_sampler;

/* Draws one token id. logits (vocab) is not changed. history (n_history): ids the penalties look at. allowed (vocab
 * bits, id i at bit i % 8 of byte i / 8): what may be drawn; NULL: everything. */
int32_t pl_sample(pl_sampler *sampler, const float *logits, int64_t vocab, const int32_t *history, int64_t n_history,
                  const uint8_t *allowed, int32_t *token, pl_error *err);

/* ---- generation ------------------------------------------------------------------------------------------------- */

/* A text that goes on by itself: where calls for each token would take longer than the token, and where several that
 * shared a pass are to draw at once. */
typedef struct pl_generation {
    pl_sampler *sampler;
    const int32_t *stop_ids; /* (n_stop): behind one of these nothing is drawn */
    int64_t n_stop;
    int32_t *text; /* (n_text + most): ids that the penalties look at, and behind them those that are drawn */
    int64_t n_text, most;
    double seconds; /* after which no further token is evaluated */
    float *logits;  /* (vocab): after the last token that was evaluated, in and out */
    int64_t drawn;  /* out: tokens drawn, all evaluated but the last; that one too where no other could be drawn */
} pl_generation;

/* Draws a token, evaluates it, and so on. Where something fails it ends there: whoever goes on will meet it again. */
void pl_generate(pl_session *session, pl_generation *generation, int32_t threads);

/* Draws one token for each of n texts, from logits that a common pass gave. None where it fails. */
void pl_draw(const pl_model *model, pl_generation *const *generations, int64_t n, int32_t threads);

/* ---- words: where text is cut before pieces are merged ----------------------------------------------------------- */

/* What one instruction of a word pattern does. TAKE and KEEP take characters of a set, at least `least` and at most
 * `most` (-1: any number) of them; TAKE gives some back where the rest does not match. SPLIT tries what follows, then
 * `target`. AHEAD and NOT_AHEAD hold if the group behind them does or does not match here; REPEAT takes as many
 * matches of its group as it can. These three go on at `target`, behind the MATCH that ends their group. */
enum { PL_MATCH, PL_TAKE, PL_KEEP, PL_SPLIT, PL_JUMP, PL_AHEAD, PL_NOT_AHEAD, PL_REPEAT };

typedef struct pl_word_code {
    int32_t op, set, least, most, target; /* targets are further on than the instruction */
} pl_word_code;

/* The bits of properties, as in csrc/text/make_unicode.py. */
enum { PL_WORD_CHARACTER = 12 };

/* Characters that have a property of `any` and none of `none`, or lie in one of the ranges; or all but those. */
typedef struct pl_word_set {
    uint32_t any, none;
    int32_t negated, first_range, n_ranges;
} pl_word_set;

/* CUT cuts at the matches of the pattern that begins at `code`, CUT_BYTES does so in the characters of GPT-2's
 * alphabet that the bytes are written as. The others cut runs of the characters of set `code` into threes, counted
 * from the end: CUT_THREES where a word ends behind the run, each group for itself; CUT_BEFORE_THREES only before
 * groups of three; CUT_AFTER_THREES behind each group, also a shorter one. */
enum { PL_CUT, PL_CUT_BYTES, PL_CUT_THREES, PL_CUT_BEFORE_THREES, PL_CUT_AFTER_THREES };

typedef struct pl_word_step { int32_t kind, code; } pl_word_step;

typedef struct pl_word_pattern {
    const pl_word_step *steps; /* (n_steps), each cutting what the one before left */
    const pl_word_code *code;  /* (n_code), MATCH at its end */
    const pl_word_set *sets;   /* (n_sets) */
    const uint32_t *ranges;    /* (n_ranges, 2) first and last code point */
    int32_t n_steps, n_code, n_sets, n_ranges;
} pl_word_pattern;

typedef struct pl_words pl_words;

int32_t pl_words_new(const pl_word_pattern *pattern, pl_words **out, pl_error *err); /* copies what it keeps */
/* Where each word of text (nbytes) ends: ends (nbytes), *n of them used. */
int32_t pl_words_ends(const pl_words *words, const uint8_t *text, size_t nbytes, int64_t *ends, int64_t *n,
                      pl_error *err);
void pl_words_free(pl_words *words);

/* ---- byte pair merges -------------------------------------------------------------------------------------------- */

typedef struct pl_bpe pl_bpe;

/* Byte strings inside one buffer: string i is [starts[i], ends[i]). */
typedef struct pl_strings {
    const uint8_t *bytes;
    const int64_t *starts, *ends; /* (n) */
    int32_t n;
} pl_strings;

/* A vocabulary. Pairs are merged by the score of the piece they make (tokenizer.bin, SentencePiece), or, where there
 * are no scores, in the order of `merges`, each "LEFT RIGHT". */
typedef struct pl_vocabulary {
    pl_strings pieces;
    const uint8_t *mergeable; /* (pieces.n) 0 for pieces that text can never become: control, unknown, byte pieces */
    const float *scores;      /* (pieces.n), or NULL */
    pl_strings merges;
    int32_t byte_level;      /* 1: pieces are written in GPT-2's alphabet, and text is merged from single bytes */
    int32_t whole_words;     /* 1: a word that is a piece becomes it, whatever the merges would make of it */
    const int32_t *byte_ids; /* (256) the piece that stands for a byte that no piece holds, or -1; not if byte_level */
    int32_t unknown_id;      /* what stands for a byte that has no piece; -1: such text is an error */
} pl_vocabulary;

/* Copies what it keeps. words: where text is cut; NULL: nowhere. It must outlive the result. */
int32_t pl_bpe_new(const pl_vocabulary *vocabulary, const pl_words *words, pl_bpe **out, pl_error *err);
/* Encodes n texts, UTF-8 or any bytes: text i is [ends[i - 1], ends[i]), the first from 0. out (ends[n - 1]): its ids
 * go to where the text begins, counts[i] of them. O(nbytes log nbytes). */
int32_t pl_bpe_encode(const pl_bpe *bpe, const uint8_t *text, const int64_t *ends, int32_t n, int32_t threads,
                      int32_t *out, int64_t *counts, pl_error *err);
void pl_bpe_free(pl_bpe *bpe);
