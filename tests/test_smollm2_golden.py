"""SmolLM2-135M against transformers in fp32 on the same weights: greedy tokens, and the figures of fidelity.

The reference computes with the dequantised weights of the very file, so what differs is how activations and KV are
rounded, and in which order sums are taken (golden/make_smollm2.py says what is in the data).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from bits import Array, bits, kernel_level

import pyllm
from pyllm import _core

GOLDEN = Path(__file__).parent / "golden"
GREEDY = json.loads((GOLDEN / "smollm2_greedy.json").read_text())["runs"]
#: A gap between the two best logits that is within rounding: either token is a right answer there.
TIE = 0.01
#: A gap of log-probabilities at which another answer is not a matter of rounding.
CLEAR = 0.25


class Figures(NamedTuple):
    """How far one engine is from the reference, over all positions."""

    positions: int
    kept: float  # share of positions whose most likely id is the reference's
    clear_misses: int  # others, where the reference's two best are more than CLEAR apart
    mean_dlogp: float  # sum over the 12 best of p |dlogp|, mean over positions
    mean_nll: float  # of the texts' own next ids
    reference_nll: float


@cache
def reference() -> dict[str, Array]:
    with np.load(GOLDEN / "smollm2_logits.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def log_softmax(logits: Array) -> Array:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    out: Array = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return out


def rows_of(model: pyllm.Model) -> Iterator[tuple[int, Array]]:
    """(position among all, log-probabilities (vocab,)); each text starts in an empty context."""
    starts, ids = reference()["starts"], reference()["ids"].tolist()
    for start, end in pairwise(starts):
        with model.session() as session:
            at = int(start)
            for block in session.sweep(ids[start:end]):
                yield from enumerate(log_softmax(block), at)
                at += len(block)


def measure(model: pyllm.Model) -> Figures:
    golden = reference()
    ids, top, top_p = golden["ids"], golden["top_ids"], golden["top_logprobs"].astype(np.float64)
    best, dlogp, nll = np.empty(len(ids), np.int64), np.empty(len(ids)), np.full(len(ids), np.nan)
    for i, row in rows_of(model):
        best[i] = row.argmax()
        dlogp[i] = (np.exp(top_p[i]) * np.abs(row[top[i]] - top_p[i])).sum()
        if not np.isnan(golden["nll"][i]):
            nll[i] = -row[ids[i + 1]]
    kept = best == top[:, 0]
    clear = top_p[:, 0] - top_p[:, 1] > CLEAR
    means = float(np.nanmean(nll)), float(np.nanmean(golden["nll"].astype(np.float64)))
    return Figures(len(ids), float(kept.mean()), int((~kept & clear).sum()), float(dlogp.mean()), *means)


@pytest.fixture(scope="module")
def high(smollm2: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(smollm2) as model:
        assert model.precision == "high"
        yield model


@pytest.fixture(scope="module")
def fast(smollm2: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(smollm2, precision="fast") as model:
        yield model


@pytest.fixture
def best_level() -> Iterator[None]:
    """Thousands of positions would take minutes at the scalar level, and have the same bits: that is tested below."""
    with kernel_level(_core.isa_names()[0]):
        yield


# ---- figures of fidelity ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("best_level")
def test_high_is_the_models_own_answer(high: pyllm.Model) -> None:
    figures = measure(high)
    assert figures.positions > 2000
    assert figures.kept >= 0.995, figures
    assert figures.clear_misses == 0, figures
    assert figures.mean_dlogp <= 0.002, figures
    assert abs(figures.mean_nll - figures.reference_nll) <= 0.003, figures


@pytest.mark.usefixtures("best_level")
def test_fast_is_as_close_as_llama_cpp(fast: pyllm.Model) -> None:
    """llama.cpp's figures are those of its defaults, measured on these texts and this file."""
    figures = measure(fast)
    assert figures.kept >= 0.9623, figures
    assert figures.clear_misses <= 4, figures
    assert figures.mean_dlogp <= 0.0396, figures


# ---- greedy tokens ---------------------------------------------------------------------------------------------------


def until_tie(run: dict[str, Any]) -> int:
    """How many of a run's ids are certain: those before the first tie."""
    return next((i for i, gap in enumerate(run["gap"]) if gap < TIE), len(run["ids"]))


def first_difference(model: pyllm.Model, run: dict[str, Any]) -> int | None:
    """The first greedy token that is not the reference's; tokens that end a text are followed, too."""
    with model.session() as session:
        logits = session.eval(run["prompt_ids"])
        for i, expected in enumerate(run["ids"]):
            if int(logits.argmax()) != expected:
                return i
            logits = session.eval([expected])
    return None


@pytest.mark.usefixtures("best_level")
@pytest.mark.parametrize("run", GREEDY, ids=lambda run: repr(run["prompt"][:16]))
def test_greedy_tokens(high: pyllm.Model, run: dict[str, Any]) -> None:
    """Equal up to ties: where another token is chosen the reference's gap must be tiny, and there comparing ends."""
    assert len(run["ids"]) == 40
    difference = first_difference(high, run)
    assert difference is None or run["gap"][difference] < TIE, (difference, run["gap"][difference])


def test_most_greedy_tokens_are_certain() -> None:
    """Otherwise the test above would prove little."""
    assert sum(until_tie(run) for run in GREEDY) >= 0.8 * 40 * len(GREEDY)


def test_generate_is_greedy_too(high: pyllm.Model) -> None:
    """The whole way through `generate`, on ids, up to the first tie or the end of the text."""
    run = GREEDY[0]
    certain = run["ids"][: min(until_tie(run), 8)]
    ends = [i for i, token in enumerate(certain) if token in high.stop_ids]
    expected = certain[: ends[0]] if ends else certain
    assert len(expected) >= 4
    assert high.generate(run["prompt_ids"], max_tokens=len(certain), sampler=pyllm.Sampler.greedy()).tokens == expected


# ---- law 1 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["high", "fast"])
def test_every_level_gives_the_same_bits(request: pytest.FixtureRequest, precision: str) -> None:
    """On the real model's sizes, several tokens at once and one by one."""
    model: pyllm.Model = request.getfixturevalue(precision)
    ids = reference()["ids"][:6].tolist()
    with kernel_level(_core.isa_names()[0]):
        expected = model.logits(ids)
    for name in _core.isa_names():
        with kernel_level(name), model.session() as session:
            assert np.array_equal(bits(session.eval(ids[:3])), bits(expected[2])), name
            for i in range(3, 6):
                assert np.array_equal(bits(session.eval(ids[i : i + 1])), bits(expected[i])), name


def test_threads_do_not_matter(high: pyllm.Model, smollm2: Path) -> None:
    ids = reference()["ids"][:40].tolist()
    with kernel_level(_core.isa_names()[0]):
        expected = high.logits(ids)
        for threads in (1, 2, 3):
            with pyllm.load(smollm2, threads=threads) as model, model.session() as session:
                assert np.array_equal(bits(session.eval(ids[:37])), bits(expected[36])), threads
                for i in range(37, 40):
                    assert np.array_equal(bits(session.eval(ids[i : i + 1])), bits(expected[i])), threads
