"""Engines behind one small interface, so that each is asked the same thing: pyllm's own, and llama.cpp's.

    pyllm:high  pyllm:fast     this project, in either precision
    pyllm:high:q8_0  ...       the same with keys and values of that type: f16, f32, q8_0
    llama.cpp   llama.cpp:fa   llama-cpp-python, without and with flash attention

A peer is no dependency: it is imported when it is asked for, and says what to install where it is missing. Keys and
values are f16 where no type is named; what is timed neither tokenizes nor samples, except `batch` and `text`, which
take the likeliest token.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: Tokens per forward pass of llama.cpp, its own default; its answers depend on it.
LLAMA_CPP_BATCH = 512
#: How keys and values are kept, by `kv_dtype`: elements of a block, and its bytes.
KV_BLOCKS = {"f16": (1, 2), "f32": (1, 4), "q8_0": (32, 34)}


@dataclass(frozen=True)
class Setup:
    """What an engine is opened for. `every_logit`: `logits` will be asked for; engines may need memory for that.
    `converted`: a folder with the model in other programs' formats. `tokenizer`: a file, for models that hold none.
    """

    model: Path
    threads: int
    context_length: int
    every_logit: bool = False
    converted: Path | None = None
    tokenizer: Path | None = None


@dataclass
class Taken:
    """What one run took: tokens read or made, seconds by the clock, and CPU seconds of all threads."""

    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Taken) -> Taken:
        return Taken(self.tokens + other.tokens, self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)


@contextmanager
def timing(tokens: int = 0) -> Iterator[Taken]:
    """Time what stands below; `tokens` may be set later."""
    taken = Taken(tokens)
    start, cpu_start = time.perf_counter(), time.process_time()
    yield taken
    taken.seconds, taken.cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start


@dataclass(frozen=True)
class Costs:
    """What one token costs: bytes of weights read to decode it, bytes of keys and values read per position before it,
    and multiply-accumulates in the layers' matrices, attention apart.
    """

    weight_bytes: int
    position_bytes: int
    layer_macs: int


class Engine(Protocol):
    """A loaded model. Not safe for several threads. `tests` names the methods it has of the four that are timed."""

    tests: frozenset[str]

    @property
    def version(self) -> str:
        """Name and version of the program, and how it was built where it tells."""

    @property
    def costs(self) -> Costs | None:
        """What a token costs; None where the engine does not tell."""

    def logits(self, ids: Sequence[int]) -> Floats:
        """The logits after each of `ids`, read into an empty context: float32 (n, vocab)."""

    def prefill(self, ids: Sequence[int]) -> Taken:
        """Read `ids` into an empty context as one prompt, computing the logits of the last."""

    def decode(self, ids: Sequence[int], before: Sequence[int] = ()) -> Taken:
        """Read `ids` one by one, computing the logits of each, into a context that holds `before`, untimed."""

    def batch(self, prompts: Sequence[Sequence[int]], n: int) -> Taken:
        """Continue all prompts at once by the likeliest tokens, `n` each. The prompts are timed, but not counted."""

    def text(self, prompt: str, n: int) -> Taken:
        """Continue a text by at most `n` of the likeliest tokens, from text to text."""

    def close(self) -> None:
        """Free the model."""


EVERY_TEST = frozenset({"prefill", "decode", "batch", "text"})


def need(module: str, package: str) -> Any:
    """The module. Raises `ImportError` saying which package has it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} cannot be imported ({error}): pip install {package}") from error


def release(package: str) -> str:
    """Name and version of a package, as installed."""
    return f"{package} {importlib.metadata.version(package)}"


