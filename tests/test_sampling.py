"""The sampler: run.c's draws exactly, every option against its definition, and every bad value refused."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import ModelFormatError, Sampler
from pyllm.sampling import STATE_OF_SEED_0, random_seed, sampler_from_metadata

Logits = np.ndarray[Any, np.dtype[np.float32]]
f32 = np.float32


# ---- the definition, written again with no cleverness: everything is sorted, everything is summed in order ---------


class Xorshift:
    """run.c's generator."""

    def __init__(self, state: int) -> None:
        self.state = state

    def u32(self) -> int:
        mask = (1 << 64) - 1
        self.state ^= self.state >> 12
        self.state ^= (self.state << 25) & mask
        self.state ^= self.state >> 27
        return ((self.state * 0x2545F4914F6CDD1D) & mask) >> 32

    def f32(self) -> np.float32:
        return f32(self.u32() >> 8) / f32(16777216.0)


def draw_slowly(rng: Xorshift, logits: Logits, temperature: float, top_p: float) -> int:
    """run.c's `sample`, with ties of the sort broken by the lower id."""
    if temperature == 0:
        return int(np.argmax(logits))
    x = logits / f32(temperature)
    p = np.exp(x - x.max()).astype(f32)
    p /= np.add.accumulate(p, dtype=f32)[-1]
    coin = rng.f32()
    if not 0 < top_p < 1:
        below = np.nonzero(coin < np.add.accumulate(p, dtype=f32))[0]
        return int(below[0]) if len(below) else len(p) - 1
    ids = np.nonzero(p >= (f32(1) - f32(top_p)) / f32(len(p) - 1))[0]
    ids = ids[np.argsort(-p[ids], kind="stable")]
    sums = np.add.accumulate(p[ids], dtype=f32)
    over = np.nonzero(sums > f32(top_p))[0]
    last = int(over[0]) if len(over) else len(ids) - 1
    below = np.nonzero(coin * sums[last] < sums[: last + 1])[0]
    return int(ids[below[0]]) if len(below) else int(ids[last])


def normal(seed: int, n: int, scale: float = 3.0) -> Logits:
    return (np.random.default_rng(seed).normal(size=n) * scale).astype(f32)


def draws(sampler: Sampler, logits: Logits, n: int) -> list[int]:
    state = sampler.start()
    return [state.draw(logits) for _ in range(n)]


# ---- run.c ---------------------------------------------------------------------------------------------------------


def test_the_documented_draws_of_run_c() -> None:
    sampler = Sampler(temperature=1, top_p=0.9, seed=42)
    assert [sampler([1, 2, 3, 4]) for _ in range(8)] == [3, 2, 2, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("seed", "u32"),
    [(42, [1456360119, 3359763283, 3393612768, 4054632243]), (1337, [989205090, 818269915, 1335155955])],
)
def test_the_generator_is_run_c_s(seed: int, u32: list[int]) -> None:
    """Equal probabilities show the random number itself: token i is drawn where it lies in [i, i + 1) / 4096."""
    flat = np.zeros(4096, f32)
    assert draws(Sampler(top_p=1.0, seed=seed), flat, len(u32)) == [value >> 20 for value in u32]


@pytest.mark.parametrize("vocab", [2, 3, 17, 512, 5000])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (0.7, 0.5), (1.5, 0.99), (1.0, 0.0), (2.0, 1.0)])
@pytest.mark.parametrize("scale", [0.0, 0.02, 4.0])
def test_draws_equal_the_slow_definition(vocab: int, temperature: float, top_p: float, scale: float) -> None:
    logits = normal(vocab, vocab, scale)
    rng = Xorshift(7)
    expected = [draw_slowly(rng, logits, temperature, top_p) for _ in range(40)]
    assert draws(Sampler(temperature=temperature, top_p=top_p, seed=7), logits, 40) == expected


