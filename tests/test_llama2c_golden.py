"""The original's runs on stories260K, letter for letter and token for token, at every kernel level."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bits import bits, kernel_level
from llama2c_runs import LOGITS_TOLERANCE, check, printed, read_runs, tokens_of

import pyllm
from pyllm import _core

GOLDEN_RUNS = Path(__file__).parent / "golden" / "llama2c_runs.json"
RUNS = read_runs(GOLDEN_RUNS)


@pytest.fixture(params=_core.isa_names())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each kernel level in turn; the one in use before comes back."""
    with kernel_level(request.param):
        yield request.param


@pytest.fixture(scope="module")
def stories(stories260k: Path, tok512: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(stories260k, tokenizer=tok512) as model:
        yield model


def test_every_run_of_the_reference(stories: pyllm.Model, isa: str, run_c_reference: Path) -> None:
    runs = read_runs(run_c_reference)
    assert len(runs) >= 4
    for run, _ in runs:
        check(stories, run)


def test_every_golden_run(stories: pyllm.Model, isa: str) -> None:
    assert len(RUNS) == 24
    for run, _ in RUNS:
        assert run.tokens is not None
        check(stories, run)


def test_the_text_of_a_generation_is_what_was_printed(stories: pyllm.Model) -> None:
    """Where run.c could print all of it: the prompt as given, then `Generation.text`."""
    compared = 0
    for run, _ in RUNS:
        room = run.steps - len(stories.encode_prompt(run.prompt)) + 1
        if room <= 0:
            continue
        generation = stories.generate(run.prompt, max_tokens=room, sampler=run.sampler)
        text = run.prompt + generation.text
        if text.isascii():  # run.c drops no more than the bytes of other characters
            assert text == run.stdout, run
            compared += 1
    assert compared >= 15


def test_characters_that_run_c_drops_are_in_the_text(stories: pyllm.Model) -> None:
    """Its output lacks what is spelt in bytes; ours has it, and is the same without."""
    run = next(run for run, _ in RUNS if "\N{CAT FACE}" in run.prompt)
    tokens = tokens_of(stories, run)
    assert stories.tokenizer is not None
    whole = stories.tokenizer.decode([1, *tokens])
    assert whole.startswith(run.prompt)
    assert printed(stories.tokenizer, tokens) == run.stdout == whole.replace("\N{CAT FACE}", "")


def test_a_run_ends_where_the_original_ends_it(stories: pyllm.Model) -> None:
    """On BOS, before the steps are used up, or at the last step."""
    ended = 0
    for run, _ in RUNS:
        prompt = stories.encode_prompt(run.prompt)
        room = run.steps - len(prompt) + 1
        if room <= 0:
            continue
        generation = stories.generate(prompt, max_tokens=room, sampler=run.sampler)
        assert run.tokens is not None
        short = len(generation.tokens) < room
        assert short == (len(run.tokens) < run.steps)
        assert generation.finish_reason == ("stop" if short else "length")
        ended += short
    assert ended >= 3


def test_logits(stories: pyllm.Model, isa: str, golden: Path) -> None:
    with np.load(golden / "llama2c_logits.npz") as arrays:
        logits = stories.logits(arrays["tokens"].tolist())
        assert np.abs(logits - arrays["fp32"]).max() <= LOGITS_TOLERANCE


def test_levels_give_the_same_logits(stories: pyllm.Model, golden: Path) -> None:
    with np.load(golden / "llama2c_logits.npz") as arrays:
        tokens = arrays["tokens"].tolist()
    expected = stories.logits(tokens)
    for name in _core.isa_names():
        with kernel_level(name):
            assert np.array_equal(bits(stories.logits(tokens)), bits(expected)), name


def test_f16_keys_and_values_change_no_greedy_run(stories260k: Path, tok512: Path) -> None:
    """Half precision is not what run.c computes with, but no choice may hang on it where the choice was clear."""
    with pyllm.load(stories260k, tokenizer=tok512, kv_dtype="f16") as model:
        compared = [run for run, facts in RUNS if run.temperature == 0 and (facts["margin"] or 0) > 0.01]
        assert len(compared) >= 5
        for run in compared:
            check(model, run)
