"""Typed access to a file's metadata, and the checks every described model passes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyllm.config import ModelConfig
from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats.checkpoint import Checkpoint

MAX_INT32 = 2**31 - 1
MAX_FP32 = 3.4028234e38


class Metadata:
    """The fields of one family, read by the end of their names: `integer("block_count")` is `llama.block_count`."""

    def __init__(self, checkpoint: Checkpoint, prefix: str) -> None:
        self.path = checkpoint.path
        self.prefix = prefix
        self.fields = checkpoint.metadata

    def get(self, name: str) -> Any:
        """The value as it stands, or None."""
        return self.fields.get(self.prefix + name)

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive int32; an array with one equal value per layer counts as that value."""
        value = self._present(name, default)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
            if (value != value[0]).any():
                raise self.unsupported(name, "differs from layer to layer")
            value = value[0].item()
        if type(value) is not int or not 1 <= value <= MAX_INT32:
            raise self._bad(name, value, f"an integer from 1 to {MAX_INT32}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite fp32 number."""
        value = self._present(name, default)
        if type(value) not in (int, float) or not 0 < value <= MAX_FP32:
            raise self._bad(name, value, "a positive finite number")
        return float(value)

    def unsupported(self, name: str, what: str = "") -> UnsupportedModelError:
        """The error for a field whose value asks for something that does not exist here."""
        value = self.get(name)
        return UnsupportedModelError(
            f"{self.path}: {self.prefix}{name} {what or f'is {str(value)[:80]!r}'}, which pyllm cannot run"
        )

    def _present(self, name: str, default: Any) -> Any:
        value = self.get(name)
        if value is not None:
            return value
        if default is None:
            raise ModelFormatError(f"{self.path}: metadata {self.prefix}{name} is missing; the file is incomplete")
        return default

    def _bad(self, name: str, value: object, expected: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path}: metadata {self.prefix}{name} is {str(value)[:80]}, expected {expected}")


def checked(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """The same config if its fields fit together; else `ModelFormatError` naming the field."""
    flaw = _flaw(config)
    if flaw:
        raise ModelFormatError(f"{checkpoint.path}: the {config.architecture!r} model is impossible: {flaw}")
    return config


def _flaw(c: ModelConfig) -> str | None:
    """The first thing that cannot be, in words, or None. Mirrors what `pl_model_new` accepts."""
    sizes = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "context_length")
    for name in sizes:
        if not 1 <= getattr(c, name) <= MAX_INT32:
            return f"{name} is {getattr(c, name)}, expected 1 to {MAX_INT32}"
    if c.n_heads * c.head_dim > MAX_INT32:
        return f"{c.n_heads} heads of {c.head_dim} are too wide"
    if c.n_heads % c.n_kv_heads:
        return f"n_heads is {c.n_heads}, expected a multiple of n_kv_heads, {c.n_kv_heads}"
    if c.head_dim % 2 or c.rope_dims % 2 or not 2 <= c.rope_dims <= c.head_dim:
        return f"rope_dims is {c.rope_dims} and head_dim is {c.head_dim}, expected even numbers, the first no larger"
    if not (0 < c.norm_eps < 1 and math.isfinite(c.rope_base) and 0 < c.rope_base <= MAX_FP32):
        return f"norm_eps is {c.norm_eps} and rope_base is {c.rope_base}, expected 0 < norm_eps < 1 and 0 < rope_base"
    return None
