"""Every SIMD kernel has the bits of the scalar one (law 1), and the scalar one is what the weights mean.

Matrices are packed, activations prepared and products computed as the forward pass does it, by `matmul_once`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from bits import (
    LLAMA2C_Q8,
    TYPES,
    Array,
    any_bytes,
    bits,
    blocks_of,
    group_of,
    llama2c_q8,
    odd_weights,
    same_bits,
    type_ids,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygguf import BF16, BLOCKS, F16, F32, Q2_K, Q4_1, Q4_K, Q5_1, Q5_K, Q8_0, put_scales, random_weights

from pyllm import _core

SIMD = [name for name in _core.isa_names() if name != "scalar"]
EVERY_TYPE = pytest.mark.parametrize("type_id", type_ids(), ids=type_ids(names=True))
EVERY_LEVEL = pytest.mark.parametrize("isa", SIMD)
BOTH_PRECISIONS = pytest.mark.parametrize("planes", [1, 2], ids=["fast", "high"])
FLOATS = (F32, F16, BF16)
UNIT = 2.0**-24  # the largest relative error of one rounding in fp32
STEPS = {1: 127.0, 2: 32512.0}  # of the largest activation of a block


# ---- inputs ----------------------------------------------------------------------------------------------------------


def ordinary_weights(rng: np.random.Generator, type_id: int, rows: int, cols: int) -> bytes:
    return llama2c_q8(rng, rows, cols) if type_id == LLAMA2C_Q8 else random_weights(rng, type_id, rows, cols)


def filled(byte: int) -> Callable[[np.random.Generator, int, int, int], bytes]:
    """Weights of one byte: 0x00, codes of -128 under tiny negative scales, NaN scales."""
    return lambda rng, type_id, rows, cols: bytes([byte]) * len(any_bytes(rng, type_id, rows, cols))


def extreme_codes(rng: np.random.Generator, type_id: int, rows: int, cols: int) -> bytes:
    """The smallest and largest codes only, so that integer sums are as large as they get."""
    count, nbytes = blocks_of(type_id, rows, cols)
    if type_id in FLOATS:
        return any_bytes(rng, type_id, rows, cols)
    low = 0x80 if type_id in (Q8_0, LLAMA2C_Q8) else 0x00
    blocks = rng.choice(np.array([low, 0xFF - low], np.uint8), (count, nbytes), p=[0.9, 0.1])
    if type_id == LLAMA2C_Q8:
        return blocks.tobytes() + np.full(rows * cols // 32, 0.01, "<f4").tobytes()
    for offset, magnitude in BLOCKS[type_id][2].items():
        put_scales(blocks, type_id, offset, np.full(count, magnitude, "<f2"))
    return bytes(blocks.tobytes())


WEIGHTS: dict[str, Callable[[np.random.Generator, int, int, int], bytes]] = {
    "ordinary": ordinary_weights,
    "extreme": extreme_codes,
    "any": any_bytes,
    "odd": odd_weights,
    "zeros": filled(0x00),
    "ones": filled(0xFF),
    "lows": filled(0x80),
}


def ordinary(rng: np.random.Generator, n: int, cols: int) -> Array:
    return rng.standard_normal((n, cols)).astype(np.float32)


def outliers(rng: np.random.Generator, n: int, cols: int) -> Array:
    """As in real models: a few channels a thousand times larger than the rest."""
    x: Array = ordinary(rng, n, cols) * np.where(rng.random(cols) < 0.05, np.float32(1000), np.float32(1))
    return x


def mixed(rng: np.random.Generator, n: int, cols: int) -> Array:
    """Blocks of 32 of very different sizes, and some of zeros."""
    sizes = rng.choice(
        np.array([0, 1e-38, 1e-31, 2.0**-100, 2.0**-101, 1e-10, 1, 1e4, 3e38], np.float32), (n, cols // 16 + 1)
    )
    x: Array = ordinary(rng, n, cols).clip(-1, 1) * np.repeat(sizes, 16, axis=1)[:, :cols]
    return x


def special(rng: np.random.Generator, n: int, cols: int) -> Array:
    """Numbers with zeros, denormals, infinities and NaNs among them, in some columns."""
    x = ordinary(rng, n, cols)
    odd = np.array([0.0, -0.0, 1e-45, -1e-40, 1e-38, 3e38, np.inf, -np.inf, np.nan], np.float32)
    places = rng.random((n, cols)) < 0.03
    places[1::2] = False
    x[places] = rng.choice(odd, int(places.sum()))
    return x


def plus_minus(rng: np.random.Generator, n: int, cols: int) -> Array:
    """Every activation at its block's largest magnitude."""
    return rng.choice(np.array([-1.0, 1.0], np.float32), (n, cols), p=[0.9, 0.1])


