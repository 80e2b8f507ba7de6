"""GGUF, versions 2 and 3, little-endian: metadata and tensor descriptions.

The file is hostile until proved. Every count is held against the bytes that are left before anything is done that
many times, every length before it is followed, so time and memory are bounded by the file's size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np

from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats.checkpoint import Buffer, Checkpoint, TensorSpec
from pyllm.formats.weight_types import WEIGHT_TYPES, WITHDRAWN, WeightType

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16

# Far above every real file, and low enough that a hostile one costs no more than a second.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_STRINGS = 1 << 22  # in all arrays together; the largest vocabularies with their merges have under 2^20
MAX_ARRAYS = 1 << 16  # inside other arrays, all together
MAX_DEPTH = 4
MAX_NAME_BYTES = 64

MIN_KEY_BYTES = 8 + 1 + 4 + 1  # length, one character, type, the smallest value
MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # length, dimension count, one dimension, type, offset

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    BOOL: np.dtype("<u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


class StringArray(Sequence[str]):
    """An array of strings, decoded only when asked for: a vocabulary is read at once and used later, or never.

    `raw(i)` gives the bytes. Reading an element that is not UTF-8 raises `ModelFormatError`.
    """

    def __init__(self, name: str, data: bytes, ends: list[int]) -> None:
        """`data` is the array as in the file; string i lies at [ends[i] + 8, ends[i + 1]), behind its length."""
        self._name = name
        self._data = data
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def buffer(self) -> tuple[bytes, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """All strings as they lie in the file: bytes, and where each starts and ends in them (int64)."""
        ends = np.array(self._ends, np.int64)
        return self._data, ends[:-1] + 8, ends[1:]

    def raw(self, index: int) -> bytes:
        """The bytes of one string."""
        i = range(len(self))[index]
        return self._data[self._ends[i] + 8 : self._ends[i + 1]]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        try:
            return self.raw(index).decode()
        except UnicodeDecodeError:
            raise ModelFormatError(f"{self._name}[{index}] is not UTF-8: {self.raw(index)!r}") from None

    def __iter__(self) -> Iterator[str]:
        data, start = self._data, 8
        for index, end in enumerate(self._ends[1:]):
            try:
                yield data[start:end].decode()
            except UnicodeDecodeError:
                raise ModelFormatError(f"{self._name}[{index}] is not UTF-8: {data[start:end]!r}") from None
            start = end + 8

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (StringArray, list, tuple)) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} strings of {self._name}>"


Value = int | float | bool | str | StringArray | np.ndarray[Any, Any] | list[Any]


def parse(path: Path, buffer: Buffer) -> Checkpoint:
    """Describes a GGUF file.

    Raises `ModelFormatError` for damage of any kind and `UnsupportedModelError` for versions and weight types that
    are unknown here; weight types that are known but have no kernels are described like the others.
    """
    reader = _Reader(path, buffer)
    version, n_tensors, n_keys = _read_header(reader)
    metadata = _read_metadata(reader, n_keys)
    alignment = _alignment(path, metadata)
    infos = _read_tensor_infos(reader, n_tensors)
    data_start = reader.at + -reader.at % alignment
    tensors = [_place(reader, info, data_start, alignment) for info in infos]
    _refuse_overlaps(path, tensors)
    return Checkpoint(
        path=path,
        format="gguf",
        metadata=metadata,
        tensors={spec.name: spec for spec in tensors},
        buffer=buffer,
        notes={"version": version, "alignment": alignment},
    )


def raw_metadata(path: Path, buffer: Buffer) -> dict[str, bytes]:
    """Every metadata value with its type, as it stands in the file: what a copy of the file must say, too."""
    reader = _Reader(path, buffer)
    _, _, n_keys = _read_header(reader)
    out: dict[str, bytes] = {}
    for i in range(n_keys):
        key = reader.text(f"metadata key {i}")
        start = reader.at
        _read_value(reader, reader.number(4, f"the type of {key}"), key)
        out[key] = bytes(buffer[start : reader.at])
    return out


class _Reader:
    """A position in the file. Every method checks what is left before it reads."""

    def __init__(self, path: Path, buffer: Buffer) -> None:
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.at = 0
        self.strings_left = MAX_STRINGS
        self.arrays_left = MAX_ARRAYS

    def error(self, message: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path}: damaged GGUF file: {message}")

    def take(self, nbytes: int, what: str) -> bytes:
        """The next `nbytes` bytes, copied."""
        start, end = self.at, self.at + nbytes
        if end > self.size:
            raise self.error(
                f"{what} takes {nbytes} bytes at {start}, but the file ends at {self.size}: it was cut short, or a "
                "length in it is wrong"
            )
        self.at = end
        return bytes(self.buffer[start:end])

    def number(self, nbytes: int, what: str) -> int:
        """An unsigned little-endian integer."""
        return int.from_bytes(self.take(nbytes, what), "little")

    def text(self, what: str) -> str:
        data = self.take(self.number(8, f"the length of {what}"), what)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8: {data[:64]!r}") from None

    def check_count(self, count: int, least_bytes: int, limit: int, what: str) -> None:
        """Refuses a count that the rest of the file cannot hold, before anything is done so many times."""
        most = min((self.size - self.at) // least_bytes, limit)
        if count > most:
            raise self.error(f"{count} {what} at {self.at}, but there is room for {most} at most")


# ---- header and metadata --------------------------------------------------------------------------------------------


def _read_header(reader: _Reader) -> tuple[int, int, int]:
    """(version, number of tensors, number of metadata keys)."""
    reader.take(4, "the magic")
    version = reader.number(4, "the version")
    if version & 0xFFFF == 0 and version:
        raise UnsupportedModelError(f"{reader.path}: a big-endian GGUF file; pyllm reads little-endian ones")
    if version not in (2, 3):
        raise UnsupportedModelError(f"{reader.path}: GGUF version {version}; pyllm reads versions 2 and 3")
    n_tensors = reader.number(8, "the number of tensors")
    n_keys = reader.number(8, "the number of metadata keys")
    reader.check_count(n_keys, MIN_KEY_BYTES, MAX_KEYS, "metadata keys")
    reader.check_count(n_tensors, MIN_TENSOR_BYTES, MAX_TENSORS, "tensors")
    return version, n_tensors, n_keys


def _read_metadata(reader: _Reader, n_keys: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for i in range(n_keys):
        key = reader.text(f"metadata key {i}")
        if not key:
            raise reader.error(f"metadata key {i} is empty")
        if key in metadata:
            raise reader.error(f"metadata key {key!r} occurs twice")
        metadata[key] = _read_value(reader, reader.number(4, f"the type of {key}"), key)
    return metadata


def _read_value(reader: _Reader, type_: int, key: str) -> Value:
    if type_ == STRING:
        return reader.text(key)
    if type_ == ARRAY:
        return _read_array(reader, key, 1)
    dtype = _scalar(reader, type_, key)
    value: Value = np.frombuffer(reader.take(dtype.itemsize, key), dtype)[0].item()
    if type_ == BOOL:
        return _truth(reader, value, key)
    return value


def _scalar(reader: _Reader, type_: int, key: str) -> np.dtype[Any]:
    if type_ not in SCALARS:
        raise reader.error(f"metadata {key} has the unknown type {type_}")
    return SCALARS[type_]


def _truth(reader: _Reader, value: Value, key: str) -> bool:
    if value not in (0, 1):
        raise reader.error(f"metadata {key} is a bool with the value {value}, expected 0 or 1")
    return bool(value)


def _read_array(reader: _Reader, key: str, depth: int) -> Value:
    type_ = reader.number(4, f"the element type of {key}")
    count = reader.number(8, f"the length of {key}")
    if type_ == STRING:
        return _read_strings(reader, key, count)
    if type_ == ARRAY:
        return _read_nested(reader, key, count, depth)
    dtype = _scalar(reader, type_, key)
    values = np.frombuffer(reader.take(count * dtype.itemsize, f"{key}, an array of {count},"), dtype)
    if type_ == BOOL:
        _truth(reader, int(values.max(initial=0)), key)
        return values.astype(np.bool_)
    return values


def _read_nested(reader: _Reader, key: str, count: int, depth: int) -> list[Any]:
    if depth >= MAX_DEPTH:
        raise reader.error(f"metadata {key} nests arrays more than {MAX_DEPTH} deep")
    reader.check_count(count, 12, reader.arrays_left, f"arrays in {key}")
    reader.arrays_left -= count
    return [_read_array(reader, f"{key}[{i}]", depth + 1) for i in range(count)]


def _read_strings(reader: _Reader, key: str, count: int) -> StringArray:
    """Finds where each string ends. The one loop in parsing that runs a hundred thousand times: kept bare."""
    reader.check_count(count, 8, reader.strings_left, f"strings in {key}")
    reader.strings_left -= count
    buffer, start, last = reader.buffer, reader.at, reader.size - 8
    unpack, at, ends = struct.Struct("<Q").unpack_from, start, [0]
    add = ends.append
    for _ in range(count):
        if at > last:
            break
        at += unpack(buffer, at)[0] + 8
        add(at - start)
    if len(ends) <= count or at > reader.size:
        raise reader.error(
            f"{key}, an array of {count} strings, runs past the end of the file at {reader.size} near string "
            f"{len(ends) - 1}: the file was cut short, or a length in it is wrong"
        )
    reader.at = at
    return StringArray(f"{reader.path}: {key}", bytes(buffer[start:at]), ends)


def _alignment(path: Path, metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise ModelFormatError(
            f"{path}: damaged GGUF file: general.alignment is {value!r}, expected a power of two from 8 to "
            f"{MAX_ALIGNMENT}"
        )
    return value


# ---- tensors --------------------------------------------------------------------------------------------------------


def _read_tensor_infos(reader: _Reader, n_tensors: int) -> list[TensorSpec]:
    """The descriptions, their offsets still relative to the data's beginning."""
    infos = [_read_tensor_info(reader, i) for i in range(n_tensors)]
    seen: set[str] = set()
    for info in infos:
        if info.name in seen:
            raise reader.error(f"tensor {info.name!r} occurs twice")
        seen.add(info.name)
    return infos


