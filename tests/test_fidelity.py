"""Law 2: the arithmetic of its figures on numbers made by hand, and the figures of the default model."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tinygguf import Q4_0, tiny_llama

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

# llama.cpp on the same file, the same ids and the same reference (benchmarks/README.md).
LLAMA_CPP = {"top1_kept": 0.9623, "clear_misses": 4, "mean_abs_dlogp": 0.0396, "nll_difference": 0.0024}


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("fidelity")


def by_hand(fidelity: ModuleType):
    """Two texts of two positions each, and a reference that looks at its two best."""
    p = np.array([[0.5, 0.25], [0.6, 0.1], [0.4, 0.39], [0.7, 0.2]])
    return fidelity.Reference(
        names=np.array(["a", "b"]),
        starts=np.array([0, 2, 4], np.int32),
        ids=np.array([7, 3, 5, 1], np.int32),
        top_ids=np.array([[3, 4], [5, 6], [1, 2], [8, 9]], np.int32),
        top_logprobs=np.log(p),
        nll=np.array([1.0, np.nan, 2.0, np.nan]),
    )


def test_an_equal_answer_is_perfect(fidelity):
    reference = by_hand(fidelity)
    answer = fidelity.Answer(reference.top_ids[:, 0], reference.top_logprobs, reference.nll)
    assert fidelity.figures(reference, answer) == fidelity.Figures(4, 1.0, 0, 0.0, 1.5, 0.0)


def test_figures_of_a_worse_answer(fidelity):
    reference = by_hand(fidelity)
    off = np.array([[0.1, -0.2], [0.0, 0.0], [0.0, 0.3], [-0.4, 0.0]])
    answer = fidelity.Answer(
        best=np.array([4, 5, 2, 9], np.int32),  # kept at 1 only; at 2 the reference's gap is log(0.4 / 0.39) = 0.025
        logprobs=reference.top_logprobs + off,
        nll=np.array([1.5, np.nan, 2.25, np.nan]),
    )
    found = fidelity.figures(reference, answer)
    assert (found.positions, found.top1_kept, found.clear_misses) == (4, 0.25, 2)
    # 0.5 * 0.1 + 0.25 * 0.2, then 0, then 0.39 * 0.3, then 0.7 * 0.4
    assert found.mean_abs_dlogp == pytest.approx((0.1 + 0.0 + 0.117 + 0.28) / 4, rel=1e-12)
    assert (found.nll, found.nll_difference) == (1.875, 0.375)


class Parrot:
    """An engine whose logits after an id are a row of a table."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def logits(self, ids: list[int]) -> np.ndarray:
        return self.table[ids].astype(np.float32)


def test_answers_are_the_logits_softmax(fidelity):
    engine = Parrot(np.random.default_rng(0).normal(0, 3, (40, 40)))
    texts = [("long", list(range(40)) * 5), ("short", [1, 2])]  # 200 ids: more than one block of rows
    reference = fidelity.reference_of(engine, texts)
    assert reference.starts.tolist() == [0, 200, 202]
    assert np.isnan(reference.nll).nonzero()[0].tolist() == [199, 201]
    row = engine.table[1].astype(np.float32).astype(float)
    logprobs = row - math.log(np.exp(row).sum())
    assert reference.nll[200] == pytest.approx(-logprobs[2], rel=1e-6)
    assert reference.top_ids[200].tolist() == np.argsort(-logprobs)[:12].tolist()
    perfect = fidelity.figures(reference, fidelity.answer_of(engine, reference))
    assert (perfect.top1_kept, perfect.clear_misses) == (1.0, 0)
    assert perfect.mean_abs_dlogp < 1e-6
    other = Parrot(engine.table + np.random.default_rng(1).normal(0, 1, (40, 40)))
    assert fidelity.figures(reference, fidelity.answer_of(other, reference)).mean_abs_dlogp > 0.1


def test_the_command_on_a_small_model(fidelity, tmp_path, capsys):
    model = tiny_llama(tmp_path / "tiny.gguf", Q4_0)
    ids = np.random.default_rng(2).integers(0, 100, 90).tolist()
    with fidelity.closing(fidelity.open_engine("pyllm:high", fidelity.Setup(model, 1, 64))) as engine:
        fidelity.save(fidelity.reference_of(engine, [("a", ids[:50]), ("b", ids[50:])]), tmp_path / "reference.npz")
    fidelity.main([str(model), "--reference", str(tmp_path / "reference.npz"), "--threads", "1", "--json"])
    found = json.loads(capsys.readouterr().out)["engines"]
    high, fast = found["pyllm:high"], found["pyllm:fast"]
    assert (high["positions"], high["top1_kept"], high["clear_misses"]) == (90, 1.0, 0)
    assert high["mean_abs_dlogp"] < 1e-6 < fast["mean_abs_dlogp"]
    fidelity.main([str(model), "--reference", str(tmp_path / "reference.npz"), "--engine", "pyllm:high"])
    assert "| pyllm:high | 100.00% | 0 | 0.00000 | " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--engine", "pyllm:slow"], "'pyllm:slow' is no engine; there are pyllm:high"),
        (["--reference", __file__], "is not a reference file"),
        (["--text", __file__], "a reference file has its own token ids"),
    ],
)
def test_wrong_arguments_are_named(fidelity, tmp_path, arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        fidelity.main([str(tiny_llama(tmp_path / "tiny.gguf")), *arguments])


@pytest.mark.parametrize(
    ("engine", "limits"),
    [
        ("pyllm:high", {"top1_kept": 0.995, "clear_misses": 0, "mean_abs_dlogp": 0.002, "nll_difference": 0.003}),
        ("pyllm:fast", LLAMA_CPP),
        (  # what the documentation of `kv_dtype` says, rounded to the worse side
            "pyllm:high:q8_0",
            {"top1_kept": 0.987, "clear_misses": 0, "mean_abs_dlogp": 0.0125, "nll_difference": 0.0005},
        ),
    ],
)
def test_the_default_model_is_close_to_its_own_answer(fidelity, smollm2, golden, engine, limits):
    reference = fidelity.read_reference(golden / "smollm2_logits.npz")
    _, found = fidelity.measure(engine, reference, smollm2, threads=2)
    assert found.positions == 2229
    assert found.top1_kept >= limits["top1_kept"]
    assert found.clear_misses <= limits["clear_misses"]
    assert found.mean_abs_dlogp <= limits["mean_abs_dlogp"]
    assert abs(found.nll_difference) <= limits["nll_difference"]
