"""Engines beside each other, so that the ratios between them mean something.

Each engine lives in a process of its own that sleeps while others are timed. A round runs all of them in one order and
then in the other (A B B A), so that what drifts meets all alike. Around every sample the machine is looked at: a sample
stands where nobody else used it before or after and its threads stayed where they were. Ratios are taken between
neighbours, the two samples of one half round, where both stand and in the same placement: their median, with a
bootstrap 95 % interval. Where fewer than three such pairs are left all are taken, and the figure is called busy.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm import machine
from pyllm.measuring.peers import Engine, Setup, Taken
from pyllm.measuring.probes import LOOK, QUIET, Probe, idle_share, probe, wait_until_quiet
from pyllm.progress import silent

if TYPE_CHECKING:
    import numpy.typing as npt

Open = Callable[[str, Setup], Engine]

SHORTEST = 0.1  # seconds: a test that takes less is repeated within its sample
SETTLING = 0.25  # seconds after a run, because some runtimes' threads spin for 0.2 before they sleep
LONGEST = 600  # seconds that an engine may take to load, or for one sample
SHUTTING_DOWN = 20  # seconds, after which it is killed
ENOUGH = 3  # samples, or pairs, that a median needs
RESAMPLES = 2000
SMALLEST_VOCABULARY = 256  # ids are drawn below this: every model has them, and which ids they are costs nothing


@dataclass(frozen=True)
class Trial:
    """What is timed: a method of `Engine`, its arguments, and what to call it. `context`: positions that a token reads,
    on average.
    """

    name: str
    method: str
    arguments: tuple[Any, ...]
    context: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One run of one test by one engine, and the machine before and after it: idle share, and where threads stood."""

    engine: str
    test: str
    threads: int
    half_round: int
    tokens_per_second: float
    tokens_per_cpu_second: float
    idle: tuple[float | None, float | None]
    probes: tuple[Probe, Probe]

    @property
    def quiet(self) -> bool:
        """Whether nothing else was running, as far as the system tells."""
        return all(share is not None and share >= QUIET for share in self.idle)

    @property
    def standing(self) -> str | None:
        """The placement in which the sample counts: "one" thread, "near" or "far"; None where it does not count."""
        before, after = ("one", "one") if self.threads == 1 else (p.placement for p in self.probes)
        return before if self.quiet and before == after else None


# ---- trials ----------------------------------------------------------------------------------------------------------


def random_ids(n: int, seed: int = 0) -> list[int]:
    """`n` token ids that any model has."""
    ids: list[int] = np.random.default_rng(seed).integers(0, SMALLEST_VOCABULARY, n).tolist()
    return ids


def prefill(n: int) -> Trial:
    """A prompt of `n` tokens into an empty context, in one call."""
    return Trial(f"prefill {n}", "prefill", (random_ids(n),))


def decode(n: int, depth: int = 0) -> Trial:
    """`n` single tokens, into a context that holds `depth` tokens."""
    name = f"decode {n} at {depth}" if depth else f"decode {n}"
    return Trial(name, "decode", (random_ids(n), random_ids(depth, seed=1)), depth + (n + 1) / 2)


def batch(sequences: int, prompt: int, n: int) -> Trial:
    """`sequences` different prompts of `prompt` tokens at once, `n` more tokens each."""
    prompts = [random_ids(prompt, seed=i + 2) for i in range(sequences)]
    return Trial(f"batch {sequences} × {n}", "batch", (prompts, n))


def text(prompt: str, n: int) -> Trial:
    """A text continued by at most `n` tokens, from text to text."""
    return Trial(f"text {n}", "text", (prompt, n))


# ---- engines in processes of their own -------------------------------------------------------------------------------


def _serve(pipe: Connection, open_engine: Open, specification: str, setup: Setup) -> None:
    """The process of an engine: it says what it is, then does what it is sent until that is None. What fails it answers
    with the exception's text.
    """
    before = machine.resident_bytes()
    with _answering(pipe):
        engine = open_engine(specification, setup)
        costs = asdict(engine.costs) if engine.costs else None
        pipe.send({"version": engine.version, "costs": costs, "tests": sorted(engine.tests)})
        while (task := pipe.recv()) is not None:
            method, arguments = task
            with _answering(pipe):
                pipe.send(_memory(before) if method == "memory" else _run(getattr(engine, method), arguments))
        engine.close()


