"""Under what conditions something is timed: whether others use the machine, and where its threads have landed.

Virtual machines are moved about: two cores may share a cache in one second and not in the next, and then memory is read
up to twice as fast while barriers cost five times as much. Figures taken in different states say nothing of each other.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyllm import _core

if TYPE_CHECKING:
    import numpy.typing as npt

QUIET = 0.94  # idle share of all CPUs from which on nothing else is running
LOOK = 0.5  # seconds over which it is read
LARGEST_BUFFER = 1 << 30  # bytes; a larger buffer is no longer in any cache, and tells nothing more
PASSES = 5
BARRIERS, BARRIER_RUNS = 200, 21
# A barrier's nanoseconds where all threads share a cache: 21 to 60 were seen; where they do not: 230 to 330.
NEAR_AT_MOST, FAR_AT_LEAST = 100, 150


@dataclass(frozen=True)
class Probe:
    """How the threads stood at one moment: nanoseconds of one barrier (None where there was but one thread, or the
    others were not running), and GB/s read.
    """

    barrier_ns: float | None
    gb_per_second: float

    @property
    def placement(self) -> str | None:
        """Whether the threads share a cache ("near") or not ("far"); None where that cannot be told."""
        if self.barrier_ns is None or NEAR_AT_MOST < self.barrier_ns < FAR_AT_LEAST:
            return None
        return "near" if self.barrier_ns <= NEAR_AT_MOST else "far"


def probe(buffer: npt.NDArray[np.uint8], threads: int) -> Probe:
    """Look once, in some ten milliseconds. `buffer`: what is read; as large as what will be timed."""
    runs = [_core.barrier_seconds(threads, BARRIERS) for _ in range(BARRIER_RUNS)] if threads > 1 else [0.0]
    nanoseconds = statistics.median(runs) * 1e9
    return Probe(nanoseconds or None, _core.read_bandwidth(buffer, threads, PASSES) / 1e9)


def buffer_of(nbytes: int) -> npt.NDArray[np.uint8]:
    """A buffer to read, of `nbytes` or of the largest that tells something, its pages in memory."""
    return np.ones(min(nbytes, LARGEST_BUFFER), np.uint8)


def idle_share(seconds: float = LOOK) -> float | None:
    """The share of all CPUs' time that nobody used, over the next `seconds`; None where the system does not tell."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def wait_until_quiet(patience: float) -> float | None:
    """Look at the idle share until it is that of a quiet machine, or `patience` seconds are over: the last look."""
    deadline = time.monotonic() + patience
    share = idle_share()
    while share is not None and share < QUIET and time.monotonic() < deadline:
        share = idle_share()
    return share


def _ticks() -> tuple[int, int] | None:
    """(idle, all) ticks of all CPUs since boot. Guest time is left out: it is part of user time already."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii", errors="replace").partition("\n")[0].split()
    except OSError:
        return None
    if len(first) < 9 or first[0] != "cpu":
        return None
    ticks = [int(field) for field in first[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