def ties(rng: np.random.Generator, n: int, cols: int) -> Array:
    """Halves of a step, which round to even."""
    x = (rng.integers(-127, 127, (n, cols)) + 0.5).astype(np.float32)
    x[:, ::32] = 127.0
    return x


def constant(value: float) -> Callable[[np.random.Generator, int, int], Array]:
    return lambda rng, n, cols: np.full((n, cols), value, np.float32)


ACTIVATIONS: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
    "ordinary": ordinary,
    "outliers": outliers,
    "mixed": mixed,
    "special": special,
    "plus-minus": plus_minus,
    "ties": ties,
    "zeros": constant(0.0),
    "tiny": constant(-1e-38),
    "denormal": constant(1e-41),
    "huge": constant(3e38),
}


class Case(NamedTuple):
    weights: str
    activations: str
    rows: int
    blocks: int  # of 32 weights, or of the type's own blocks where those are longer
    n: int

    def columns(self, type_id: int) -> int:
        return self.blocks * max(TYPES[type_id][1], 32)


#: Odd numbers of rows (strips have 16) and of tokens, from one block to wide rows.
SHAPES = ((1, 1, 1), (15, 3, 2), (16, 1, 3), (17, 3, 5), (33, 2, 7), (16, 18, 6), (100, 3, 13), (33, 5, 97))
CASES = [Case("ordinary", "ordinary", *shape) for shape in SHAPES]
CASES += [Case(weights, "ordinary", 33, 3, 7) for weights in WEIGHTS]
CASES += [Case(weights, "special", 17, 3, 5) for weights in WEIGHTS]
CASES += [Case("ordinary", activations, 17, 5, 7) for activations in ACTIVATIONS]
CASES += [Case("extreme", activations, 33, 2, 13) for activations in ("plus-minus", "outliers", "ties")]
CASES += [Case("odd", "mixed", 17, 4, 3)]


@cache
def inputs(type_id: int, case: Case) -> tuple[bytes, Array]:
    """(weights, activations (n, columns)) of a case."""
    rng = np.random.default_rng([type_id, case.rows, case.blocks, case.n])
    columns = case.columns(type_id)
    return WEIGHTS[case.weights](rng, type_id, case.rows, columns), ACTIVATIONS[case.activations](rng, case.n, columns)


def product(isa: str, type_id: int, rows: int, weights: bytes, x: Array, planes: int) -> Array:
    with np.errstate(all="ignore"):
        return _core.matmul_once(isa, type_id, rows, x.shape[1], weights, x, planes, group_of(type_id))


@cache
def scalar_product(type_id: int, case: Case, planes: int) -> Array:
    weights, x = inputs(type_id, case)
    return product("scalar", type_id, case.rows, weights, x, planes)


# ---- the same bits ---------------------------------------------------------------------------------------------------


@EVERY_LEVEL
@EVERY_TYPE
@BOTH_PRECISIONS
def test_products_have_the_scalar_bits(isa: str, type_id: int, planes: int) -> None:
    for case in CASES:
        weights, x = inputs(type_id, case)
        assert same_bits(product(isa, type_id, case.rows, weights, x, planes), scalar_product(type_id, case, planes)), (
            case
        )


