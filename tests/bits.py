"""Helpers of the tests that compare bits: weights of every type, ordinary and hostile, and what "the same" means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tinygguf import BLOCKS, F32, put_scales

from pyllm import _core

Array = np.ndarray[Any, np.dtype[Any]]

#: The weight types the engine has: id -> (name, elements per block, bytes per block).
TYPES = {type_id: (name, elements, nbytes) for type_id, name, elements, nbytes in _core.weight_types()}
LLAMA2C_Q8 = 1000

#: Half-precision numbers at which something changes: zeros, subnormals, the smallest normal, the largest, inf, NaN.
ODD_HALVES = (0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0xB555, 0x7C00, 0xFC00, 0x7E00, 0xFFFF, 0x7D01)
ODD_FLOATS = (0.0, -0.0, 1e-45, -1e-40, 1.2e-38, 3e38, -3e38, np.inf, -np.inf, np.nan)


def same_bits(a: Array, b: Array) -> bool:
    """Whether two float32 arrays hold the same bits. NaNs need only stand in the same places.

    Which payload survives an operation on two NaNs is the processor's choice of operand, not arithmetic.
    """
    nan = np.isnan(a)
    return bool(np.array_equal(nan, np.isnan(b)) and np.array_equal(bits(a)[~nan], bits(b)[~nan]))


@contextmanager
def kernel_level(name: str) -> Iterator[None]:
    """Computes at one kernel level; afterwards the one that was in use before is again."""
    before = _core.isa_current()
    _core.isa_select(name)
    try:
        yield
    finally:
        _core.isa_select(before)


def bits(a: Array) -> Array:
    """The bits of float32 numbers, where -0.0 and 0.0 differ."""
    return np.ascontiguousarray(a, np.float32).view(np.uint32)


def type_ids(names: bool = False) -> list[Any]:
    """For parametrisation: the ids of all weight types, or their names."""
    return [name.replace(" ", "-") for name, _, _ in TYPES.values()] if names else list(TYPES)


def group_of(type_id: int, group: int = 32) -> int:
    """The `group` argument of a type: 0 except for llama2.c's int8."""
    return group if type_id == LLAMA2C_Q8 else 0


def blocks_of(type_id: int, rows: int, cols: int) -> tuple[int, int]:
    """(blocks, bytes of a block) of a (rows, cols) matrix."""
    _, elements, nbytes = TYPES[type_id]
    return rows * cols // elements, nbytes


def scale_fields(type_id: int) -> list[int]:
    """Where in a block the scales and minima are."""
    return list(BLOCKS[type_id][2]) if type_id in BLOCKS else []


def any_bytes(rng: np.random.Generator, type_id: int, rows: int, cols: int, group: int = 32) -> bytes:
    """A matrix whose every byte is random: scales too, so that some are infinite or NaN."""
    count, nbytes = blocks_of(type_id, rows, cols)
    scales = rows * cols // group * 4 if type_id == LLAMA2C_Q8 else 0
    return rng.bytes(count * nbytes + scales)


def odd_weights(rng: np.random.Generator, type_id: int, rows: int, cols: int, group: int = 32) -> bytes:
    """A matrix of random codes under scales (or among weights) that are zero, subnormal, huge, infinite or NaN."""
    count, nbytes = blocks_of(type_id, rows, cols)
    if type_id == F32:
        return bytes(rng.choice(np.array(ODD_FLOATS, "<f4"), (rows, cols)).tobytes())
    if type_id == LLAMA2C_Q8:
        return rng.bytes(count) + rng.choice(np.array(ODD_FLOATS, "<f4"), rows * cols // group).tobytes()
    halves = np.array(ODD_HALVES, "<u2").view("<f2")
    blocks = np.frombuffer(rng.bytes(count * nbytes), np.uint8).reshape(count, nbytes).copy()
    for offset in scale_fields(type_id) or [0]:  # a float type's block is one weight
        put_scales(blocks, type_id, offset, rng.choice(halves, count))
    return bytes(blocks.tobytes())


def llama2c_q8(rng: np.random.Generator, rows: int, cols: int, group: int = 32) -> bytes:
    """llama2.c's int8: codes over the whole range, -128 too, then ordinary scales."""
    codes = rng.integers(-128, 128, rows * cols, np.int8)
    return codes.tobytes() + (0.001 * rng.uniform(0.5, 1.5, rows * cols // group)).astype("<f4").tobytes()
