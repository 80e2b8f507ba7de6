"""Golden values of weight types: raw blocks, and what the ``gguf`` package makes of them.

Needs ``pip install numpy gguf``. Run it as ``python make_quants.py``; it writes ``quants.npz`` beside itself, with

``T_raw``
    (4, bytes of a row) uint8: four rows of 1024 weights of type T. Rows 0 and 1 are random bits with scales of an
    ordinary size; rows 2 and 3 cycle through blocks that are all zero, all ones, and random under a zero, negative
    zero, subnormal, smallest normal, largest and negative scale. No scale is infinite or NaN (F16 and BF16 do hold
    infinities).
``T_values``
    (4, 1024) float32: exactly what they stand for. With a scale in half precision every product is exact in float32,
    so fused or not, there is one rounding and one answer. (ggml's own C gives the same bits, here and in quantising.)
``x`` and ``T_quantized``
    (4, 256) float32, rows of ordinary, tiny, large and special (zeros, ties, one outlier) numbers, and the bytes that
    ``gguf.quants.quantize`` gives for them, where it can quantise to T.

for T in every type of `tinygguf.BLOCKS`, F16 and BF16. The package knows Q8_K's size alone; its values are d times q.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

sys.path.append(str(Path(__file__).parent.parent))
from tinygguf import BLOCKS, put_scales

HERE = Path(__file__).parent
ROWS = 4
COLUMNS = 1024

FLOATS = ("F16", "BF16")
QUANTISERS = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
ODD_SCALES = (0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0xB555)  # bits of half-precision numbers


def blocks_of(name: str, rng: np.random.Generator) -> np.ndarray:
    """Make the raw rows of a block type."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    offsets = list(BLOCKS[GGMLQuantizationType[name]][2])
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
            scales[i] = [odd[kind], odd[(kind * 3 + 1) % len(odd)]][: scales.shape[1]]
    for j, offset in enumerate(offsets):
        put_scales(blocks, GGMLQuantizationType[name], offset, np.ascontiguousarray(scales[:, j]))
    if name == "MXFP4":
        blocks[: count // 2, 0] = np.arange(count // 2) * 4 % 255  # other powers of two than halves have
    return blocks.reshape(ROWS, -1)


def values_of(name: str, raw: np.ndarray) -> np.ndarray:
    """Dequantise rows."""
    if name != "Q8_K":
        return dequantize(raw, GGMLQuantizationType[name])
    blocks = raw.reshape(-1, 292)
    return (blocks[:, :4].copy().view("<f4") * blocks[:, 4:260].view(np.int8)).reshape(ROWS, COLUMNS)


def floats_of(name: str, rng: np.random.Generator) -> np.ndarray:
    """Make the raw rows of a 16-bit float type: any bits that are not NaN."""
    bits = rng.integers(0, 1 << 16, (ROWS, COLUMNS), np.uint16)
    infinity = 0x7C00 if name == "F16" else 0x7F80
    bits[2, :8] = [0, 0x8000, 1, 0x8001, infinity, infinity | 0x8000, infinity - 1, (infinity - 1) | 0x8000]
    bits = np.where((bits & 0x7FFF) > infinity, bits & 0xBFFF, bits).astype("<u2")
    return bits.view(np.uint8).reshape(ROWS, -1)


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
    for name in (*FLOATS, *(GGMLQuantizationType(type_id).name for type_id in BLOCKS)):
        rng = np.random.default_rng([20240229, GGMLQuantizationType[name]])
        raw = floats_of(name, rng) if name in FLOATS else blocks_of(name, rng)
        values = values_of(name, raw)
        if np.isnan(values).any() or values.shape != (ROWS, COLUMNS) or values.dtype != np.float32:
            raise ValueError(f"{name}: {values.shape} {values.dtype}, or a NaN")
        arrays[f"{name}_raw"], arrays[f"{name}_values"] = raw, values
    for name in QUANTISERS:
        arrays[f"{name}_quantized"] = quantize(arrays["x"], GGMLQuantizationType[name]).view(np.uint8)
    np.savez_compressed(HERE / "quants.npz", **arrays)


if __name__ == "__main__":
    main()
