"""`Latch`: a lock for one user at a time that Ctrl-C cannot leave locked behind."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds between two tries.
AGAIN = 200e-6


class Latch:
    """Taken by one thread, and dropped by any.

    A `KeyboardInterrupt` comes between two steps of Python code, also between a lock's `acquire()` and the `try` behind
    it: then nobody knows whether it was taken. Here that can be told afterwards. `drop` is a method of a dictionary, so
    that in a `finally` there is no line of Python before it either. Harmless where it is not taken.
    """

    def __init__(self) -> None:
        self._holder: dict[str, object] = {}
        self.drop: Callable[[], None] = self._holder.clear

    @property
    def held(self) -> bool:
        """Whether somebody has it."""
        return bool(self._holder)

    def take(self) -> bool:
        """Whether it was free, and is the caller's now. A `try` whose `finally` drops it must follow at once."""
        mine = object()
        try:
            return self._holder.setdefault("", mine) is mine
        except BaseException:
            if self._holder.get("") is mine:
                self.drop()
            raise

    def take_within(self, seconds: float) -> bool:
        """The same, tried again for so long where it is not free."""
        end = time.monotonic() + seconds
        while not self.take():
            if time.monotonic() >= end:
                return False
            time.sleep(AGAIN)
        return True
