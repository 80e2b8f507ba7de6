"""SmolLM2-135M against transformers in fp32 on the same weights: greedy tokens, and the figures of fidelity."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import golden_answers
import numpy as np
import pytest
from bits import Array, bits, kernel_level
from golden_answers import assert_greedy, assert_own_answer, certain, measure

import pyllm
from pyllm import _core

GOLDEN = Path(__file__).parent / "golden"
GREEDY = json.loads((GOLDEN / "smollm2_greedy.json").read_text())["runs"]


@cache
def reference() -> dict[str, Array]:
    return golden_answers.read(GOLDEN / "smollm2_logits.npz")


@pytest.fixture(scope="module")
def high(smollm2: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(smollm2) as model:
        assert model.precision == "high"
        yield model


@pytest.fixture(scope="module")
def fast(smollm2: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(smollm2, precision="fast") as model:
        yield model


# ---- figures of fidelity ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("best_level")
def test_high_is_the_models_own_answer(high: pyllm.Model) -> None:
    figures = measure(high, reference())
    assert figures.positions > 2000
    assert_own_answer(figures)


@pytest.mark.usefixtures("best_level")
def test_fast_is_as_close_as_llama_cpp(fast: pyllm.Model) -> None:
    """llama.cpp's figures are those of its defaults, measured on these texts and this file."""
    figures = measure(fast, reference())
    assert figures.kept >= 0.9623, figures
    assert figures.clear_misses <= 4, figures
    assert figures.mean_dlogp <= 0.0396, figures


# ---- greedy tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("best_level")
@pytest.mark.parametrize("run", GREEDY, ids=lambda run: repr(run["prompt"][:16]))
def test_greedy_tokens(high: pyllm.Model, run: dict[str, Any]) -> None:
    assert len(run["ids"]) == 40
    assert_greedy(high, run)


def test_most_greedy_tokens_are_certain() -> None:
    """Otherwise the test above would prove little."""
    assert sum(certain(run) for run in GREEDY) >= 0.8 * 40 * len(GREEDY)


def test_generate_is_greedy_too(high: pyllm.Model) -> None:
    """The whole way through `generate`, on ids, up to the first tie or the end of the text."""
    run = GREEDY[0]
    ids = run["ids"][: min(certain(run), 8)]
    ends = [i for i, token in enumerate(ids) if token in high.stop_ids]
    expected = ids[: ends[0]] if ends else ids
    assert len(expected) >= 4
    assert high.generate(run["prompt_ids"], max_tokens=len(ids), sampler=pyllm.Sampler.greedy()).tokens == expected


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
