"""`Ahead`: a text goes on in C for a moment, where Python would take longer or have only one thread for it.

A model so small that a call takes longer than a token evaluates some tokens by itself; where several texts share a
pass, their next tokens are drawn at once. This changes no token: the same sampler draws from the same logits, in the
same order. What it draws is taken into the text one by one, as always; where that ends before, the rest is forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from pyllm._core import NativeGeneration

if TYPE_CHECKING:
    from pyllm._core import NativeModel, NativeSession
    from pyllm.sampling import SamplerState

#: Seconds of a pass below which Python costs more than the pass: texts then go on in C, and nothing is drafted.
SHORT_PASS = 200e-6
#: Tokens and seconds of one run: for so long nobody else can join, and nothing is interrupted.
MOST, LONGEST = 64, 0.002


class Ahead:
    """For one text, in one thread at a time."""

    def __init__(self, sampler: SamplerState, stop_ids: Collection[int]) -> None:
        self._sampler = sampler
        self._native = NativeGeneration(sampler.native, stop_ids)
        self._text: Sequence[int] = ()
        self._most = 0

    def allow(self, text: Sequence[int], most: int | None) -> None:
        """From now on up to `most` tokens may be drawn behind `text`, or any number. Forgets those that were."""
        self._native.forget()
        self._text, self._most = text, MOST if most is None else min(most, MOST)

    def restrict(self, most: int) -> None:
        """There is not room for more than that."""
        self._most = min(self._most, most)

    def run(self, session: NativeSession) -> None:
        """Draw and evaluate, from the logits of the session's last pass on."""
        if self._most > 1:  # one would only be drawn
            session.generate(self._prepared(session, self._most))

    @staticmethod
    def draw(model: NativeModel, those: Sequence[tuple[Ahead, NativeSession]]) -> None:
        """Draw a token for each of several, on the model's threads, from the logits that a common pass gave them."""
        model.draw([self._prepared(session, 1) for self, session in those])

    def _prepared(self, session: NativeSession, most: int) -> Any:
        return self._native.prepare(session, self._sampler.relevant(self._text), most, LONGEST)

    @property
    def drawn(self) -> list[int]:
        """What was drawn. All was evaluated but the last; that too where no other could be drawn."""
        return self._native.drawn
