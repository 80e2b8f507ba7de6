"""`Model`: frozen weights, and everything that can be asked of them."""

from __future__ import annotations

import hashlib
import math
import operator
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm import _core, architectures, formats
from pyllm.adapters import Adapter, open_adapter, pairs_of
from pyllm.architectures.binding import SINGLE
from pyllm.batching import Batch
from pyllm.conversation import encode_conversation
from pyllm.embedding import POOLINGS, embed, pooling_of
from pyllm.errors import ClosedError, ContextLengthError, PyllmError, TokenizerError, UnsupportedModelError
from pyllm.formats.folder import FORMAT as FOLDER_FORMAT
from pyllm.formats.weight_types import FLOATS, MAKEABLE, type_name
from pyllm.loading import bind_all, reader
from pyllm.machine import available_threads
from pyllm.prefixes import Prefixes, pages_of
from pyllm.progress import Progress
from pyllm.sampling import SEEDS, Sampler, check_seed, sampler_from_metadata
from pyllm.scheduler import Scheduler
from pyllm.session import Session, open_session
from pyllm.session_file import restore_session
from pyllm.speculation import PromptLookup, SmallerModel, Speculation
from pyllm.steps import Options, OwnSteps, begin_generation
from pyllm.tokenizers import Tokenizer
from pyllm.tokenizers.folder import generation_defaults
from pyllm.tokenizers.loading import load_folder

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy.typing as npt

    from pyllm.adapters import Adapters
    from pyllm.architectures import Binding
    from pyllm.config import ModelConfig
    from pyllm.formats.checkpoint import Checkpoint, TensorSpec
    from pyllm.generation import Generation
    from pyllm.grammar import Grammar
    from pyllm.hooks import LogitsProcessor

    AnyPath: TypeAlias = str | os.PathLike[str]
    #: Files of adapters, each alone or with a scale.
    AdapterPaths: TypeAlias = AnyPath | Sequence[AnyPath | tuple[AnyPath, float]]

__all__ = ["Model", "Score", "Session", "load"]

#: Precision to planes of activations: two make 16-bit activations, the model's own answer; one is 8-bit and faster.
PLANES = {"high": 2, "fast": 1}
KV_DTYPES = ("f16", "f32", "q8_0")
#: Bytes of keys and values that are kept for prompts that begin like earlier ones.
PREFIX_CACHE = 256 << 20
#: Sequences of a batch that are at work at once.
MOST_AT_ONCE = 32
#: llama2.c's beginning-of-text token, which also ends a text there.
LLAMA2C_BOS = 1

_SAMPLE_BYTES = 4096
_SAMPLES = 64


