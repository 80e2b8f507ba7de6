"""Everything that is timed, of pyllm and its peers side by side, with the machine's own rates and law 2's figures.

    python benchmarks/compare.py MODEL [--engine pyllm:high ...] [--peer llama.cpp ...] [--threads 1 --threads 2]
        [--test decode ...] [--rounds 10] [--wait 60] [--converted FOLDER] [--reference FILE.npz] [--json FILE]

prefill    512 random token ids into an empty context, in one call
decode     128 single ids into an empty context
depth      128 single ids into contexts of 1,024 and 4,096
batch      8 prompts of 16 ids at once (--sequences), 128 more tokens of each
text       from text to text: 128 tokens of the likeliest continuation
cold       from the start of a process to its first token
company    decoding beside a busy loop, and beside a second process of the same engine
memory     what an engine holds once it has done all that
fidelity   law 2's figures, where there is a reference (fidelity.py)

How samples are taken and judged is in pyllm/measuring/comparing.py; the engines are in peers/. The record holds every
sample.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cold
import company
import conditions
import fidelity
from peers import ENGINES, Setup, open_engine

import pyllm
from pyllm.machine import available_threads
from pyllm.measuring import comparing
from pyllm.measuring.comparing import LOOK, SETTLING, Trial, Worker
from pyllm.measuring.probes import buffer_of

DEFAULT_ENGINES = ("pyllm:high", "pyllm:fast")
TESTS = ("prefill", "decode", "depth", "batch", "text", "cold", "company", "memory", "fidelity")
PROMPT = "Once upon a time"
BATCH_PROMPT = 16
#: The file that the reference in tests/golden was made for.
GOLDEN_FOR = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@dataclass(frozen=True)
class Plan:
    """What is measured. `wait`: seconds to wait for a quiet machine before each sample."""

    model: Path
    engines: Sequence[str]
    peers: Sequence[str]
    tests: Sequence[str] = TESTS
    prompt: int = 512
    generate: int = 128
    depths: Sequence[int] = (1024, 4096)
    sequences: Sequence[int] = (8,)
    rounds: int = 5
    wait: float = 0.0
    converted: Path | None = None
    reference: Path | None = None
    tokenizer: Path | None = None

    @property
    def names(self) -> list[str]:
        """All engines, ours first."""
        return [*self.engines, *self.peers]

    def trials(self) -> list[Trial]:
        """What goes through the loaded engines."""
        made = {
            "prefill": [comparing.prefill(self.prompt)],
            "decode": [comparing.decode(self.generate)],
            "depth": [comparing.decode(self.generate, depth) for depth in self.depths],
            "batch": [comparing.batch(n, BATCH_PROMPT, self.generate) for n in self.sequences],
            "text": [comparing.text(PROMPT, self.generate)],
        }
        return [trial for test in self.tests for trial in made.get(test, [])]

    def setup(self, threads: int) -> Setup:
        """What the engines are opened for."""
        deepest = max(self.depths) if "depth" in self.tests else 0
        longest = max(self.prompt, deepest + self.generate)
        return Setup(self.model, threads, longest, converted=self.converted, tokenizer=self.tokenizer)


# ---- measuring -------------------------------------------------------------------------------------------------------


def run(plan: Plan, threads: Sequence[int]) -> dict[str, Any]:
    """Measure everything: the record, as it is written to JSON. Ctrl-C leaves what was measured until then."""
    load_before, start = conditions.load_average(), time.monotonic()
    found: dict[str, list[Any]] = {name: [] for name in ("results", "memory", "company", "failures", "samples")}
    facts: dict[str, Any] = {}
    closeness: dict[str, Any] = {}
    try:
        if "fidelity" in plan.tests:
            closeness = measure_fidelity(plan, found["failures"])
        for count in threads:
            measure(plan, count, facts, found)
    except KeyboardInterrupt:
        print("interrupted: the record holds what was measured until now", file=sys.stderr)
    sha256 = conditions.sha256(plan.model)
    return {
        "date": conditions.today(),
        "machine": conditions.machine(),
        "load_average": [load_before, conditions.load_average()],
        "minutes": (time.monotonic() - start) / 60,
        "model": {"file": plan.model.name, "bytes": plan.model.stat().st_size, "sha256": sha256},
        "plan": {"tests": plan.tests, "rounds": plan.rounds, "wait": plan.wait},
        "engines": facts,
        "peers": list(map(shown, plan.peers)),
        "fidelity": closeness,
        **found,
    }


def measure(plan: Plan, threads: int, facts: dict[str, Any], found: dict[str, list[Any]]) -> None:
    """All that is done with one number of threads. `facts` gets what the engines are, `found` what was measured."""
    setup, absent = plan.setup(threads), {}
    with comparing.workers(open_engine, plan.names, setup, absent) as opened:
        names = [worker.name for worker in opened]
        found["failures"] += failed(absent, "opening", threads)
        facts |= {shown(worker.name): worker.facts for worker in opened}
        for trial in plan.trials():
            found["results"] += time_one(plan, threads, opened, trial, found)
        if "memory" in plan.tests:
            found["memory"] += [held(worker, plan.model) for worker in opened if "=" not in worker.name]
    if "cold" in plan.tests:
        with comparing.workers(cold.open_starter, names, setup) as opened:
            found["results"] += map(cold.seconds, time_one(plan, threads, opened, cold.TRIAL, found))
    if "company" in plan.tests:
        trial = comparing.decode(plan.generate)
        announce(replace(trial, name="company"), threads, {}, plan.rounds)
        rows, failures = company.measure(open_engine, names, setup, trial, plan.rounds, plan.wait)
        found["company"] += [row | {"engine": shown(row["engine"])} for row in rows]
        found["failures"] += failed(failures, "company", threads)


def time_one(
    plan: Plan, threads: int, opened: Sequence[Worker], trial: Trial, found: dict[str, list[Any]]
) -> list[dict[str, Any]]:
    """The summaries of one trial; its samples, and the failures, go to `found`."""
    able, failures = comparing.warm_up(opened, trial)
    found["failures"] += failed(failures, trial.name, threads)
    announce(trial, threads, able, plan.rounds)
    buffer = buffer_of(plan.model.stat().st_size)
    samples = comparing.measure(list(able), trial, plan.rounds, buffer, plan.wait) if able else []
    found["samples"] += [asdict(s) | {"engine": shown(s.engine)} for s in samples]
    rows = comparing.summaries(samples, [trial], plan.peers, {w.name: w.facts for w in opened})
    for row in rows:
        row["engine"] = shown(row["engine"])
        row["ratios"] = {shown(peer): ratio for peer, ratio in row["ratios"].items()}
    return rows


def measure_fidelity(plan: Plan, failures: list[Any]) -> dict[str, Any]:
    """Law 2's figures of every engine, each in a process of its own; none where there is no reference."""
    source = plan.reference
    if source is None and conditions.sha256(plan.model) == GOLDEN_FOR:
        source = fidelity.GOLDEN / "smollm2_logits.npz"
    if source is None:
        print("no --reference for this model: no figures of fidelity", file=sys.stderr)
        return {}
    reference, rows = fidelity.read_reference(source), {}
    for name in dict.fromkeys(name.partition("@")[0] for name in plan.names):
        print(f"fidelity of {shown(name)}", file=sys.stderr)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                source = (plan.model, available_threads(), plan.converted)
                rows[shown(name)] = asdict(pool.submit(fidelity.measure, name, reference, *source).result()[1])
            except Exception as error:  # whatever a peer raises is recorded
                failures += failed({name: f"{type(error).__name__}: {error}"}, "fidelity", 0)
    return rows


