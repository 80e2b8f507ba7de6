"""The forward pass against the formulas in float64 (reference.py), for every weight type.

That all paths give the same bits is tested elsewhere; here, that they are the right ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bits import LLAMA2C_Q8, TYPES, Array
from reference import FLOAT_TYPES, forward, in_eight_bits, in_halves, read_weights
from tinygguf import F32, Q8_0, Shape, float_bytes, llama_metadata, llama_tensors, tiny_llama, write_gguf

import pyllm

#: How far fp32 may be from float64, relative to the largest logit: some thousand roundings, mostly cancelling.
ROUNDING = 1e-5
#: And for each position: its angles are the product of position and frequency, both fp32, rounded once more.
ANGLE = 2 * 2.0**-24
SHAPE = Shape(dim=256, hidden=512, layers=2, heads=4, kv_heads=2, vocab=300, context=512)
IDS: list[int] = np.random.default_rng(0).integers(0, 300, 40).tolist()
LONG: list[int] = np.random.default_rng(1).integers(0, 300, 300).tolist()  # more than one chunk of attention

FILE_TYPES = [t for t in TYPES if t != LLAMA2C_Q8]
QUANTISED = [t for t in FILE_TYPES if t not in FLOAT_TYPES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forward")


def model_of(folder: Path, type_id: int) -> Path:
    """A random model of one weight type; every second has a head of its own."""
    path = folder / f"{type_id}.gguf"
    tied = FILE_TYPES.index(type_id) % 2 == 0
    return path if path.exists() else tiny_llama(path, type_id, SHAPE, tied=tied, seed=type_id)


def logits(path: Path, ids: list[int], precision: str = "high", kv_dtype: str = "f32") -> Array:
    with pyllm.load(path, precision=precision, kv_dtype=kv_dtype) as model:
        return model.logits(ids)


def off(a: Array, b: Array) -> float:
    """The largest difference, relative to the largest logit."""
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("type_id", FLOAT_TYPES, ids=lambda t: TYPES[t][0])
@pytest.mark.parametrize("precision", ["high", "fast"])
def test_float_weights(folder: Path, type_id: int, precision: str) -> None:
    """Nothing but fp32's rounding comes between, in either precision."""
    path = model_of(folder, type_id)
    config, weights = read_weights(path)
    assert off(logits(path, LONG, precision), forward(config, weights, LONG)) < ROUNDING + ANGLE * len(LONG)


@pytest.mark.parametrize("type_id", QUANTISED, ids=lambda t: TYPES[t][0])
@pytest.mark.parametrize(("precision", "planes"), [("high", 2), ("fast", 1)])
def test_quantised_weights(folder: Path, type_id: int, precision: str, planes: int) -> None:
    """As far from the exact answer as rounding activations makes it, and nearer to the one that rounds them too.

    The two do not agree to the last bit: an activation that lies between two steps may be rounded up by one and down
    by the other, and with steps as fine as those of two planes many do.
    """
    path = model_of(folder, type_id)
    config, weights = read_weights(path)
    exact, rounded = forward(config, weights, IDS), forward(config, weights, IDS, planes=planes)
    y, shift = logits(path, IDS, precision), off(rounded, exact)
    assert {2: 1e-6, 1: ROUNDING}[planes] < shift < {2: 5e-4, 1: 0.1}[planes]
    visible = max(shift, ROUNDING)  # what two planes round away of some types is less than fp32 does
    assert off(y, exact) < 2 * visible
    assert off(y, rounded) < 2 * visible
    if planes == 1:
        assert np.mean((y - rounded) ** 2) < 0.5 * np.mean((rounded - exact) ** 2)


@pytest.mark.parametrize("type_id", [F32, Q8_0], ids=lambda t: TYPES[t][0])
@pytest.mark.parametrize(("kv_dtype", "kept", "most"), [("f16", in_halves, 0.01), ("q8_0", in_eight_bits, 0.1)])
def test_rounded_keys_and_values(
    folder: Path, type_id: int, kv_dtype: str, kept: Callable[[Array], Array], most: float
) -> None:
    path = model_of(folder, type_id)
    config, weights = read_weights(path)
    exact, rounded = forward(config, weights, LONG), forward(config, weights, LONG, kept=kept)
    y, shift = logits(path, LONG, kv_dtype=kv_dtype), off(rounded, exact)
    assert ROUNDING < shift < most
    assert off(y, exact) < 2 * shift
    assert np.mean((y - rounded) ** 2) < 0.5 * np.mean((rounded - exact) ** 2)


def test_rope_factors_divide_the_frequencies(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, SHAPE.dim // SHAPE.heads // 2).astype(np.float32)
    tensors = llama_tensors(SHAPE) | {"rope_freqs.weight": (F32, (len(factors),), float_bytes(F32, factors))}
    path = write_gguf(tmp_path / "factors.gguf", llama_metadata(SHAPE), tensors)
    config, weights = read_weights(path)
    expected = forward(config, weights, IDS)
    assert off(logits(path, IDS), expected) < ROUNDING
    del weights["rope_factors", 0]
    assert off(forward(config, weights, IDS), expected) > 0.01


@pytest.mark.parametrize(("base", "eps"), [(100.0, 1e-5), (500000.0, 1e-6), (10000.0, 0.1)])
def test_constants_of_the_file(tmp_path: Path, base: float, eps: float) -> None:
    metadata = llama_metadata(SHAPE)
    metadata |= {"llama.rope.freq_base": base, "llama.attention.layer_norm_rms_epsilon": eps}
    path = write_gguf(tmp_path / "constants.gguf", metadata, llama_tensors(SHAPE))
    config, weights = read_weights(path)
    assert off(logits(path, IDS), forward(config, weights, IDS)) < ROUNDING


@pytest.mark.parametrize("dims", [2, 16, 32])
def test_part_of_a_head_may_rotate(tmp_path: Path, dims: int) -> None:
    metadata = llama_metadata(SHAPE) | {"llama.rope.dimension_count": dims}
    path = write_gguf(tmp_path / "partial.gguf", metadata, llama_tensors(SHAPE))
    config, weights = read_weights(path)
    assert config.rope_dims == dims
    assert off(logits(path, IDS), forward(config, weights, IDS)) < ROUNDING


@pytest.mark.parametrize(
    "shape",
    [
        Shape(dim=6, hidden=10, layers=1, heads=3, kv_heads=1, vocab=7),
        Shape(dim=20, hidden=17, layers=3, heads=2, kv_heads=2, vocab=33),
        Shape(dim=64, hidden=172, layers=2, heads=8, kv_heads=4, vocab=512),
        Shape(dim=132, hidden=40, layers=2, heads=6, kv_heads=2, vocab=16),
        Shape(dim=96, hidden=31, layers=1, heads=48, kv_heads=1, vocab=101),
    ],
)
def test_awkward_sizes(tmp_path: Path, shape: Shape) -> None:
    """Nothing a multiple of anything; more heads to a key than one call takes."""
    path = tiny_llama(tmp_path / "awkward.gguf", F32, shape)
    config, weights = read_weights(path)
    ids = np.random.default_rng(3).integers(0, shape.vocab, 50).tolist()
    expected = forward(config, weights, ids)
    assert off(logits(path, ids), expected) < ROUNDING
    with pyllm.load(path, kv_dtype="f32") as model, model.session() as session:
        for i, token in enumerate(ids):
            assert off(session.eval([token]), expected[i]) < ROUNDING