@contextmanager
def _answering(pipe: Connection) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a peer raises is the answer; the parent raises it again
        pipe.send(f"{type(error).__name__}: {error}")


def _run(method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    answer = method(*arguments)
    while isinstance(answer, Taken) and answer.seconds < SHORTEST and answer.tokens:
        answer += method(*arguments)
    return answer


def _memory(before: dict[str, int]) -> dict[str, int]:
    """What the process holds by kind of page, beyond what it held before there was an engine in it."""
    return {kind: held - before[kind] for kind, held in machine.resident_bytes().items()}


class Worker:
    """An engine in a process of its own. Raises `ChildProcessError` with its reason where that engine fails."""

    def __init__(self, open_engine: Open, specification: str, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        engine, _, threads = specification.partition("@")
        setup = replace(setup, threads=int(threads)) if threads else setup
        self.name, self.threads = specification, setup.threads
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, open_engine, engine, setup), daemon=True)
        self._process.start()
        theirs.close()
        self.facts: dict[str, Any] = self.receive()

    def can(self, trial: Trial) -> bool:
        """Whether the engine has what the trial needs."""
        return trial.method in self.facts["tests"]

    def begin(self, trial: Trial) -> None:
        """Start a trial; `receive` waits for its end."""
        self._pipe.send((trial.method, trial.arguments))

    def run(self, trial: Trial) -> Taken:
        """Run a trial, several times where it is short."""
        self.begin(trial)
        taken: Taken = self.receive()
        return taken

    def memory(self) -> dict[str, int]:
        """Bytes that the engine holds by kind of page (`machine.resident_bytes`)."""
        self._pipe.send(("memory", ()))
        held: dict[str, int] = self.receive()
        return held

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """See `Engine`."""
        self._pipe.send(("logits", (list(ids),)))
        rows: npt.NDArray[np.float32] = self.receive()
        return rows

    def receive(self) -> Any:
        """The answer to what was sent last."""
        try:
            answer = self._pipe.recv() if self._pipe.poll(LONGEST) else self._give_up()
        except EOFError:
            self._process.join()
            answer = f"its process ended with status {self._process.exitcode}"
        if isinstance(answer, str):
            raise ChildProcessError(f"{self.name}: {answer}")
        return answer

    def _give_up(self) -> str:
        self._process.kill()
        return f"no answer within {LONGEST} s"

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join(SHUTTING_DOWN)
        self._process.kill()


@contextmanager
def workers(
    open_engine: Open, specifications: Sequence[str], setup: Setup, failures: dict[str, str] | None = None
) -> Iterator[list[Worker]]:
    """All engines, loaded. "ENGINE@N" gives one N threads, whatever the others have. Those that cannot be had are left
    out, and `failures` gets the reasons; without it `ChildProcessError` is raised.
    """
    with ExitStack() as stack:
        opened = []
        for specification in specifications:
            try:
                worker = Worker(open_engine, specification, setup)
            except ChildProcessError as error:
                if failures is None:
                    raise
                failures[specification] = str(error).removeprefix(f"{specification}: ")
                continue
            stack.callback(worker.close)
            opened.append(worker)
        yield opened


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(
    opened: Sequence[Worker],
    trial: Trial,
    rounds: int,
    buffer: npt.NDArray[np.uint8],
    patience: float = 0.0,
    report: Callable[[int, int], None] = silent,
) -> list[Sample]:
    """Run a trial `rounds` times there and back over engines that have it, warmed up.

    `buffer`: what the probes read. `patience`: seconds to wait for a quiet machine before a sample. `report` is told
    (samples done, samples in all).
    """
    samples: list[Sample] = []
    idle = _look(patience)
    for half in range(2 * rounds):
        for worker in opened if half % 2 == 0 else reversed(opened):
            before = probe(buffer, worker.threads)
            taken = worker.run(trial)
            after = probe(buffer, worker.threads)
            rates = (taken.tokens / taken.seconds, taken.tokens / taken.cpu_seconds)
            idle_before, idle = idle, _look(0)
            looks = ((idle_before, idle), (before, after))
            samples.append(Sample(worker.name, trial.name, worker.threads, half, *rates, *looks))
            if patience and not samples[-1].quiet:
                idle = _look(patience)
            report(len(samples), 2 * rounds * len(opened))
    return samples


