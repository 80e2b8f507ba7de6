"""The ways RoPE is stretched beyond the length a model was trained for, as what its frequencies are divided by."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]


class Stretch(NamedTuple):
    """`factors` (dims / 2) divide the frequencies, in sequences longer than `original` those of `long` do.

    Cosines and sines are multiplied with `scale`.
    """

    factors: Array | None = None
    scale: float = 1.0
    long: Array | None = None
    original: int = 0


def frequencies(base: float, dims: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Radians per position of each pair of dimensions, float64 (dims / 2)."""
    result: np.ndarray[Any, np.dtype[np.float64]] = base ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)
    return result


def linear(dims: int, factor: float) -> Stretch:
    """Every position counts for 1 / factor."""
    return Stretch(np.full(dims // 2, factor, np.float32))


def dynamic(dims: int, factor: float, original: int) -> tuple[Stretch, int]:
    """Another base in sequences longer than `original`, that of a text `factor` times as long; and that length.

    As published, the base follows the length of the text. Cached keys cannot: every token more would turn them all
    anew. `transformers` takes the longest text that the process has read and leaves cached keys as they are, so what it
    answers depends on what came before, and on the chunks that a text came in. Here the base is a function of the text
    alone. That is `transformers`' answer to a text read at once by a model just loaded up to `original`, which is what
    the model was trained on, and at the longest; in between, its answer once it has read the longest.
    """
    longest = int(original * factor)
    growth = factor * longest / original - (factor - 1.0)
    powers = np.arange(0, dims, 2, dtype=np.float64) / max(dims - 2, 1)
    long = (growth**powers).astype(np.float32)
    return Stretch(np.ones(dims // 2, np.float32), 1.0, long, original), longest


def llama3(base: float, dims: int, factor: float, low: float, high: float, original: float) -> Stretch:
    """Long wavelengths by `factor`, short ones not at all, a ramp between: Llama 3.1's."""
    turns = original * frequencies(base, dims) / (2 * math.pi)  # in the original context
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return Stretch((1.0 / ((1.0 - keep) / factor + keep)).astype(np.float32))


def yarn(
    base: float,
    dims: int,
    factor: float,
    original: float,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    scale: float | None = None,
) -> Stretch:
    """Dimensions that turn less than `beta_slow` times in `original` positions by `factor`, a ramp to `beta_fast`."""

    def dimension(turns: float) -> float:
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(beta_fast), dimension(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    ramp = np.clip((np.arange(dims // 2) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    factors = 1.0 / (ramp / factor + (1.0 - ramp))
    return Stretch(factors.astype(np.float32), yarn_scale(factor) if scale is None else scale)


def yarn_scale(factor: float, multiplier: float = 1.0) -> float:
    """YaRN's remedy for attention that spreads as the context grows."""
    return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def longrope_scale(factor: float, original: int) -> float:
    """LongRoPE's."""
    return math.sqrt(1.0 + math.log(factor) / math.log(original)) if factor > 1.0 and original > 1 else 1.0
