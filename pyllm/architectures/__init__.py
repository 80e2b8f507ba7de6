"""Model families: from a checkpoint's metadata and names to one plain config and the slots of one forward pass.

A family is a module with a function for each kind of file, and a line for it in the tables.
"""

from __future__ import annotations

from collections.abc import Callable

from pyllm.architectures import llama, llama2c
from pyllm.architectures.binding import Binding, bind
from pyllm.architectures.draft import Description, Draft
from pyllm.config import ModelConfig
from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats.checkpoint import Checkpoint

__all__ = ["Binding", "bindings", "describe"]

Family = Callable[[Checkpoint], Draft]

# By GGUF's general.architecture.
GGUF: dict[str, Family] = {
    "llama": llama.gguf,
}

# By the model_type of a folder's config.json.
FOLDERS: dict[str, Family] = {
    "llama": llama.folder,
}

# What pyllm lacks for families that people have.
LACKING = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "falcon-mamba"), "state-space layers (Mamba)"),
}


def describe(checkpoint: Checkpoint) -> ModelConfig:
    """The model's shape; nothing is ever guessed.

    Raises `ModelFormatError` where fields do not fit together, `UnsupportedModelError` naming what is unknown.
    """
    return _description(checkpoint).config


def bindings(checkpoint: Checkpoint, config: ModelConfig) -> list[Binding]:
    """Every tensor with its slot, in the order of the forward pass. Raises as `describe` does."""
    return bind(checkpoint, _description(checkpoint))


def _description(checkpoint: Checkpoint) -> Description:
    return _family(checkpoint)(checkpoint).described()


def _family(checkpoint: Checkpoint) -> Family:
    if checkpoint.format == "llama2c":
        return llama2c.describe  # the format has one architecture
    if checkpoint.format == "huggingface":
        return _known(checkpoint, FOLDERS, "model_type", "config.json's model_type")
    if checkpoint.metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedModelError(
            f"{checkpoint.path}: one part of a split GGUF; give all parts their names, NAME-00001-of-0000N.gguf"
        )
    return _known(checkpoint, GGUF, "general.architecture", "metadata general.architecture")


def _known(checkpoint: Checkpoint, families: dict[str, Family], key: str, label: str) -> Family:
    name = checkpoint.metadata.get(key)
    if not isinstance(name, str):
        raise ModelFormatError(f"{checkpoint.path}: {label} is missing; the file is incomplete")
    if name not in families:
        lack = f", which needs {LACKING[name]}" if name in LACKING else ""
        raise UnsupportedModelError(
            f"{checkpoint.path}: {key} is {name[:80]!r}{lack}; pyllm runs: {', '.join(sorted(families))}"
        )
    return families[name]