def test_ties_go_to_the_lower_id() -> None:
    logits = np.array([0, 2, 5, 5, 5, 1], f32)
    assert Sampler.greedy()(logits) == 2
    assert set(draws(Sampler(top_p=0.3, seed=1), logits, 200)) == {2}
    assert set(draws(Sampler(top_k=2, top_p=1.0, seed=1), logits, 200)) == {2, 3}


def test_greedy_draws_no_random_number() -> None:
    state = Sampler(temperature=0, seed=42).start()
    for _ in range(3):
        state.draw(np.zeros(4, f32))
    assert state.native.rng_state == 42


# ---- options, one by one -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5, 99, 100, 299, 300, 5000])
def test_top_k_keeps_the_k_best(k: int) -> None:
    logits = np.round(normal(3, 300, 1.0), 1)  # many ties
    kept = set(np.argsort(-logits, kind="stable")[:k].tolist())
    drawn = set(draws(Sampler(temperature=50.0, top_k=k, top_p=1.0, seed=5), logits, 6000))
    assert drawn <= kept
    if k <= 100:
        assert drawn == kept


def test_min_p_is_relative_to_the_best() -> None:
    logits = np.log(np.array([0.5, 0.26, 0.24, 0.0001], f32))
    assert set(draws(Sampler(min_p=0.5, top_p=1.0, seed=1), logits, 500)) == {0, 1}
    assert set(draws(Sampler(min_p=1.0, top_p=1.0, seed=1), logits, 50)) == {0}


def test_filters_follow_each_other() -> None:
    """top_p sees only what top_k left: 0.4 and 0.3 become 0.57 and 0.43, and 0.57 is over 0.5."""
    logits = np.log(np.array([0.3, 0.4, 0.2, 0.1], f32))
    assert set(draws(Sampler(top_k=2, top_p=0.5, seed=1), logits, 300)) == {1}
    assert set(draws(Sampler(top_p=0.5, seed=1), logits, 300)) == {0, 1}


def test_probabilities_are_those_of_softmax() -> None:
    logits = np.array([1.0, 2.0, 3.0, 0.0], f32)
    p = np.exp(logits / 0.8) / np.exp(logits / 0.8).sum()
    n = 20000
    counts = Counter(draws(Sampler(temperature=0.8, top_p=1.0, seed=9), logits, n))
    chi2 = sum((counts[i] - n * p[i]) ** 2 / (n * p[i]) for i in range(4))
    assert chi2 < 16.3  # 3 degrees of freedom, one in a thousand


def test_bias_and_bans() -> None:
    logits = np.array([1, 2, 3], f32)
    assert Sampler(temperature=0, logit_bias={0: 2.5})(logits) == 0
    assert Sampler(temperature=0, logit_bias={2: -math.inf})(logits) == 1
    for top_p in (0.9, 1.0):
        sampler = Sampler(temperature=9.0, top_p=top_p, logit_bias={2: -math.inf}, seed=3)
        assert set(draws(sampler, logits, 500)) == {0, 1}


@pytest.mark.parametrize(
    "sampler",
    [Sampler.greedy(), Sampler(), Sampler(temperature=2.0, top_p=1.0), Sampler(top_k=7, min_p=0.05, logit_bias={9: 5})],
)
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_what_is_allowed(sampler: Sampler, share: float) -> None:
    """Bits that say what may be drawn do what -inf in the place of everything else does, draw for draw."""
    rng = np.random.default_rng(3)
    a, b = sampler.start(4), sampler.start(4)
    for size in (10, 16, 17, 300, 1001):
        for seed in range(20):
            allowed, logits = rng.random(size) < share, normal(seed, size)
            allowed[rng.integers(size)] = True
            bits = np.packbits(allowed, bitorder="little").tobytes()
            history = rng.integers(0, size, 5).tolist()
            assert a.draw(logits, history, bits) == b.draw(np.where(allowed, logits, f32(-np.inf)), history)