def load(
    source: str | os.PathLike[str],
    *,
    threads: int | None = None,
    context_length: int | None = None,
    precision: str = "high",
    kv_dtype: str | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    dtype: str | None = None,
    speculation: bool = True,
    draft: str | os.PathLike[str] | Model | None = None,
    prefix_cache: int | None = PREFIX_CACHE,
    kv_memory: int | None = None,
    adapters: AdapterPaths = (),
    progress: Progress | bool | None = None,
) -> Model:
    """Load a model.

    `source`: a model file (GGUF, llama2.c `.bin`), a Hugging Face folder (`config.json` and `.safetensors` files), a
    catalogue name such as "smollm2-135m" or `hf:OWNER/REPO/FILE`, which are fetched if need be.
    `threads`: None means as many as this process may really use (`machine.available_threads`).
    `context_length`: positions of a session that asks for none; None means what the model was made for.
    `precision`: "high" (16-bit activations, the model's own answer) or "fast" (8-bit, which reads prompts
    1.4 to 1.7 times as fast).
    `kv_dtype`: "f16", "f32" or "q8_0", the type of keys and values; None means f16 beside quantised weights; f32 beside
    weights that are floats, where nothing else is rounded, and for llama2.c's files, whose texts are run.c's to the
    letter. "q8_0", 8 bits and a scale for each 32 of a head, takes 53 % of the memory of f16 where heads are a multiple
    of 32. It costs a little of the answer: SmolLM2-135M keeps the likeliest token of its exact one at 98.7 % of
    positions instead of 99.9 %, misses no clear one, and is off by 0.012 nats on average instead of 0.0005.
    `tokenizer`: a path or a `Tokenizer`, for files that hold none; such a model works on token ids without one.
    `dtype`: a weight type such as "q8_0" or "q4_k" that matrices stored as F32, F16 or BF16 are quantised to while they
    are loaded, or the next that fits their rows; None, and all other tensors, mean what the file says.
    `speculation`: guess at tokens from what the text already holds, and evaluate several at once where that is faster.
    `draft`: a smaller model with the same vocabulary, or where to load it from, that guesses instead. Texts are the
    same to the bit, with or without. One that is loaded here gets the same `threads`, and as much `kv_memory` of its
    own; what does not fit there is not guessed.
    `prefix_cache`: bytes of keys and values that stay for prompts that begin like earlier ones, which then need not be
    read again; what was not used for longest goes first. 0 or None: none stay. Answers are the same to the bit.
    `kv_memory`: bytes that its keys and values may take in all, the prefix cache's too, which make room for others.
    What does not fit raises `OutOfMemoryError`. None: as many as memory has.
    `adapters`: low-rank adapters (LoRA) that all sessions are evaluated with: paths, each alone or with a scale, for
    `Model.adapter`.
    `progress`: a callable (done, total) in bytes, or True for a bar on a terminal.

    Raises `ModelFormatError` for a damaged file, `UnsupportedModelError` for one that pyllm cannot run,
    `ModelUnavailableError` where there is no such model, `TokenizerError` for a tokenizer that does not fit, and
    `ValueError` for an argument out of range.
    """
    arguments: dict[str, Any] = {"threads": threads, "context_length": context_length, "precision": precision}
    arguments |= {"tokenizer": _absolute(tokenizer), "draft": _absolute(draft)}
    arguments |= {"dtype": dtype, "speculation": speculation}
    arguments |= {"prefix_cache": prefix_cache, "kv_memory": kv_memory, "adapters": _absolute_adapters(adapters)}
    threads = available_threads() if threads is None else _checked_threads(threads)
    _check_choice("precision", precision, PLANES)
    _check_choice("kv_dtype", kv_dtype, (*KV_DTYPES, None))
    _check_choice("dtype", dtype, (*MAKEABLE, None))
    _check_bytes("prefix_cache", prefix_cache)
    _check_bytes("kv_memory", kv_memory)
    checkpoint = formats.open_checkpoint(find(source, progress))
    try:
        config = architectures.describe(checkpoint)
        bindings = architectures.bindings(checkpoint)
        kv_dtype = kv_dtype or _usual_kv_dtype(checkpoint, bindings, dtype)
        chosen = _choose_tokenizer(tokenizer, checkpoint, config)
        native = _core.NativeModel(config, planes=PLANES[precision], kv_type=kv_dtype, threads=threads)
        try:
            bind_all(native, checkpoint, bindings, MAKEABLE.get(dtype or ""), progress)
            return Model(native, checkpoint, bindings, config, chosen, arguments | {"kv_dtype": kv_dtype})
        except BaseException:
            native.close()
            raise
    finally:
        checkpoint.close()


@dataclass(frozen=True)
class Score:
    """How well a model foresaw a text: `logprobs[i]` is the natural logarithm of the probability of `tokens[i + 1]`."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-probability; at least 1."""
        return math.exp(-math.fsum(self.logprobs) / len(self.logprobs))