def held(worker: Worker, model: Path) -> dict[str, Any]:
    """What an engine holds in memory, beside the size of the file."""
    return {"engine": worker.name, "threads": worker.threads, "file": model.stat().st_size, **worker.memory()}


def failed(failures: dict[str, str], test: str, threads: int) -> list[dict[str, Any]]:
    """Rows of a record for what did not work."""
    for name, reason in failures.items():
        print(f"{shown(name)}, {test}: {reason}", file=sys.stderr)
    return [{"engine": shown(name), "test": test, "threads": threads, "reason": why} for name, why in failures.items()]


def shown(name: str) -> str:
    """An engine's name as records and tables have it: without the folders of its program."""
    program, equals, path = name.partition("=")
    return f"{program}{equals}{Path(path).name}" if equals else name


def announce(trial: Trial, threads: int, able: dict[Worker, float], rounds: int) -> None:
    """Say on stderr what begins, and about how long it takes."""
    seconds = 2 * rounds * sum(took + SETTLING + LOOK for took in able.values())
    about = f", {len(able)} engines, about {seconds / 60:.1f} min" if able else ""
    print(f"{threads} thread(s), {trial.name}{about}", file=sys.stderr)


# ---- what was found --------------------------------------------------------------------------------------------------


def table(record: dict[str, Any]) -> str:
    """The record's figures as Markdown tables."""
    closeness = record["fidelity"]
    columns = ["test", "threads", "engine", "median", "range", "of the ceiling", "samples", "top-1 kept", "× best peer"]
    lines = [row_of(columns), "|" + "---|" * len(columns)]
    for row in record["results"]:
        close = closeness.get(row["engine"].partition("@")[0])
        unit, digits = (" s", 3) if row.get("unit") == "s" else ("", 1)
        cells = [
            row["test"],
            str(row["threads"]),
            row["engine"],
            f"{row['median']:,.{digits}f}{unit}",
            f"{row['low']:,.{digits}f} to {row['high']:,.{digits}f}",
            rate(row),
            f"{row['condition']}, {row['counted']} of {row['samples']}",
            f"{close['top1_kept']:.2%}" if close else "",
            against_best(row["ratios"]),
        ]
        lines.append(row_of(cells))
    parts = ["\n".join(lines)]
    if record["memory"]:
        parts.append(memory_table(record["memory"]))
    if record["company"]:
        parts.append(company.table(record["company"]))
    if closeness:
        parts.append(fidelity.table({name: fidelity.Figures(**row) for name, row in closeness.items()}))
    parts += [f"{f['engine']}, {f['test']}: {f['reason']}" for f in record["failures"]]
    return "\n\n".join(parts)


