"""Speculation: tokens that may come next, evaluated together with the one that is known.

A draft never changes a text. Its logits are those that the tokens would have had one by one (law 1); the sampler draws
at each position as it would have, and the first token that differs ends the draft.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from pyllm.ahead import SHORT_PASS
from pyllm.errors import ClosedError, OutOfMemoryError

if TYPE_CHECKING:
    from pyllm.session import Session

#: Tokens of a draft, at most.
LONGEST = 16
#: Share of its time that a generation may lose to drafts that came to nothing.
LOSS = 0.02
#: Passes without a draft that are measured before the first one.
MEASURED = 3
#: Tokens that must be equal for a place in the text to be one to copy from; and that are copied from it, at most.
SAME, MOST_COPIED = 3, 8
#: How likely a copied token must be: about what one more costs, in parts of a pass.
LIKELY = 0.4


class Drafter(Protocol):
    """Something with an idea of what comes next."""

    def propose(self, text: Sequence[int], poll: Callable[[], bool]) -> Sequence[int]:
        """Tokens that may follow `text`, which is that of the last call and more. `poll`: True where it must end."""
        ...


class Speculation:
    """Asks a drafter as long as that pays, by the clock: a pass with a draft must cost less than the passes it saves.

    What drafts may lose in all is LOSS of the time spent. While others share the passes there are no drafts: the room
    is better used for their tokens.
    """

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._plain, self._measured = 0.0, 0  # seconds of a pass without a draft, and how many were looked at
        self._spent, self._lost = 0.0, 0.0
        self._drafted = 0  # tokens of the pass that was asked for last
        self._cost = 0.0  # seconds of that pass and its draft
        self._alone = True
        self._given_up = False

    def draft(self, text: Sequence[int], right: int, poll: Callable[[], bool]) -> Sequence[int]:
        """A guess at what follows `text`; `right`: how many tokens of the last one have come."""
        if self._drafted:
            self._lost += self._cost - (right + 1) * self._plain
            self._drafted = 0
        if not self._pays():
            return ()
        started = time.perf_counter()
        try:
            drafted = self._drafter.propose(text, poll)[:LONGEST]
        except (OutOfMemoryError, ClosedError):  # of a smaller model: the text goes on without
            self._given_up = True
            return ()
        self._drafted = len(drafted)
        self._cost = time.perf_counter() - started
        return drafted

    def passed(self, seconds: float, alone: bool) -> None:
        """How long the pass took that was asked for last."""
        self._alone = alone
        self._spent += seconds
        if self._drafted:
            self._cost += seconds
        elif alone:
            self._measured += 1
            likely = min(seconds, 2 * self._plain) if self._plain else seconds
            self._plain += (likely - self._plain) / min(self._measured, 8)

    def _pays(self) -> bool:
        measured = self._measured >= MEASURED and self._plain > SHORT_PASS
        return not self._given_up and self._alone and measured and self._lost <= LOSS * self._spent


class PromptLookup:
    """Foresees that a text goes on as it did where it last read the same. For quotations, edits, and anything copied.

    How likely that is it learns from the text: it depends on how many tokens in a row came as foreseen.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}  # SAME tokens to the place behind where they last stood
        self._read = 0
        self._source: int | None = None  # the place of the token that is foreseen
        self._right = 0  # tokens in a row that came as foreseen
        # By that number: how often the next one did too, of how many. At first Laplace's rule of succession.
        self._seen = [[n + 1, n + 2] for n in range(MOST_COPIED + 1)]

    def propose(self, text: Sequence[int], poll: Callable[[], bool]) -> Sequence[int]:
        """What followed the place that the text is like now."""
        self._read_on(text)
        if self._source is None:
            return ()
        period = len(text) - self._source  # beyond its own end the text is taken to go on as periodic
        return [text[self._source + i % period] for i in range(self._worthwhile())]

    def _worthwhile(self) -> int:
        """How many tokens are likely enough to come all."""
        n, likely = 0, 1.0
        while n < MOST_COPIED:
            came, of = self._seen[min(self._right + n, MOST_COPIED)]
            likely *= came / of
            if likely < LIKELY:
                break
            n += 1
        return n

    def _read_on(self, text: Sequence[int]) -> None:
        for at in range(self._read, len(text)):
            if self._source is not None:
                came, seen = text[self._source] == text[at], self._seen[min(self._right, MOST_COPIED)]
                seen[0] += came
                seen[1] += 1
                self._source, self._right = (self._source + 1, self._right + 1) if came else (None, 0)
            if at + 1 >= SAME:
                last = tuple(text[at + 1 - SAME : at + 1])
                if self._source is None:
                    self._source = self._places.get(last)
                self._places[last] = at + 1
        self._read = len(text)


class SmallerModel:
    """Foresees what another, faster model with the same vocabulary would say: its most probable tokens."""

    def __init__(self, open_session: Callable[[], Session]) -> None:
        self._open = open_session
        self._session: Session | None = None
        self._length = LONGEST // 4
        self._last: Sequence[int] = ()
        self._at = 0  # where the last draft began

    def propose(self, text: Sequence[int], poll: Callable[[], bool]) -> Sequence[int]:
        """Its continuation: longer where the last one was right, shorter where it was not."""
        session = self._session = self._session or self._open()
        came = text[self._at : self._at + len(self._last)]
        right = next((i for i, token in enumerate(came) if token != self._last[i]), len(came))
        if self._last:
            self._length = min(2 * self._length, LONGEST) if right == len(self._last) else max(right, 1)
        session.truncate(min(session.position, self._at + right))
        self._last, self._at = (), len(text)
        if session.context_length - len(text) >= self._length:
            self._last = self._continuation(session, text, poll)
        return self._last

    def _continuation(self, session: Session, text: Sequence[int], poll: Callable[[], bool]) -> Sequence[int]:
        drafted: list[int] = []
        new = text[session.position :]
        while len(drafted) < self._length:
            session.ask(new, poll)
            logits = session.answer()
            if logits is None:
                break
            new = [int(logits.argmax())]
            drafted += new
        return drafted
