"""Low-rank adapters: against the formulas with weights W + scale B A, and for the same bits on every path."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from bits import Array, bits, kernel_level
from random_models import RandomModel
from reference import Matrix, Weights, forward
from test_law1 import eval_together, in_chunks, whole
from test_switches import IDS, MIXED, ROUNDING, model_of, off

import pyllm
from pyllm import _core

N = 60
#: Cases of test_switches.py whose matrices are in all places: dense, experts, the shared one, routers.
NAMES = ("interleaved", "post norms", "parallel", "experts with a weighed shared one")

Pairs = dict[tuple[str, int, int], tuple[Array, Array]]
"""A and B by slot, layer and expert."""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    _core.insist_on_threads(True)
    yield
    _core.insist_on_threads(False)


def random_pairs(model: RandomModel, seed: int, rank: int) -> Pairs:
    """Low ranks for every second matrix of the layers (seed 0), or for all (seed 1)."""
    rng = np.random.default_rng(seed)
    pairs: Pairs = {}
    matrices = [t for t in model.tensors if t.rows > 1 and t.slot not in ("embedding", "head", "position_embedding")]
    for t in matrices[:: 2 - seed]:
        a, b = rng.normal(0, 0.1, (rank, t.cols)), rng.normal(0, 0.1, (t.rows, rank))
        pairs[t.slot, t.layer, t.expert or 0] = a.astype(np.float32), b.astype(np.float32)
    return pairs


def adapter_of(native: _core.NativeModel, pairs: Pairs) -> _core.NativeAdapter:
    adapter = _core.NativeAdapter(native)
    for (slot, layer, expert), (a, b) in pairs.items():
        adapter.bind(slot, layer, a, b, expert)
    return adapter


def merged(weights: Weights, pairs: Pairs, scale: float) -> Weights:
    """What the adapter means: other weights."""
    out = dict(weights)
    for (slot, layer, expert), (a, b) in pairs.items():
        key = (slot, layer, expert) if slot.startswith("expert_") else (slot, layer)
        out[key] = Matrix(out[key].values + scale * (b.astype(np.float64) @ a), False)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_other_weights(name: str) -> None:
    """One, two at once, and none again; the model itself stays as it is."""
    model = model_of(name)
    native, weights = model.native(), model.weights()
    first, second = random_pairs(model, 0, 5), random_pairs(model, 1, 16)
    both = [(adapter_of(native, first), 0.75), (adapter_of(native, second), -1.5)]
    plain = forward(model.config, weights, IDS[:N])
    session = native.new_session(N)
    for n in (1, 2, 0):
        session.adapt(both[:n])
        expected = weights
        for pairs, (_, scale) in zip((first, second)[:n], both[:n], strict=True):
            expected = merged(expected, pairs, scale)
        found, exact = session.eval(IDS[:N], n_logits=N), forward(model.config, expected, IDS[:N])
        assert off(found, exact) < ROUNDING
        assert n == 0 or off(exact, plain) > 100 * ROUNDING
        session.truncate(0)


@pytest.mark.parametrize("name", NAMES)
def test_every_way_gives_the_same_bits(name: str) -> None:
    """Levels, threads, chunks, forks, and a batch in which each sequence has adapters of its own."""
    model = model_of(name, MIXED)
    pairs = random_pairs(model, 0, 6), random_pairs(model, 1, 33)
    expected: dict[tuple[int, ...], Array] = {}
    for isa in ("scalar", *_core.isa_names()):
        for threads in (1, 3):
            native = model.native(threads=threads)
            adapters = [adapter_of(native, each) for each in pairs]
            sessions = {}
            for chosen in ((), (0,), (1,), (0, 1), (1, 0)):
                sessions[chosen] = native.new_session(2 * N)
                sessions[chosen].adapt([(adapters[i], 0.5 + i) for i in chosen])
                for way in (whole, partial(in_chunks, 1), partial(in_chunks, 17)):
                    with kernel_level(isa):
                        found = bits(way(sessions[chosen], IDS[:N]))
                    assert np.array_equal(found, expected.setdefault(chosen, found)), (isa, threads, chosen)
                    sessions[chosen].truncate(0)
            with kernel_level(isa):
                for begin, end in ((0, 20), (20, 21), (21, 40)):
                    parts = [(session, IDS[begin:end]) for session in sessions.values()]
                    for chosen, rows in zip(sessions, eval_together(native, parts, threads), strict=True):
                        assert np.array_equal(bits(rows), expected[chosen][begin:end])
                fork = sessions[0, 1].fork()
                assert np.array_equal(bits(fork.eval(IDS[40:N])), expected[0, 1][-1:])
    assert len({rows.tobytes() for rows in expected.values()}) == len(expected) == 5


def test_what_does_not_fit() -> None:
    model = model_of("interleaved")
    native, other = model.native(), model.native()
    adapter, a, b = _core.NativeAdapter(native), np.ones((4, 64), np.float32), np.ones((64, 4), np.float32)
    with pytest.raises(pyllm.ModelFormatError, match=r"\(4, 64\) and \(32, 4\) do not fit a matrix \(64, 64\)"):
        adapter.bind("wq", 0, a, b[:32])
    with pytest.raises(pyllm.ModelFormatError, match="do not fit"):
        adapter.bind("wq", 0, a[:3], b)
    for slot, layer in (("embedding", 0), ("router", 0), ("bq", 0), ("wq", 2), ("wq", -1)):
        with pytest.raises(ValueError, match="cannot be bound"):
            adapter.bind(slot, layer, a, b)
    adapter.bind("wq", 0, a, b)
    with pytest.raises(pyllm.ModelFormatError, match="twice"):
        adapter.bind("wq", 0, a, b)
    session = native.new_session(10)
    with pytest.raises(ValueError, match="another model"):
        other.new_session(10).adapt([(adapter, 1.0)])
    for scale in (np.nan, np.inf):
        with pytest.raises(ValueError, match="scale is"):
            session.adapt([(adapter, scale)])
    session.adapt([(adapter, 1.0)])
    with pytest.raises(ValueError, match="cannot be bound"):
        adapter.bind("wq", 1, a, b)
    session.eval([1, 2])
    with pytest.raises(ValueError, match="only an empty session"):
        session.adapt([])


def test_adapters_live_as_long_as_their_sessions() -> None:
    """Whichever of the model, the adapter and the session goes first."""
    model = model_of("interleaved")
    native = model.native()
    session = native.new_session(10)
    session.adapt([(adapter_of(native, random_pairs(model, 0, 3)), 2.0)])
    expected = np.array(session.eval(IDS[:5]))
    session.truncate(0)
    fork = session.fork()
    session.close()
    assert np.array_equal(bits(fork.eval(IDS[:5])), bits(expected))
    native.close()
    fork.close()