def position_bytes(model: Any) -> int:
    """Bytes of keys and values that a `Model` keeps of one position."""
    config, (elements, nbytes) = model.config, KV_BLOCKS[model.kv_dtype]
    return int(2 * config.n_layers * config.n_kv_heads * -(-config.head_dim // elements) * nbytes)


class Pyllm:
    """The engine of this project."""

    tests = EVERY_TEST

    def __init__(self, setup: Setup, precision: str, kv_dtype: str | None = None) -> None:
        import pyllm

        self.model = pyllm.load(
            setup.model,
            threads=setup.threads,
            precision=precision,
            kv_dtype=kv_dtype,
            tokenizer=setup.tokenizer,
            # What guesses and kept prefixes gain depends on the text; and here the same prompt comes again and again.
            speculation=False,
            prefix_cache=None,
        )
        self._session = self.model.session(setup.context_length)

    @property
    def version(self) -> str:
        """The release and the kernel level in use."""
        return f"{release('pyllm')}, {self.model.info()['isa']}"

    @property
    def costs(self) -> Costs:
        """See `Engine`; of a model without experts."""
        config = self.model.config
        macs = self.model.info()["parameters"] - config.vocab_size * config.dim
        return Costs(self.model.token_bytes, position_bytes(self.model), macs)

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `Engine`."""
        return self.model.logits(ids)

    def prefill(self, ids: Sequence[int]) -> Taken:
        """See `Engine`."""
        self._session.truncate(0)
        with timing(len(ids)) as taken:
            self._session.eval(ids)
        return taken

    def decode(self, ids: Sequence[int], before: Sequence[int] = ()) -> Taken:
        """See `Engine`."""
        known = self._session.tokens[: len(before)] == list(before)
        self._session.truncate(len(before) if known else 0)
        if before and not known:
            self._session.eval(before)
        with timing(len(ids)) as taken:
            for token in ids:
                self._session.eval([token])
        return taken

    def batch(self, prompts: Sequence[Sequence[int]], n: int) -> Taken:
        """See `Engine`."""
        from pyllm import Sampler

        banned = Sampler(temperature=0, logit_bias=dict.fromkeys(self.model.stop_ids, -np.inf))
        with timing() as taken:
            found = self.model.generate_batch([list(ids) for ids in prompts], max_tokens=n, sampler=banned)
            taken.tokens = sum(len(generation.tokens) for generation in found)
        return taken

    def text(self, prompt: str, n: int) -> Taken:
        """See `Engine`."""
        from pyllm import Sampler

        with timing() as taken:
            generation = self.model.generate(prompt, max_tokens=n, sampler=Sampler.greedy())
            taken.tokens = len(generation.tokens)
        return taken

    def close(self) -> None:
        """See `Engine`."""
        self._session.close()
        self.model.close()


class LlamaCpp:
    """llama.cpp through llama-cpp-python: texts by its Python class, all else by the C functions below it, so that it
    does not pay for that class.
    """

    tests = EVERY_TEST
    costs = None

    def __init__(self, setup: Setup, flash_attention: bool) -> None:
        self._api = need("llama_cpp", "llama-cpp-python")
        self._engine = self._api.Llama(
            str(setup.model),
            n_ctx=setup.context_length,
            n_batch=LLAMA_CPP_BATCH,
            n_ubatch=LLAMA_CPP_BATCH,
            n_threads=setup.threads,
            n_threads_batch=setup.threads,
            flash_attn=flash_attention,
            logits_all=setup.every_logit,
            verbose=False,
        )
        self._held: list[int] = []  # the ids at the beginning of the context

    @property
    def version(self) -> str:
        """The release of llama-cpp-python, and the instructions that its library was built for."""
        built_for = self._api.llama_print_system_info().decode().strip(" |")
        return f"{release('llama-cpp-python')}, {built_for}"

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `Engine`."""
        self._engine.reset()
        self._engine.eval(ids)
        return np.array(self._engine.scores[: len(ids)], np.float32)

    def prefill(self, ids: Sequence[int]) -> Taken:
        """See `Engine`."""
        self._keep(0)
        with timing(len(ids)) as taken:
            self._read(ids)
        return taken

    def decode(self, ids: Sequence[int], before: Sequence[int] = ()) -> Taken:
        """See `Engine`."""
        known = self._held[: len(before)] == list(before)
        self._keep(len(before) if known else 0)
        if before and not known:
            self._read(before)
        with timing(len(ids)) as taken:
            for token in ids:
                self._read([token])
        return taken

    def batch(self, prompts: Sequence[Sequence[int]], n: int) -> Taken:
        """See `Engine`."""
        api, options = self._api, type(self._engine.context_params).from_buffer_copy(self._engine.context_params)
        options.n_seq_max, options.n_ctx = len(prompts), sum(len(ids) + n for ids in prompts)
        options.kv_unified = True
        context = api.llama_init_from_model(self._engine.model, options)
        try:
            with timing(n * len(prompts)) as taken:
                next_ids = self._step(context, list(prompts), 0)
                for i in range(1, n):
                    next_ids = self._step(context, [[token] for token in next_ids], len(prompts[0]) + i - 1)
        finally:
            api.llama_free(context)
        return taken

    def text(self, prompt: str, n: int) -> Taken:
        """See `Engine`."""
        self._engine.reset()
        with timing() as taken:
            taken.tokens = self._engine(prompt, max_tokens=n, temperature=0.0)["usage"]["completion_tokens"]
        self._held = []
        return taken

    def close(self) -> None:
        """See `Engine`."""
        self._engine.close()

    def _keep(self, n: int) -> None:
        memory = self._api.llama_get_memory(self._engine.ctx)
        self._api.llama_memory_seq_rm(memory, 0, n, -1)
        del self._held[n:]

    def _read(self, ids: Sequence[int]) -> None:
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        for start in range(0, len(ids), LLAMA_CPP_BATCH):
            n = min(LLAMA_CPP_BATCH, len(ids) - start)
            first = ctypes.cast(ctypes.byref(tokens, 4 * start), ctypes.POINTER(ctypes.c_int32))
            self._decode(self._engine.ctx, self._api.llama_batch_get_one(first, n))
        self._api.llama_synchronize(self._engine.ctx)
        self._held += ids

    def _step(self, context: Any, rows: Sequence[Sequence[int]], position: int) -> list[int]:
        """Feed each sequence its row of tokens, and take the likeliest next one of each."""
        api, total = self._api, sum(map(len, rows))
        batch = api.llama_batch_init(total, 0, 1)
        last, batch.n_tokens = [], total
        cells = ((s, i, token) for s, row in enumerate(rows) for i, token in enumerate(row))
        for at, (s, i, token) in enumerate(cells):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position + i, i == len(rows[s]) - 1
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, s
            if batch.logits[at]:
                last.append(at)
        self._decode(context, batch)
        vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._engine.model))
        logits = [np.ctypeslib.as_array(api.llama_get_logits_ith(context, at), (vocab,)) for at in last]
        found = [int(row.argmax()) for row in logits]
        api.llama_batch_free(batch)
        return found

    def _decode(self, context: Any, batch: Any) -> None:
        status = self._api.llama_decode(context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode failed with status {status}")


#: Specification to what opens it.
ENGINES: dict[str, Callable[[Setup], Engine]] = {
    "pyllm:high": lambda setup: Pyllm(setup, "high"),
    "pyllm:fast": lambda setup: Pyllm(setup, "fast"),
    **{f"pyllm:{p}:{kv}": partial(Pyllm, precision=p, kv_dtype=kv) for p in ("high", "fast") for kv in KV_BLOCKS},
    "llama.cpp": lambda setup: LlamaCpp(setup, flash_attention=False),
    "llama.cpp:fa": lambda setup: LlamaCpp(setup, flash_attention=True),
}


def open_engine(specification: str, setup: Setup) -> Engine:
    """Load the model of `setup` into an engine. Raises `ValueError` naming the engines there are."""
    if specification not in ENGINES:
        raise ValueError(f"{specification!r} is no engine; there are {', '.join(ENGINES)}")
    return ENGINES[specification](setup)
