"""Prefill and decode in tokens per second, beside a peer and the machine's own read bandwidth.

    python benchmarks/speed.py MODEL.gguf [--engine pyllm:high ...] [--peer llama.cpp ...] [--threads 1 --threads 2]
        [--rounds 5] [--wait SECONDS] [--json FILE]

The protocol is llama-bench's: random token ids; prefill is 512 of them into an empty context, decode is 128 single
tokens from an empty context on; no tokenizing, no sampling; one warm-up of each. Each engine lives in a process of its
own that sleeps while others are measured. A round runs all of them in one order and then in the other (A B B A), so
that what drifts meets all alike. Ratios are taken within a half round: their median, and a bootstrap 95 % interval.

Before and after each sample the share of idle CPU time is read from /proc/stat. A sample is quiet where both are at
least 94 %; medians are over quiet samples, or, where there are fewer than three, over all, and then marked with "busy".
Tokens per second of CPU time, over all threads, stand beside: with one thread, that figure bears a busy machine better.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import conditions
import numpy as np
from peers import ENGINES, Setup, open_engine

DEFAULT_ENGINES = ("pyllm:high", "pyllm:fast")
TESTS = ("prefill", "decode")
RESAMPLES = 2000
ENOUGH = 3  # quiet samples that a median needs
SMALLEST_VOCABULARY = 256  # ids are drawn below this: every model has them, and which ids they are costs nothing


@dataclass(frozen=True)
class Plan:
    """What is measured. `wait`: seconds to wait for a quiet machine before each sample."""

    model: Path
    prompt: int = 512
    generate: int = 128
    rounds: int = 5
    wait: float = 0.0

    def ids(self, test: str) -> list[int]:
        """The random token ids of a test."""
        n = {"prefill": self.prompt, "decode": self.generate}[test]
        ids: list[int] = np.random.default_rng(0).integers(0, SMALLEST_VOCABULARY, n).tolist()
        return ids


@dataclass(frozen=True)
class Sample:
    """One run of one test by one engine, and the idle share of the machine's CPUs before and after it."""

    engine: str
    test: str
    threads: int
    half_round: int
    tokens_per_second: float
    tokens_per_cpu_second: float
    idle_before: float | None
    idle_after: float | None

    @property
    def quiet(self) -> bool:
        """Whether nothing else was running, as far as the system tells."""
        shares = (self.idle_before, self.idle_after)
        return all(share is not None and share >= conditions.QUIET for share in shares)


# ---- engines in processes of their own -------------------------------------------------------------------------------


def serve(pipe: Connection, specification: str, setup: Setup) -> None:
    """The process of an engine: it says what it is, then runs tests until it is sent None, answering with the seconds
    and the CPU seconds that each took.
    """
    engine = open_engine(specification, setup)
    pipe.send({"version": engine.version, "token_bytes": engine.token_bytes})
    while (task := pipe.recv()) is not None:
        test, ids = task
        run = engine.prefill if test == "prefill" else engine.decode
        start, cpu_start = time.perf_counter(), time.process_time()
        run(ids)
        pipe.send((time.perf_counter() - start, time.process_time() - cpu_start))
    engine.close()


class Worker:
    """An engine in a process of its own. Raises `SystemExit` where that process ends early."""

    def __init__(self, specification: str, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = specification
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, specification, setup), daemon=True)
        self._process.start()
        theirs.close()
        self.facts: dict[str, Any] = self._receive()

    def seconds(self, test: str, ids: Sequence[int]) -> tuple[float, float]:
        """How long one run of a test took, by the clock and in CPU time of all threads."""
        self._pipe.send((test, ids))
        elapsed, cpu = self._receive()
        return float(elapsed), float(cpu)

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise SystemExit(f"{self.name}: its process ended with status {self._process.exitcode}") from None


@contextmanager
def workers(names: Sequence[str], setup: Setup) -> Iterator[list[Worker]]:
    """All engines, loaded."""
    with ExitStack() as stack:
        opened = []
        for name in names:
            opened.append(Worker(name, setup))
            stack.callback(opened[-1].close)
        yield opened


# ---- measuring -------------------------------------------------------------------------------------------------------


def sample(worker: Worker, test: str, threads: int, half_round: int, plan: Plan) -> Sample:
    """One run, with a look at the machine before and after."""
    ids = plan.ids(test)
    before = conditions.wait_until_quiet(plan.wait)
    elapsed, cpu = worker.seconds(test, ids)
    after = conditions.idle_share(conditions.IDLE_AFTER)
    return Sample(worker.name, test, threads, half_round, len(ids) / elapsed, len(ids) / cpu, before, after)


def measure(plan: Plan, names: Sequence[str], threads: int) -> tuple[list[Sample], list[float], dict[str, Any]]:
    """All samples with one number of threads; the read bandwidth in GB/s, once a round; what each engine is."""
    samples, ceilings = [], []
    setup = Setup(plan.model, threads, max(plan.prompt, plan.generate))
    with workers(names, setup) as opened:
        for test in TESTS:
            for worker in opened:
                worker.seconds(test, plan.ids(test))  # the warm-up
            for i in range(plan.rounds):
                print(f"{threads} thread(s), {test}, round {i + 1} of {plan.rounds}", file=sys.stderr)
                samples += [sample(worker, test, threads, 2 * i, plan) for worker in opened]
                samples += [sample(worker, test, threads, 2 * i + 1, plan) for worker in reversed(opened)]
                ceilings.append(conditions.read_bandwidth(plan.model.stat().st_size, threads))
        return samples, ceilings, {worker.name: worker.facts for worker in opened}


# ---- what the samples say --------------------------------------------------------------------------------------------


