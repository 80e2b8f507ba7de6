"""What a session shows of its inside: hidden states, keys and values, against the formulas and on every path."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bits import Array, bits
from reference import Trace, forward, read_weights
from tinygguf import F32, Q8_0, Shape, tiny_llama

import pyllm
from pyllm import _core

SHAPE = Shape(dim=64, hidden=96, layers=3, heads=4, kv_heads=2, vocab=300, context=1200)
IDS: list[int] = np.random.default_rng(5).integers(0, SHAPE.vocab, 70).tolist()
#: As in test_forward.py: fp32 against float64.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("inside") / "tiny.gguf", F32, SHAPE)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(path, kv_dtype="f32") as model:
        yield model


@pytest.fixture(scope="module")
def trace(path: Path) -> Trace:
    config, weights = read_weights(path)
    assert config.rope_interleaved  # so that keys are not in the file's order
    trace = Trace([], [], [])
    forward(config, weights, IDS, trace=trace)
    return trace


def off(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def apart(keys: Array) -> Array:
    """Keys whose interleaved pairs are put half a head apart, as the engine has them."""
    return np.concatenate([keys[..., 0::2], keys[..., 1::2]], axis=-1)


# ---- hidden states -----------------------------------------------------------------------------------------------


def test_hidden_states_are_those_of_the_formulas(model: pyllm.Model, trace: Trace) -> None:
    hidden = model.session().hidden_states(IDS)
    assert hidden.shape == (SHAPE.layers + 1, len(IDS), SHAPE.dim)
    assert hidden.dtype == np.float32
    for layer, expected in enumerate(trace.hidden):
        assert off(hidden[layer], expected) < ROUNDING
        assert layer == 0 or off(hidden[layer], trace.hidden[layer - 1]) > 0.01


def test_the_logits_follow_from_the_last_one(model: pyllm.Model, path: Path) -> None:
    config, weights = read_weights(path)
    x = model.session().hidden_states(IDS, [-1])[0].astype(np.float64)
    normed = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_eps)
    logits = (normed * weights["final_norm", 0].values[0]) @ weights["embedding", 0].values.T
    assert off(model.logits(IDS), logits) < ROUNDING


@pytest.mark.parametrize("layers", [[0], [3], [-1, 0, 2, 2], [-4], []])
def test_layers_are_chosen_as_in_a_list(model: pyllm.Model, layers: list[int]) -> None:
    every = model.session().hidden_states(IDS)
    assert np.array_equal(bits(model.session().hidden_states(IDS, layers)), bits(every[layers]))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("sizes", [[70], [1] * 70, [1, 40, 1, 28]])
def test_the_same_bits_on_every_path(tmp_path: Path, threads: int, sizes: list[int]) -> None:
    """However tokens are grouped and shared out; and the session moves as it does without."""
    shape = Shape(dim=256, hidden=512, layers=3, heads=4, kv_heads=2, vocab=300, context=1200)
    path = tiny_llama(tmp_path / "large.gguf", Q8_0, shape)  # large enough to be worth three threads
    with pyllm.load(path, threads=1) as model:
        expected, logits = model.session().hidden_states(IDS), model.logits([*IDS, 7])[-2:]
    _core.insist_on_threads(True)
    try:
        with pyllm.load(path, threads=threads) as model, model.session() as session:
            at = np.cumsum([0, *sizes]).tolist()
            parts = [session.hidden_states(IDS[start : start + n]) for start, n in zip(at, sizes, strict=False)]
            assert np.array_equal(bits(np.concatenate(parts, axis=1)), bits(expected))
            assert session.tokens == IDS
            assert np.array_equal(bits(session.eval([])), bits(logits[0]))
            assert np.array_equal(bits(session.eval([7])), bits(logits[1]))
    finally:
        _core.insist_on_threads(False)


def test_more_tokens_than_go_into_one_pass(model: pyllm.Model) -> None:
    long: list[int] = np.random.default_rng(6).integers(0, SHAPE.vocab, 1100).tolist()
    one, other = model.session(), model.session()
    whole = one.hidden_states(long, [1, 3])
    parts = [other.hidden_states(long[i : i + 100], [1, 3]) for i in range(0, 1100, 100)]
    assert np.array_equal(bits(whole), bits(np.concatenate(parts, axis=1)))


def test_a_token_that_was_only_drawn_is_taken_in_first(model: pyllm.Model) -> None:
    session = model.session()
    drawn = session.generate(IDS[:5], max_tokens=2, seed=1).tokens
    hidden = session.hidden_states([8, 9])
    assert session.tokens == [*IDS[:5], *drawn, 8, 9]
    assert np.array_equal(bits(hidden), bits(model.session().hidden_states(session.tokens)[:, -2:]))


def test_what_is_refused_changes_nothing(model: pyllm.Model) -> None:
    session = model.session(context_length=8)
    session.eval(IDS[:3])
    for tokens, layers, error, message in (
        ([1], [4], ValueError, r"layer 4 is out of range: the model has 0 \(the embeddings\) to 3"),
        ([1], [-5], ValueError, "layer -5"),
        ([SHAPE.vocab], None, ValueError, "outside the vocabulary"),
        ([], None, ValueError, "no tokens"),
        ([1] * 6, None, pyllm.ContextLengthError, "6 tokens after 3"),
    ):
        with pytest.raises(error, match=message):
            session.hidden_states(tokens, layers)
        assert session.tokens == IDS[:3]
    assert np.array_equal(bits(session.eval(IDS[3:5])), bits(model.logits(IDS[:5])[-1]))


def test_closing_stops_it_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    shape = Shape(dim=512, hidden=1024, layers=8, heads=8, kv_heads=4, vocab=300, context=4096)
    with pyllm.load(tiny_llama(tmp_path / "slow.gguf", Q8_0, shape)) as model:
        session = model.session()
        timer = threading.Timer(0.05, session.close)
        timer.start()
        with pytest.raises(pyllm.ClosedError):
            session.hidden_states([1] * 4096, [8])
        timer.join()
        assert model._native.kv_pages == 0


def test_the_library_checks_layers_too(model: pyllm.Model) -> None:
    native: Any = model._native.new_session(10)
    for layer in (-1, 4):
        with pytest.raises(ValueError, match=f"layer {layer} is out of range"):
            native.eval_hidden([1], [layer])
        assert native.position == 0
    with pytest.raises(ValueError, match="layer 3 is out of range"):
        native.kv(3)
    native.close()


# ---- keys and values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
def test_keys_and_values_are_those_of_the_formulas(path: Path, trace: Trace, kv_dtype: str) -> None:
    with pyllm.load(path, kv_dtype=kv_dtype) as model, model.session() as session:
        session.eval(IDS)
        for layer in range(SHAPE.layers):
            for found, expected in (
                (session.keys(layer), apart(trace.keys[layer])),
                (session.values(layer), trace.values[layer]),
            ):
                assert found.shape == (SHAPE.kv_heads, len(IDS), SHAPE.dim // SHAPE.heads)
                assert found.dtype == np.float32
                if layer == 0 or kv_dtype == "f32":  # later layers see what halves changed
                    bound = ROUNDING if kv_dtype == "f32" else 2.0**-11
                    assert off(found.transpose(1, 0, 2), expected) < bound
                if kv_dtype == "f16":
                    assert np.array_equal(found, found.astype(np.float16))


def test_keys_are_a_copy_and_follow_the_session(model: pyllm.Model) -> None:
    session = model.session()
    assert session.keys(0).shape == (2, 0, 16)
    session.eval(IDS)
    keys = session.keys(1)
    fork = session.fork()
    fork.truncate(66)
    fork.eval([1, 2])
    assert np.array_equal(bits(fork.keys(1)[:, :66]), bits(keys[:, :66]))
    assert not np.array_equal(fork.keys(1)[:, 66:68], keys[:, 66:68])
    assert np.array_equal(bits(session.keys(1)), bits(keys))
    keys[:] = 0
    assert session.keys(1).any()
    session.generate(max_tokens=2, seed=1).tokens  # noqa: B018
    assert session.keys(1).shape[1] == session.position - 1
    with pytest.raises(ValueError, match="layer 3 is out of range"):
        session.values(3)
    session.close()
    with pytest.raises(pyllm.ClosedError):
        session.keys(0)