def _read_tensor_info(reader: _Reader, index: int) -> TensorSpec:
    name = reader.text(f"the name of tensor {index}")
    if not name or len(name.encode()) > MAX_NAME_BYTES:
        raise reader.error(f"the name of tensor {index} is {name[:80]!r}, expected 1 to {MAX_NAME_BYTES} bytes")
    n_dims = reader.number(4, f"the number of dimensions of {name}")
    if not 1 <= n_dims <= 4:
        raise reader.error(f"tensor {name!r} has {n_dims} dimensions, expected 1 to 4")
    dims = struct.unpack(f"<{n_dims}Q", reader.take(8 * n_dims, f"the shape of {name}"))
    row = _weight_type(reader, name, reader.number(4, f"the type of {name}"))
    elements = _count_elements(reader, name, dims, row)
    offset = reader.number(8, f"the offset of {name}")
    return TensorSpec(name, row.id, tuple(reversed(dims)), offset, row.nbytes(elements))


def _weight_type(reader: _Reader, name: str, type_id: int) -> WeightType:
    if type_id in WITHDRAWN:
        raise UnsupportedModelError(
            f"{reader.path}: tensor {name!r} has type {WITHDRAWN[type_id]}, which GGUF no longer defines: quantise "
            "the model again"
        )
    if type_id not in WEIGHT_TYPES:
        raise UnsupportedModelError(f"{reader.path}: tensor {name!r} has weight type number {type_id}, unknown here")
    return WEIGHT_TYPES[type_id]


