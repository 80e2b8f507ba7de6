"""Golden values of weight types: raw blocks, and what the ``gguf`` package makes of them.

Needs ``pip install numpy gguf``. Run it as ``python make_quants.py``; it writes ``quants.npz`` beside itself, with

``T_raw``
    (4, bytes of a row) uint8: four rows of 1024 weights of type T. Rows 0 and 1 are random bits with scales of an
    ordinary size; rows 2 and 3 cycle through blocks that are all zero, all ones, and random under a zero, negative
    zero, subnormal, smallest normal, largest and negative scale. No scale is infinite or NaN (F16 and BF16 do hold
    infinities).
``T_hostile_raw``, ``T_hostile_values``
    The same of one row whose scales, or weights, are infinite or NaN.
``T_values``
    (4, 1024) float32: exactly what they stand for. With a scale in half precision every product is exact in float32,
    so fused or not, there is one rounding and one answer. (ggml's own C gives the same bits, here and in quantising.)
``x`` and ``T_quantized``
    (4, 256) float32, rows of ordinary, tiny, large and special (zeros, ties, one outlier) numbers, and the bytes that
    ``gguf.quants.quantize`` gives for them, where it can quantise to T.

for T in every type of `tinygguf.BLOCKS`, F16 and BF16. Three types it cannot dequantise; their values follow here from
what they are: d times q for Q8_K, d or -d for Q1_0, d times (q - 1) for Q2_0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

sys.path.append(str(Path(__file__).parent.parent))
from tinygguf import BF16, BLOCKS, F16, Q1_0, Q2_0, Q8_K, put_scales

HERE = Path(__file__).parent
ROWS = 4
COLUMNS = 1024

FLOATS = (F16, BF16)
QUANTISERS = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
# Bits of half-precision numbers: odd ones, and those that are none.
ODD_SCALES = (0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0xB555)
HOSTILE_SCALES = (0x7C00, 0xFC00, 0x7E00, 0xFFFF)


def name_of(type_id: int) -> str:
    """The name of a type, also of one that this version of the package does not list."""
    return "Q2_0" if type_id == Q2_0 else GGMLQuantizationType(type_id).name


def blocks_of(type_id: int, rng: np.random.Generator) -> np.ndarray:
    """Make the raw rows of a block type."""
    block, size, offsets = BLOCKS[type_id]
    count = ROWS * COLUMNS // block
    blocks = rng.integers(0, 256, (count, size), np.uint8)
    scales = (rng.standard_normal((count, len(offsets))) * 0.02).astype("<f2")
    odd = np.array(ODD_SCALES, "<u2").view("<f2")
    for i in range(count // 2, count):
        kind = i % (len(odd) + 2)
        if kind == len(odd):
            blocks[i] = 0x00
            scales[i] = 0.0
        elif kind == len(odd) + 1:
            blocks[i] = 0xFF
            scales[i] = 0.75
        else:
            scales[i] = [odd[(kind * (2 * j + 1) + j) % len(odd)] for j in range(scales.shape[1])]
    for j, offset in enumerate(offsets):
        put_scales(blocks, type_id, offset, np.ascontiguousarray(scales[:, j]))
    if name_of(type_id) == "MXFP4":
        blocks[: count // 2, 0] = np.arange(count // 2) * 4 % 255  # other powers of two than halves have
    return blocks.reshape(ROWS, -1)


def hostile_blocks_of(type_id: int, rng: np.random.Generator) -> np.ndarray:
    """Make one raw row whose scales are no finite numbers; of two, one may be."""
    block, size, offsets = BLOCKS[type_id]
    blocks = rng.integers(0, 256, (COLUMNS // block, size), np.uint8)
    odd = np.array((*HOSTILE_SCALES, 0x3C00), "<u2").view("<f2")
    for j, offset in enumerate(offsets):
        put_scales(blocks, type_id, offset, odd[(np.arange(len(blocks)) * (j + 1) + j) % len(odd)])
    return blocks.reshape(1, -1)


def values_of(type_id: int, raw: np.ndarray) -> np.ndarray:
    """Dequantise rows."""
    if type_id not in (Q8_K, Q1_0, Q2_0):
        return dequantize(raw, GGMLQuantizationType(type_id))
    blocks = raw.reshape(-1, BLOCKS[type_id][1])
    if type_id == Q8_K:
        scales, codes = blocks[:, :4].copy().view("<f4"), blocks[:, 4:260].view(np.int8)
    else:
        width = 1 if type_id == Q1_0 else 2  # bits, the lowest first
        scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
        fields = blocks[:, 2:, None] >> np.arange(0, 8, width, np.uint8) & (2**width - 1)
        codes = fields.reshape(len(blocks), -1).astype(np.float32)
        codes = codes * 2 - 1 if type_id == Q1_0 else codes - 1
    return (scales * codes).reshape(len(raw), COLUMNS)


def floats_of(type_id: int, rng: np.random.Generator) -> np.ndarray:
    """Make the raw rows of a 16-bit float type: any bits that are not NaN."""
    bits = rng.integers(0, 1 << 16, (ROWS, COLUMNS), np.uint16)
    infinity = 0x7C00 if type_id == F16 else 0x7F80
    bits[2, :8] = [0, 0x8000, 1, 0x8001, infinity, infinity | 0x8000, infinity - 1, (infinity - 1) | 0x8000]
    bits = np.where((bits & 0x7FFF) > infinity, bits & 0xBFFF, bits).astype("<u2")
    return bits.view(np.uint8).reshape(ROWS, -1)


def hostile_floats_of(type_id: int, rng: np.random.Generator) -> np.ndarray:
    """Make one raw row of a 16-bit float type that is all infinities and NaNs."""
    infinity = 0x7C00 if type_id == F16 else 0x7F80
    bits = rng.integers(0, 1 << 16, (1, COLUMNS), np.uint16) | infinity
    bits[0, :4] = [infinity, infinity | 0x8000, infinity + 1, 0xFFFF]
    return bits.astype("<u2").view(np.uint8)


def numbers(rng: np.random.Generator) -> np.ndarray:
    """Make rows of numbers to quantise."""
    x = rng.standard_normal((ROWS, 256)).astype(np.float32)
    x[1] *= np.float32(1e-6)
    x[2] *= np.float32(1e3)
    x[3] = np.arange(256) % 32 - 16  # ties and, below, zeros, one outlier and a scale that vanishes
    x[3, 32:64] = 0.0
    x[3, 64:96] = 0.001
    x[3, 70] = -100.0
    x[3, 96:128] *= np.float32(1e-30)  # the scale rounds to zero in half precision
    x[3, 128:160] = 0.5
    return x


def main() -> None:
    """Make the file."""
    arrays: dict[str, np.ndarray] = {"x": numbers(np.random.default_rng(20240229))}
    for type_id in (*FLOATS, *BLOCKS):
        name, rng = name_of(type_id), np.random.default_rng([20240229, type_id])
        raw = floats_of(type_id, rng) if type_id in FLOATS else blocks_of(type_id, rng)
        values = values_of(type_id, raw)
        if np.isnan(values).any() or values.shape != (ROWS, COLUMNS) or values.dtype != np.float32:
            raise ValueError(f"{name}: {values.shape} {values.dtype}, or a NaN")
        arrays[f"{name}_raw"], arrays[f"{name}_values"] = raw, values
        raw = hostile_floats_of(type_id, rng) if type_id in FLOATS else hostile_blocks_of(type_id, rng)
        with np.errstate(invalid="ignore"):  # infinity times zero
            arrays[f"{name}_hostile_raw"], arrays[f"{name}_hostile_values"] = raw, values_of(type_id, raw)
    for name in QUANTISERS:
        arrays[f"{name}_quantized"] = quantize(arrays["x"], GGMLQuantizationType[name]).view(np.uint8)
    np.savez_compressed(HERE / "quants.npz", **arrays)


if __name__ == "__main__":
    main()
