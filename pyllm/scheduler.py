"""`Scheduler`: sequences of all threads share a model's forward passes.

There is no thread of its own. Whoever waits for logits and finds nobody at it leads: it runs pass after pass for
everyone who waits, until it has what it came for, and another that waits goes on. So nothing has to be stopped at exit,
a forked child starts afresh, and a consumer that does not come back is not waited for. Since no result depends on what
else is in a pass, nobody can tell but by the clock.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from pyllm._core import Interrupted, Part
from pyllm.ahead import SHORT_PASS, Ahead
from pyllm.errors import OutOfMemoryError, PyllmError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pyllm._core import NativeModel, NativeSession

    Rows = npt.NDArray[np.float32]

Shares: TypeAlias = "list[Share]"

#: Prompt tokens in one pass at most: enough for full speed.
CHUNK = 512
#: The same where others wait for their next token or soon will, so that a long prompt does not stop them.
CHUNK_IN_COMPANY = 128
#: Seconds that a layer may take, within which nothing is interrupted: where it takes longer, passes get fewer tokens.
LONGEST_LAYER = 0.1
#: A sequence with no more than this to evaluate is not cut.
SHORT = 32
#: Sequences in one pass; and the tokens that it may have in any case, and before the pace is known.
MOST_SEQUENCES = 64
#: The next pass waits for sequences of the last one that come back quickly: for this part of its time, and seconds at
#: most. A sequence that misses a pass needs one of its own, so half of one is well spent.
PATIENCE, LONGEST_PATIENCE = 0.5, 0.01
#: Seconds for which one that got an answer counts as company.
RECENT = 0.5
#: Seconds without any progress after which a sequence has to give its memory to others; and after which it is refused,
#: where there is no company either: a thread that is about to join, or to end, may hold memory and be kept from it.
RELIEF, REFUSAL = 0.1, 0.5
#: Seconds after which a waiting thread looks around by itself, and after which a leader without a sign of life is no
#: longer waited for: Ctrl-C may end one at any point.
NAP, SILENCE = 0.1, 5.0


class Waitable(Protocol):
    """Something that becomes ready when a pass has been made for it."""

    @property
    def ready(self) -> bool:
        """Whether there is nothing more to wait for."""
        ...


class Seat:
    """One sequence's place in the scheduler, and what it asks for: tokens to be evaluated, logits of the last ones.

    `ready` once it is settled: `rows` has the logits (n_logits, vocab), or `error` what went wrong; neither where
    `poll` said to stop. `seconds` is the time of the passes for it, `alone` whether nobody else was in them.
    """

    def __init__(self, session: NativeSession) -> None:
        self.session = session
        self.tokens: Sequence[int] = ()
        self.n_logits = 0
        self.poll: Callable[[], bool] = _never
        self.before: Callable[[], Sequence[int]] = tuple
        self.ahead: Ahead | None = None
        self.born = next(_births)
        self.short: int | None = None  # where memory is lacking: the pages there were then
        self.refused = False  # it was lacking when nobody else made progress either
        self.start = 0  # where the session stood
        self.at = 0  # tokens evaluated of those asked for
        self.ready = True
        self.stopped = False
        self.rows: Rows | None = None
        self.error: BaseException | None = None
        self.seconds, self.alone = 0.0, True
        self.under_way: _Pass | None = None
        self.absence = _Absence()

    def ask(
        self,
        start: int,
        tokens: Sequence[int],
        n_logits: int,
        poll: Callable[[], bool],
        before: Callable[[], Sequence[int]],
        ahead: Ahead | None = None,
    ) -> None:
        """What is wanted next. `poll` may be asked by any thread; once it has said True it must not change its mind.

        `start`: where the session stands. `before`: the tokens that it holds already, in case that it has to give its
        memory up meanwhile. `ahead`: how it may go on by itself behind the tokens.
        """
        self.tokens, self.n_logits, self.poll, self.before, self.at = tokens, n_logits, poll, before, 0
        self.start, self.short, self.refused, self.ahead = start, None, False, ahead
        self.ready, self.stopped, self.rows, self.error = False, False, None, None
        self.seconds, self.alone = 0.0, True

    def settle(self, rows: Rows | None, error: BaseException | None = None) -> None:
        """Give the answer."""
        self.rows, self.error = rows, error
        self.poll, self.before = _never, tuple  # which refer to the owner, as the owner does to the seat
        self.ready = True

    def wants_to_stop(self) -> bool:
        """Whether its owner is no longer interested."""
        self.stopped = self.stopped or self.poll()
        return self.stopped

    @property
    def left(self) -> int:
        """Tokens that are still to be evaluated."""
        return len(self.tokens) - self.at

    @property
    def busy(self) -> bool:
        """Whether a forward pass is using the session now."""
        return self.under_way is not None and not self.under_way.over


class Share(NamedTuple):
    """Of a pass: n of the tokens that a seat asked for, from `at` on."""

    seat: Seat
    n: int
    tokens: Sequence[int]
    at: int

    @property
    def stands(self) -> bool:
        """Whether that is still what is to be done: a signal handler may have done it meanwhile."""
        seat = self.seat
        return not seat.ready and seat.tokens is self.tokens and seat.at == self.at

    @property
    def answers(self) -> bool:
        """Whether nothing is left to be done for the seat then."""
        return self.at + self.n == len(self.tokens)

    @property
    def part(self) -> Part:
        """The tokens, with the logits if they are the last."""
        tokens = self.tokens[self.at : self.at + self.n]
        return Part(self.seat.session, tokens, self.seat.n_logits if self.answers else 0)


class _Absence:
    """Of a sequence between an answer and its next question: since when, and whether the last one was short. It does
    not refer to the session, which may be gone.
    """

    def __init__(self) -> None:
        self.since, self.short = 0.0, False


class _Pass:
    """Whether a forward pass is over: set in one step, so that nothing can come between and leave it half done."""

    def __init__(self) -> None:
        self.over = False


class _Call:
    """A thread in `wait`."""

    def __init__(self, items: Collection[Waitable]) -> None:
        self.items = items
        self.thread = threading.get_ident()
        self.bell: SimpleQueue[None] = SimpleQueue()
        self.lingers = False
        self.began = self.sign_of_life = time.monotonic()

    @property
    def satisfied(self) -> bool:
        """Whether one of the items is ready."""
        return any(item.ready for item in tuple(self.items))  # which others may change meanwhile


class Scheduler:
    """Runs the forward passes of one model.

    Bounded: a pass has at most MOST_SEQUENCES sequences and about CHUNK tokens, fewer where the machine is slow for the
    model; whoever is not in it waits in turn, in the thread that asked. Where memory for keys and values is not to be
    had, the sequence waits until others have ended. Where nobody can go on, the youngest gives its memory up, and reads
    its text again later; where the oldest cannot go on even so, it is told.

    Nearly nothing here is locked: every change of the shared dictionaries is a single operation, and a signal handler
    may come in between any two lines, generate text by itself, and find everything in order.
    """

    def __init__(self, model: NativeModel) -> None:
        self._model = model
        self._start_afresh()
        _all.add(self)

    def _start_afresh(self) -> None:
        self._waiting: OrderedDict[Seat, None] = OrderedDict()  # in the order of their turns
        self._settling: dict[Seat, None] = {}  # those that are told what they asked for
        self._calls: dict[_Call, None] = {}
        self._leading: dict[str, _Call] = {}  # at most one, put there by setdefault: the first wins
        self._away: dict[_Absence, None] = {}  # those that may come back, the first that left first
        self._passes: dict[_Pass, None] = {}  # those that are not over
        self._claims = threading.RLock()  # whether a pass or its owner has a session; held for a few lines
        self._patience = 0.0
        self._progress = 0.0  # when the last pass ended
        self._chunk = MOST_SEQUENCES  # tokens of a pass whose layers take no longer than they may

    # ---- for sequences -----------------------------------------------------------------------------------------------

    def add(self, seat: Seat) -> None:
        """Put a seat that has asked for something among those that wait."""
        absence = seat.absence
        absence.short = time.monotonic() - absence.since < self._patience
        self._waiting[seat] = None
        if self._away.pop(absence, self) is None:
            leader = self._leading.get("")
            if leader is not None and leader.lingers:
                leader.bell.put(None)

    def wait(self, items: Collection[Waitable]) -> None:
        """Return once one of `items` is ready; run passes meanwhile, for all that wait, unless another thread does.

        Others may add to `items` meanwhile. What is raised comes from this thread, Ctrl-C above all.
        """
        call = _Call(items)
        leader = self._leading.get("")
        if leader is not None and leader.thread == call.thread:
            if _is_running(leader):  # this is a signal handler in the midst of a pass, which goes on when it returns
                self._run_alone(items)
                return
            self._leading.pop("", None)  # Ctrl-C ended it before it could say so
        try:
            for other in tuple(self._calls) if self._calls else ():
                if other.thread == call.thread:  # Ctrl-C ended it before it could say so
                    self._calls.pop(other, None)
            self._calls[call] = None
            while not call.satisfied:
                if self._leading.setdefault("", call) is call:
                    self._lead(call)
                else:
                    self._follow(call)
        finally:
            self._calls.pop(call, None)
            if self._leading.get("") is call:
                self._leading.clear()
                self._hand_over()

    def leave(self, seat: Seat) -> None:
        """It will not come back soon."""
        self._away.pop(seat.absence, None)

    def withdraw(self, seat: Seat) -> None:
        """Take a seat out, whatever it has asked for. Returns once no pass uses its session."""
        with self._claims:  # from here on no pass takes it
            seat.stopped, seat.poll = True, _never
        interrupt: BaseException | None = None
        while seat.busy:  # for a layer or so; its session must not be touched before, not even after Ctrl-C
            try:
                time.sleep(0.001)
            except BaseException as error:
                interrupt = error
        self._waiting.pop(seat, None)
        self._away.pop(seat.absence, None)
        if not seat.ready:
            seat.settle(None)
        if interrupt is not None:
            raise interrupt

    # ---- leading and following ---------------------------------------------------------------------------------------

    def _lead(self, call: _Call) -> None:
        call.sign_of_life = time.monotonic()
        if self._away:
            self._linger(call)
        shares = self._next_shares()
        self._wake_satisfied(call)  # those who were dismissed
        if call.satisfied:  # so was this one: another may lead the rest
            return
        if shares:
            self._run(shares, call)
        else:
            self._relieve(call)
        self._wake_satisfied(call)

    def _follow(self, call: _Call) -> None:
        self._rest(call)
        leader = self._leading.get("")
        if leader is not None and time.monotonic() - leader.sign_of_life > SILENCE:
            self._leading.pop("", None)

    def _rest(self, call: _Call, seconds: float = NAP) -> None:
        with suppress(Empty):  # then it is time to look around
            call.bell.get(timeout=seconds)

    def _wake_satisfied(self, leader: _Call) -> None:
        if len(self._calls) > 1:
            for call in tuple(self._calls):
                if call is not leader and call.satisfied:
                    call.bell.put(None)

    def _hand_over(self) -> None:
        """Wake one that still waits, to lead."""
        for call in tuple(self._calls):
            if not call.satisfied:
                call.bell.put(None)
                return

    def _linger(self, call: _Call) -> None:
        """Wait a little for those that were in the last pass and are known to come back soon."""
        self._forget_the_gone()
        call.lingers = True
        while True:
            since = max((absence.since for absence in tuple(self._away) if absence.short), default=0.0)
            left = since + self._patience - time.monotonic()
            if left <= 0:
                break
            self._rest(call, left)
        call.lingers = False

    def _in_company(self) -> bool:
        """Whether one that is away had an answer a moment ago, and so may want the next one soon."""
        self._forget_the_gone()
        return bool(self._away)

    def _forget_the_gone(self) -> None:
        """Those that are away for so long that nothing is to be expected of them: the first ones that left."""
        now = time.monotonic()
        for absence in tuple(self._away):
            if now - absence.since < RECENT:
                return
            self._away.pop(absence, None)

    # ---- passes ------------------------------------------------------------------------------------------------------

    def _next_shares(self) -> Shares:
        """Who is in the next pass, and with how many tokens: what is short as a whole, the rest of the room for a chunk
        of each long prompt, in turns.
        """
        for seat in tuple(self._settling) if self._settling else ():  # where Ctrl-C came in between
            if not seat.ready:
                self._note(seat)
            self._settling.pop(seat, None)
        waiting = [seat for seat in tuple(self._waiting) if self._can_go_on(seat)]
        if len(waiting) == 1 and waiting[0].left <= SHORT:
            return [_share(waiting[0], waiting[0].left)]  # as mostly: the rest would come to the same
        shares: Shares = []
        room = min(CHUNK, self._chunk)
        short = min(SHORT, room)
        long = [seat for seat in waiting if seat.left > short]
        places = MOST_SEQUENCES - (1 if long else 0)
        for seat in waiting:
            if seat.left <= min(short, room) and len(shares) < places:
                shares.append(_share(seat, seat.left))
                room -= seat.left
        long = long[: MOST_SEQUENCES - len(shares)]
        room = min(room, CHUNK_IN_COMPANY) if shares or (long and self._in_company()) else room
        each = max(room // len(long), short) if long else 0
        for seat in long[: max(room // each, 1) if long else 0]:
            shares.append(_share(seat, _piece(seat.left, each, seat.n_logits)))
        return shares

    def _can_go_on(self, seat: Seat) -> bool:
        if seat.busy or self._dismissed(seat):
            return False
        if seat.short is not None and self._model.kv_pages < seat.short:
            seat.short = None  # some were given back
        return seat.short is None

    def _dismissed(self, seat: Seat) -> bool:
        if not seat.wants_to_stop():
            return False
        self._waiting.pop(seat, None)
        seat.settle(None)
        return True

    def _run(self, shares: Shares, call: _Call) -> None:
        """One forward pass. Where it fails, each sequence is tried alone, so that only the cause is told."""
        now, started = _Pass(), time.monotonic()

        def stop() -> bool:
            call.sign_of_life = time.monotonic()
            return any(share.seat.wants_to_stop() for share in shares)

        self._passes[now] = None
        try:
            claimed = [share for share in shares if self._claim(share.seat, now) and not self._note(share.seat)]
            shares = [share for share in claimed if share.stands]
            if not shares:
                return
            self._model.eval([share.part for share in shares], stop)
            seconds, tokens = time.monotonic() - started, 0
            self._go_ahead(shares, seconds)
            self._progress = time.monotonic()
            self._patience = min(PATIENCE * seconds, LONGEST_PATIENCE)
            for seat, n, *_ in shares:
                tokens += n
                seat.seconds += seconds
                seat.alone = seat.alone and len(shares) == 1
                self._note(seat)
            if tokens > SHORT:
                self._keep_pace(tokens, seconds)
        except Interrupted:
            return  # those that asked for it are dismissed before the next pass
        except Exception as error:
            now.over = True  # each is claimed again, alone
            self._recover(shares, error, call)
        finally:
            now.over = True  # at once: a line before it could be the last one
            self._passes.pop(now, None)

    def _go_ahead(self, shares: Shares, seconds: float) -> None:
        """Let those that are answered go on by themselves: by a token each, or a lone one that nobody waits behind for
        a moment, where passes are short.
        """
        answered = [(share.seat.ahead, share.seat.session) for share in shares if share.seat.ahead and share.answers]
        if len(answered) > 1:
            Ahead.draw(self._model, answered)
        elif answered and seconds < SHORT_PASS and len(self._waiting) <= 1:
            answered[0][0].run(answered[0][1])

    def _keep_pace(self, tokens: int, seconds: float) -> None:
        """Choose how many tokens a pass may have from now on, by what the last one took."""
        longest = LONGEST_LAYER * self._model.n_layers
        self._chunk = max(MOST_SEQUENCES, min(CHUNK, int(tokens * longest / max(seconds, 1e-6))))

    def _claim(self, seat: Seat, now: _Pass) -> bool:
        """Whether the pass may use the session. From then on its owner does not touch it before the pass is over."""
        with self._claims:
            free = not (seat.stopped or seat.busy)
            if free:
                seat.under_way = now
            return free

    def _note(self, seat: Seat) -> bool:
        """Take note of what was evaluated; whether there was anything. What tells is the session itself: Ctrl-C may
        have come between a pass and its notes, or between two of these, which then are taken again.
        """
        at = seat.session.position - seat.start
        if at == seat.at and (seat.ready or seat.left > 0):
            return False
        seat.at, seat.refused = at, False
        if seat.left > 0:
            if seat in self._waiting:
                self._waiting.move_to_end(seat)  # behind the others
            return True
        self._settling[seat] = None
        self._waiting.pop(seat, None)  # before it is told, since it may come back at once
        seat.absence.since = self._progress
        self._away[seat.absence] = None
        seat.settle(seat.session.rows(seat.n_logits))
        self._settling.pop(seat, None)
        return True

    def _recover(self, shares: Shares, error: Exception, call: _Call) -> None:
        if len(shares) > 1:
            for share in shares:
                self._run([share], call)
            return
        seat = shares[0].seat
        if isinstance(error, OutOfMemoryError) and not seat.refused:
            seat.short = self._model.kv_pages
        else:
            self._waiting.pop(seat, None)
            seat.settle(None, error)

    def _relieve(self, call: _Call) -> None:
        """Nobody can go on: wait for memory that others give back, and then find it among those that wait."""
        self._rest(call, RELIEF / 10)
        short = [seat for seat in tuple(self._waiting) if seat.short is not None and not seat.busy]
        idle = time.monotonic() - max(self._progress, call.began)
        if not short or idle < RELIEF:
            return
        oldest, *others = sorted(short, key=lambda seat: seat.born)
        youngest = next((seat for seat in reversed(others) if seat.session.position > 0), None)
        if youngest is not None:
            self._take_memory(youngest)
        elif idle < REFUSAL or self._in_company():
            return  # one that is away may end, or come back and be asked for its memory
        else:
            oldest.short, oldest.refused = None, True  # one last try
        self._progress = time.monotonic()

    def _take_memory(self, seat: Seat) -> None:
        """Empty a session: what it held is to be evaluated again, before what it has asked for."""
        now = _Pass()
        self._passes[now] = None
        try:
            if self._claim(seat, now):
                seat.tokens, seat.at, seat.start = [*seat.before(), *seat.tokens], 0, 0
                seat.before = tuple  # which it will hold only once these have been evaluated
                seat.session.truncate(0)
                seat.session.expect(len(seat.tokens))
                seat.short = self._model.kv_pages
        finally:
            now.over = True  # at once: a line before it could be the last one
            self._passes.pop(now, None)

    def _run_alone(self, items: Collection[Waitable]) -> None:
        """The same without the others, which are in the pass that this thread is in the midst of."""
        call = _Call(items)
        while not call.satisfied:
            shares = self._next_shares()
            if not (shares or call.satisfied):
                raise OutOfMemoryError("no memory for keys and values, and the pass that may free some is interrupted")
            self._run(shares, call)


def _is_running(call: _Call) -> bool:
    """Whether the calling thread is in `wait` for a call."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is Scheduler.wait.__code__ and frame.f_locals.get("call") is call:
            return True
        frame = frame.f_back
    return False


def _share(seat: Seat, n: int) -> Share:
    return Share(seat, n, seat.tokens, seat.at)


def _piece(left: int, most: int, n_logits: int) -> int:
    """How many of `left` tokens to take, so that the logits of the last ones are left to one pass."""
    return left if left <= most else max(min(most, left - n_logits), 0) or left


_births = itertools.count()


def _never() -> bool:
    return False


_all: weakref.WeakSet[Scheduler] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for scheduler in _all:
        waiting = tuple(scheduler._waiting)
        for under_way in tuple(scheduler._passes):
            under_way.over = True
        scheduler._start_afresh()  # the threads that led and waited do not exist here
        for seat in waiting:
            seat.settle(None, PyllmError("this was being computed when the process forked: begin again"))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
