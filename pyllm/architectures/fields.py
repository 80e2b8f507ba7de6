"""Typed access to what a file says about its model, and the checks every described model passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyllm.config import ModelConfig
from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats.checkpoint import Checkpoint

MAX_INT32 = 2**31 - 1
MAX_FP32 = 3.4028234e38


class Fields:
    """Fields of a GGUF's metadata or a config.json, each checked when it is read; what was never asked for is known.

    `prefix` stands before every name: with "llama." `integer("block_count")` is `llama.block_count`. `label` goes into
    messages. A JSON null is as good as absent.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "", label: str = "metadata ") -> None:
        self.path, self.values, self.prefix, self.label = path, values, prefix, label
        self._read: set[str] = set()

    def get(self, name: str) -> Any:
        """The value as it stands, or None."""
        self._read.add(name)
        return self.values.get(self.prefix + name)

    def has(self, *names: str) -> bool:
        """Whether any of these fields says something."""
        return any(self.get(name) is not None for name in names)

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """An int32 of at least `least`; an array with one equal value per layer counts as that value."""
        value = self._present(name, default)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
            if (value != value[0]).any():
                raise self.unsupported(name, "differs from layer to layer")
            value = value[0].item()
        if type(value) is not int or not least <= value <= MAX_INT32:
            raise self.bad(name, value, f"an integer from {least} to {MAX_INT32}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite fp32 number."""
        value = self._present(name, default)
        if type(value) not in (int, float) or not 0 < value <= MAX_FP32:
            raise self.bad(name, value, "a positive finite number")
        return float(value)

    def number_or_off(self, name: str) -> float:
        """A positive finite fp32 number; 0, None and absence all mean 0, which turns something off."""
        return self.number(name) if self.get(name) not in (None, 0) else 0.0

    def flag(self, name: str, default: bool = False) -> bool:
        """A truth value."""
        value = self._present(name, default)
        if type(value) is not bool:
            raise self.bad(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._present(name, default)
        if type(value) is not str:
            raise self.bad(name, value, "a string")
        return value

    def choice(self, name: str, choices: Mapping[str, str], default: str | None = None) -> str:
        """What one of several known strings stands for."""
        value = self.text(name, default)
        if value not in choices:
            raise self.unsupported(name)
        return choices[value]

    def items(self, name: str, length: int) -> Sequence[Any]:
        """A list with one element for each of `length` things."""
        value = self.get(name)
        value = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(value, list) or len(value) != length:
            raise self.bad(name, value, f"a list of {length}")
        return value

    def numbers(self, name: str, length: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Positive finite fp32 numbers, one for each of `length` things."""
        values = self.items(name, length)
        for value in values:
            if type(value) not in (int, float) or not 0 < value <= MAX_FP32:
                raise self.bad(name, value, "positive finite numbers")
        return np.array(values, np.float32)

    def section(self, name: str) -> Fields:
        """The fields of an object inside this one; none where it is absent."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.bad(name, value, "an object")
        return Fields(self.path, value or {}, label=f"{self.label}{name}.")

    def assume(self, name: str, *allowed: Any) -> None:
        """Refuse a field that says anything but what is assumed here anyway."""
        value = self.get(name)
        if value is not None and value not in allowed:
            raise self.unsupported(name)

    def unread(self) -> Iterator[str]:
        """The names under the prefix that nobody asked for."""
        for key in self.values:
            name = key.removeprefix(self.prefix)
            if key.startswith(self.prefix) and name not in self._read:
                yield name

    def unsupported(self, name: str, what: str = "") -> UnsupportedModelError:
        """The error for a field whose value asks for something that does not exist here."""
        value = self.values.get(self.prefix + name)
        what = what or f"is {str(value)[:80]!r}"
        return UnsupportedModelError(f"{self.path}: {self.label}{self.prefix}{name} {what}, which pyllm cannot run")

    def bad(self, name: str, value: object, expected: str) -> ModelFormatError:
        """The error for a field with an impossible value."""
        said = str(value)[:80]
        return ModelFormatError(f"{self.path}: {self.label}{self.prefix}{name} is {said}, expected {expected}")

    def _present(self, name: str, default: Any) -> Any:
        value = self.get(name)
        if value is not None:
            return value
        if default is None:
            raise ModelFormatError(f"{self.path}: {self.label}{self.prefix}{name} is missing; the file is incomplete")
        return default


def checked(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """The same config if its fields fit together; else `ModelFormatError` naming the field."""
    flaw = _flaw(config)
    if flaw:
        raise ModelFormatError(f"{checkpoint.path}: the {config.architecture!r} model is impossible: {flaw}")
    return config


def _flaw(c: ModelConfig) -> str | None:
    """The first thing that cannot be, in words, or None. What is merely too large `pl_model_new` refuses."""
    sizes = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "context_length")
    for name in sizes:
        if not 1 <= getattr(c, name) <= MAX_INT32:
            return f"{name} is {getattr(c, name)}, expected 1 to {MAX_INT32}"
    if c.n_heads * c.head_dim > MAX_INT32:
        return f"{c.n_heads} heads of {c.head_dim} are too wide"
    if c.n_heads % c.n_kv_heads:
        return f"n_heads is {c.n_heads}, expected a multiple of n_kv_heads, {c.n_kv_heads}"
    rotates = any(c.layer(i).rope != "none" for i in range(c.n_layers if c.layers else 1))
    if c.head_dim % 2 or c.rope_dims % 2 or not 2 * rotates <= c.rope_dims <= c.head_dim:
        return f"rope_dims is {c.rope_dims} and head_dim is {c.head_dim}, expected even numbers, the first no larger"
    if not (0 < c.norm_eps < 1 and math.isfinite(c.rope_base) and 0 < c.rope_base <= MAX_FP32):
        return f"norm_eps is {c.norm_eps} and rope_base is {c.rope_base}, expected 0 < norm_eps < 1 and 0 < rope_base"
    if any(layer.experts for layer in c.layers) and not 1 <= c.n_experts_used <= c.n_experts:
        return f"{c.n_experts_used} of {c.n_experts} experts are used"
    return None