class Model:
    """A loaded model. Made by `load`.

    Immutable: any number of threads may use one at once, and it works in a forked child. A pickle holds the path and a
    fingerprint, and opens the file again. After `close()` every use raises `ClosedError`.
    """

    load = staticmethod(load)

    def __init__(
        self,
        native: _core.NativeModel,
        checkpoint: Checkpoint,
        bindings: Sequence[Binding],
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        arguments: Mapping[str, Any],
    ) -> None:
        self._native = native
        self._config = config
        self._tokenizer = tokenizer
        self._arguments = dict(arguments)
        self._path = checkpoint.path.absolute()
        self._fingerprint = fingerprint(formats.files_of(self._path))
        self._format = checkpoint.format
        self._notes = dict(checkpoint.notes)
        self._types = _count_types(checkpoint.tensors.values())
        self._parameters = sum(b.rows * b.cols for b in bindings if b.tensor.inline is None)
        self._bos_id, self._stop_ids = _text_limits(checkpoint, tokenizer)
        self._default_sampler = sampler_from_metadata(_generation_defaults(checkpoint))
        self._context_length = min(config.context_length, _core.LONGEST_CONTEXT)
        self._context_length = self._session_length(arguments["context_length"])
        self._prefixes = Prefixes(arguments["prefix_cache"] or 0, native.kv_page_bytes, config.rope_original)
        if arguments["kv_memory"] is not None:
            native.limit_kv(arguments["kv_memory"] // native.kv_page_bytes)
        self._pooling = pooling_of(checkpoint)
        native.reserves.add(self._prefixes)
        self._scheduler = Scheduler(native)
        self._draft = _open_draft(arguments, config)
        self._adapters = tuple((self.adapter(path), scale) for path, scale in arguments["adapters"])

    # ---- facts -------------------------------------------------------------------------------------------------------

    @property
    def config(self) -> ModelConfig:
        """The shape of the transformer."""
        return self._config

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None where the model's files hold none and none was given."""
        return self._tokenizer

    @property
    def path(self) -> Path:
        """The file this model was loaded from."""
        return self._path

    @property
    def threads(self) -> int:
        """Threads that work on one evaluation."""
        return self._native.threads

    @property
    def precision(self) -> str:
        """The arithmetic: "high" or "fast"."""
        return str(self._arguments["precision"])

    @property
    def kv_dtype(self) -> str:
        """The type of keys and values: "f16", "f32" or "q8_0"."""
        return str(self._arguments["kv_dtype"])

    @property
    def dtype(self) -> str | None:
        """The weight type that matrices of floats were quantised to when they were loaded; None: as they are stored."""
        dtype: str | None = self._arguments["dtype"]
        return dtype

    @property
    def kv_memory(self) -> int | None:
        """The bytes that keys and values may take in all; None: as many as memory has."""
        limit: int | None = self._arguments["kv_memory"]
        return limit

    @property
    def context_length(self) -> int:
        """Positions of a session that asks for no other number."""
        return self._context_length

    @property
    def nbytes(self) -> int:
        """Bytes of weights held in memory."""
        return self._native.nbytes

    @property
    def token_bytes(self) -> int:
        """Bytes of weights read to decode one token."""
        return self._native.token_bytes

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a text."""
        return self._stop_ids

    @property
    def default_sampler(self) -> Sampler:
        """What `sampler=None` means: the file's own generation defaults, else those of `Sampler`."""
        return self._default_sampler

    @property
    def adapters(self) -> tuple[tuple[Adapter, float], ...]:
        """The adapters, with their scales, that the model was loaded with."""
        return self._adapters

    @property
    def identity(self) -> dict[str, str]:
        """What must be equal for a saved session to be of use: the file, and the arithmetic."""
        facts = {"fingerprint": self._fingerprint, "precision": self.precision, "kv_dtype": self.kv_dtype}
        return facts | ({"dtype": self.dtype} if self.dtype else {})

    def info(self) -> dict[str, Any]:
        """Facts about the model, for people and for JSON."""
        return {
            "path": str(self._path),
            "format": self._format,
            **self._notes,
            **asdict(self._config),
            "parameters": self._parameters,
            "tensors": self._types,
            "tokenizer": type(self._tokenizer).__name__ if self._tokenizer else None,
            "chat_template": bool(self._tokenizer and self._tokenizer.chat_template),
            "session_context_length": self._context_length,
            "memory_bytes": self.nbytes,
            "token_bytes": self.token_bytes,
            "precision": self.precision,
            "kv_dtype": self.kv_dtype,
            "dtype": self.dtype,
            "adapters": [[str(adapter.path), scale] for adapter, scale in self._adapters],
            "threads": self.threads,
            "isa": _core.isa_current(),
        }

    def __repr__(self) -> str:
        state = "closed" if self._native.closed else f"{self.nbytes:,} bytes"
        return f"<pyllm.Model {self._config.architecture} {self._path.name}, {state}>"

    # ---- text --------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = 256,
        sampler: Sampler | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        logprobs: bool = False,
        timeout: float | None = None,
        context_length: int | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: Grammar | Mapping[str, Any] | type | None = None,
        speculation: bool | None = None,
    ) -> Generation:
        """Continue `prompt`, a text or token ids. Lazy: nothing is computed before the result is read.

        `max_tokens`: None means until the context is full. `sampler`: None means the model's own defaults. `stop`: a
        string or several that end the text and are not part of it. `seed`: instead of the sampler's. `logprobs`: fill
        in `Chunk.logprob`. `timeout`: seconds after which it ends as "cancelled". An empty prompt begins a new text.
        `context_length`: positions for prompt and text; None means the model's. `speculation`: instead of what `load`
        was told; the text is the same either way.
        `logits_processor`: a function or several, called in order before the sampler sees the logits of each token,
        with the ids of the text so far (a tuple, prompt included) and the logits: a writable float32 array (vocab,)
        that is valid during the call. It may change them in place or return others of the same shape; -inf bans a
        token. Log-probabilities stay the model's own. What it raises ends the generation as "cancelled".
        `grammar`: keep to a `Grammar`, a JSON Schema or a pydantic model class; see `Grammar`.

        Raises `ContextLengthError` for a prompt longer than the context, `TokenizerError` for text without a
        tokenizer, and `ValueError` for ids outside the vocabulary; all before anything is computed.
        """
        options = Options(max_tokens, sampler, stop, seed, logprobs, timeout, logits_processor, grammar, speculation)
        return self._generate(self.encode_prompt(prompt), context_length, options)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Callable[..., Any] | Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
        max_tokens: int | None = 256,
        sampler: Sampler | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        logprobs: bool = False,
        timeout: float | None = None,
        context_length: int | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: Grammar | Mapping[str, Any] | type | None = None,
        speculation: bool | None = None,
    ) -> Generation:
        """Answer a conversation: mappings with "role" and "content", through the model's own chat template.

        Text of a message is always text: it cannot become a control token. Options as for `generate`. `tools`: what the
        model may ask to have called: functions (see `tools.describe`), or descriptions of them as JSON Schema. The
        calls are in the reply's `tool_calls`; `tools.run` makes them and goes on. `documents`: texts to answer from,
        for templates that take them. `template_options`: what else the template knows, such as
        `{"enable_thinking": False}`; names it does not know do nothing. Raises `TokenizerError` where the model has no
        chat template, or one that takes no tools.
        """
        self.check_open()
        ids, reader = encode_conversation(
            self.need_tokenizer(), messages, tools, documents=documents, template_options=template_options
        )
        options = Options(
            max_tokens, sampler, stop, seed, logprobs, timeout, logits_processor, grammar, speculation, reader
        )
        return self._generate(ids, context_length, options)

    def generate_batch(
        self,
        prompts: Iterable[str | Sequence[int]],
        *,
        n: int = 1,
        max_tokens: int | None = 256,
        sampler: Sampler | Sequence[Sampler | None] | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        logprobs: bool = False,
        timeout: float | None = None,
        context_length: int | None = None,
        max_batch: int | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: Grammar | Mapping[str, Any] | type | None = None,
        speculation: bool | None = None,
    ) -> list[Generation]:
        """Continue many prompts through shared forward passes: one `Generation` each, equal to that of `generate`.

        `sampler`: one for all, or a list with one for each prompt. `n`: so many samples of each prompt, which is read
        once for all of them; they follow each other in the list, and where there is a seed, sample i of a prompt has
        that seed plus i. `max_batch`: sequences at work at once, 32 where it is None; when one ends the next begins, in
        the order of the prompts. Other options as for `generate`; `timeout` counts for each from its own first step.

        Lazy: whoever reads one of them steps them all. What the others get meanwhile is kept until it is read: at most
        `max_tokens` tokens each. At most `max_batch` of them hold keys and values; without a prefix cache as much as
        their prompts need is kept for those that begin alike, until all have been read.

        Raises as `generate`, `ValueError` for a number of samples or samplers that does not fit, and `TypeError` for a
        lone text; all before anything is computed.
        """
        if operator.index(n) < 1 or (max_batch is not None and operator.index(max_batch) < 1):
            raise ValueError(f"n and max_batch must be at least 1, not {n} and {max_batch}")
        ids = [self.encode_prompt(prompt) for prompt in _several("prompts", prompts)]
        samplers = [sampler] * len(ids) if sampler is None or isinstance(sampler, Sampler) else list(sampler)
        if len(samplers) != len(ids):
            raise ValueError(f"{len(samplers)} samplers for {len(ids)} prompts: give one for all, or one for each")
        limit = max_batch or MOST_AT_ONCE
        prefixes, own = self._prefixes, not self._prefixes.open
        if own:  # a tree for this batch alone, as long as one of its prompts is to be read
            prefixes = Prefixes(self._bytes_of(ids, limit), self._native.kv_page_bytes, self._config.rope_original)
            self._native.reserves.add(prefixes)
        members = []
        for prompt, each in zip(ids, samplers, strict=True):
            for i in range(n):
                own_seed = _sample_seed(each or self._default_sampler, seed, i)
                options = Options(
                    max_tokens, each, stop, own_seed, logprobs, timeout, logits_processor, grammar, speculation
                )
                members.append(self._generate(prompt, context_length, options, prefixes))
        Batch(members, limit, prefixes.worth_beginning, prefixes.close if own else _do_nothing)
        return members

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each of `tokens`: float32 (n, vocab).

        Raises `ValueError` for ids outside the vocabulary, `ContextLengthError` for more than a session holds.
        """
        ids = self.check_tokens(tokens)
        with self.session() as session:
            session.check_room(len(ids))
            rows, done = np.empty((len(ids), self._config.vocab_size), np.float32), 0
            for block in session.sweep(ids):
                rows[done : done + len(block)] = block
                done += len(block)
        return rows

    def score(self, text: str | Sequence[int]) -> Score:
        """The log-probability of each token of a text (or of token ids) after the ones before it.

        Needs memory for a few rows of logits, however long the text. Raises `ValueError` for fewer than two tokens and
        `ContextLengthError` for more than a session holds.
        """
        ids = self.encode_prompt(text) if isinstance(text, str) else self.check_tokens(text)
        if len(ids) < 2:
            raise ValueError(f"{len(ids)} token(s): a score needs at least 2, one to start from and one to foresee")
        with self.session() as session:
            session.check_room(len(ids))
            return self._score(session, ids)

    def score_continuations(
        self, context: str | Sequence[int], continuations: Iterable[str | Sequence[int]]
    ) -> list[Score]:
        """How well the model foresees each of several continuations of one context, which is read once.

        A score's `tokens` are the context's last token and the continuation's, so that `logprobs` are those of the
        continuation: their sum tells which of several answers is the most probable. Texts are tokenized apart, but as
        parts of one: " a" behind "is" is what it is in "is a". Raises `ValueError` for an empty continuation, and
        `ContextLengthError` for what is longer than a session.
        """
        ids = self.encode_prompt(context)
        endings = [self.encode_prompt(text, after=ids[-1]) for text in _several("continuations", continuations)]
        if not all(endings):
            raise ValueError(f"continuation {next(i for i, ending in enumerate(endings) if not ending)} is empty")
        scores = []
        with open_session(self, ids, context_length=self._context_length, prefixes=self._prefixes) as session:
            session.check_room(len(ids) - session.position - 1 + max(map(len, endings), default=0))
            if session.position < len(ids) - 1:
                session.eval(ids[session.position : -1])
            session.share(self._prefixes)
            for ending in endings:
                with session.fork() as fork:
                    scores.append(self._score(fork, [ids[-1], *ending]))
        return scores

    def embed(
        self, texts: str | Iterable[str | Sequence[int]], *, pooling: str | None = None, normalize: bool = True
    ) -> npt.NDArray[np.float32]:
        """A vector for each text, or sequence of token ids: float32 (n, dim); a lone text is one of one.

        `pooling`: "mean" of the states after all tokens, "cls", the state of the first, or "last"; None means what the
        model's files say, else "mean". `normalize`: to length 1, so that dot products are cosines. The states are what
        the head would read, after the final norm. Texts are framed as the model's files say, such as with [CLS] and
        [SEP]; each is read alone, so a vector does not depend on the others.

        Raises `ContextLengthError` for a text longer than the context, `ValueError` for an empty one,
        `UnsupportedModelError` where the files ask for another way to pool, `TokenizerError` for text without a
        tokenizer.
        """
        _check_choice("pooling", pooling, (*POOLINGS, None))
        self.check_open()
        usual, obstacle = self._pooling
        if not (pooling or usual):
            raise UnsupportedModelError(
                f"{self._path}: {obstacle}, a way to make one vector of a text's that pyllm does not know: say which "
                f"to take, pooling= one of {', '.join(POOLINGS)}"
            )
        lists = [self._encode_to_embed(text) for text in ([texts] if isinstance(texts, str) else texts)]
        return embed(
            self._native,
            lambda length: self._open_native(length, self._adapters),
            lists,
            pooling=pooling or usual,
            normalize=normalize,
            whole=not self._config.causal,
            poll=lambda: self.closed,
        )

    # ---- sessions ----------------------------------------------------------------------------------------------------

    def session(self, context_length: int | None = None, *, adapters: Adapters | None = None) -> Session:
        """A new, empty `Session` for at most `context_length` tokens.

        `adapters`: one that `adapter()` opened, or several, each alone or with a scale, which are added in this order;
        () is none, and None means those that the model was loaded with. Raises `ContextLengthError` for more positions
        than the model was made for.
        """
        self.check_open()
        length = self._session_length(context_length)
        pairs = self._adapters if adapters is None else pairs_of(adapters)
        return Session(self, self._open_native(length, pairs), length, adapters=pairs)

    def restore(self, path: str | os.PathLike[str], *, adapters: Adapters | None = None) -> Session:
        """The session that `Session.save` wrote with this model, loaded with the same precision and KV type, and with
        the same `adapters`, as `session` takes them.

        Raises `ModelFormatError` for a damaged file or another model's, and `OSError` as `open` does.
        """
        return restore_session(self, path, adapters)

    def adapter(self, path: str | os.PathLike[str]) -> Adapter:
        """Open a low-rank adapter (LoRA) for this model: a folder of the `peft` library, or a GGUF file.

        Raises `ModelFormatError` for a damaged one, or one of another model, and `UnsupportedModelError` for what is no
        plain LoRA, or changes something else than the model's matrices.
        """
        self.check_open()
        self._check_unchanged()
        base = formats.open_checkpoint(self._path)
        try:
            return open_adapter(path, self._native, base, self._config, fingerprint)
        finally:
            base.close()

    # ---- files and lifetime ------------------------------------------------------------------------------------------

    def export(self, path: str | os.PathLike[str], *, version: int = 0, group_size: int = 64) -> None:
        """Write the model as a llama2.c checkpoint: version 0 or 1 (fp32), or 2 (int8 in groups of `group_size`).

        Weights are dequantised. Raises `UnsupportedModelError` for a model that llama2.c cannot run.
        """
        from pyllm.formats.llama2c_writer import export_llama2c

        self.check_open()
        self._check_unchanged()
        checkpoint = formats.open_checkpoint(self._path)
        try:
            export_llama2c(path, self._config, reader(checkpoint), version=version, group_size=group_size)
        finally:
            checkpoint.close()

    def close(self) -> None:
        """Free the weights, once the last running evaluation has ended. Harmless twice."""
        self._native.close()
        self._prefixes.close()
        if self._draft is not None and self._draft is not self._arguments["draft"]:
            self._draft.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Model], tuple[object, ...]]:
        return _reopen, (str(self._path), self._fingerprint, dict(self._arguments))

    # ---- for the rest of pyllm ---------------------------------------------------------------------------------------

    def speculate(self, wanted: bool | None) -> Speculation | None:
        """What guesses at the tokens of one generation; `wanted` None: as the model was loaded."""
        if not (self._arguments["speculation"] if wanted is None else wanted):
            return None
        return Speculation(SmallerModel(self._draft.session) if self._draft else PromptLookup())

    @property
    def prefixes(self) -> Prefixes:
        """Keys and values kept for texts that begin alike."""
        return self._prefixes

    @property
    def scheduler(self) -> Scheduler:
        """What runs the forward passes."""
        return self._scheduler

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._native.closed

    def check_open(self) -> None:
        """Raise `ClosedError` after `close()`."""
        if self._native.closed:
            raise ClosedError("this model was closed")

    def check_tokens(self, tokens: Iterable[int]) -> list[int]:
        """`tokens` as a list of ints. Raises `ValueError` naming the first id outside the vocabulary."""
        ids = [operator.index(token) for token in tokens]
        vocab = self._config.vocab_size
        if ids and not (min(ids) >= 0 and max(ids) < vocab):
            at = next(i for i, token in enumerate(ids) if not 0 <= token < vocab)
            raise ValueError(f"token id {ids[at]} (number {at}) is outside the vocabulary, [0, {vocab})")
        return ids

    def encode_prompt(self, prompt: str | Sequence[int], after: int | None = None) -> list[int]:
        """The token ids of a prompt behind the token `after`; None: it begins a text, and is BOS where it is empty."""
        self.check_open()
        if not isinstance(prompt, str):
            ids = self.check_tokens(prompt)
        elif not prompt:
            ids = []
        elif after is None:
            ids = self.need_tokenizer().encode(prompt)
        else:
            ids = self.need_tokenizer().encode_after(after, prompt)
        if ids or after is not None:
            return ids
        if self._bos_id is None:
            raise ValueError("the prompt is empty, and this model has no beginning-of-text token to start from")
        return [self._bos_id]

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises `TokenizerError` where there is none."""
        if self._tokenizer is None:
            raise TokenizerError(
                f"{self._path.name} holds no tokenizer, so it cannot read text: give load() a tokenizer= (a path or "
                "a Tokenizer), or pass token ids"
            )
        return self._tokenizer

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _open_native(self, length: int, adapters: Sequence[tuple[Adapter, float]]) -> _core.NativeSession:
        session = self._native.new_session(length)
        if adapters:
            session.adapt([(adapter.native, scale) for adapter, scale in adapters])
        return session

    def _encode_to_embed(self, text: str | Sequence[int]) -> list[int]:
        if isinstance(text, str):
            tokenizer = self.need_tokenizer()
            ids = tokenizer.encode(text, eos=tokenizer.add_eos)
        else:
            ids = self.check_tokens(text)
        if not ids:
            raise ValueError("a text to embed is empty: it has no tokens")
        if len(ids) > self._context_length:
            raise ContextLengthError(
                f"a text of {len(ids)} tokens exceeds the context of {self._context_length} tokens"
            )
        return ids

    def _score(self, session: Session, ids: Sequence[int]) -> Score:
        logprobs: list[float] = []
        for block in session.sweep(ids[:-1]):
            logprobs += [_core.log_probability(row, ids[len(logprobs) + 1 + i]) for i, row in enumerate(block)]
        return Score(tuple(ids), tuple(logprobs))

    def _generate(
        self, ids: list[int], context_length: int | None, options: Options, prefixes: Prefixes | None = None
    ) -> Generation:
        self.check_open()
        if not self._config.causal:
            raise UnsupportedModelError(f"{self._path}: an encoder, which generates no text: it is there for embed()")
        length = self._session_length(context_length)
        if len(ids) > length:
            raise ContextLengthError(f"the prompt's {len(ids)} tokens exceed the context of {length} tokens")
        tree = prefixes or self._prefixes
        open_for = partial(open_session, self, context_length=length, prefixes=tree)
        steps = OwnSteps(open_for, self._scheduler, tree, self.speculate(options.speculation))
        return begin_generation(self, steps, (), ids, length, options)

    def _bytes_of(self, prompts: Sequence[Sequence[int]], limit: int) -> int:
        """What the keys and values of `limit` prompts take, the longest ones."""
        longest = sorted(map(len, prompts))[-limit:]
        return sum(map(pages_of, longest)) * self._native.kv_page_bytes

    def _session_length(self, wanted: int | None) -> int:
        made_for = min(self._config.context_length, _core.LONGEST_CONTEXT)
        if wanted is None:
            return self._context_length
        if operator.index(wanted) < 1:
            raise ValueError(f"context_length must be at least 1, not {wanted}")
        if wanted > made_for:
            raise ContextLengthError(f"context_length {wanted} exceeds the {made_for} positions the model was made for")
        return wanted

    def _check_unchanged(self) -> None:
        if fingerprint(formats.files_of(self._path)) != self._fingerprint:
            raise PyllmError(f"{self._path} is not the file that was loaded: it has changed since")


