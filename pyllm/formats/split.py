"""GGUF models in several files, NAME-00001-of-0000N.gguf and so on: one checkpoint over all of them.

The first file holds the metadata; each says in `split.no` and `split.count` which one it is, and holds some tensors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pyllm.errors import ModelFormatError
from pyllm.formats.checkpoint import Checkpoint, TensorSpec

_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def files_of(path: Path) -> list[Path]:
    """The files of the model that `path` is, or is a part of: the first part first. Whether they exist is not asked."""
    match = _NAME.fullmatch(path.name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return [path]
    count = int(match["count"])
    return [path.with_name(f"{match['stem']}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]


def join(parts: Sequence[Checkpoint]) -> Checkpoint:
    """One checkpoint of all parts, in order; it owns their mappings. Raises `ModelFormatError` for parts of another."""
    first = parts[0]
    tensors: dict[str, TensorSpec] = {}
    for number, part in enumerate(parts):
        _check(part, number, len(parts))
        for name, spec in part.tensors.items():
            if name in tensors:
                raise ModelFormatError(f"{part.path}: tensor {name!r} is in another part of the model, too")
            tensors[name] = replace(spec, part=number)
    expected = first.metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise ModelFormatError(f"{first.path}: the {len(parts)} parts hold {len(tensors)} tensors, not {expected}")
    return Checkpoint(
        path=first.path,
        format=first.format,
        metadata={key: value for key, value in first.metadata.items() if not key.startswith("split.")},
        tensors=tensors,
        buffer=first.buffer,
        more=tuple(part.buffer for part in parts[1:]),
        notes={**first.notes, "parts": len(parts)},
    )


def _check(part: Checkpoint, number: int, count: int) -> None:
    if part.format != "gguf":
        raise ModelFormatError(f"{part.path}: named like a part of a split GGUF, but it is a {part.format} file")
    says = part.metadata.get("split.no"), part.metadata.get("split.count")
    if says != (number, count):
        raise ModelFormatError(
            f"{part.path}: split.no and split.count are {says[0]} and {says[1]}, expected {number} and {count} from "
            "its name"
        )
