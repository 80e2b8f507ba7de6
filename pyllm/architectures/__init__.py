"""Model families: from a checkpoint's metadata and names to one plain config and the slots of one forward pass.

A family is a module with `describe` and `bindings` and one line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pyllm.architectures import llama, llama2c
from pyllm.architectures.binding import Binding
from pyllm.config import ModelConfig
from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats.checkpoint import Checkpoint

__all__ = ["Binding", "bindings", "describe"]


class Family(NamedTuple):
    """What a family's module offers."""

    describe: Callable[[Checkpoint], ModelConfig]
    bindings: Callable[[Checkpoint, ModelConfig], list[Binding]]


# By GGUF's general.architecture; llama2.c's files have one architecture, named after the format.
FAMILIES = {
    "llama": Family(llama.describe, llama.bindings),
    "llama2c": Family(llama2c.describe, llama2c.bindings),
}


def describe(checkpoint: Checkpoint) -> ModelConfig:
    """The model's shape; nothing is ever guessed.

    Raises `ModelFormatError` where fields do not fit together, `UnsupportedModelError` naming what is unknown.
    """
    return _family(checkpoint).describe(checkpoint)


def bindings(checkpoint: Checkpoint, config: ModelConfig) -> list[Binding]:
    """Every tensor with its slot, in the order of the forward pass. Raises as `describe` does."""
    return _family(checkpoint).bindings(checkpoint, config)


def _family(checkpoint: Checkpoint) -> Family:
    if checkpoint.format == "llama2c":
        return FAMILIES["llama2c"]
    name = checkpoint.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelFormatError(f"{checkpoint.path}: metadata general.architecture is missing; the file is incomplete")
    if checkpoint.metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedModelError(
            f"{checkpoint.path}: one part of a split GGUF; give all parts their names, NAME-00001-of-0000N.gguf"
        )
    if name not in FAMILIES or name == "llama2c":
        known = ", ".join(sorted(set(FAMILIES) - {"llama2c"}))
        raise UnsupportedModelError(f"{checkpoint.path}: general.architecture is {name!r}; pyllm runs: {known}")
    return FAMILIES[name]
