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
#: What a drafted token costs, in parts of a pass of one: about the most that processors ask for one more in a pass. A
#: copied token must be as likely as that to come.
PRICE = 0.4
#: Of the places that read alike, how many are looked at, and how many tokens before each; and how many are copied from
#: behind the best one, at most.
PLACES, ALIKE, MOST_COPIED = 16, 8, 7


class Drafter(Protocol):
    """Something with an idea of what comes next."""

    def begin(self, text: Sequence[int], poll: Callable[[], bool]) -> None:
        """Get to know the text so far. Called once, before anything is proposed."""
        ...

    def propose(self, text: Sequence[int], most: int, poll: Callable[[], bool]) -> Sequence[int]:
        """At most `most` tokens that may follow `text`, which is that of the last call and more.

        `poll`: True where it must end.
        """
        ...


class Speculation:
    """Asks a drafter as long as that pays, by the clock: a pass with a draft must cost less than the passes it saves.

    What drafts may lose in all is LOSS of the time spent behind the prompt, gains included. While something is left of
    that, a draft has one token, and more as far as it covers them. While others share the passes there are no drafts:
    the room is better used for their tokens.
    """

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._plain, self._measured = 0.0, 0  # seconds of a pass without a draft, and how many were looked at
        self._spent, self._lost = 0.0, 0.0
        self._drafted = 0  # tokens of the pass that was asked for last
        self._cost = 0.0  # seconds of that pass and its draft
        self._alone = True
        self._begun, self._given_up = False, False

    def draft(self, text: Sequence[int], right: int, poll: Callable[[], bool]) -> Sequence[int]:
        """A guess at what follows `text`; `right`: how many tokens of the last one have come."""
        if self._drafted:
            self._lost += self._cost - (right + 1) * self._plain
            self._drafted = 0
        most = self._most()
        if not most:
            return ()
        try:
            if not self._begun:
                self._drafter.begin(text, poll)  # a prompt's time counts on neither side
                self._begun = True
            started = time.perf_counter()
            drafted = self._drafter.propose(text, most, poll)
        except (OutOfMemoryError, ClosedError):  # of a smaller model: the text goes on without
            self._given_up = True
            return ()
        seconds = time.perf_counter() - started
        self._drafted = len(drafted)
        if drafted:
            self._cost = seconds
        else:
            self._lost += seconds
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

    def _most(self) -> int:
        """How many tokens a draft may have; 0 where there should be none."""
        measured = self._measured >= MEASURED and self._plain > SHORT_PASS
        covered = LOSS * self._spent - self._lost
        if self._given_up or not self._alone or not measured or covered < 0:
            return 0
        return min(max(int(covered / (PRICE * self._plain)), 1), LONGEST)


class PromptLookup:
    """Foresees that a text goes on as it did where it read the same before. For quotations, edits, anything copied.

    The best place to copy from is the one that reads alike for longest. Places are found by their last two tokens, each
    of which leads to the one before, as in Lempel-Ziv coders. How likely it is that the text goes on alike is learnt
    from what came: it depends on for how many tokens the two read alike.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], int] = {}  # two tokens to the place behind where they last stood
        self._before = [0, 0]  # for each place, the one before it behind the same two tokens; 0: none
        self._read = 0
        self._source = 0  # the place of the token that is foreseen
        self._alike = 0  # tokens before it that are those at the end of the text; 0: none is foreseen
        # By that number, 2 at least: how often the next one came too, of how many. At first as if of n + 1 one had not.
        self._seen = [[n, n + 1] for n in range(1 + ALIKE)]

    def begin(self, text: Sequence[int], poll: Callable[[], bool]) -> None:
        """A prompt is there to be copied from; nothing is learnt from what it repeats."""
        self._index(text)

    def propose(self, text: Sequence[int], most: int, poll: Callable[[], bool]) -> Sequence[int]:
        """What followed the place that the text is like now."""
        self._learn(text)
        self._index(text)
        if self._alike < ALIKE:
            self._search(text)
        period = len(text) - self._source  # beyond its own end the text is taken to go on as periodic
        return [text[self._source + i % period] for i in range(self._worthwhile(min(most, MOST_COPIED)))]

    def _learn(self, text: Sequence[int]) -> None:
        """See which of the new tokens came as foreseen."""
        for token in text[self._read :]:
            if self._alike:
                came, seen = text[self._source] == token, self._seen[min(self._alike, ALIKE)]
                seen[0] += came
                seen[1] += 1
                self._source, self._alike = self._source + 1, self._alike + 1 if came else 0

    def _index(self, text: Sequence[int]) -> None:
        """Note the places of the new tokens."""
        start = max(self._read - 1, 0)
        for place, pair in enumerate(zip(text[start:], text[start + 1 :], strict=False), start + 2):
            self._before.append(self._last.get(pair, 0))
            self._last[pair] = place
        self._read = len(text)

    def _search(self, text: Sequence[int]) -> None:
        """Find a better place to copy from."""
        place = self._before[len(text)]
        for _ in range(PLACES):
            if not place:
                break
            alike = _alike(text, place)
            if alike > self._alike:
                self._source, self._alike = place, alike
            place = self._before[place]

    def _worthwhile(self, most: int) -> int:
        """How many tokens are likely enough to come all."""
        n, likely = 0, 1.0
        while self._alike and n < most:
            came, of = self._seen[min(self._alike + n, ALIKE)]
            likely *= came / of
            if likely < PRICE:
                break
            n += 1
        return n


def _alike(text: Sequence[int], place: int) -> int:
    """How many tokens before `place` are those at the end of the text, of ALIKE."""
    n, end = 0, len(text)
    while n < min(place, ALIKE) and text[place - n - 1] == text[end - n - 1]:
        n += 1
    return n


class SmallerModel:
    """Foresees what another, faster model with the same vocabulary would say: its most probable tokens."""

    def __init__(self, open_session: Callable[[], Session]) -> None:
        self._open = open_session
        self._session: Session | None = None
        self._length = LONGEST // 4
        self._last: Sequence[int] = ()  # what it drafted last
        self._at = 0  # and behind how many tokens of the text

    def begin(self, text: Sequence[int], poll: Callable[[], bool]) -> None:
        """Read all but the last token, whose logits are wanted."""
        self._session, self._at = self._open(), len(text)
        if 1 < len(text) <= self._session.context_length:
            self._session.ask(text[:-1], poll)
            self._session.answer()

    def propose(self, text: Sequence[int], most: int, poll: Callable[[], bool]) -> Sequence[int]:
        """Its continuation: longer where the last one was right, shorter where it was not."""
        session = self._session
        assert session is not None
        came = text[self._at : self._at + len(self._last)]
        right = next((i for i, token in enumerate(came) if token != self._last[i]), len(came))
        if self._last:
            all_right = right == len(self._last)
            self._length = max(self._length, min(2 * right, LONGEST)) if all_right else max(right, 1)
        session.truncate(min(session.position, self._at + right))
        self._last, self._at = (), len(text)
        wanted = min(self._length, most)
        if session.context_length - len(text) >= wanted:
            self._last = self._continuation(session, text, wanted, poll)
        return self._last

    def _continuation(
        self, session: Session, text: Sequence[int], wanted: int, poll: Callable[[], bool]
    ) -> Sequence[int]:
        drafted: list[int] = []
        new = text[session.position :]
        while len(drafted) < wanted:
            session.ask(new, poll)
            logits = session.answer()
            if logits is None:
                break
            new = [int(logits.argmax())]
            drafted += new
        return drafted
