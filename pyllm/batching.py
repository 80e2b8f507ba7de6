"""`Batch`: generations that are stepped together by whoever reads one of them."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from pyllm.errors import SessionBusyError
from pyllm.latch import Latch

if TYPE_CHECKING:
    from typing import TypeAlias

    from pyllm.generation import Chunk, Generation

    Prompt: TypeAlias = Sequence[int]

#: Seconds after which a reader that waits for another one's work looks around by itself.
NAP = 0.1


class Batch:
    """Steps its members, at most `limit` of them at a time, in their order; when one ends, the next begins.

    Work is done only while somebody reads a member, in the reader's thread. What the others get meanwhile waits for
    their own readers: at most `max_tokens` tokens each. Members are held by their owner: one that is dropped or closed
    is no longer stepped. `may_begin` is asked for each before it begins, with the prompts of those that are being read:
    it may be better to wait until one of them has been. `when_all_began` is called once all prompts
    have been read, or their members closed.
    """

    def __init__(
        self,
        members: Sequence[Generation],
        limit: int,
        may_begin: Callable[[Prompt, Sequence[Prompt]], bool],
        when_all_began: Callable[[], None],
    ) -> None:
        self._limit = limit
        self._may_begin = may_begin
        self._when_all_began: Callable[[], None] | None = when_all_began
        self._waiting = [weakref.ref(member) for member in members]
        self._active: list[weakref.ref[Generation]] = []
        self._inboxes = weakref.WeakKeyDictionary({member: _Inbox() for member in members})
        self._readers: dict[_Inbox, None] = {}  # those that wait for another thread's work
        self._latch = Latch()
        self._worker: int | None = None  # the thread that has it
        _all.add(self)
        for member in members:
            member.join(self)

    def step(self, reader: Generation) -> Chunk | None:
        """The reader's next chunk; None at its end."""
        inbox = self._inboxes[reader]
        while not inbox.items:
            if reader.pool is None and not inbox.filling:
                break  # nothing comes any more; but the last may have, since the line before
            if self._latch.take():
                try:
                    self._work(reader, inbox)
                finally:
                    self._worker = None
                    self._latch.drop()
                    self._ring()
            elif self._worker == threading.get_ident():  # in a logits_processor, say: it would wait for itself
                raise SessionBusyError("a generation of this batch was read in the midst of a step of the batch")
            else:
                self._readers[inbox] = None
                inbox.wait()
                self._readers.pop(inbox, None)
        return inbox.take() if inbox.items else None

    def tidy(self) -> None:
        """Let go of members that were closed in the midst of a step, unless another thread is about to."""
        if self._latch.take():
            try:
                self._complete([member for member in self._members() if member.begun and member.cancelled])
                self._tell_when_all_began()
            finally:
                self._latch.drop()

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _work(self, reader: Generation, inbox: _Inbox) -> None:
        self._worker = threading.get_ident()
        if not inbox.items and reader.pool is not None:  # it may have got something a moment ago
            self._round()

    def _ring(self) -> None:
        """There may be something for those that wait, or work to do."""
        for other in tuple(self._readers):
            other.bell.put(None)

    def _round(self) -> None:
        """One step further for those that are ready first."""
        members = self._members()
        if len(members) < self._limit:
            self._admit(members)
        for member in members:
            if not member.begun:
                self._fill(member, member.begin)
        begun = [member for member in members if member.begun]
        pool = next((member.pool for member in begun if member.pool is not None), None)
        if pool is not None:
            pool.wait(begun)
        self._complete([member for member in begun if member.ready or member.cancelled])
        self._tell_when_all_began()

    def _tell_when_all_began(self) -> None:
        """Once there is no prompt left that somebody may want read."""
        if self._when_all_began is None:
            return
        members = [member for ref in (*self._active, *self._waiting) if (member := ref()) is not None]
        if not any(member.unanswered and member.pool is not None and not member.cancelled for member in members):
            self._when_all_began()
            self._when_all_began = None

    def _members(self) -> list[Generation]:
        """Those that have begun and not ended."""
        members = [member for ref in self._active if (member := ref()) is not None and member.pool is not None]
        self._active = [weakref.ref(member) for member in members]
        return members

    def _admit(self, members: list[Generation]) -> None:
        """Take in those that wait, as far as there is room and sense."""
        reading = [member.prompt for member in members if member.unanswered]
        later: list[weakref.ref[Generation]] = []
        for i, ref in enumerate(self._waiting):
            if len(members) == self._limit:
                later += self._waiting[i:]
                break
            member = ref()
            if member is None or member.pool is None:
                continue
            if self._may_begin(member.prompt, reading):
                members.append(member)
                reading.append(member.prompt)
                self._active.append(ref)
            else:
                later.append(ref)
        self._waiting = later

    def _complete(self, members: Sequence[Generation]) -> None:
        for member in members:
            self._fill(member, member.complete)

    def _fill(self, member: Generation, half_step: Callable[[], Chunk | None]) -> None:
        """Put what comes of it, a chunk or an error, into the member's inbox."""
        inbox = self._inboxes[member]
        inbox.filling = True
        try:
            chunk = half_step()
            if chunk is not None:
                inbox.items.append(chunk)
        except Exception as error:
            inbox.items.append(error)
        finally:
            inbox.filling = False


class _Inbox:
    """What a member's reader has not read yet: chunks, and an error in the place of the last."""

    def __init__(self) -> None:
        self.items: deque[Chunk | Exception] = deque()
        self.filling = False  # something may be coming, though its member has ended by it
        self.bell: SimpleQueue[None] = SimpleQueue()

    def take(self) -> Chunk:
        """The next chunk. Raises the error."""
        item = self.items.popleft()
        if isinstance(item, Exception):
            raise item
        return item

    def wait(self) -> None:
        """Until there may be something, or work to do."""
        with suppress(Empty):
            self.bell.get(timeout=NAP)


_all: weakref.WeakSet[Batch] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for batch in _all:
        batch._worker = None  # nobody is at work here
        batch._latch.drop()
        batch._readers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