@pytest.mark.parametrize("isa", _core.isa_names())
@EVERY_TYPE
@BOTH_PRECISIONS
def test_a_column_does_not_depend_on_its_neighbours(isa: str, type_id: int, planes: int) -> None:
    """One token alone and any number together: the same bits. Nor does a row."""
    case = Case("ordinary", "special", 33, 3, 23)
    weights, x = inputs(type_id, case)
    together = product(isa, type_id, case.rows, weights, x, planes)
    for start, n in ((0, 1), (3, 2), (5, 3), (8, 4), (2, 5), (0, 6), (9, 11), (1, 22)):
        part = product(isa, type_id, case.rows, weights, x[start : start + n], planes)
        assert same_bits(part, together[start : start + n])
    if type_id != LLAMA2C_Q8:  # whose scales come after all codes
        first = product(isa, type_id, 17, weights[: len(weights) // 33 * 17], x, planes)
        assert same_bits(first, together[:, :17])


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 6, 7, 8, 17, 64, 172])
@pytest.mark.parametrize("type_id", FLOATS, ids=lambda t: TYPES[t][0])
def test_float_rows_of_any_length(type_id: int, columns: int) -> None:
    """Float types have no blocks, so k may end anywhere."""
    rng = np.random.default_rng(columns)
    weights = ordinary_weights(rng, type_id, 19, columns)
    for n in (1, 2, 5, 13):
        x = ordinary(rng, n, columns)
        expected = product("scalar", type_id, 19, weights, x, 2)
        assert all(same_bits(product(isa, type_id, 19, weights, x, 2), expected) for isa in SIMD)


@settings(max_examples=120, deadline=None, database=None)
@given(
    type_id=st.sampled_from(type_ids()),
    planes=st.sampled_from([1, 2]),
    weights=st.sampled_from(sorted(WEIGHTS)),
    activations=st.sampled_from(sorted(ACTIVATIONS)),
    rows=st.integers(1, 70),
    blocks=st.integers(1, 5),
    n=st.integers(1, 40),
)
def test_any_shape(type_id: int, planes: int, weights: str, activations: str, rows: int, blocks: int, n: int) -> None:
    case = Case(weights, activations, rows, blocks, n)
    raw, x = inputs.__wrapped__(type_id, case)
    expected = product("scalar", type_id, rows, raw, x, planes)
    for isa in SIMD:
        assert same_bits(product(isa, type_id, rows, raw, x, planes), expected), isa


# ---- the right numbers -----------------------------------------------------------------------------------------------


def parts(type_id: int, rows: int, columns: int, weights: bytes) -> tuple[Array, Array]:
    """The weights (rows, columns) in float64, and how large the two numbers are that each is the sum of.

    A weight of a type with minima is `scale * code + minimum`, and the engine rounds the sums of both apart. Clearing
    the codes leaves the minima.
    """
    values = _core.dequantize(type_id, rows, columns, weights, group_of(type_id)).astype(np.float64)
    codes_at = {Q4_1: (4, 20), Q5_1: (4, 24), Q2_K: (16, 80), Q4_K: (16, 144), Q5_K: (16, 176)}
    if type_id not in codes_at:
        return values, np.abs(values)
    blocks = np.frombuffer(weights, np.uint8).reshape(blocks_of(type_id, rows, columns)).copy()
    blocks[:, slice(*codes_at[type_id])] = 0
    minima = _core.dequantize(type_id, rows, columns, blocks).astype(np.float64)
    return values, np.abs(values - minima) + np.abs(minima)


def error_bound(type_id: int, values: Array, sizes: Array, x: Array, planes: int) -> Array:
    """How far a product may be from the exact one, (n, rows).

    Rounding: every term passes through at most four roundings of its own (the weight, the integer sum, the two scales)
    and the sums it is part of, at most one per block and minimum (quantised) or per four k (floats), plus the last two:
    terms * UNIT of what the terms are together.
    Activations: the scale is m / steps, m the block's largest; a is within 1/2 of x * steps / m, which is itself off by
    two roundings, and the scale is rounded once: |x - scale * a| <= m * (1 / (2 steps) + 3 UNIT). In two planes that is
    m / 65024.
    """
    if type_id in FLOATS:
        chain: Array = (x.shape[1] / 4 + 8) * UNIT * (np.abs(x) @ sizes.T)
        return chain
    largest = np.abs(x).reshape(len(x), -1, 32).max(axis=2).repeat(32, axis=1)
    off = largest * (0.5 / STEPS[planes] + 3 * UNIT)
    terms = 2 * x.shape[1] / 32 + 8
    bound: Array = off @ np.abs(values).T + terms * UNIT * ((np.abs(x) + off) @ sizes.T)
    return bound