def test_nothing_is_allowed() -> None:
    with pytest.raises(ValueError, match="none is allowed"):
        Sampler().start(1).draw(normal(0, 20), (), bytes(3))
    with pytest.raises(ValueError, match="16 bits do not say which of 17"):
        Sampler().start(1).draw(normal(0, 17), (), bytes(2))


def penalized(logits: Logits, history: list[int], repetition: float, presence: float, frequency: float) -> Logits:
    """The definitions: divided or multiplied once per distinct id; then count * frequency and presence taken off."""
    out = logits.copy()
    for token, count in Counter(history).items():
        out[token] = out[token] / f32(repetition) if out[token] > 0 else out[token] * f32(repetition)
        out[token] = out[token] - f32(count) * f32(frequency) - f32(presence)
    return out


@given(
    history=st.lists(st.integers(0, 19), max_size=40),
    repetition=st.floats(0.5, 2.0, width=32),
    presence=st.floats(-2, 2, width=32),
    frequency=st.floats(-2, 2, width=32),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_penalties(history: list[int], repetition: float, presence: float, frequency: float, seed: int) -> None:
    options = {
        "repetition_penalty": repetition,
        "presence_penalty": presence,
        "frequency_penalty": frequency,
    }
    logits = normal(seed, 20)
    expected = penalized(logits, history, repetition, presence, frequency)
    assert Sampler(temperature=0, **options).start().draw(logits, history) == int(np.argmax(expected))


def test_logits_are_left_as_they_were() -> None:
    logits = normal(1, 100)
    before = logits.copy()
    Sampler(top_k=5, repetition_penalty=1.3, logit_bias={3: 1.0}, seed=1).start().draw(logits, [1, 2, 3])
    assert np.array_equal(logits, before)


# ---- corners -------------------------------------------------------------------------------------------------------


def test_one_token_is_always_drawn() -> None:
    assert Sampler(seed=1)([0.3]) == 0
    assert Sampler.greedy()([-5.0]) == 0


def test_flat_distributions_below_their_own_floor() -> None:
    """Rounding puts 1/n below (1 - top_p) / (n - 1): run.c then reads before its array."""
    for n in (2, 3, 100, 49152):
        assert 0 <= Sampler(top_p=1e-9, seed=1)(np.zeros(n, f32)) < n


def test_infinities() -> None:
    assert Sampler(seed=1)([0.0, math.inf, math.inf]) == 1
    assert Sampler.greedy()([0.0, -math.inf, 1.0]) == 2
    assert Sampler(temperature=1e-38, seed=1)([3.0, 5.0, 4.0]) == 1  # logits / temperature overflow
    with pytest.raises(ValueError, match="-inf"):
        Sampler(seed=1)([-math.inf, -math.inf])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_nan_is_an_error(temperature: float, at: int) -> None:
    logits = np.zeros(3, f32)
    logits[at] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        Sampler(temperature=temperature, seed=1)(logits)


def test_the_last_possible_token_catches_rounding() -> None:
    """The sum may stay below the random number: then a token with probability must come, never a banned one."""
    logits = np.zeros(300_000, f32)
    sampler = Sampler(top_p=1.0, seed=1, logit_bias={299_999: -math.inf})
    assert max(draws(sampler, logits, 100)) < 299_999


@pytest.mark.parametrize("shape", [(0,), (2, 3), ()])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        Sampler(seed=1)(np.zeros(shape, f32))


@pytest.mark.parametrize("history", [[-1], [5], [0, 10_000_000]])
def test_history_outside_the_vocabulary(history: list[int]) -> None:
    with pytest.raises(ValueError, match=r"outside \[0, 5\)"):
        Sampler(repetition_penalty=1.1, seed=1).start().draw(np.zeros(5, f32), history)


def test_bias_outside_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="logit_bias"):
        Sampler(logit_bias={7: 1.0}, seed=1)([0.0, 1.0])


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_k": 1 << 31},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"min_p": -0.5},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"temperature": 1e300},  # finite, but not in fp32
        {"repetition_penalty": 1e39},
        {"repetition_penalty": 1e-50},
        {"presence_penalty": -1e39},
        {"logit_bias": {1 << 40: 1.0}},
        {"logit_bias": {5: 1e300}},
        {"presence_penalty": math.nan},
        {"frequency_penalty": math.inf},
        {"logit_bias": {-1: 0.0}},
        {"logit_bias": {1: math.nan}},
        {"logit_bias": {1: math.inf}},
        {"seed": -1},
        {"seed": 1 << 64},
    ],
    ids=repr,
)
def test_values_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampler(**options)


