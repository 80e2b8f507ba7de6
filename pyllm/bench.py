"""How fast a model is here and now: loading, prefill and decode apart, beside the machine's own ceiling.

The protocol is that of llama-bench: random token ids; prefill is one prompt evaluated into an empty context; decode is
single tokens from an empty context on, without sampling; a warm-up of each first; medians. The ceiling is the rate at
which the same number of threads reads a buffer as large as the weights, probed before and after: two probes that
differ, or a share above 1, say that the machine was not quiet.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyllm import _core

if TYPE_CHECKING:
    from pyllm.model import Model, Session

PROBE_LIMIT = 1 << 30  # bytes; a larger buffer is no longer in any cache, and tells nothing more
PROBE_REPEATS = 5
KV_BYTES = {"f16": 2, "f32": 4}


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


def run(load: Callable[[], Model], plan: Plan) -> Result:
    """Load a model by calling `load`, and measure it. Takes (repeats + 1) times a prefill and a decode."""
    start = time.perf_counter()
    with load() as model:
        load_seconds = time.perf_counter() - start
        probe = np.ones(min(model.nbytes, PROBE_LIMIT), dtype=np.uint8)
        before = _ceiling(probe, model.threads)
        prefill, decode = _prefill(model, plan), _decode(model, plan)
        after = _ceiling(probe, model.threads)
        first = model.generate(_random_ids(model, plan.prompt), max_tokens=1)
        first.text  # noqa: B018  a generation runs when it is read
        bytes_per_token = model.token_bytes + _kv_bytes(model, plan.generate)
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


def _spread(rate: Rate) -> str:
    return f"{rate.median:,.1f} tokens/s, median of {len(rate.runs)} ({min(rate.runs):,.1f} to {max(rate.runs):,.1f})"


def _ceiling(probe: np.ndarray, threads: int) -> float:
    return _core.read_bandwidth(probe, threads, PROBE_REPEATS) / 1e9


def _prefill(model: Model, plan: Plan) -> Rate:
    ids = _random_ids(model, plan.prompt)

    def once(session: Session) -> None:
        session.eval(ids)

    return _measure(model, plan.prompt, plan.repeats, once)


def _decode(model: Model, plan: Plan) -> Rate:
    ids = _random_ids(model, plan.generate)

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


def _random_ids(model: Model, n: int) -> list[int]:
    ids: list[int] = np.random.default_rng(0).integers(0, model.config.vocab_size, n).tolist()
    return ids


def _kv_bytes(model: Model, generate: int) -> int:
    """KV bytes that one decoded token reads on average, over a decode of `generate` tokens from an empty context."""
    config = model.config
    per_position = 2 * config.n_layers * config.n_kv_heads * config.head_dim * KV_BYTES[model.kv_dtype]
    return per_position * (generate + 1) // 2