@EVERY_TYPE
@BOTH_PRECISIONS
@pytest.mark.parametrize("kind", ["ordinary", "outliers", "plus-minus", "ties", "zeros", "small", "large"])
def test_products_are_near_the_exact_ones(type_id: int, planes: int, kind: str) -> None:
    rng = np.random.default_rng(type_id)
    rows, columns = 40, 6 * max(TYPES[type_id][1], 32)
    weights = ordinary_weights(rng, type_id, rows, columns)
    factor = np.float32({"small": 1e-20, "large": 1e30}.get(kind, 1))
    x = ACTIVATIONS.get(kind, ordinary)(rng, 9, columns) * factor
    y = product("scalar", type_id, rows, weights, x, planes)
    values, sizes = parts(type_id, rows, columns, weights)
    off = np.abs(y - x.astype(np.float64) @ values.T)
    bound = error_bound(type_id, values, sizes, x.astype(np.float64), planes)
    assert (off <= bound).all(), (off / bound).max()


@pytest.mark.parametrize("type_id", [t for t in TYPES if t not in FLOATS], ids=lambda t: TYPES[t][0])
def test_two_planes_are_two_hundred_times_as_exact_as_one(type_id: int) -> None:
    rng = np.random.default_rng(5)
    weights, x = ordinary_weights(rng, type_id, 64, 1024), ordinary(rng, 16, 1024)
    exact = x.astype(np.float64) @ _core.dequantize(type_id, 64, 1024, weights, group_of(type_id)).astype(np.float64).T
    fast, high = (np.sqrt(np.mean((product("scalar", type_id, 64, weights, x, p) - exact) ** 2)) for p in (1, 2))
    assert 200 < fast / high < 300


@EVERY_TYPE
@BOTH_PRECISIONS
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_seen(type_id: int, planes: int, value: float) -> None:
    """A broken activation must not become a plausible number, and must not reach another token."""
    rng = np.random.default_rng(0)
    weights, x = ordinary_weights(rng, type_id, 20, 256), ordinary(rng, 3, 256)
    clean = product("scalar", type_id, 20, weights, x, planes)
    x[1, 77] = value
    y = product("scalar", type_id, 20, weights, x, planes)
    assert not np.isfinite(y[1]).any()
    assert same_bits(y[[0, 2]], clean[[0, 2]])


@BOTH_PRECISIONS
@pytest.mark.parametrize("isa", _core.isa_names())
def test_blocks_below_the_smallest_size_are_zero(isa: str, planes: int) -> None:
    """2^-100 is where steps / m would overflow; such activations are nothing beside any norm's epsilon."""
    weights = ordinary_weights(np.random.default_rng(0), Q8_0, 16, 64)
    x = np.zeros((3, 64), np.float32)
    x[0, 3], x[1, 3], x[2, 40] = 2.0**-100, np.nextafter(np.float32(2.0**-100), np.float32(0)), -(2.0**-126)
    y = product(isa, Q8_0, 16, weights, x, planes)
    assert np.count_nonzero(y[0]) == 16
    assert not bits(y[1:]).any()


# ---- kernels over vectors --------------------------------------------------------------------------------------------


