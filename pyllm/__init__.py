"""Language models on the CPU, in three nouns: Model, Tokenizer, Sampler.

>>> model = pyllm.load("model.gguf")
>>> print(model.generate("Once upon a time", max_tokens=64).text)
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from pyllm.errors import (
    ClosedError,
    ContextLengthError,
    GrammarError,
    MissingLibraryError,
    ModelFormatError,
    ModelUnavailableError,
    OutOfMemoryError,
    PyllmError,
    SessionBusyError,
    TokenizerError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from pyllm import tools
    from pyllm.adapters import Adapter
    from pyllm.config import ModelConfig
    from pyllm.generation import Chunk, Generation, Stats
    from pyllm.grammar import Grammar
    from pyllm.model import Model, Score, load
    from pyllm.quantizing import Quantized, quantize
    from pyllm.sampling import Sampler
    from pyllm.session import Session
    from pyllm.tokenizers import Tokenizer
    from pyllm.tool_formats import ToolCall

    __version__: str

__all__ = [
    "Adapter",
    "Chunk",
    "ClosedError",
    "ContextLengthError",
    "Generation",
    "Grammar",
    "GrammarError",
    "MissingLibraryError",
    "Model",
    "ModelConfig",
    "ModelFormatError",
    "ModelUnavailableError",
    "OutOfMemoryError",
    "PyllmError",
    "Quantized",
    "Sampler",
    "Score",
    "Session",
    "SessionBusyError",
    "Stats",
    "Tokenizer",
    "TokenizerError",
    "ToolCall",
    "UnsupportedModelError",
    "__version__",
    "load",
    "quantize",
    "tools",
]

#: Where the names above live. They are imported when first used, because numpy alone takes longer to import than all
#: of pyllm, and a program that may never run a model should not wait for it.
_HOMES = {
    "Adapter": "adapters",
    "Chunk": "generation",
    "Generation": "generation",
    "Grammar": "grammar",
    "Model": "model",
    "ModelConfig": "config",
    "Quantized": "quantizing",
    "Sampler": "sampling",
    "Score": "model",
    "Session": "session",
    "Stats": "generation",
    "Tokenizer": "tokenizers",
    "ToolCall": "tool_formats",
    "load": "model",
    "quantize": "quantizing",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = importlib.import_module("importlib.metadata").version("pyllm")
    elif name == "tools":
        value = importlib.import_module("pyllm.tools")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"pyllm.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'pyllm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _select_isa(name: str) -> None:
    """Use the kernel level that PYLLM_ISA names instead of the best one, or say which there are."""
    from pyllm import _core

    if name not in _core.isa_names():
        raise ValueError(f"PYLLM_ISA={name}: this machine runs {', '.join(_core.isa_names())}")
    _core.isa_select(name)


if os.environ.get("PYLLM_ISA"):
    _select_isa(os.environ["PYLLM_ISA"])