def warm_up(opened: Sequence[Worker], trial: Trial) -> tuple[dict[Worker, float], dict[str, str]]:
    """Run a trial once on every engine that has it: the seconds of those that did it, and why others failed."""
    able, failures = {}, {}
    for worker in opened:
        if worker.can(trial):
            start = time.monotonic()
            try:
                worker.run(trial)
                able[worker] = time.monotonic() - start
            except ChildProcessError as error:
                failures[worker.name] = str(error).removeprefix(f"{worker.name}: ")
    return able, failures


def _look(patience: float) -> float | None:
    time.sleep(SETTLING)
    return wait_until_quiet(patience) if patience else idle_share(LOOK)


# ---- what the samples say --------------------------------------------------------------------------------------------


def chosen(samples: Sequence[Sample]) -> tuple[list[Sample], str]:
    """The samples that count, and why: those of the placement in which most stand; all, "busy", where too few do."""
    standing = Counter(s.standing for s in samples if s.standing)
    best, count = standing.most_common(1)[0] if standing else ("busy", 0)
    if count < ENOUGH:
        return list(samples), "busy"
    return [s for s in samples if s.standing == best], best


def ratios(ours: Sequence[Sample], theirs: Sequence[Sample]) -> tuple[list[float], bool]:
    """Ours over theirs within each half round, and whether those pairs stand: pairs of which one was disturbed, or
    whose placements differ, are left out, unless fewer than three remain.
    """
    pairs = list(zip(_by_half_round(ours), _by_half_round(theirs), strict=True))
    good = [(a, b) for a, b in pairs if comparable(a, b)]
    stands = len(good) >= ENOUGH
    return [a.tokens_per_second / b.tokens_per_second for a, b in (good if stands else pairs)], stands


def comparable(a: Sample, b: Sample) -> bool:
    """Whether both stand, and in the same placement; one thread is nowhere in particular."""
    if a.standing is None or b.standing is None:
        return False
    return a.standing == b.standing or "one" in (a.standing, b.standing)


def _by_half_round(samples: Sequence[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda s: s.half_round)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A bootstrap 95 % interval of the median."""
    drawn = np.random.default_rng(0).choice(np.array(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, -1), (2.5, 97.5))
    return float(low), float(high)


def summarise(
    mine: Sequence[Sample], trial: Trial, peers: Mapping[str, Sequence[Sample]], costs: dict[str, int] | None
) -> dict[str, Any]:
    """One engine's samples of one trial, beside those of its peers: what a table shows, and what a record keeps.

    `costs` (`peers.Costs`) gives GB/s of decoding, and their share of what the probes around each sample read; and
    GMAC/s of a prefill.
    """
    counted, condition = chosen(mine)
    rates = [s.tokens_per_second for s in counted]
    reads = [max(p.gb_per_second for p in s.probes) for s in counted]
    row: dict[str, Any] = {
        "engine": mine[0].engine,
        "test": trial.name,
        "threads": mine[0].threads,
        "median": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
        "per_cpu_second": statistics.median(s.tokens_per_cpu_second for s in counted),
        "condition": condition,
        "counted": len(counted),
        "samples": len(mine),
        "ceiling_gb_per_second": statistics.median(reads),
        "ratios": {peer: _ratio(mine, theirs) for peer, theirs in peers.items()},
    }
    if costs and trial.method == "decode":
        token = (costs["weight_bytes"] + costs["position_bytes"] * trial.context) / 1e9
        row["gb_per_second"] = row["median"] * token
        row["share_of_ceiling"] = statistics.median(
            rate * token / read for rate, read in zip(rates, reads, strict=True)
        )
    if costs and trial.method == "prefill":
        row["gmac_per_second"] = statistics.median(rates) * costs["layer_macs"] / 1e9
    return row


def _ratio(mine: Sequence[Sample], theirs: Sequence[Sample]) -> dict[str, Any]:
    values, stands = ratios(mine, theirs)
    low, high = interval(values)
    return {"median": statistics.median(values), "low": low, "high": high, "pairs": len(values), "stands": stands}


def summaries(
    samples: Sequence[Sample], trials: Sequence[Trial], peers: Sequence[str], facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """A summary for each trial and engine, in the order of measuring; those that are no peers beside those that are."""
    rows = []
    for trial in trials:
        of: dict[str, list[Sample]] = {}
        for s in samples:
            if s.test == trial.name:
                of.setdefault(s.engine, []).append(s)
        for engine, mine in of.items():
            beside = {peer: of[peer] for peer in peers if peer in of and engine not in peers}
            rows.append(summarise(mine, trial, beside, facts[engine]["costs"]))
    return rows