def vectors(kind: str, n: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(n)
    a, b = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    if kind == "wide":
        a *= np.exp(rng.uniform(-60, 60, n)).astype(np.float32)
    if kind == "edges":
        at = [0.0, -0.0, 1e-45, -1e-39, 88.7, 88.73, 89, -87.3, -87.34, -104, 1e4, -1e4, 3e38, -3e38]
        a[rng.permutation(n)[: len(at)]] = at[:n]
    if kind == "special":
        a[rng.permutation(n)[:3]] = [np.inf, -np.inf, np.nan]
        b[rng.permutation(n)[:2]] = [np.inf, np.nan]
    if kind == "hidden":
        a[rng.random(n) < 0.3] = -np.inf  # what attention hides
        a[0] = 1.0
    return a, b


FUNCTIONS = ("silu", "gelu", "gelu_tanh", "relu_squared", "silu_clamped")


@EVERY_LEVEL
@pytest.mark.parametrize("kernel", ["rmsnorm", "swiglu", "softmax", "softcap", *FUNCTIONS])
@pytest.mark.parametrize("kind", ["ordinary", "wide", "edges", "special", "hidden"])
def test_vector_kernels_have_the_scalar_bits(isa: str, kernel: str, kind: str) -> None:
    for n in (16, 32, 48, 64, 80, 96, 112, 128, 256, 576, 1536):
        a, b = vectors(kind, n)
        for parameter in (1e-5, 0.125, 1.0):
            expected = _core.vector_once("scalar", kernel, a, b, parameter)
            assert same_bits(_core.vector_once(isa, kernel, a, b, parameter), expected), (n, parameter)


@EVERY_LEVEL
@pytest.mark.parametrize("kernel", FUNCTIONS[:-1])
def test_activations_without_a_gate_have_the_scalar_bits(isa: str, kernel: str) -> None:
    for kind in ("ordinary", "edges", "special"):
        a, _ = vectors(kind, 1536)
        expected = _core.vector_once("scalar", kernel, a, None, 0.0)
        assert same_bits(_core.vector_once(isa, kernel, a, None, 0.0), expected), kind


def test_one_silu() -> None:
    """The activation and the kernel that Llama's feed-forward layer has for itself are the same."""
    a, b = vectors("ordinary", 256)
    assert same_bits(_core.vector_once("scalar", "silu", a, b, 0.0), _core.vector_once("scalar", "swiglu", a, b, 0.0))


#: From the smallest subnormal to the largest number, with both signs, and steps of a few thousand ulp.
ALL_FLOATS = np.concatenate(
    [np.arange(1, 0x7F7FFFFF, 4099, np.uint32), np.arange(0x80000001, 0xFF7FFFFF, 4099, np.uint32)]
)
ALL_FLOATS = ALL_FLOATS[: len(ALL_FLOATS) // 16 * 16].view(np.float32)


@pytest.mark.parametrize(("name", "exact"), [("erf", math.erf), ("tanh", math.tanh)])
def test_erf_and_tanh(name: str, exact: Callable[[float], float]) -> None:
    """Within 1.5 ulp of the true value everywhere, and exact at the ends."""
    true = np.array([exact(float(x)) for x in ALL_FLOATS])
    y = _core.vector_once("scalar", name, ALL_FLOATS, None, 0.0)
    ulp = np.spacing(np.abs(true).astype(np.float32)).astype(np.float64)
    assert (np.abs(y - true) <= 1.5 * ulp).all()
    ends = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0] + [1.0] * 11, np.float32)
    assert same_bits(_core.vector_once("scalar", name, ends, None, 0.0)[:5], np.array([1, -1, np.nan, 0, -0.0]))


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("gelu", lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2),
        ("gelu_tanh", lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2),
        ("relu_squared", lambda x: np.maximum(x, 0) ** 2),
    ],
)
def test_activations(name: str, exact: Callable[[Array], Array]) -> None:
    """Some roundings of the answer, and of |x| times e^x's: 1 + erf(x) and the like have nothing left far below 0."""
    x = np.linspace(-12, 12, 4096).astype(np.float32)
    y, true = _core.vector_once("scalar", name, x, None, 0.0), exact(x.astype(np.float64))
    assert (np.abs(y - true) <= 12 * UNIT * np.abs(true) + 4 * UNIT * np.abs(x)).all()


