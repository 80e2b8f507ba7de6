"""A model against golden answers: greedy tokens, and the figures of fidelity, computed from what transformers said.

The reference computes in fp32 with the dequantised weights of the very file, so what differs is how activations and KV
are rounded, and in which order sums are taken. golden/make_smollm2.py says what is in the data and how figures follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bits import Array

import pyllm

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


def read(path: Path) -> dict[str, Array]:
    """The arrays of a file of log-probabilities."""
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def measure(model: pyllm.Model, golden: dict[str, Array]) -> Figures:
    """The figures of `model` over all positions of `golden`."""
    ids, top, top_p = golden["ids"], golden["top_ids"], golden["top_logprobs"].astype(np.float64)
    best, dlogp, nll = np.empty(len(ids), np.int64), np.empty(len(ids)), np.full(len(ids), np.nan)
    for i, row in _rows(model, golden):
        best[i] = row.argmax()
        dlogp[i] = (np.exp(top_p[i]) * np.abs(row[top[i]] - top_p[i])).sum()
        if not np.isnan(golden["nll"][i]):
            nll[i] = -row[ids[i + 1]]
    kept = best == top[:, 0]
    clear = top_p[:, 0] - top_p[:, 1] > CLEAR
    means = float(np.nanmean(nll)), float(np.nanmean(golden["nll"].astype(np.float64)))
    return Figures(len(ids), float(kept.mean()), int((~kept & clear).sum()), float(dlogp.mean()), *means)


def _rows(model: pyllm.Model, golden: dict[str, Array]) -> Iterator[tuple[int, Array]]:
    """(position among all, log-probabilities (vocab,)); each text starts in an empty context."""
    starts, ids = golden["starts"], golden["ids"].tolist()
    for start, end in pairwise(starts):
        with model.session() as session:
            at = int(start)
            for block in session.sweep(ids[start:end]):
                yield from enumerate(_log_softmax(block), at)
                at += len(block)


def _log_softmax(logits: Array) -> Array:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    out: Array = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return out


def certain(run: dict[str, Any]) -> int:
    """How many of a greedy run's ids are certain: those before the first tie."""
    return next((i for i, gap in enumerate(run["gap"]) if gap < TIE), len(run["ids"]))


def assert_own_answer(figures: Figures) -> None:
    """What `precision="high"` promises: the model's own answer, but for rounding."""
    assert figures.kept >= 0.995, figures
    assert figures.clear_misses == 0, figures
    assert figures.mean_dlogp <= 0.002, figures
    assert abs(figures.mean_nll - figures.reference_nll) <= 0.003, figures


def assert_greedy(model: pyllm.Model, run: dict[str, Any]) -> None:
    """Equal up to ties: where another token is chosen the reference's gap must be tiny, and there comparing ends."""
    difference = first_difference(model, run)
    assert difference is None or run["gap"][difference] < TIE, (difference, run["gap"][difference])


def first_difference(model: pyllm.Model, run: dict[str, Any]) -> int | None:
    """The first greedy token that is not the reference's; tokens that end a text are followed, too."""
    with model.session() as session:
        logits = session.eval(run["prompt_ids"])
        for i, expected in enumerate(run["ids"]):
            if int(logits.argmax()) != expected:
                return i
            logits = session.eval([expected])
    return None
