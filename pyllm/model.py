"""`Model`: frozen weights, and everything that can be asked of them."""

from __future__ import annotations

import hashlib
import math
import operator
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm import _core, architectures, formats
from pyllm.errors import ClosedError, ContextLengthError, PyllmError, TokenizerError
from pyllm.formats.folder import FORMAT as FOLDER_FORMAT
from pyllm.formats.weight_types import MAKEABLE, type_name
from pyllm.loading import bind_all, dequantized
from pyllm.machine import available_threads
from pyllm.progress import Progress
from pyllm.sampling import Sampler, sampler_from_metadata
from pyllm.session import Options, Session, Steps, begin_generation, restore_session
from pyllm.tokenizers import Tokenizer
from pyllm.tokenizers.folder import generation_defaults
from pyllm.tokenizers.loading import load_folder

if TYPE_CHECKING:
    import numpy.typing as npt

    from pyllm.architectures import Binding
    from pyllm.config import ModelConfig
    from pyllm.formats.checkpoint import Checkpoint, TensorSpec
    from pyllm.generation import Generation

__all__ = ["Model", "Score", "Session", "load"]

#: Precision to planes of activations: two make 16-bit activations, the model's own answer; one is 8-bit and faster.
PLANES = {"high": 2, "fast": 1}
KV_DTYPES = ("f16", "f32")
MAX_THREADS = 1024
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
    progress: Progress | bool | None = None,
) -> Model:
    """Load a model.

    `source`: a model file (GGUF, llama2.c `.bin`), a Hugging Face folder (`config.json` and `.safetensors` files), or a
    catalogue name such as "smollm2-135m", fetched if need be.
    `threads`: None means as many as this process may really use (`machine.available_threads`).
    `context_length`: positions of a session that asks for none; None means what the model was made for.
    `precision`: "high" (16-bit activations, the model's own answer) or "fast" (8-bit, about twice the prefill rate).
    `kv_dtype`: "f16" or "f32", the type of keys and values; None means f16, but f32 for llama2.c's files, so that their
    texts are run.c's to the letter.
    `tokenizer`: a path or a `Tokenizer`, for files that hold none; such a model works on token ids without one.
    `dtype`: a weight type such as "q8_0" or "q4_k" that matrices stored as F32, F16 or BF16 are quantised to while they
    are loaded, or the next that fits their rows; None, and all other tensors, mean what the file says.
    `progress`: a callable (done, total) in bytes, or True for a bar on a terminal.

    Raises `ModelFormatError` for a damaged file, `UnsupportedModelError` for one that pyllm cannot run,
    `ModelUnavailableError` where there is no such model, `TokenizerError` for a tokenizer that does not fit, and
    `ValueError` for an argument out of range.
    """
    arguments = {"threads": threads, "context_length": context_length, "precision": precision, "tokenizer": tokenizer}
    arguments |= {"dtype": dtype}
    threads = available_threads() if threads is None else _checked_threads(threads)
    _check_choice("precision", precision, PLANES)
    _check_choice("kv_dtype", kv_dtype, (*KV_DTYPES, None))
    _check_choice("dtype", dtype, (*MAKEABLE, None))
    checkpoint = formats.open_checkpoint(find(source, progress))
    try:
        config = architectures.describe(checkpoint)
        kv_dtype = kv_dtype or ("f32" if checkpoint.format == "llama2c" else "f16")
        bindings = architectures.bindings(checkpoint, config)
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
        self._fingerprint = fingerprint(self._path)
        self._format = checkpoint.format
        self._notes = dict(checkpoint.notes)
        self._types = _count_types(checkpoint.tensors.values())
        self._parameters = sum(b.rows * b.cols for b in bindings if b.tensor.inline is None)
        self._bos_id, self._stop_ids = _text_limits(checkpoint, tokenizer)
        self._default_sampler = sampler_from_metadata(_generation_defaults(checkpoint))
        self._context_length = min(config.context_length, _core.LONGEST_CONTEXT)
        self._context_length = self._session_length(arguments["context_length"])

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
        """The type of keys and values: "f16" or "f32"."""
        return str(self._arguments["kv_dtype"])

    @property
    def dtype(self) -> str | None:
        """The weight type that matrices of floats were quantised to when they were loaded; None: as they are stored."""
        dtype: str | None = self._arguments["dtype"]
        return dtype

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
    ) -> Generation:
        """Continue `prompt`, a text or token ids. Lazy: nothing is computed before the result is read.

        `max_tokens`: None means until the context is full. `sampler`: None means the model's own defaults. `stop`: a
        string or several that end the text and are not part of it. `seed`: instead of the sampler's. `logprobs`: fill
        in `Chunk.logprob`. `timeout`: seconds after which it ends as "cancelled". An empty prompt begins a new text.

        Raises `ContextLengthError` for a prompt longer than the context, `TokenizerError` for text without a
        tokenizer, and `ValueError` for ids outside the vocabulary; all before anything is computed.
        """
        options = Options(max_tokens, sampler, stop, seed, logprobs, timeout)
        return self._generate(self.encode_prompt(prompt), context_length, options)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_tokens: int | None = 256,
        sampler: Sampler | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        logprobs: bool = False,
        timeout: float | None = None,
        context_length: int | None = None,
    ) -> Generation:
        """Answer a conversation: mappings with "role" and "content", through the model's own chat template.

        Text of a message is always text: it cannot become a control token. Options as for `generate`. Raises
        `TokenizerError` where the model has no chat template.
        """
        from pyllm.tokenizers.chat import encode_chat  # here: templates need jinja2, which is slow to import

        self.check_open()
        options = Options(max_tokens, sampler, stop, seed, logprobs, timeout)
        ids = encode_chat(self._need_tokenizer(), messages, tools=tools, add_generation_prompt=True)
        return self._generate(ids, context_length, options)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each of `tokens`: float32 (n, vocab)."""
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
        logprobs: list[float] = []
        with self.session() as session:
            session.check_room(len(ids))
            for block in session.sweep(ids[:-1]):
                logprobs += [_core.log_probability(row, ids[len(logprobs) + 1 + i]) for i, row in enumerate(block)]
        return Score(tuple(ids), tuple(logprobs))

    # ---- sessions ----------------------------------------------------------------------------------------------------

    def session(self, context_length: int | None = None) -> Session:
        """A new, empty `Session` for at most `context_length` tokens."""
        self.check_open()
        length = self._session_length(context_length)
        return Session(self, self._native.new_session(length), length)

    def restore(self, path: str | os.PathLike[str]) -> Session:
        """The session that `Session.save` wrote with this model, loaded with the same precision and KV type."""
        return restore_session(self, path)

    # ---- files and lifetime ------------------------------------------------------------------------------------------

    def export(self, path: str | os.PathLike[str], *, version: int = 0, group_size: int = 64) -> None:
        """Write the model as a llama2.c checkpoint: version 0 or 1 (fp32), or 2 (int8 in groups of `group_size`).

        Weights are dequantised. Raises `UnsupportedModelError` for a model that llama2.c cannot run.
        """
        from pyllm.formats.export import export_llama2c

        self.check_open()
        self._check_unchanged()
        checkpoint = formats.open_checkpoint(self._path)
        try:
            export_llama2c(path, self._config, self._reader(checkpoint), version=version, group_size=group_size)
        finally:
            checkpoint.close()

    def close(self) -> None:
        """Free the weights, once the last running evaluation has ended. Harmless twice."""
        self._native.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Model], tuple[object, ...]]:
        arguments = dict(self._arguments)
        if isinstance(arguments["tokenizer"], (str, os.PathLike)):
            arguments["tokenizer"] = os.path.abspath(arguments["tokenizer"])
        return _reopen, (str(self._path), self._fingerprint, arguments)

    # ---- for the rest of pyllm ---------------------------------------------------------------------------------------

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

    def encode_prompt(self, prompt: str | Sequence[int], *, begin: bool = True) -> list[int]:
        """The token ids of a prompt. `begin`: it stands at the start of a text, and an empty one becomes BOS."""
        self.check_open()
        if isinstance(prompt, str):
            ids = self._need_tokenizer().encode(prompt, bos=None if begin else False) if prompt else []
        else:
            ids = self.check_tokens(prompt)
        if ids or not begin:
            return ids
        if self._bos_id is None:
            raise ValueError("the prompt is empty, and this model has no beginning-of-text token to start from")
        return [self._bos_id]

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _generate(self, ids: list[int], context_length: int | None, options: Options) -> Generation:
        self.check_open()
        length = self._session_length(context_length)
        if len(ids) > length:
            raise ContextLengthError(f"the prompt's {len(ids)} tokens exceed the context of {length} tokens")
        return begin_generation(self, Steps(lambda: self.session(length), owned=True), ids, length, options)

    def _session_length(self, wanted: int | None) -> int:
        made_for = min(self._config.context_length, _core.LONGEST_CONTEXT)
        if wanted is None:
            return self._context_length
        if operator.index(wanted) < 1:
            raise ValueError(f"context_length must be at least 1, not {wanted}")
        if wanted > made_for:
            raise ContextLengthError(f"context_length {wanted} exceeds the {made_for} positions the model was made for")
        return wanted

    def _need_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise TokenizerError(
                f"{self._path.name} holds no tokenizer, so it cannot read text: give load() a tokenizer= (a path or "
                "a Tokenizer), or pass token ids"
            )
        return self._tokenizer

    def _reader(self, checkpoint: Checkpoint) -> Callable[[str, int], npt.NDArray[np.float32] | None]:
        """Dequantises the tensor of a slot and layer when it is called, so that an export holds one at a time."""
        bindings = {(b.slot, b.layer): b for b in architectures.bindings(checkpoint, self._config)}

        def read(slot: str, layer: int) -> npt.NDArray[np.float32] | None:
            b = bindings.get((slot, layer))
            return None if b is None else dequantized(checkpoint, b)

        return read

    def _check_unchanged(self) -> None:
        if fingerprint(self._path) != self._fingerprint:
            raise PyllmError(f"{self._path} is not the file that was loaded: it has changed since")


# ---- loading ---------------------------------------------------------------------------------------------------------


def _checked_threads(threads: int) -> int:
    if not 1 <= operator.index(threads) <= MAX_THREADS:
        raise ValueError(f"threads must be in [1, {MAX_THREADS}], or None, not {threads}")
    return operator.index(threads)


def _check_choice(name: str, value: object, choices: Collection[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


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
        tokenizer = load_folder(checkpoint.path)
    elif given is None:
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


def fingerprint(path: Path) -> str:
    """SHA-256 over each file's size and 64 pieces spread evenly over it: cheap, and another for any other model."""
    digest = hashlib.sha256()
    for part in formats.files_of(path):
        size = part.stat().st_size
        digest.update(str(size).encode())
        with open(part, "rb") as file:
            for i in range(_SAMPLES):
                file.seek(max(size - _SAMPLE_BYTES, 0) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _reopen(path: str, expected: str, arguments: dict[str, Any]) -> Model:
    """What a pickled model becomes elsewhere."""
    if fingerprint(Path(path)) != expected:
        raise PyllmError(f"{path} is not the file of the pickled model: it has changed since")
    return load(path, **arguments)
