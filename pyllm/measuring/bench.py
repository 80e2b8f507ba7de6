"""How fast a model is here and now: loading, prefill and decode apart, beside the machine's own ceiling.

The protocol is that of llama-bench: random token ids; prefill is one prompt evaluated into an empty context; decode is
single tokens from an empty context on, without sampling; a warm-up of each first; medians. The ceiling is the rate at
which the same number of threads reads a buffer as large as the weights, probed before and after: two probes that
differ, or a share above 1, say that the machine was not quiet. `compare` puts other engines beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm import _core
from pyllm.measuring import comparing
from pyllm.measuring.comparing import random_ids
from pyllm.measuring.peers import Setup, open_engine, position_bytes
from pyllm.measuring.probes import PASSES, buffer_of
from pyllm.model import load
from pyllm.progress import Progress, silent

if TYPE_CHECKING:
    from pyllm.model import Model, Session

#: What engines read to be compared in what they say.
PROSE = """\
The harbour lay quiet in the early morning, and only the gulls were awake. A fishing boat came round the breakwater with
its engine turned low; two men stood in the bow and said nothing. They had been out since midnight, and the catch was
small. On the quay an old woman was mending a net, as she had done every day for forty years, and she looked up when the
rope was thrown. "Well?" she asked. "Nothing to speak of," said the elder of the two, "but the wind is turning." She
nodded, because the wind always turned in the first week of October, and went on with her work. Later the sun would come
over the hills, the shutters would open one after the other, and the smell of bread would drift down from the square.
"""


@dataclass(frozen=True)
class Plan:
    """What is measured: tokens of a prefill, tokens of a decode, and how often each is run after one warm-up."""

    prompt: int = 512
    generate: int = 128
    repeats: int = 5

    def __post_init__(self) -> None:
        for name in ("prompt", "generate", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Rate:
    """Tokens per second of one test: the median of its runs, and all of them."""

    tokens: int
    median: float
    runs: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """Everything measured, and what it was measured with. Seconds; bytes; GB are 10**9 bytes."""

    model: str
    isa: str
    threads: int
    precision: str
    weight_bytes: int
    load_seconds: float
    first_token_seconds: float  # prompt in, first token out, through `Model.generate`
    prefill: Rate
    decode: Rate
    bytes_per_token: int  # weights and KV read for one decoded token, the KV at its mean length
    decode_gb_per_second: float
    ceiling_gb_per_second: tuple[float, float]  # before and after
    share_of_ceiling: float  # decode over the better probe


def run(open_model: Callable[[], Model], plan: Plan) -> Result:
    """Load a model by calling `open_model`, and measure it. Takes (repeats + 1) times a prefill and a decode."""
    start = time.perf_counter()
    with open_model() as model:
        load_seconds = time.perf_counter() - start
        probe = buffer_of(model.nbytes)
        before = _ceiling(probe, model.threads)
        prefill, decode = _prefill(model, plan), _decode(model, plan)
        after = _ceiling(probe, model.threads)
        first = model.generate(random_ids(plan.prompt), max_tokens=1)
        first.text  # noqa: B018  a generation runs when it is read
        bytes_per_token = model.token_bytes + position_bytes(model) * (plan.generate + 1) // 2
        rate = decode.median * bytes_per_token / 1e9
        return Result(
            model=str(model.path),
            isa=_core.isa_current(),
            threads=model.threads,
            precision=model.precision,
            weight_bytes=model.nbytes,
            load_seconds=load_seconds,
            first_token_seconds=first.stats.time_to_first_token,
            prefill=prefill,
            decode=decode,
            bytes_per_token=bytes_per_token,
            decode_gb_per_second=rate,
            ceiling_gb_per_second=(before, after),
            share_of_ceiling=rate / max(before, after),
        )


def report(result: Result) -> str:
    """The result for people."""
    before, after = result.ceiling_gb_per_second
    rows = [
        ("model", result.model),
        ("with", f"{result.isa}, {result.threads} thread(s), precision {result.precision}"),
        ("load", f"{result.load_seconds:.3f} s, {result.weight_bytes / 1e6:,.1f} MB of weights"),
        ("first token", f"{result.first_token_seconds:.3f} s after a prompt of {result.prefill.tokens} tokens"),
        (f"prefill {result.prefill.tokens}", _spread(result.prefill)),
        (f"decode {result.decode.tokens}", _spread(result.decode)),
        ("bandwidth", f"{result.decode_gb_per_second:.1f} GB/s, {result.share_of_ceiling:.0%} of the ceiling"),
        ("ceiling", f"{before:.1f} GB/s before, {after:.1f} GB/s after"),
    ]
    return "\n".join(f"{name:<12}  {value}" for name, value in rows)


def compare(
    model: Path, ours: str, peers: Sequence[str], threads: int, plan: Plan, progress: Progress = silent
) -> dict[str, Any]:
    """Prefill and decode of `ours` ("pyllm:high") beside other engines, in turn, as `pyllm.measuring.comparing` says.

    That module tells what the "results" mean. Takes about 2 (repeats + 1) times a prefill, a decode and two looks per
    engine.

    Raises `ChildProcessError` where an engine cannot be had or cannot read the model.
    """
    setup = Setup(model, threads, max(plan.prompt, plan.generate))
    trials = [comparing.prefill(plan.prompt), comparing.decode(plan.generate)]
    buffer, samples = buffer_of(model.stat().st_size), []
    with comparing.workers(open_engine, [ours, *peers], setup) as opened:
        for i, trial in enumerate(trials):
            for worker in opened:
                worker.run(trial)

            def report(done: int, total: int, i: int = i) -> None:
                progress(i * total + done, len(trials) * total)

            samples += comparing.measure(opened, trial, plan.repeats, buffer, report=report)
        facts = {worker.name: worker.facts for worker in opened}
    return {
        "model": str(model),
        "threads": threads,
        "engines": {name: fact["version"] for name, fact in facts.items()},
        "peers": list(peers),
        "results": comparing.summaries(samples, trials, peers, facts),
        "agreement": _agreement(model, ours, peers, threads),
    }


def _agreement(model: Path, ours: str, peers: Sequence[str], threads: int) -> dict[str, float]:
    """The share of a text's positions at which each peer holds the same token for the likeliest as pyllm in precision
    "high", which is the model's own choice at 99.9 % of them. Empty where the model has no tokenizer.
    """
    with load(model, threads=threads) as opened:
        if opened.tokenizer is None:
            return {}
        ids = opened.tokenizer.encode(PROSE)[: opened.context_length]
        chosen = opened.logits(ids).argmax(-1)
    setup = Setup(model, threads, len(ids), every_logit=True)
    with comparing.workers(open_engine, [name for name in (ours, *peers) if name != "pyllm:high"], setup) as workers:
        return {worker.name: float((worker.logits(ids).argmax(-1) == chosen).mean()) for worker in workers}


def report_comparison(found: dict[str, Any]) -> str:
    """What `compare` found, for people."""
    lines = [f"{found['model']}, {found['threads']} thread(s), tokens/s", ""]
    lines += [_comparison_row("test", "engine", ("median", "lowest", "highest"), [f"× {p}" for p in found["peers"]])]
    for row in found["results"]:
        numbers = [f"{row[key]:,.1f}" for key in ("median", "low", "high")]
        lines.append(_comparison_row(row["test"], row["engine"], numbers, map(_times, row["ratios"].values())))
    lines += [
        f"{name} chooses as pyllm:high at {share:.1%} of a text's positions"
        for name, share in found["agreement"].items()
    ]
    lines += ["", *(f"{name}: {version}" for name, version in found["engines"].items())]
    if any(row["condition"] == "busy" for row in found["results"]):
        lines += ["", "Others used this machine meanwhile, or it tells nothing of them: believe no figure above."]
    return "\n".join(lines)


def _comparison_row(test: str, engine: str, numbers: Iterable[str], ratios: Iterable[str]) -> str:
    cells = [f"{test:<13}", f"{engine:<14}", *(f"{number:>10}" for number in numbers), "", *ratios]
    return " ".join(cells).rstrip()


def _times(ratio: dict[str, Any]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _spread(rate: Rate) -> str:
    return f"{rate.median:,.1f} tokens/s, median of {len(rate.runs)} ({min(rate.runs):,.1f} to {max(rate.runs):,.1f})"


def _ceiling(probe: np.ndarray, threads: int) -> float:
    return _core.read_bandwidth(probe, threads, PASSES) / 1e9


def _prefill(model: Model, plan: Plan) -> Rate:
    ids = random_ids(plan.prompt)

    def once(session: Session) -> None:
        session.eval(ids)

    return _measure(model, plan.prompt, plan.repeats, once)


def _decode(model: Model, plan: Plan) -> Rate:
    ids = random_ids(plan.generate)

    def once(session: Session) -> None:
        for token in ids:
            session.eval([token])

    return _measure(model, plan.generate, plan.repeats, once)


def _measure(model: Model, tokens: int, repeats: int, once: Callable[[Session], None]) -> Rate:
    """Run a test from an empty context, `repeats` times after a warm-up."""
    runs = []
    session = model.session(context_length=tokens)
    for _ in range(repeats + 1):
        session.truncate(0)
        start = time.perf_counter()
        once(session)
        runs.append(tokens / (time.perf_counter() - start))
    session.close()
    return Rate(tokens, statistics.median(runs[1:]), tuple(runs[1:]))