def _count_elements(reader: _Reader, name: str, dims: tuple[int, ...], row: WeightType) -> int:
    """The product of the dimensions (the first one is the row's length), which no file on earth may exceed."""
    elements = 1
    for n in dims:
        elements *= n
    if not 0 < elements < 1 << 63:
        raise reader.error(f"tensor {name!r} has the impossible shape {tuple(reversed(dims))}")
    if dims[0] % row.block_elements:
        raise reader.error(
            f"tensor {name!r} has rows of {dims[0]} weights, expected a multiple of {row.block_elements}, the block "
            f"size of {row.name}"
        )
    return elements


def _place(reader: _Reader, info: TensorSpec, data_start: int, alignment: int) -> TensorSpec:
    """The same description with its offset in the file, checked."""
    if info.offset % alignment:
        raise reader.error(f"tensor {info.name!r} lies at {info.offset}, not on a multiple of {alignment}")
    start = data_start + info.offset
    if start + info.nbytes > reader.size:
        raise reader.error(
            f"tensor {info.name!r} lies at {start} to {start + info.nbytes}, but the file ends at {reader.size}: it "
            "was cut short, get it again"
        )
    return TensorSpec(info.name, info.type_id, info.shape, start, info.nbytes)


def _refuse_overlaps(path: Path, tensors: list[TensorSpec]) -> None:
    ordered = sorted(tensors, key=lambda spec: spec.offset)
    for a, b in pairwise(ordered):
        if a.offset + a.nbytes > b.offset:
            raise ModelFormatError(f"{path}: damaged GGUF file: tensors {a.name!r} and {b.name!r} overlap")
