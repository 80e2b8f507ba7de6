"""Safetensors: a JSON header of names, types, shapes and places, then the data.

The file is hostile until proved: the header's length is held against the file's and a limit before it is read, every
field's type and every product and place before it is used. Tensors may overlap; nothing depends on it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats.checkpoint import Buffer, TensorSpec
from pyllm.formats.weight_types import SAFETENSORS_TYPES, WeightType

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMENSIONS = 8
MAX_DIGITS = 20


def parse(path: Path, buffer: Buffer, part: int = 0) -> dict[str, TensorSpec]:
    """The tensors of a safetensors file, by name; `part` says which file of several it is.

    Raises `ModelFormatError` for damage of any kind, `UnsupportedModelError` for types that are unknown here; types
    that are known but have no kernels are described like the others.
    """
    size = len(buffer)
    length = int.from_bytes(buffer[:8], "little")
    room = min(size - 8, MAX_HEADER_BYTES)
    if length > room:
        raise _error(path, f"its header has {length} bytes, but there is room for {max(room, 0)}")
    header = read_json(path, bytes(buffer[8 : 8 + length]))
    header.pop("__metadata__", None)
    return {name: _spec(path, name, entry, 8 + length, size, part) for name, entry in header.items()}


def read_json(path: Path, data: bytes, kind: type = dict) -> Any:
    """A JSON object, or list, of a file that may hold anything. Raises `ModelFormatError`, also for a key that occurs
    twice.
    """
    try:
        value = json.loads(data.decode(), object_pairs_hook=_without_duplicates, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path}: no valid JSON: {str(error)[:120] or 'nested too deep'}") from None
    if not isinstance(value, kind):
        raise ModelFormatError(f"{path}: a JSON {type(value).__name__}, expected a {kind.__name__}")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:80]!r} occurs twice")
    return result


def _integer(digits: str) -> int:
    """Numbers that no field can have are not worth the time that reading them takes."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _spec(path: Path, name: str, entry: Any, data: int, size: int, part: int) -> TensorSpec:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _error(path, f"tensor {name[:80]!r} is {str(entry)[:80]}, expected dtype, shape and data_offsets")
    row, shape, place = _weight_type(path, name, entry["dtype"]), entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise _error(path, f"tensor {name[:80]!r} has the shape {str(shape)[:80]}, expected at most 8 sizes")
    elements = 1
    for n in shape:
        elements *= n
    if not 0 < elements < 1 << 63:
        raise _error(path, f"tensor {name[:80]!r} has the impossible shape {tuple(shape)}")
    if not _are_sizes(place) or len(place) != 2 or place[1] - place[0] != row.nbytes(elements):
        raise _error(path, f"tensor {name[:80]!r} lies at {str(place)[:80]}, expected {row.nbytes(elements)} bytes")
    if data + place[1] > size:
        raise _error(path, f"tensor {name[:80]!r} ends at {data + place[1]}, but the file at {size}: it was cut short")
    return TensorSpec(name, row.id, tuple(shape) or (1,), data + place[0], place[1] - place[0], part=part)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _weight_type(path: Path, name: str, dtype: Any) -> WeightType:
    row = SAFETENSORS_TYPES.get(dtype) if isinstance(dtype, str) else None
    if row is None:
        raise UnsupportedModelError(f"{path}: tensor {name[:80]!r} has the type {str(dtype)[:40]!r}, unknown here")
    return row


def _error(path: Path, message: str) -> ModelFormatError:
    return ModelFormatError(f"{path}: damaged safetensors file: {message}; get it again")
