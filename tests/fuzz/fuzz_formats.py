"""A fuzz target for the parsers of model files: any bytes give a described model or a `PyllmError`.

`driver.py` says how to run it. `tests/test_hostile_files.py` runs it over `mutations` of tiny valid files in the test
suite.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tiny writers, where pytest has not found them

import driver
import tinygguf
import tinyllama2c

from pyllm import architectures
from pyllm.errors import PyllmError
from pyllm.formats import Checkpoint, parse

# What length, count and offset fields are overwritten with.
EXTREMES = (0, 1, 2, 31, 255, 2**31, 32, 4096, 2**16, 2**31 - 1, 2**63, 7, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


def exercise(data: bytes) -> str:
    """Takes bytes through everything that happens to a file before C sees it; gives the outcome's name."""
    try:
        checkpoint = parse(Path("fuzzed"), memoryview(data))
        check_invariants(checkpoint, len(data))
        architectures.describe(checkpoint)
        for binding in architectures.bindings(checkpoint):
            if binding.rows < 1 or binding.cols < 1:
                raise AssertionError(f"{binding} has no weights")
    except PyllmError as error:
        if "fuzzed: " not in str(error):
            raise AssertionError(f"this message names no file: {error}") from error
        return type(error).__name__
    return "model"


def check_invariants(checkpoint: Checkpoint, size: int) -> None:
    """What C relies on: every tensor lies inside the file, and all metadata can be looked at."""
    for spec in checkpoint.tensors.values():
        if min(spec.offset, spec.nbytes - 1) < 0 or spec.offset + spec.nbytes > size:
            raise AssertionError(f"{spec} lies outside the file of {size} bytes")
        if len(checkpoint.view(spec)) != spec.nbytes:
            raise AssertionError(f"{spec} has a view of another size")
    for value in checkpoint.metadata.values():
        if hasattr(value, "raw"):
            list(value)


def seeds() -> dict[str, bytes]:
    """Tiny valid files, one per format and version, small enough to try every byte of them."""
    shape = tinygguf.Shape(dim=4, hidden=6, layers=1, heads=2, kv_heads=1, vocab=3, context=8)
    metadata = tinygguf.llama_metadata(shape) | {
        "tokenizer.ggml.tokens": ["a", "b", "\u2581"],
        "tokenizer.ggml.scores": [0.0, -1.0, -2.0],
        "other.flags": [True, False],
        "other.nested": tinygguf.Typed(tinygguf.ARRAY, (tinygguf.ARRAY, [(tinygguf.INT8, [1]), (tinygguf.STRING, [])])),
    }
    small = tinyllama2c.Shape(dim=4, hidden=6, layers=1, heads=2, kv_heads=1, vocab=3, seq_len=2)
    weights = tinyllama2c.random_weights(small)
    return {
        "gguf": tinygguf.gguf_bytes(metadata, tinygguf.llama_tensors(shape, tied=False)),
        "v0": tinyllama2c.v0_bytes(small, weights, shared=False),
        "v1": tinyllama2c.v1_bytes(small, weights),
        "v2": tinyllama2c.v2_bytes(small, weights, 2),
    }


def header_bytes(data: bytes) -> int:
    """Where the part of a file ends in which a change can matter; behind it lie weights, and any bytes are weights."""
    if data.startswith(b"GGUF"):
        return max(24, data.rfind(b".weight") + len(".weight") + 32)  # the last tensor's shape, type and offset
    return 256 if data.startswith(b"24ka") else 28


def flip_bits(rng: random.Random, data: bytearray, end: int) -> None:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)


def overwrite_field(rng: random.Random, data: bytearray, end: int) -> None:
    width = rng.choice((1, 2, 4, 8))
    value = (rng.choice(EXTREMES) + rng.choice((-1, 0, 0, 1))) % (1 << 8 * width)
    at = rng.randrange(max(1, end - width))
    data[at : at + width] = value.to_bytes(width, "little")


def cut_out(rng: random.Random, data: bytearray, end: int) -> None:
    at = rng.randrange(end)
    del data[at : at + rng.randint(1, 64)]


def put_in(rng: random.Random, data: bytearray, end: int) -> None:
    at, source = rng.randrange(end), rng.randrange(end)
    data[at:at] = data[source : source + rng.randint(1, 64)]


def cut_off(rng: random.Random, data: bytearray, end: int) -> None:
    del data[rng.randrange(len(data)) :]


MUTATIONS: tuple[Callable[[random.Random, bytearray, int], None], ...]
MUTATIONS = (flip_bits, overwrite_field, overwrite_field, cut_out, put_in, cut_off)


def mutations(data: bytes, rounds: int, seed: int) -> Iterator[bytes]:
    """`rounds` damaged copies of a file, the same ones for the same seed; most carry one mutation, some three."""
    rng = random.Random(seed)
    for _ in range(rounds):
        copy = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 3))):
            if copy:
                rng.choice(MUTATIONS)(rng, copy, max(1, min(header_bytes(data), len(copy))))
        yield bytes(copy)


def every_field(data: bytes, end: int) -> Iterator[bytes]:
    """Copies whose first `end` bytes differ by an extreme 64-bit or 32-bit number, at every offset in turn."""
    for at in range(end):
        for code, value in product("QI", EXTREMES[::5]):
            field = struct.pack("<" + code, value % (1 << 8 * struct.calcsize(code)))
            damaged = data[:at] + field[: end - at] + data[at + len(field[: end - at]) :]
            if damaged != data:
                yield damaged


if __name__ == "__main__":
    driver.main(driver.Target("the parsers of model files", exercise, seeds, mutations))
