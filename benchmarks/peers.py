"""Engines behind one small interface, so that every benchmark asks each of them the same thing.

An engine is named by a specification:

    pyllm:high  pyllm:fast     this project, in either precision
    llama.cpp   llama.cpp:fa   llama-cpp-python, without and with flash attention
    transformers               Hugging Face transformers in fp32, on the dequantised weights of a GGUF file

Peers are no dependency of pyllm: each is imported when it is asked for, and says what to install where it is missing.
Keys and values are f16 except in transformers, and whatever is timed is one call without tokenizing or sampling.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: Tokens per forward pass of llama.cpp, its own default; its answers depend on it.
LLAMA_CPP_BATCH = 512


@dataclass(frozen=True)
class Setup:
    """What an engine is opened for. `every_logit`: `logits` will be asked for; engines may need memory for that."""

    model: Path
    threads: int
    context_length: int
    every_logit: bool = False


class Engine(Protocol):
    """A loaded model. Not safe for several threads."""

    @property
    def version(self) -> str:
        """Name and version of the program, and how it was built where it tells."""

    @property
    def token_bytes(self) -> int | None:
        """Bytes of weights read to decode one token; None where the engine does not tell."""

    def logits(self, ids: Sequence[int]) -> Floats:
        """The logits after each of `ids`, read into an empty context: float32 (n, vocab)."""

    def prefill(self, ids: Sequence[int]) -> None:
        """Read `ids` into an empty context as one prompt, computing the logits of the last."""

    def decode(self, ids: Sequence[int]) -> None:
        """Read `ids` into an empty context one by one, computing the logits of each."""

    def close(self) -> None:
        """Free the model."""


def need(module: str, package: str) -> Any:
    """The module, or `SystemExit` saying which package has it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SystemExit(f"{module} is not installed ({error}): pip install {package}") from error


def release(package: str) -> str:
    """Name and version of a package, as installed."""
    return f"{package} {importlib.metadata.version(package)}"


class Pyllm:
    """The engine of this project."""

    def __init__(self, setup: Setup, precision: str) -> None:
        import pyllm

        self.model = pyllm.load(setup.model, threads=setup.threads, precision=precision)
        self._session = self.model.session(setup.context_length)

    @property
    def version(self) -> str:
        """The release and the kernel level in use."""
        return f"{release('pyllm')}, {self.model.info()['isa']}"

    @property
    def token_bytes(self) -> int:
        """See `Engine`."""
        return self.model.token_bytes

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `Engine`."""
        return self.model.logits(ids)

    def prefill(self, ids: Sequence[int]) -> None:
        """See `Engine`."""
        self._session.truncate(0)
        self._session.eval(ids)

    def decode(self, ids: Sequence[int]) -> None:
        """See `Engine`."""
        self._session.truncate(0)
        for token in ids:
            self._session.eval([token])

    def close(self) -> None:
        """See `Engine`."""
        self._session.close()
        self.model.close()


class LlamaCpp:
    """llama.cpp through llama-cpp-python: `logits` by its Python class, what is timed by the C functions below it."""

    token_bytes = None

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

    def prefill(self, ids: Sequence[int]) -> None:
        """See `Engine`."""
        self._empty()
        self._read(ids)

    def decode(self, ids: Sequence[int]) -> None:
        """See `Engine`."""
        self._empty()
        for token in ids:
            self._read([token])

    def close(self) -> None:
        """See `Engine`."""
        self._engine.close()

    def _empty(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._engine.ctx), False)

    def _read(self, ids: Sequence[int]) -> None:
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        for start in range(0, len(ids), LLAMA_CPP_BATCH):
            n = min(LLAMA_CPP_BATCH, len(ids) - start)
            first = ctypes.cast(ctypes.byref(tokens, 4 * start), ctypes.POINTER(ctypes.c_int32))
            status = self._api.llama_decode(self._engine.ctx, self._api.llama_batch_get_one(first, n))
            if status != 0:
                raise RuntimeError(f"llama_decode failed with status {status}")
        self._api.llama_synchronize(self._engine.ctx)


class Transformers:
    """Hugging Face transformers in fp32, eager attention: the reference of law 2."""

    token_bytes = None

    def __init__(self, setup: Setup) -> None:
        packages = "torch transformers accelerate gguf"
        self._torch = need("torch", packages)
        self._torch.set_num_threads(setup.threads)
        self._model = need("transformers", packages).AutoModelForCausalLM.from_pretrained(
            str(setup.model.parent),
            gguf_file=setup.model.name,
            dtype=self._torch.float32,
            attn_implementation="eager",
        )
        self._model.eval()

    @property
    def version(self) -> str:
        """The releases of transformers and of torch."""
        return f"{release('transformers')}, {release('torch')}, fp32"

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `Engine`."""
        with self._torch.inference_mode():
            rows: Floats = self._model(self._torch.tensor([list(ids)])).logits[0].numpy()
        return rows

    def prefill(self, ids: Sequence[int]) -> None:
        """See `Engine`."""
        self._read(ids, None)

    def decode(self, ids: Sequence[int]) -> None:
        """See `Engine`."""
        cache = None
        for token in ids:
            cache = self._read([token], cache)

    def close(self) -> None:
        """See `Engine`."""
        del self._model

    def _read(self, ids: Sequence[int], cache: Any) -> Any:
        with self._torch.inference_mode():
            fed = self._torch.tensor([list(ids)])
            return self._model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values


#: Specification to what opens it.
ENGINES: dict[str, Callable[[Setup], Engine]] = {
    "pyllm:high": lambda setup: Pyllm(setup, "high"),
    "pyllm:fast": lambda setup: Pyllm(setup, "fast"),
    "llama.cpp": lambda setup: LlamaCpp(setup, flash_attention=False),
    "llama.cpp:fa": lambda setup: LlamaCpp(setup, flash_attention=True),
    "transformers": Transformers,
}


def open_engine(specification: str, setup: Setup) -> Engine:
    """Load the model of `setup` into an engine. `SystemExit` names the engines there are, or what is not installed."""
    if specification not in ENGINES:
        raise SystemExit(f"{specification!r} is no engine; there are {', '.join(ENGINES)}")
    return ENGINES[specification](setup)
