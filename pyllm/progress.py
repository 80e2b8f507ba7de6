"""Progress of long steps: a plain callable inside, a bar on a terminal outside, nothing in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

#: Called with (done, total) in bytes, or in the unit of the step; total is 0 where it is not known.
Progress: TypeAlias = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


@contextmanager
def reporting(progress: Progress | bool | None, label: str, unit: str = "B") -> Iterator[Progress]:
    """What the `progress=` of a public function becomes: a callable to report to while the block runs.

    `True` draws a bar on stderr if that is a terminal; `None` and `False` are silent; a callable is used as it is.
    """
    if not isinstance(progress, bool) and progress is not None:
        yield progress
    elif progress:
        with bar(label, unit) as report:
            yield report
    else:
        yield silent


@contextmanager
def bar(label: str, unit: str = "B") -> Iterator[Progress]:
    """A bar on stderr, which vanishes at the end; nothing where stderr is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield silent
        return
    from tqdm import tqdm  # here, because most programs that import pyllm never draw one

    class Bar(tqdm):  # type: ignore[type-arg]  # tqdm is generic in its stubs alone
        monitor_interval = 0  # no watching thread: the host program may fork

    with Bar(desc=label, unit=unit, unit_scale=unit == "B", leave=False, dynamic_ncols=True) as drawn:

        def report(done: int, total: int) -> None:
            drawn.total = total or None
            drawn.update(done - drawn.n)

        yield report
