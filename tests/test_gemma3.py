"""Gemma 3 270M against transformers in fp32 on the same weights: a real file with four types of weights in it, windows
of 512 positions, a vocabulary of 262,144, and numbers that other models do not reach.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import golden_answers
import numpy as np
import pytest
from bits import Array, bits, kernel_level
from conftest import GOLDEN
from golden_answers import assert_greedy, assert_own_answer, certain, measure

import pyllm
from pyllm import _core

GREEDY = json.loads((GOLDEN / "gemma3_greedy.json").read_text())["runs"]
TEXTS = {text["name"]: text["text"] for text in json.loads((GOLDEN / "smollm2_texts.json").read_text())["texts"]}
LONG = ("prose", "python", "explanation")  # in one text, longer than a window
WINDOW = 512


@cache
def reference() -> dict[str, Array]:
    return golden_answers.read(GOLDEN / "gemma3_logits.npz")


@pytest.fixture(scope="module")
def model(gemma3: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(gemma3) as model:
        assert model.precision == "high"
        yield model


def test_the_file_is_what_makes_it_worth_testing(model: pyllm.Model) -> None:
    info = model.info()
    assert {name for name, count in info["tensors"].items() if count} == {"F32", "Q8_0", "Q5_0", "Q4_K", "Q6_K"}
    assert sum(layer.window == WINDOW for layer in model.config.layers) == 15
    assert int(np.diff(reference()["starts"]).max()) > WINDOW + 200


def test_token_ids(model: pyllm.Model) -> None:
    """Those of the tokenizer that transformers makes from the file, with BOS in front."""
    assert model.tokenizer is not None
    golden = reference()
    for name, (start, end) in zip(golden["names"], pairwise(golden["starts"]), strict=True):
        text = "\n\n".join(map(TEXTS.__getitem__, LONG)) if name == "long" else TEXTS[str(name)]
        assert model.tokenizer.encode(text) == golden["ids"][start:end].tolist(), name
    for run in GREEDY:
        assert model.tokenizer.encode(run["prompt"]) == run["prompt_ids"]
        assert model.tokenizer.decode(run["ids"]).strip() == run["text"].strip()


@pytest.mark.usefixtures("best_level")
def test_high_is_the_models_own_answer(model: pyllm.Model) -> None:
    figures = measure(model, reference())
    assert figures.positions > 900
    assert_own_answer(figures)


@pytest.mark.usefixtures("best_level")
@pytest.mark.parametrize("run", GREEDY, ids=lambda run: repr(run["prompt"][:16]))
def test_greedy_tokens(model: pyllm.Model, run: dict[str, Any]) -> None:
    assert_greedy(model, run)


def test_most_greedy_tokens_are_certain() -> None:
    """Otherwise the test above would prove little."""
    assert len(GREEDY) >= 6
    assert sum(map(certain, GREEDY)) >= 0.8 * sum(len(run["ids"]) for run in GREEDY)


def test_every_level_gives_the_same_bits(model: pyllm.Model) -> None:
    """On the real file's types and sizes, several tokens at once and one by one."""
    ids = reference()["ids"][:4].tolist()
    with kernel_level(_core.isa_names()[0]):
        expected = model.logits(ids)
    for name in _core.isa_names():
        with kernel_level(name), model.session() as session:
            assert np.array_equal(bits(session.eval(ids[:3])), bits(expected[2])), name
            assert np.array_equal(bits(session.eval(ids[3:])), bits(expected[3])), name