def row_of(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def rate(row: dict[str, Any]) -> str:
    """Bandwidth used while decoding and its share of what was there, or multiply-accumulates of a prefill."""
    if "share_of_ceiling" in row:
        return f"{row['gb_per_second']:.1f} GB/s, {row['share_of_ceiling']:.0%}"
    return f"{row['gmac_per_second']:,.0f} GMAC/s" if "gmac_per_second" in row else ""


def against_best(ratios: dict[str, dict[str, Any]]) -> str:
    """The smallest of the ratios to peers, with its interval; in brackets where its pairs do not stand."""
    if not ratios:
        return ""
    peer, found = min(ratios.items(), key=lambda item: item[1]["median"])
    words = f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
    return f"{words if found['stands'] else f'[{words}]'} {peer}"


def memory_table(rows: Sequence[dict[str, Any]]) -> str:
    """What engines hold, as a Markdown table in MB."""
    lines = ["| engine | threads | file, MB | held, MB | of that nobody else can use |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['engine']} | {r['threads']} | {r['file'] / 1e6:,.0f} | {r['all'] / 1e6:,.0f} "
        f"| {r['anonymous'] / 1e6:,.0f} |"
        for r in rows
        if "all" in r
    ]
    return "\n".join(lines)


# ---- the command -----------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure pyllm and its peers side by side")
    add: Callable[..., Any] = parser.add_argument
    add("model", type=Path, help="a model file; peers read it, or what convert.py made of it")
    add("--engine", action="append", help=f"{', '.join(ENGINES)}; may be given again (pyllm's two)")
    add("--peer", action="append", default=[], help="an engine that the others are compared with; ENGINE@1: one thread")
    add("--threads", action="append", type=int, help="may be given again (1 and 2)")
    add("--test", action="append", choices=TESTS, help="may be given again (all)")
    add("--prompt", type=int, default=512, help="tokens of a prefill (512)")
    add("--generate", type=int, default=128, help="tokens of a decode (128)")
    add("--depth", action="append", type=int, help="tokens before a decode; may be given again (1024 and 4096)")
    add("--sequences", action="append", type=int, help="prompts of a batch; may be given again (8)")
    add("--rounds", type=int, default=5, help="each gives two samples per engine and test (5)")
    add("--wait", type=float, default=0.0, help="seconds to wait for a quiet machine before a sample (0)")
    add("--converted", type=Path, help="the folder that convert.py filled")
    add("--reference", type=Path, help="a .npz by fidelity.py --save (that of the default model, for it)")
    add("-z", "--tokenizer", type=Path, help="a tokenizer, where the model's file holds none")
    add("--json", type=Path, help="write the whole record to this file")
    return parser.parse_args(argv)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan that the options ask for, without what is too long for the model."""
    with pyllm.load(arguments.model, threads=1) as model:
        room = model.context_length
    depths = [depth for depth in arguments.depth or (1024, 4096) if depth + arguments.generate <= room]
    tests = [test for test in TESTS if test in (arguments.test or TESTS) and (test != "depth" or depths)]
    engines = arguments.engine or DEFAULT_ENGINES
    return Plan(
        arguments.model,
        engines,
        arguments.peer,
        tests,
        min(arguments.prompt, room),
        min(arguments.generate, room - BATCH_PROMPT),
        depths,
        arguments.sequences or (8,),
        arguments.rounds,
        arguments.wait,
        arguments.converted,
        arguments.reference,
        arguments.tokenizer,
    )


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    try:
        record = run(plan_of(arguments), arguments.threads or (1, 2))
    except (ChildProcessError, pyllm.PyllmError, OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    if arguments.json:
        arguments.json.write_text(conditions.format_record(record), "utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
