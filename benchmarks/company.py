"""How an engine fares beside others: one busy loop on the same cores, or a second process of its own kind.

Decoding is measured alone and in company, with all threads and with one. Beside a loop an engine should do at least as
well with all its threads as with one; two processes side by side should have equal shares, and together what one has.
Here the machine is busy on purpose, so samples cannot be judged by its idle time: only the look before each round can.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyllm.measuring.comparing import SETTLING, Open, Setup, Trial, Worker, workers
from pyllm.measuring.probes import QUIET, idle_share, wait_until_quiet

STARTING = 0.2  # seconds until the loop runs


def spin() -> None:
    """Use a core until killed."""
    while True:
        pass


@contextmanager
def busy_loop() -> Iterator[None]:
    """One process that always wants a core."""
    process = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    process.start()
    time.sleep(STARTING)
    try:
        yield
    finally:
        process.kill()
        process.join()


def rate(worker: Worker, trial: Trial) -> float:
    """Tokens per second of one run."""
    taken = worker.run(trial)
    return taken.tokens / taken.seconds


def side_by_side(first: Worker, second: Worker, trial: Trial) -> tuple[float, float]:
    """Both at once."""
    first.begin(trial)
    second.begin(trial)
    taken = first.receive(), second.receive()
    return taken[0].tokens / taken[0].seconds, taken[1].tokens / taken[1].seconds


def one_round(all_threads: Worker, twin: Worker, single: Worker, trial: Trial) -> dict[str, float]:
    """Every situation once: tokens per second."""
    found = {"alone": rate(all_threads, trial), "one_thread": rate(single, trial)}
    with busy_loop():
        found |= {"beside_loop": rate(all_threads, trial), "one_thread_beside_loop": rate(single, trial)}
    time.sleep(SETTLING)
    pair = side_by_side(all_threads, twin, trial)
    time.sleep(SETTLING)
    return found | {"slower_of_two": min(pair), "two_together": sum(pair)}


def measure(
    open_engine: Open, names: Sequence[str], setup: Setup, trial: Trial, rounds: int, patience: float
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row of medians for each engine, over the rounds that began on a quiet machine, or all where none did; and why
    others failed. Engines with a number of threads of their own ("ENGINE@1") are left out: each is tried with one.
    """
    rows, failures = [], {}
    for name in (name for name in names if "@" not in name):
        try:
            with workers(open_engine, [name, name, f"{name}@1"], setup) as opened:
                if not opened[0].can(trial):
                    continue
                rows.append({"engine": name, "threads": setup.threads, **_rounds(opened, trial, rounds, patience)})
        except ChildProcessError as error:
            failures[name] = str(error).removeprefix(f"{name}: ")
    return rows, failures


def _rounds(opened: Sequence[Worker], trial: Trial, rounds: int, patience: float) -> dict[str, Any]:
    for worker in opened:
        worker.run(trial)
    look: Callable[[], float | None] = (lambda: wait_until_quiet(patience)) if patience else idle_share
    found = []
    for _ in range(rounds):
        time.sleep(SETTLING)
        idle = look()
        found.append((idle is not None and idle >= QUIET, one_round(opened[0], opened[1], opened[2], trial)))
    quiet = [row for good, row in found if good]
    counted = quiet or [row for _, row in found]
    medians = {key: statistics.median(row[key] for row in counted) for key in counted[0]}
    return {"condition": "quiet" if quiet else "busy", "counted": len(counted), **medians}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| engine | threads | alone | one thread | beside a loop | of one thread's | two at once | the slower's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['engine']} | {r['threads']} | {r['alone']:,.1f} | {r['one_thread']:,.1f} | {r['beside_loop']:,.1f} "
        f"| {r['beside_loop'] / r['one_thread_beside_loop']:.0%} | {r['two_together']:,.1f} "
        f"| {r['slower_of_two'] / r['two_together']:.0%} |"
        for r in rows
    ]
    return "\n".join(lines)