def chosen(samples: Sequence[Sample]) -> list[Sample]:
    """The quiet samples, or all where those are too few."""
    quiet = [s for s in samples if s.quiet]
    return quiet if len(quiet) >= ENOUGH else list(samples)


def ratios(ours: Sequence[Sample], theirs: Sequence[Sample]) -> list[float]:
    """Ours over theirs, within each half round: of the quiet pairs, or of all where those are too few."""
    pairs = list(zip(by_half_round(ours), by_half_round(theirs), strict=True))
    quiet = [(a, b) for a, b in pairs if a.quiet and b.quiet]
    return [a.tokens_per_second / b.tokens_per_second for a, b in (quiet if len(quiet) >= ENOUGH else pairs)]


def by_half_round(samples: Sequence[Sample]) -> list[Sample]:
    """In the order of the half rounds."""
    return sorted(samples, key=lambda s: s.half_round)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A bootstrap 95 % interval of the median."""
    drawn = np.random.default_rng(0).choice(np.array(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, -1), (2.5, 97.5))
    return float(low), float(high)


def summarise(mine: Sequence[Sample], peers: dict[str, list[Sample]], token_bytes: int | None) -> dict[str, Any]:
    """One engine's samples of one test with one number of threads, beside those of its peers."""
    rates = [s.tokens_per_second for s in chosen(mine)]
    cpu_rates = [s.tokens_per_cpu_second for s in chosen(mine)]
    median = statistics.median(rates)
    against = {peer: ratios(mine, theirs) for peer, theirs in peers.items()}
    return {
        "engine": mine[0].engine,
        "test": mine[0].test,
        "threads": mine[0].threads,
        "median": median,
        "low": min(rates),
        "high": max(rates),
        "per_cpu_second": statistics.median(cpu_rates),
        "quiet": sum(s.quiet for s in mine),
        "samples": len(mine),
        "gb_per_second": median * token_bytes / 1e9 if token_bytes and mine[0].test == "decode" else None,
        "ratios": {peer: [statistics.median(values), *interval(values)] for peer, values in against.items()},
    }


def summaries(samples: Sequence[Sample], peers: Sequence[str], facts: dict[str, Any]) -> list[dict[str, Any]]:
    """A summary for each number of threads, test and engine, in the order of measuring."""
    groups: dict[tuple[int, str], dict[str, list[Sample]]] = {}
    for s in samples:
        groups.setdefault((s.threads, s.test), {}).setdefault(s.engine, []).append(s)
    return [
        summarise(mine, {p: of[p] for p in peers if p != engine and engine not in peers}, facts[engine]["token_bytes"])
        for of in groups.values()
        for engine, mine in of.items()
    ]


def table(record: dict[str, Any]) -> str:
    """The record's summaries as a Markdown table."""
    peers = record["peers"]
    columns = ["threads", "test", "engine", "tokens/s", "range", "per CPU s", "weights read", "quiet"]
    columns += [f"× {peer}" for peer in peers]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in record["summaries"]:
        ceiling = statistics.median(record["read_gb_per_second"][str(row["threads"])])
        gb = row["gb_per_second"]
        found = [row["ratios"].get(peer) for peer in peers]
        cells = [
            str(row["threads"]),
            f"{row['test']} {record['plan'][{'prefill': 'prompt', 'decode': 'generate'}[row['test']]]}",
            row["engine"],
            f"{row['median']:,.1f}",
            f"{row['low']:,.1f} to {row['high']:,.1f}",
            f"{row['per_cpu_second']:,.1f}",
            f"{gb:.1f} of {ceiling:.1f} GB/s" if gb else "",
            f"{row['quiet']} of {row['samples']}" if row["quiet"] >= ENOUGH else "busy",
            *(f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})" if ratio else "" for ratio in found),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ---- the command -----------------------------------------------------------------------------------------------------


def run(plan: Plan, engines: Sequence[str], peers: Sequence[str], threads: Sequence[int]) -> dict[str, Any]:
    """Measure everything: the record, as it is written to JSON."""
    load_before = conditions.load_average()
    samples: list[Sample] = []
    ceilings: dict[str, list[float]] = {}
    facts: dict[str, Any] = {}
    for count in threads:
        new, ceilings[str(count)], facts = measure(plan, [*engines, *peers], count)
        samples += new
    return {
        "date": conditions.today(),
        "machine": conditions.machine(),
        "load_average": [load_before, conditions.load_average()],
        "model": {"file": plan.model.name, "bytes": plan.model.stat().st_size, "sha256": sha256(plan.model)},
        "plan": {**asdict(plan), "model": plan.model.name},
        "engines": facts,
        "peers": list(peers),
        "read_gb_per_second": ceilings,
        "summaries": summaries(samples, peers, facts),
        "samples": [asdict(s) for s in samples],
    }


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure prefill and decode, beside a peer")
    parser.add_argument("model", type=Path, help="a model file that all engines load")
    parser.add_argument("--engine", action="append", help=f"{', '.join(ENGINES)}; may be given again (pyllm's two)")
    parser.add_argument("--peer", action="append", default=[], help="an engine that the others are compared with")
    parser.add_argument("--threads", action="append", type=int, help="may be given again (1 and 2)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prefill (512)")
    parser.add_argument("--generate", type=int, default=128, help="tokens of a decode (128)")
    parser.add_argument("--rounds", type=int, default=5, help="each gives two samples per engine and test (5)")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait for a quiet machine per sample (0)")
    parser.add_argument("--json", type=Path, help="write the whole record to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    plan = Plan(arguments.model, arguments.prompt, arguments.generate, arguments.rounds, arguments.wait)
    record = run(plan, arguments.engine or DEFAULT_ENGINES, arguments.peer, arguments.threads or (1, 2))
    if arguments.json:
        arguments.json.write_text(conditions.format_record(record), "utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
