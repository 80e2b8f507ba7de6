"""Keys and values in 8 bits: what exactly is kept of them.

That every path gives the same bits is for test_law1.py and test_switches.py, that they are the right ones for
test_forward.py, and what it costs of the answer for test_fidelity.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bits import Array, bits, kernel_level
from random_models import RandomModel, logits, random_model
from test_switches import NORMS, config
from tinygguf import F32, float_bytes

from pyllm import _core

IDS: list[int] = np.random.default_rng(3).integers(0, 90, 70).tolist()  # more than a page


def model_of(**switches: Any) -> RandomModel:
    return random_model(config(**switches), f"{NORMS} bv")


def kept(x: Array) -> Array:
    """float32 (..., head_dim) in blocks of 32, the last one filled up with zeros: as the engine does it."""
    padded = np.zeros((*x.shape[:-1], -(-x.shape[-1] // 32) * 32), np.float32)
    padded[..., : x.shape[-1]] = x
    blocks = padded.reshape(-1, 32)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    codes = np.rint(blocks * (np.float32(127) / largest)).astype(np.int8)
    scales = (largest / np.float32(127)).astype(np.float16).astype(np.float32)
    return (codes.astype(np.float32) * scales).reshape(padded.shape)[..., : x.shape[-1]]


def first_layer(model: _core.NativeModel) -> tuple[Array, Array]:
    """The keys and values that depend on nothing kept before."""
    session = model.new_session(100)
    session.eval(IDS, n_logits=0)
    keys, values = session.kv(0)
    session.close()
    return keys, values


@pytest.mark.parametrize("isa", _core.isa_names())
@pytest.mark.parametrize("head_dim", [2, 16, 32, 34, 64, 80])
def test_what_is_kept(head_dim: int, isa: str) -> None:
    model = model_of(head_dim=head_dim, rope_dims=head_dim)
    with kernel_level(isa):
        exact, found = first_layer(model.native(kv_type="f32")), first_layer(model.native(kv_type="q8_0"))
    for x, y in zip(exact, found, strict=True):
        assert np.array_equal(bits(y), bits(kept(x)))
        assert not np.array_equal(x, y)


@pytest.mark.parametrize(("head_dim", "blocks"), [(2, 1), (32, 1), (34, 2), (64, 2), (80, 3)])
def test_bytes_of_a_page(head_dim: int, blocks: int) -> None:
    """Keys and values of 2 layers, 2 heads and 64 positions, in blocks of 34 bytes."""
    assert model_of(head_dim=head_dim, rope_dims=2).native(kv_type="q8_0").kv_page_bytes == 2 * 2 * 2 * 64 * blocks * 34


@pytest.mark.parametrize(("size", "lost"), [(1e6, False), (1e9, True), (1e38, True)])
def test_values_too_large_for_a_scale(size: float, lost: bool) -> None:
    """Beyond 127 times the largest half there is no scale: the answer is no number, the same at every level, instead of
    one that looks like an answer."""
    model = model_of()
    bias = float_bytes(F32, np.full(2 * model.config.head_dim, size, np.float32))
    tensors = [t._replace(data=bias) if t.slot == "bv" and t.layer == 0 else t for t in model.tensors]
    larger, expected = model._replace(tensors=tensors), None
    for isa in _core.isa_names():
        with kernel_level(isa):
            native = larger.native(kv_type="q8_0")
            values, found = first_layer(native)[1], logits(native, IDS[:9])
        assert np.isnan(values).all() if lost else np.isfinite(values).all()
        assert np.isnan(found).all() if lost else np.isfinite(found).all()
        expected = bits(found) if expected is None else expected
        assert np.array_equal(bits(found), expected), isa
