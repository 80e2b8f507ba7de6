"""Language models on the CPU, in three nouns: Model, Tokenizer, Sampler.

>>> model = pyllm.load("model.gguf")
>>> print(model.generate("Once upon a time", max_tokens=64).text)
"""

from __future__ import annotations

import logging
import os

from pyllm import _core
from pyllm.config import ModelConfig
from pyllm.errors import (
    ClosedError,
    ContextLengthError,
    ModelFormatError,
    ModelUnavailableError,
    OutOfMemoryError,
    PyllmError,
    SessionBusyError,
    TokenizerError,
    UnsupportedModelError,
)
from pyllm.generation import Chunk, Generation, Stats
from pyllm.model import Model, Score, load
from pyllm.sampling import Sampler
from pyllm.session import Session
from pyllm.tokenizers import Tokenizer

__all__ = [
    "Chunk",
    "ClosedError",
    "ContextLengthError",
    "Generation",
    "Model",
    "ModelConfig",
    "ModelFormatError",
    "ModelUnavailableError",
    "OutOfMemoryError",
    "PyllmError",
    "Sampler",
    "Score",
    "Session",
    "SessionBusyError",
    "Stats",
    "Tokenizer",
    "TokenizerError",
    "UnsupportedModelError",
    "__version__",
    "load",
]

__version__: str

logging.getLogger("pyllm").addHandler(logging.NullHandler())


def _select_isa(name: str | None) -> None:
    """PYLLM_ISA: the level of kernels to use instead of the best one."""
    if name and name not in _core.isa_names():
        raise ValueError(f"PYLLM_ISA={name}: this machine runs {', '.join(_core.isa_names())}")
    if name:
        _core.isa_select(name)


_select_isa(os.environ.get("PYLLM_ISA"))


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version  # here: slow to import, and rarely asked for

        return version("pyllm")
    raise AttributeError(f"module 'pyllm' has no attribute {name!r}")