# ---- loading ---------------------------------------------------------------------------------------------------------


def _checked_threads(threads: int) -> int:
    if not 1 <= operator.index(threads) <= _core.MOST_THREADS:
        raise ValueError(f"threads must be in [1, {_core.MOST_THREADS}], or None, not {threads}")
    return operator.index(threads)


def _open_draft(arguments: Mapping[str, Any], config: ModelConfig) -> Model | None:
    """The model that guesses, by the arguments of `load`. Raises `ValueError` where its vocabulary is another."""
    draft: str | os.PathLike[str] | Model | None = arguments["draft"]
    if draft is None:
        return None
    if isinstance(draft, Model):
        model = draft
    else:
        shared = {name: arguments[name] for name in ("threads", "kv_memory")}
        model = load(draft, prefix_cache=None, speculation=False, **shared)
    if model.config.vocab_size != config.vocab_size:
        raise ValueError(f"draft has {model.config.vocab_size} tokens, and the model {config.vocab_size}")
    return model


def _do_nothing() -> None:
    pass


def _several(name: str, texts: Iterable[str | Sequence[int]]) -> Iterable[str | Sequence[int]]:
    """The same; a lone text would be taken for one of single characters."""
    if isinstance(texts, str):
        raise TypeError(f"{name} must be several texts, not a single one: give a list")
    return texts


