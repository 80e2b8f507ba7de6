"""Low-rank adapters (LoRA) as files: folders of the `peft` library, and GGUF files of the type "adapter"."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats import folder
from pyllm.formats.checkpoint import Checkpoint, TensorSpec
from pyllm.formats.weight_types import FLOATS, type_name

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"

_PEFT_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight")
_PLAIN_NAME = re.compile(r"[\w.]+")
_GGUF_NAME = re.compile(r"(?P<module>.+)\.weight\.lora_(?P<half>[ab])")
# What the library can do besides, with the value that turns it off.
_OFF: dict[str, tuple[object, ...]] = {
    "use_dora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "modules_to_save": ([],),
    "layer_replication": ([],),
    "trainable_token_indices": ([], {}),
    "target_parameters": ([],),
    "megatron_config": (),
}


class LowRank(NamedTuple):
    """One matrix's addition, scale * B A: `a` (rank, cols) and `b` (rows, rank). `module` is the matrix's name in the
    files of the model, without ".weight".
    """

    module: str
    a: TensorSpec
    b: TensorSpec
    scale: float


def is_peft(path: Path) -> bool:
    """Whether this is a folder that holds an adapter as the `peft` library writes it."""
    return path.is_dir() and (path / PEFT_CONFIG).is_file()


def files_of(path: Path) -> list[Path]:
    """The files that make up an adapter."""
    return [path / PEFT_CONFIG, path / PEFT_WEIGHTS] if is_peft(path) else [path]


def pairs(checkpoint: Checkpoint) -> Iterator[LowRank]:
    """What an opened adapter adds, matrix by matrix.

    Raises `ModelFormatError` where halves are missing or do not fit, `UnsupportedModelError` for what is no plain LoRA.
    """
    peft = checkpoint.format == folder.FORMAT
    if peft:
        _refuse_other_kinds(checkpoint)
    elif checkpoint.metadata.get("general.type") != "adapter" or checkpoint.metadata.get("adapter.type") != "lora":
        raise ModelFormatError(
            f"{checkpoint.path}: not a LoRA adapter: its general.type and adapter.type say otherwise"
        )
    halves: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in checkpoint.tensors.items():
        match = (_PEFT_NAME if peft else _GGUF_NAME).fullmatch(name)
        if match is None:
            raise UnsupportedModelError(f"{checkpoint.path}: tensor {name[:80]!r} is no half of a low-rank addition")
        halves.setdefault(match["module"], {})[match["half"].lower()] = spec
    if not halves:
        raise ModelFormatError(f"{checkpoint.path}: an adapter without tensors")
    for module, found in halves.items():
        yield _pair(checkpoint, module, found)


def _pair(checkpoint: Checkpoint, module: str, found: dict[str, TensorSpec]) -> LowRank:
    a, b = found.get("a"), found.get("b")
    if a is None or b is None:
        raise ModelFormatError(f"{checkpoint.path}: only one half of what is added to {module[:80]!r} is there")
    for spec in (a, b):
        if spec.type_id not in FLOATS:
            raise UnsupportedModelError(
                f"{checkpoint.path}: tensor {spec.name!r} has weight type {type_name(spec.type_id)}, expected floats"
            )
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or a.shape[0] < 1:
        raise ModelFormatError(
            f"{checkpoint.path}: {a.name!r} {a.shape} and {b.name!r} {b.shape} are no (rank, cols) and (rows, rank)"
        )
    return LowRank(module, a, b, _scale(checkpoint, module, a.shape[0]))


def _scale(checkpoint: Checkpoint, module: str, rank: int) -> float:
    """Alpha / rank, or what else the adapter says."""
    values = checkpoint.metadata
    if checkpoint.format != folder.FORMAT:
        alpha = values.get("adapter.lora.alpha", 0)
        return _number(checkpoint, "adapter.lora.alpha", alpha) / rank if alpha else 1.0
    patterns = values.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ModelFormatError(f"{checkpoint.path}: alpha_pattern is no object")
    # As peft has it, a pattern is a regular expression for the end of a module's name. One of a file that may hold
    # anything can take for ever, so only plain names are read.
    for key in patterns:
        if not _PLAIN_NAME.fullmatch(key):
            raise UnsupportedModelError(f"{checkpoint.path}: alpha_pattern has the expression {key[:80]!r}, not a name")
    alpha = next(
        (value for key, value in patterns.items() if f".{module}".endswith(f".{key}")), values.get("lora_alpha")
    )
    return _number(checkpoint, "lora_alpha", alpha) / (math.sqrt(rank) if values.get("use_rslora") is True else rank)


def _number(checkpoint: Checkpoint, name: str, value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e30:
        raise ModelFormatError(f"{checkpoint.path}: {name} is {str(value)[:40]}, expected a number")
    return float(value)


def _refuse_other_kinds(checkpoint: Checkpoint) -> None:
    kind = checkpoint.metadata.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(f"{checkpoint.path}: an adapter of the kind {str(kind)[:40]!r}; pyllm knows LORA")
    for name, off in _OFF.items():
        value = checkpoint.metadata.get(name)
        if value is not None and value not in off:
            raise UnsupportedModelError(f"{checkpoint.path}: {name} is {str(value)[:60]!r}, which pyllm cannot apply")