# ---- seeds and state -----------------------------------------------------------------------------------------------


def test_a_seed_reproduces_and_none_does_not() -> None:
    logits = np.zeros(1000, f32)
    assert draws(Sampler(seed=5), logits, 20) == draws(Sampler(seed=5), logits, 20)
    unseeded = Sampler()
    assert draws(unseeded, logits, 20) != draws(unseeded, logits, 20)
    assert unseeded.start().seed != unseeded.start().seed


def test_start_prefers_the_given_seed() -> None:
    assert Sampler(seed=5).start().seed == 5
    assert Sampler(seed=5).start(6).seed == 6
    with pytest.raises(ValueError, match="seed"):
        Sampler().start(-3)


def test_seed_0_is_a_state_that_moves() -> None:
    flat = np.zeros(1000, f32)
    assert draws(Sampler(seed=0), flat, 10) == draws(Sampler(seed=STATE_OF_SEED_0), flat, 10)
    assert len(set(draws(Sampler(seed=0), flat, 10))) > 1
    assert Sampler(seed=0).start().seed == 0


def test_random_seeds_survive_json() -> None:
    assert all(0 < random_seed() < 1 << 53 for _ in range(100))


def test_calling_moves_on_and_starting_does_not() -> None:
    flat = np.zeros(1000, f32)
    sampler = Sampler(seed=8)
    called = [sampler(flat) for _ in range(5)]
    assert called == draws(sampler, flat, 5)
    assert len(set(called)) > 1


def test_a_sampler_is_a_value() -> None:
    sampler = Sampler(temperature=0.5, logit_bias={1: 2.0}, seed=3)
    sampler([0.0, 1.0, 2.0])
    assert pickle.loads(pickle.dumps(sampler)) == sampler
    assert draws(pickle.loads(pickle.dumps(sampler)), np.zeros(99, f32), 5) == draws(sampler, np.zeros(99, f32), 5)
    assert dataclasses.replace(sampler, seed=4) != sampler
    assert hash(sampler) == hash(dataclasses.replace(sampler))
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.seed = 4  # type: ignore[misc]
    assert "seed=3" in repr(sampler)


def test_threads_may_share_a_sampler() -> None:
    """Every draw is made once: the threads together see the very draws that one would."""
    flat = np.zeros(5000, f32)
    shared = Sampler(top_p=1.0, seed=4)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: shared(flat), range(400)))
    assert sorted(together) == sorted(draws(Sampler(top_p=1.0, seed=4), flat, 400))


# ---- defaults in files ---------------------------------------------------------------------------------------------


def test_defaults_from_metadata() -> None:
    metadata = {"general.sampling.temp": 0.25, "general.sampling.top_k": 40, "general.name": "x"}
    assert sampler_from_metadata(metadata) == Sampler(temperature=0.25, top_k=40)
    assert sampler_from_metadata({}) == Sampler()


@pytest.mark.parametrize("value", [-1.0, "hot", [1], None])
def test_bad_defaults_in_a_file(value: object) -> None:
    with pytest.raises(ModelFormatError, match=r"general\.sampling"):
        sampler_from_metadata({"general.sampling.temp": value})
