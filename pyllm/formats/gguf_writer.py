"""Writes GGUF files, version 3: metadata as encoded values, tensors one after another as their bytes come.

Files appear whole or not at all (`replacing`), and memory stays at one piece of one tensor.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pyllm.formats.gguf import ARRAY, BOOL, DEFAULT_ALIGNMENT, MAGIC, STRING
from pyllm.formats.replacing import replacing
from pyllm.formats.weight_types import WEIGHT_TYPES

VERSION = 3
UINT32, INT32, FLOAT32 = 4, 5, 6
_PACKING = {UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?"}


@dataclass(frozen=True)
class Outline:
    """A tensor to be written: its shape is row-major, outermost first."""

    name: str
    type_id: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """What it takes in the file."""
        elements = 1
        for n in self.shape:
            elements *= n
        return WEIGHT_TYPES[self.type_id].nbytes(elements)


def encode(type_: int, value: Any) -> bytes:
    """A metadata value as it stands in a file: the number of its type, then its bytes."""
    return struct.pack("<I", type_) + _payload(type_, value)


def encode_value(value: Any) -> bytes:
    """A metadata value as the type that its Python type stands for: int is uint32, float fp32.

    In a list, which must not be empty, the first element stands for all, and int is int32.
    """
    kinds: dict[type, int] = {bool: BOOL, int: UINT32, float: FLOAT32, str: STRING, bytes: STRING}
    if isinstance(value, list):
        kind = kinds[type(value[0])]
        return encode_array(INT32 if kind == UINT32 else kind, value)
    return encode(kinds[type(value)], value)


def encode_array(type_: int, values: Sequence[Any]) -> bytes:
    """An array of values of one type as it stands in a file."""
    head = struct.pack("<IIQ", ARRAY, type_, len(values))
    if type_ == STRING:
        return head + b"".join(_payload(STRING, value) for value in values)
    return head + struct.pack(f"<{len(values)}{_PACKING[type_]}", *values)


def _payload(type_: int, value: Any) -> bytes:
    if type_ == STRING:
        data = value if isinstance(value, bytes) else value.encode()
        return struct.pack("<Q", len(data)) + data
    return struct.pack("<" + _PACKING[type_], value)


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, bytes],
    tensors: Sequence[Outline],
    pieces: Callable[[Outline], Iterable[Any]],
) -> None:
    """Writes a file. `metadata` holds encoded values; `pieces` gives a tensor's bytes in as many pieces as it likes."""
    with replacing(Path(path)) as file:
        file.write(head(metadata, tensors))
        _pad(file)
        for tensor in tensors:
            written = sum(file.write(piece) for piece in pieces(tensor))
            if written != tensor.nbytes:
                raise ValueError(f"tensor {tensor.name!r} came as {written} bytes, expected {tensor.nbytes}")
            _pad(file)


def head(metadata: Mapping[str, bytes], tensors: Sequence[Outline]) -> bytes:
    """Everything before the tensors' data."""
    out = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        out += [_payload(STRING, key), value]
    offset = 0
    for tensor in tensors:
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        out += [_payload(STRING, tensor.name), dims, struct.pack("<IQ", tensor.type_id, offset)]
        offset += tensor.nbytes + -tensor.nbytes % DEFAULT_ALIGNMENT
    return b"".join(out)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % DEFAULT_ALIGNMENT))
