"""From a checkpoint's tensors to a model's memory: taken apart, put in order, quantised where that is asked for."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyllm import _core, architectures
from pyllm.architectures import Binding
from pyllm.errors import ModelFormatError
from pyllm.formats.checkpoint import Checkpoint, TensorSpec
from pyllm.formats.weight_types import F32, FLOATS, MXFP4, WEIGHT_TYPES, fitting_type
from pyllm.progress import Progress, reporting

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


def bind_all(
    native: _core.NativeModel,
    checkpoint: Checkpoint,
    bindings: Sequence[Binding],
    dtype: int | None,
    progress: Progress | bool | None,
) -> None:
    """Pack every tensor into the model's memory, in the order of the file, and let its pages go."""
    bindings = sorted(bindings, key=lambda b: (b.tensor.part, b.tensor.offset))
    total, done = sum(map(share, bindings)), 0
    with reporting(progress, f"loading {checkpoint.path.name}") as report:
        for b, following in zip(bindings, [*bindings[1:], None], strict=True):
            type_id, data = _as(dtype, checkpoint, b, *stored(checkpoint, b), native.threads)
            native.bind(b.slot, b.layer, type_id, b.rows, b.cols, data, b.tensor.group, b.expert)
            if following is None or following.tensor is not b.tensor:
                forget(checkpoint, b.tensor)
            done += share(b)
            report(done, total)
    native.finish()


def reader(checkpoint: Checkpoint) -> Callable[[str, int], Floats | None]:
    """Dequantises the tensor of a slot and layer when it is called: float32 (rows, cols), None where there is none."""
    bindings = {(b.slot, b.layer): b for b in architectures.bindings(checkpoint)}

    def read(slot: str, layer: int) -> Floats | None:
        b = bindings.get((slot, layer))
        return None if b is None else dequantized(checkpoint, b)

    return read


def dequantized(checkpoint: Checkpoint, b: Binding) -> Floats:
    """What a slot holds, float32 (rows, cols)."""
    type_id, data = stored(checkpoint, b)
    values: Floats = _core.dequantize(type_id, b.rows, b.cols, data, b.tensor.group)
    return values


def stored(checkpoint: Checkpoint, b: Binding) -> tuple[int, Any]:
    """The weight type and the bytes (rows, cols) of a slot: the tensor's own, or what its part says of it.

    Takes no more memory than the slot's own bytes; none where they lie in the file as they are.
    """
    # No `with` anywhere here: it would release the view, and fail, while the traceback of an error still holds it.
    data: Any = checkpoint.view(b.tensor)
    type_id, part = b.tensor.type_id, b.part
    if b.scales is not None:
        return MXFP4, _microscaled(data, checkpoint.view(b.scales), b)
    if b.more:
        data = b"".join([data, *(checkpoint.view(spec) for spec in b.more)])
    if part.stacked:
        data = _slice(data, b.tensor.shape[0], b.expert)
    if part.transposed:
        return type_id, _transposed(data, type_id, b)
    if part.runs:
        data = _gathered(data, b)
    if b.row is not None:
        first = checkpoint.view(b.row)[: b.cols * WEIGHT_TYPES[b.row.type_id].block_bytes]
        return F32, _core.dequantize(type_id, b.rows, b.cols, data) + _core.dequantize(b.row.type_id, 1, b.cols, first)
    if part.plus:
        return F32, _core.dequantize(type_id, b.rows, b.cols, data) + np.float32(part.plus)
    return type_id, data


def share(b: Binding) -> int:
    """Bytes of the file that go into a slot."""
    return b.tensor.nbytes * b.rows * b.cols // math.prod(b.tensor.shape)


def _slice(data: Any, count: int, index: int) -> Any:
    """One of `count` equal pieces."""
    nbytes = len(data) // count
    return data[index * nbytes : (index + 1) * nbytes]


def rows_of(array: Any, b: Binding) -> Any:
    """The rows of (of, ...) that a part takes, as a view where they lie in one run, else as a copy."""
    runs = b.part.runs
    if runs is None:
        return array
    if not runs.every:
        return array[runs.start : runs.start + runs.count]
    blocks = array.reshape(runs.of // runs.every, runs.every, *array.shape[1:])
    return blocks[:, runs.start : runs.start + runs.count].reshape(-1, *array.shape[1:])


def _gathered(data: Any, b: Binding) -> Bytes:
    """Some rows of a matrix, or some elements of a vector, as they are stored."""
    assert b.part.runs is not None
    return np.ascontiguousarray(rows_of(np.frombuffer(data, np.uint8).reshape(b.part.runs.of, -1), b))


def _transposed(data: Any, type_id: int, b: Binding) -> Bytes:
    """Floats stored as (cols, of) in the order that they are used in."""
    words = np.frombuffer(data, np.dtype(f"<u{WEIGHT_TYPES[type_id].block_bytes}")).reshape(b.cols, -1)
    return np.ascontiguousarray(rows_of(words.T, b)).view(np.uint8)


def _microscaled(blocks: Any, scales: Any, b: Binding) -> Bytes:
    """Four-bit floats with scales beside them as GGUF's MXFP4 blocks: the scale, then 16 bytes.

    A byte of the file holds neighbours, 2i and 2i + 1; one of GGUF's holds i and i + 16.
    """
    count, runs = b.tensor.shape[0], b.part.runs
    shape = (runs.of if runs else b.rows, b.cols // 32)
    codes = rows_of(np.frombuffer(_slice(blocks, count, b.expert), np.uint8).reshape(*shape, 16), b)
    exponents = rows_of(np.frombuffer(_slice(scales, count, b.expert), np.uint8).reshape(shape), b)
    out = np.empty((*exponents.shape, 17), np.uint8)
    out[..., 0] = exponents
    values = np.stack((codes & 15, codes >> 4), axis=-1).reshape(*exponents.shape, 2, 16)
    out[..., 1:] = values[..., 0, :] | values[..., 1, :] << 4
    return out


def _as(
    dtype: int | None, checkpoint: Checkpoint, b: Binding, type_id: int, data: Any, threads: int
) -> tuple[int, Any]:
    """The same weights as they are, or matrices of floats quantised."""
    if dtype is None or b.rows == 1 or type_id not in FLOATS:
        return type_id, data
    wanted = fitting_type(dtype, b.cols)
    try:
        return wanted, _core.quantize(wanted, type_id, b.rows, b.cols, data, threads=threads)
    except ModelFormatError as error:
        raise ModelFormatError(f"{checkpoint.path}: tensor {b.tensor.name!r} cannot be quantised: {error}") from None


def forget(checkpoint: Checkpoint, tensor: TensorSpec) -> None:
    """Tell the system that the tensor's pages are no longer needed: memory then holds the weights once, not twice."""
    buffer = checkpoint.buffer_of(tensor)
    if tensor.inline is None and isinstance(buffer, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        start = tensor.offset // mmap.PAGESIZE * mmap.PAGESIZE
        buffer.madvise(mmap.MADV_DONTNEED, start, tensor.offset + tensor.nbytes - start)
