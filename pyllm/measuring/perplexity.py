"""Perplexity of a text of any length, in windows that fit the context."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllm.errors import TokenizerError
from pyllm.progress import Progress, silent

if TYPE_CHECKING:
    from pyllm.model import Model


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood (`nll`, in nats) over `tokens` predictions.

    `uncertainty` is one standard error of the perplexity, from the spread of the tokens' own values.
    """

    perplexity: float
    uncertainty: float
    nll: float
    tokens: int
    windows: int


def measure(model: Model, text: str, report: Progress = silent) -> Perplexity:
    """Score `text` in windows of the model's context length that do not overlap.

    Each begins with BOS where the model's texts do; otherwise its first token only gives context. `report` is called
    with (done, total) tokens. Raises `ValueError` where the text is too short to predict anything.
    """
    if model.tokenizer is None:
        raise TokenizerError("the model's file holds no tokenizer; give one with --tokenizer")
    tokens = model.tokenizer.encode(text, bos=False)
    begin = [model.tokenizer.bos_id] if model.tokenizer.add_bos and model.tokenizer.bos_id is not None else []
    losses: list[float] = []
    windows = done = 0
    for window in _windows(tokens, model.context_length - len(begin), shortest=2 - len(begin)):
        losses.extend(-logprob for logprob in model.score([*begin, *window]).logprobs)
        windows += 1
        done += len(window)
        report(done, len(tokens))
    return _summary(losses, windows)


def _windows(tokens: Sequence[int], size: int, shortest: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(tokens), size):
        window = tokens[start : start + size]
        if len(window) >= shortest:
            yield window


def _summary(losses: list[float], windows: int) -> Perplexity:
    n = len(losses)
    if n == 0:
        raise ValueError("the text is too short: there is no token to predict")
    mean = math.fsum(losses) / n
    variance = math.fsum((loss - mean) ** 2 for loss in losses) / max(n - 1, 1)
    perplexity = math.exp(mean)
    return Perplexity(perplexity, perplexity * math.sqrt(variance / n), mean, n, windows)
