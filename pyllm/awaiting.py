"""`async for` over generations: one worker thread steps all those that the tasks of an event loop wait for."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from pyllm.errors import SessionBusyError

if TYPE_CHECKING:
    from typing import TypeAlias

    from pyllm.generation import Chunk, Generation, Pool

    Answer: TypeAlias = asyncio.Future[Chunk | None]

#: Seconds a worker stays when nobody waits: tasks that have just got a chunk ask for the next one soon.
GRACE = 0.005


async def next_chunk(generation: Generation) -> Chunk | None:
    """The next chunk; None at the end. Cancelling the task closes the generation, and waits until it has let go."""
    pool = generation.pool
    if generation.batch is not None:  # which has a thread for all its members already
        answer: Answer = asyncio.ensure_future(asyncio.to_thread(generation.batch.step, generation))
    elif pool is None:
        return None
    else:
        answer = asyncio.get_running_loop().create_future()
        _send(answer.get_loop(), pool, generation, answer)
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        generation.close()
        await asyncio.gather(answer, return_exceptions=True)  # within a layer
        raise


_crews: dict[tuple[asyncio.AbstractEventLoop, Pool], _Crew] = {}  # those that have a worker
_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _crews.clear()  # their threads do not exist here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _send(loop: asyncio.AbstractEventLoop, pool: Pool, generation: Generation, answer: Answer) -> None:
    with _lock:
        crew = _crews.get((loop, pool))
        if crew is not None:
            crew.add(generation, answer)
            return
        crew = _crews[loop, pool] = _Crew(loop, pool)
        crew.add(generation, answer)
    try:
        loop.run_in_executor(None, crew.work)
    except RuntimeError as error:  # the loop is being shut down
        with _lock:
            crew.disband()
        crew.fail(error)


class _Crew:
    """The generations of one loop and one pool that tasks wait for, as long as there are any."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Pool) -> None:
        self._loop = loop
        self._pool = pool
        self._awaited: dict[Generation, Answer] = {}
        self._bell: SimpleQueue[None] = SimpleQueue()

    def add(self, generation: Generation, answer: Answer) -> None:
        """One more. The caller holds the lock."""
        if generation in self._awaited:
            raise SessionBusyError("another task is iterating over this generation")
        self._awaited[generation] = answer
        self._bell.put(None)

    def disband(self) -> None:
        """Accept no more. The caller holds the lock."""
        del _crews[self._loop, self._pool]

    def work(self) -> None:
        """Step them all, in a worker thread, until nobody waits any more."""
        try:
            while self._someone_waits():
                for generation in [g for g in tuple(self._awaited) if not g.begun]:
                    self._begin(generation)
                self._pool.wait(self._awaited)
                for generation in [g for g in tuple(self._awaited) if g.begun and g.ready]:
                    self._deliver(generation)
        except BaseException as error:  # nobody may be left waiting
            with _lock:
                self.disband()
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Tell all that wait."""
        for generation in tuple(self._awaited):
            generation.close()
            if generation.begun:
                generation.abort()
            self._tell(self._awaited.pop(generation), None, error)

    def _someone_waits(self) -> bool:
        with suppress(Empty):  # when all rings are heard, or it was long enough
            while True:
                self._bell.get(timeout=0 if self._awaited else GRACE)
        with _lock:
            if not self._awaited:
                self.disband()
            return bool(self._awaited)

    def _begin(self, generation: Generation) -> None:
        """Ask for its next chunk: here, since a draft may take a while."""
        try:
            generation.begin()
        except BaseException as error:
            self._tell(self._awaited.pop(generation), None, error)

    def _deliver(self, generation: Generation) -> None:
        answer = self._awaited.pop(generation)
        try:
            chunk = generation.complete()
        except BaseException as error:
            self._tell(answer, None, error)
        else:
            if not self._tell(answer, chunk, None):
                generation.close()

    def _tell(self, answer: Answer, chunk: Chunk | None, error: BaseException | None) -> bool:
        try:
            self._loop.call_soon_threadsafe(_resolve, answer, chunk, error)
        except RuntimeError:  # the loop is closed: nobody waits
            return False
        return True


def _resolve(answer: Answer, chunk: Chunk | None, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(chunk)