def _sample_seed(sampler: Sampler, seed: int | None, i: int) -> int | None:
    """The seed of sample i of a prompt; None: a random one."""
    first = sampler.seed if seed is None else check_seed(seed)
    return None if first is None else (first + i) % SEEDS


def _check_choice(name: str, value: object, choices: Collection[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def _usual_kv_dtype(checkpoint: Checkpoint, bindings: Iterable[Binding], dtype: str | None) -> str:
    """Half precision where activations are rounded as well; on float weights it alone would move the answer."""
    quantised = any(b.rows > 1 and b.slot not in SINGLE and b.tensor.type_id not in FLOATS for b in bindings)
    return "f16" if checkpoint.format != "llama2c" and (quantised or dtype) else "f32"


def _absolute(given: Any) -> Any:
    """A path that a pickled model finds from elsewhere; anything else as it is, such as a name of the catalogue."""
    return os.path.abspath(given) if isinstance(given, (str, os.PathLike)) and os.path.exists(given) else given


def _absolute_adapters(adapters: AdapterPaths) -> list[tuple[str, float]]:
    """Adapters as (path, scale), so that a pickled model finds them again."""
    given = [adapters] if isinstance(adapters, (str, os.PathLike)) else adapters
    pairs = [item if isinstance(item, tuple) else (item, 1.0) for item in given]
    return [(os.path.abspath(path), scale) for path, scale in pairs]


def _check_bytes(name: str, value: int | None) -> None:
    if value is not None and operator.index(value) < 0:
        raise ValueError(f"{name} must be a number of bytes of at least 0, or None, not {value}")


def find(source: str | os.PathLike[str], progress: Progress | bool | None) -> Path:
    """The file of a model: a path, or a catalogue name, which is fetched if need be."""
    path = Path(source)
    if path.exists():
        return path
    from pyllm import catalogue  # here: most programs load a file, and this imports half of urllib

    return catalogue.resolve(source, progress)


def _choose_tokenizer(
    given: str | os.PathLike[str] | Tokenizer | None, checkpoint: Checkpoint, config: ModelConfig
) -> Tokenizer | None:
    if given is None and checkpoint.format == FOLDER_FORMAT:
        return load_folder(checkpoint.path)  # which may have tokens that the model was never given rows for
    if given is None:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
    elif isinstance(given, Tokenizer):
        tokenizer = given
    else:
        tokenizer = Tokenizer.load(given)
    if tokenizer is not None:
        _check_vocabulary(tokenizer, checkpoint, config)
    return tokenizer


def _check_vocabulary(tokenizer: Tokenizer, checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Another model's tokenizer gives fluent nonsense. Embeddings may be padded, but never in llama2.c's files."""
    padded = tokenizer.vocab_size < config.vocab_size and checkpoint.format != "llama2c"
    if tokenizer.vocab_size != config.vocab_size and not padded:
        raise TokenizerError(
            f"the tokenizer's {tokenizer.vocab_size} pieces do not fit {checkpoint.path.name}, whose vocabulary has "
            f"{config.vocab_size}"
        )


def _text_limits(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> tuple[int | None, frozenset[int]]:
    """The id that begins a text, and those that end one. llama2.c's texts end where run.c ends them: on BOS."""
    if checkpoint.format == "llama2c":
        bos = LLAMA2C_BOS if tokenizer is None or tokenizer.bos_id is None else tokenizer.bos_id
        return bos, frozenset({bos})
    if tokenizer is None:
        return None, frozenset()
    return tokenizer.bos_id, tokenizer.eos_ids


def _generation_defaults(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What a model's files say about sampling, under GGUF's names."""
    return generation_defaults(checkpoint.path) if checkpoint.format == FOLDER_FORMAT else checkpoint.metadata


def _count_types(tensors: Iterable[TensorSpec]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for tensor in tensors:
        name = type_name(tensor.type_id)
        counts[name] = counts.get(name, 0) + 1
    return counts


# ---- pickling --------------------------------------------------------------------------------------------------------


def fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 over each file's size and 64 pieces of 4 KiB spread evenly over it: cheap, and enough to tell models
    apart; a change between the pieces goes unseen.
    """
    digest = hashlib.sha256()
    for part in files:
        size = part.stat().st_size
        digest.update(str(size).encode())
        with open(part, "rb") as file:
            for i in range(_SAMPLES):
                file.seek(max(size - _SAMPLE_BYTES, 0) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _reopen(path: str, expected: str, arguments: dict[str, Any]) -> Model:
    """What a pickled model becomes elsewhere."""
    if fingerprint(formats.files_of(Path(path))) != expected:
        raise PyllmError(f"{path} is not the file of the pickled model: it has changed since")
    return load(path, **arguments)