def test_clamped_silu() -> None:
    gate, up = np.linspace(-20, 20, 4096).astype(np.float32), np.linspace(9, -9, 4096).astype(np.float32)
    g, u = np.minimum(gate.astype(np.float64), 7), np.clip(up.astype(np.float64), -7, 7)
    exact = g / (1 + np.exp(-1.702 * g)) * (u + 1)
    y = _core.vector_once("scalar", "silu_clamped", gate, up, 7.0)
    assert (np.abs(y - exact) <= 40 * UNIT * np.abs(exact) + 1e-30).all()


def test_softcap() -> None:
    x = np.linspace(-500, 500, 4096).astype(np.float32)
    exact = 30 * np.tanh(x.astype(np.float64) / 30)
    assert (np.abs(_core.vector_once("scalar", "softcap", x, None, 30.0) - exact) <= 8 * UNIT * np.abs(exact)).all()


@pytest.mark.parametrize("n", [1, 15, 16, 100, 1000])
def test_centre(n: int) -> None:
    """What is left of a large common part; the padding is zeros, as the norm that follows needs it."""
    x = np.zeros((n + 15) // 16 * 16, np.float32)
    x[:n] = 1000 + np.random.default_rng(n).standard_normal(n)
    y = _core.vector_once("scalar", "centre", x, None, n)
    assert not y[n:].any()
    assert (np.abs(y[:n] - (x[:n] - x[:n].astype(np.float64).mean())) <= (n / 16 + 6) * UNIT * 1100).all()


@pytest.mark.parametrize("n", [16, 64, 576, 4096])
def test_rmsnorm(n: int) -> None:
    """Sixteen lanes: n / 16 + 4 additions of squares, then a division, eps, a root, a division, two products."""
    x, weight = vectors("ordinary", n)
    exact = weight.astype(np.float64) * x / np.sqrt(np.mean(x.astype(np.float64) ** 2) + 1e-5)
    y = _core.vector_once("scalar", "rmsnorm", x, weight, 1e-5)
    assert (np.abs(y - exact) <= ((n / 16 + 6) / 2 + 4) * UNIT * np.abs(exact)).all()


def test_rmsnorm_of_zeros_is_zero() -> None:
    zeros, ones = np.zeros(32, np.float32), np.ones(32, np.float32)
    assert not _core.vector_once("scalar", "rmsnorm", zeros, ones, 1e-5).any()


def test_swiglu() -> None:
    """e^x within 2 roundings, an addition, a division, a product: 6. Where e^x overflows the answer is below 1e-36."""
    gate = np.linspace(-120, 120, 4096).astype(np.float32)
    up = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    exact = gate.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64))) * up
    y = _core.vector_once("scalar", "swiglu", gate, up, 0.0)
    assert (np.abs(y - exact) <= 6 * UNIT * np.abs(exact) + 1e-36 * np.abs(up)).all()


@pytest.mark.parametrize("scale", [0.125, 1.0, 5.0])
def test_softmax(scale: float) -> None:
    """Rounding s * scale and s - m moves the exponent that much; e^x is within 2 roundings, and 0 below 2^-126."""
    s = vectors("ordinary", 256)[0] * np.float32(4)
    s[200:] = -np.inf
    out = _core.vector_once("scalar", "softmax", s, s, scale)
    p, total, largest = out[:256], out[256], out[257]
    scaled = s.astype(np.float64)[:200] * np.float32(scale)
    exact = np.exp(scaled - scaled.max())
    assert largest == np.float32(scaled.max())
    relative = UNIT * (2 * np.abs(scaled) + np.abs(scaled.max()) + np.abs(scaled - scaled.max()) + 2)
    assert (np.abs(p[:200] - exact) <= 1.01 * relative * exact + 2.0**-126).all()
    assert not bits(p[200:]).any()
    assert abs(total - p.astype(np.float64).sum()) <= (256 / 16 + 4) * UNIT * total


def test_vector_kernels_check_their_arguments() -> None:
    x = np.ones(16, np.float32)
    for isa, kernel, n in (("sse9", "rmsnorm", 16), ("scalar", "mish", 16), ("scalar", "softmax", 15)):
        with pytest.raises(ValueError, match=r"sse9|mish|multiple of 16"):
            _core.vector_once(isa, kernel, x[:n], x[:n], 1.0)
