"""What stands between the model's logits and the sampler: functions of the caller's that may change them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy.typing as npt

    from pyllm.generation import Draw, Logits

    #: Called with the ids of the text so far, prompt included, and float32 logits (vocab,) for the next token. It may
    #: change the logits in place, or return others of the same shape.
    LogitsProcessor: TypeAlias = Callable[[tuple[int, ...], Logits], npt.ArrayLike | None]


def processors_of(given: LogitsProcessor | Sequence[LogitsProcessor] | None) -> tuple[LogitsProcessor, ...]:
    """One processor, several, or none, as a tuple. Raises `TypeError` for what cannot be called."""
    if given is None:
        return ()
    every = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    for processor in every:
        if not callable(processor):
            raise TypeError(f"logits_processor must be a function of (tokens, logits), not {type(processor).__name__}")
    return every


class ProcessedDraw:
    """A sampler that sees logits only after `processors` did, which are called once for each token, in order.

    They work on an array of this object, which is also what the sampler reads: the model's logits stay as they are.
    """

    def __init__(self, sampler: Draw, processors: Sequence[LogitsProcessor]) -> None:
        self._sampler = sampler
        self._processors = processors
        self._logits = np.empty(0, np.float32)

    @property
    def seed(self) -> int:
        """The sampler's."""
        return self._sampler.seed

    def draw(self, logits: Logits, history: Sequence[int] = ()) -> int:
        """A token id from logits (vocab,) as the processors leave them."""
        if self._logits.shape != logits.shape:
            self._logits = np.empty(logits.shape, np.float32)
        row, tokens = self._logits, tuple(history)
        np.copyto(row, logits)
        for processor in self._processors:
            _put(row, processor(tokens, row), processor)
        return self._sampler.draw(row, history)


def _put(row: Logits, result: npt.ArrayLike | None, processor: LogitsProcessor) -> None:
    """Let `row` be what a processor returned: its array stays its own. None: `row` was changed in place."""
    if result is None or result is row:
        return
    name = getattr(processor, "__qualname__", type(processor).__qualname__)
    try:
        new = np.asarray(result, np.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(f"logits_processor {name} returned {type(result).__name__}, which are no logits") from error
    if new.shape != row.shape:
        raise ValueError(f"logits_processor {name} returned the shape {new.shape} instead of {row.shape}")
    np.copyto(row, new)
