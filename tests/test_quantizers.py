"""Quantisers: the reference's own bits where there is nothing to search for, and no worse than it elsewhere."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bits import LLAMA2C_Q8, TYPES, Array, llama2c_q8
from tinygguf import BF16, F16, F32, IQ4_NL, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, random_weights

from pyllm import ModelFormatError, UnsupportedModelError, _core

EXACT = (F16, BF16, Q8_0)
SEARCHED = (Q4_0, Q4_1, Q5_0, Q5_1)
#: type -> the root of the mean squared error of normally distributed weights, in parts of their own. A uniform
#: quantiser of b bits with the best step has 0.342 (2), 0.186 (3), 0.0986 (4), 0.0530 (5), 0.0286 (6) for one scale
#: over all weights; scales for 16 or 32 do better, their own rounding a little worse.
NORMAL = {Q2_K: 0.285, Q3_K: 0.165, IQ4_NL: 0.084, Q4_0: 0.098, Q4_1: 0.079, Q4_K: 0.079, Q5_0: 0.050, Q5_1: 0.039}
NORMAL |= {Q5_K: 0.039, Q6_K: 0.020, Q8_0: 0.0066, F16: 2.1e-4, BF16: 1.7e-3, F32: 1e-30}
#: type -> CRC-32 of what test_the_same_bytes_on_every_machine makes.
CHECKSUMS = {
    Q2_K: 0xF0085C2D,
    Q3_K: 0x61238D30,
    IQ4_NL: 0x0861FD36,
    Q4_0: 0x120A6DD0,
    Q4_1: 0x85B8283F,
    Q4_K: 0x2F7342B6,
    Q5_0: 0xE67EF4C3,
    Q5_1: 0x61D1DCEC,
    Q5_K: 0xDFB0BCCD,
    Q6_K: 0x1F29543B,
    Q8_0: 0xC093DE78,
    F16: 0x7CD8632B,
    BF16: 0x2EA7FEF4,
    F32: 0x747477D6,
}
EVERY = pytest.mark.parametrize("type_id", NORMAL, ids=lambda t: TYPES[t][0])


def there_and_back(type_id: int, x: Array) -> Array:
    quantised = _core.quantize(type_id, F32, *x.shape, x.astype("<f4"))
    return _core.dequantize(type_id, *x.shape, quantised)


def normal(rows: int, cols: int) -> Array:
    return np.random.default_rng(rows).standard_normal((rows, cols)).astype(np.float32)


@pytest.mark.parametrize("type_id", EXACT, ids=lambda t: TYPES[t][0])
def test_the_bits_of_the_reference(golden: Path, type_id: int) -> None:
    with np.load(golden / "quants.npz") as arrays:
        x, expected = arrays["x"], arrays[f"{TYPES[type_id][0]}_quantized"]
    assert np.array_equal(_core.quantize(type_id, F32, *x.shape, x), expected)


@pytest.mark.parametrize("type_id", SEARCHED, ids=lambda t: TYPES[t][0])
def test_nearer_than_the_reference(golden: Path, type_id: int) -> None:
    with np.load(golden / "quants.npz") as arrays:
        x, reference = arrays["x"], arrays[f"{TYPES[type_id][0]}_quantized"]
    theirs = np.square(_core.dequantize(type_id, *x.shape, reference) - x).sum(axis=1)
    ours = np.square(there_and_back(type_id, x) - x).sum(axis=1)
    assert (ours <= theirs + 1e-7 * np.square(x).sum(axis=1)).all()  # what rounding the scale may cost
    assert (ours / theirs)[:3].mean() < 0.95


@EVERY
def test_errors_of_normal_weights(type_id: int) -> None:
    x = normal(64, 1024) * np.float32(0.03)
    off = there_and_back(type_id, x) - x
    assert np.sqrt(np.mean(off**2) / np.mean(x**2)) < NORMAL[type_id]


def awkward() -> dict[str, Array]:
    x = normal(1, 512)
    one = np.zeros_like(x)
    one[0, 77] = -3.0
    steps = (np.arange(512, dtype=np.float32) % 16 - 8).reshape(1, -1)
    cases = {"zeros": 0 * x, "ones": 0 * x + 1, "one": one, "positive": abs(x) + 5, "negative": -abs(x) - 5}
    cases |= {"large": x / np.abs(x).max() * np.float32(65504), "steps": steps, "tiny": x * np.float32(1e-7)}
    cases |= {"denormal": x * np.float32(1e-39), "minus zeros": -0.0 * x, "vanishing": x * np.float32(1e-20)}
    return cases | {"alike": 5 + x * np.float32(1e-6), "largest": np.sign(x) * np.float32(65504)}


@EVERY
@pytest.mark.parametrize("name", awkward())
def test_awkward_weights(type_id: int, name: str) -> None:
    """No error is larger than half the coarsest step there can be, and of what half precision loses in the scale."""
    x = awkward()[name]
    y = there_and_back(type_id, x)
    assert np.isfinite(y).all()
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    levels = {Q2_K: 3, Q3_K: 4, Q4_0: 8, IQ4_NL: 5}.get(type_id, 15)
    assert np.abs(y - x).max() <= 0.75 * (high - low) / levels + 255 * 2.0**-24
    if name == "zeros":
        assert not y.any()


def test_what_fits_exactly_is_kept() -> None:
    x = awkward()["steps"] * np.float32(0.25)
    for type_id in (Q4_0, Q4_1, Q5_0, Q5_1):
        assert np.array_equal(there_and_back(type_id, x), x), TYPES[type_id][0]


@EVERY
def test_the_same_bytes_in_any_shares(type_id: int) -> None:
    """With any number of threads, and row by row."""
    x = normal(37, 512)
    whole = _core.quantize(type_id, F32, 37, 512, x)
    assert np.array_equal(whole, _core.quantize(type_id, F32, 37, 512, x, threads=3))
    parts = [_core.quantize(type_id, F32, 37, 512, x, first=i, n=min(5, 37 - i)) for i in range(0, 37, 5)]
    assert np.array_equal(whole, np.concatenate(parts))


@EVERY
def test_the_same_bytes_on_every_machine(golden: Path, type_id: int) -> None:
    """Whatever its vectors and compiler: eight blocks are searched side by side, and rows of any number of them."""
    with np.load(golden / "quants.npz") as arrays:
        x = np.concatenate([arrays["x"].reshape(-1), normal(1, 768)[0]])
    parts = [_core.quantize(type_id, F32, 1, len(part), part) for part in (x, x[256:1024])]
    assert zlib.crc32(np.concatenate(parts, axis=1).tobytes()) == CHECKSUMS[type_id]


def test_from_any_type() -> None:
    """The weights that the source means, also where a scale is shared across rows."""
    for type_id in TYPES:
        rng = np.random.default_rng(type_id)
        group = 64 if type_id == LLAMA2C_Q8 else 0
        data = llama2c_q8(rng, 6, 256, 64) if group else random_weights(rng, type_id, 6, 256)
        values = _core.dequantize(type_id, 6, 256, data, group)
        expected = _core.quantize(Q8_0, F32, 6, 256, values)[2:5]
        assert np.array_equal(_core.quantize(Q8_0, type_id, 6, 256, data, group, first=2, n=3), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65536.0])
def test_weights_that_cannot_be_quantised(value: float) -> None:
    x = normal(3, 256)
    x[1, 200] = value
    with pytest.raises(ModelFormatError, match="row 1 has weights that are not finite, or beyond 65504"):
        _core.quantize(Q4_K, F32, 3, 256, x)


def attempt(**changed: Any) -> Any:
    arguments: dict[str, Any] = {"to_type": Q8_0, "type_id": F32, "rows": 2, "cols": 256, "data": bytes(2048)}
    return _core.quantize(**arguments | changed)


def test_arguments_are_checked() -> None:
    assert attempt().shape == (2, 272)
    for changed in ({"first": 2}, {"first": -1, "n": 2}, {"n": 3}, {"n": 0}, {"threads": 0}):
        with pytest.raises(ValueError, match="rows from"):
            attempt(**changed)
    for to_type in (16, 35, 999, -1):
        with pytest.raises(UnsupportedModelError, match="cannot be made"):
            attempt(to_type=to_type)
    with pytest.raises(ValueError, match="not whole blocks of 256"):
        attempt(to_type=Q4_K, cols=128, data=bytes(1024))
    with pytest.raises(ModelFormatError, match="takes 2048 bytes"):
        attempt(data=bytes(2047))
