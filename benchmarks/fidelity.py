"""How close engines come to the model's own answer: law 2's figures, for any model file and any engine.

    python benchmarks/fidelity.py MODEL.gguf [--engine pyllm:high --engine llama.cpp ...]
        [--reference FILE.npz | --reference transformers] [--text FILE ...] [--save FILE.npz] [--json]

Every engine reads the same token ids and is compared with the reference at every position:

top-1 kept      share of positions whose likeliest token is the reference's
clear misses    positions where it is not, although the reference's two best are more than 0.25 nats apart
mean |Δlogp|    mean over positions of sum_i p_i |Δlogp_i| over the reference's 12 best, in nats
ΔNLL            mean negative log-likelihood of the texts' own next tokens, minus the reference's, in nats

The reference is a file (by default tests/golden/smollm2_logits.npz, made by transformers in fp32 for the default model)
or transformers itself, in fp32 on the dequantised weights; `--save` keeps what it says as such a file. Texts are taken
only with the latter: a file has its own ids.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import conditions
import numpy as np
import numpy.typing as npt
from peers import ENGINES, Engine, Setup, open_engine

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
DEFAULT_ENGINES = ("pyllm:high", "pyllm:fast")
BEST = 12
CLEAR_GAP = 0.25  # nats
ROWS = 64  # positions whose log-probabilities are held in double precision at once

Ids = npt.NDArray[np.int32]
Array = npt.NDArray[Any]


# ---- the figures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """What the reference says of N positions of T texts, one text after the other.

    The fields are the arrays of the npz file: `names` (T,); `starts` (T + 1,), where each text begins; `ids` (N,);
    `top_ids` and `top_logprobs` (N, 12), best first; `nll` (N,), NaN at the last position of each text.
    """

    names: Array
    starts: Ids
    ids: Ids
    top_ids: Ids
    top_logprobs: Array
    nll: Array


@dataclass(frozen=True)
class Answer:
    """What an engine says of the same positions: its likeliest ids (N,), the log-probabilities of the reference's best
    (N, 12), and `nll` (N,), NaN at the last position of each text.
    """

    best: Ids
    logprobs: Array
    nll: Array


@dataclass(frozen=True)
class Figures:
    """Law 2's figures. `top1_kept` is a share; `mean_abs_dlogp`, `nll` and `nll_difference` are in nats."""

    positions: int
    top1_kept: float
    clear_misses: int
    mean_abs_dlogp: float
    nll: float
    nll_difference: float


def figures(reference: Reference, answer: Answer) -> Figures:
    """Compare. All of law 2's arithmetic is here; it is done in double precision."""
    top = reference.top_logprobs.astype(np.float64)
    lost = answer.best != reference.top_ids[:, 0]
    clear = top[:, 0] - top[:, 1] > CLEAR_GAP
    dlogp = (np.exp(top) * np.abs(answer.logprobs.astype(np.float64) - top)).sum(-1)
    nll = float(np.nanmean(answer.nll.astype(np.float64)))
    return Figures(
        positions=len(lost),
        top1_kept=float(1 - lost.mean()),
        clear_misses=int((lost & clear).sum()),
        mean_abs_dlogp=float(dlogp.mean()),
        nll=nll,
        nll_difference=nll - float(np.nanmean(reference.nll.astype(np.float64))),
    )


# ---- from logits to answers ------------------------------------------------------------------------------------------


def log_softmax(logits: Array) -> Array:
    """Log-probabilities of each row, in double precision."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def texts_of(reference: Reference) -> Iterable[slice]:
    """The positions of each text."""
    return (slice(int(a), int(b)) for a, b in zip(reference.starts, reference.starts[1:], strict=False))


def next_nll(logprobs: Array, following: Ids) -> Array:
    """Negative log-probability of the id that follows each row; NaN for a last row that nothing follows."""
    found = -np.take_along_axis(logprobs[: len(following)], following[:, None].astype(np.int64), -1)[:, 0]
    return np.append(found, np.full(len(logprobs) - len(following), np.nan))


def answer_of(engine: Engine, reference: Reference) -> Answer:
    """Let an engine read the reference's texts, each into an empty context."""
    parts = []
    for text in texts_of(reference):
        ids, logits = reference.ids[text], engine.logits(reference.ids[text].tolist())
        for a in range(0, len(ids), ROWS):
            logprobs = log_softmax(logits[a : a + ROWS])
            wanted = reference.top_ids[text][a : a + ROWS].astype(np.int64)
            at_wanted = np.take_along_axis(logprobs, wanted, -1)
            parts.append((logprobs.argmax(-1), at_wanted, next_nll(logprobs, ids[a + 1 : a + ROWS + 1])))
    best, logprobs, nll = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Answer(best.astype(np.int32), logprobs, nll)


def reference_of(engine: Engine, texts: Sequence[tuple[str, Sequence[int]]]) -> Reference:
    """Make an engine the reference for texts given as (name, ids)."""
    parts = []
    for _, text in texts:
        ids, logits = np.array(text, np.int32), engine.logits(text)
        for a in range(0, len(ids), ROWS):
            logprobs = log_softmax(logits[a : a + ROWS])
            top = np.argsort(-logprobs, -1, kind="stable")[:, :BEST]
            parts.append((top, np.take_along_axis(logprobs, top, -1), next_nll(logprobs, ids[a + 1 : a + ROWS + 1])))
    top_ids, top_logprobs, nll = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Reference(
        names=np.array([name for name, _ in texts]),
        starts=np.cumsum([0] + [len(text) for _, text in texts]).astype(np.int32),
        ids=np.concatenate([np.array(text, np.int32) for _, text in texts]),
        top_ids=top_ids.astype(np.int32),
        top_logprobs=top_logprobs.astype(np.float32),
        nll=nll.astype(np.float32),
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def read_reference(path: Path) -> Reference:
    """The reference that `save` (or tests/golden/make_smollm2.py) wrote. `SystemExit` for any other file."""
    try:
        with np.load(path) as data:
            return Reference(**{name: data[name] for name in Reference.__dataclass_fields__})
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise SystemExit(f"{path} is not a reference file: {error}") from error


def save(reference: Reference, path: Path) -> None:
    """Write a reference as npz."""
    np.savez_compressed(path, **{name: getattr(reference, name) for name in Reference.__dataclass_fields__})


def read_texts(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """(name, text) of plain text files, and of JSON files that hold {"texts": [{"name", "text"}]}."""
    texts = []
    for path in paths:
        if path.suffix == ".json":
            texts += [(text["name"], text["text"]) for text in json.loads(path.read_text("utf-8"))["texts"]]
        else:
            texts.append((path.stem, path.read_text("utf-8")))
    return texts


def encode(model: Path, texts: Sequence[tuple[str, str]], longest: int) -> list[tuple[str, list[int]]]:
    """Token ids by the model file's own tokenizer, cut to `longest`; control tokens in a text are control tokens."""
    import pyllm

    tokenizer = pyllm.Tokenizer.load(model)
    encoded = [(name, tokenizer.encode(text, special=True)[:longest]) for name, text in texts]
    if short := [name for name, ids in encoded if len(ids) < 2]:
        raise SystemExit(f"too short to predict anything: {', '.join(short)}")
    return encoded


# ---- the command -----------------------------------------------------------------------------------------------------


def find_reference(arguments: argparse.Namespace) -> tuple[str, Reference]:
    """The reference asked for, and what to call it."""
    if arguments.reference != "transformers":
        if arguments.text:
            raise SystemExit("--text goes with --reference transformers: a reference file has its own token ids")
        return Path(arguments.reference).name, read_reference(Path(arguments.reference))
    texts = read_texts(arguments.text or [GOLDEN / "smollm2_texts.json"])
    encoded = encode(arguments.model, texts, arguments.longest)
    setup = Setup(arguments.model, arguments.threads, arguments.longest, True, arguments.converted)
    with closing(opened(open_engine, "transformers", setup)) as engine:
        return engine.version, reference_of(engine, encoded)


def opened(run: Callable[..., Any], *arguments: Any) -> Any:
    """Do something with an engine; one that cannot be had ends the command."""
    try:
        return run(*arguments)
    except (ImportError, ValueError, OSError, NotImplementedError) as error:
        raise SystemExit(str(error)) from error


def measure(
    specification: str, reference: Reference, model: Path, threads: int, converted: Path | None = None
) -> tuple[str, Figures]:
    """Open an engine and compare it: its version and its figures."""
    longest = int(np.diff(reference.starts).max())
    setup = Setup(model, threads, longest, every_logit=True, converted=converted)
    with closing(open_engine(specification, setup)) as engine:
        return engine.version, figures(reference, answer_of(engine, reference))


def table(rows: dict[str, Figures]) -> str:
    """The figures as a Markdown table."""
    lines = ["| engine | top-1 kept | clear misses | mean abs. Δlogp | ΔNLL |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {row.top1_kept:.2%} | {row.clear_misses} | {row.mean_abs_dlogp:.5f} | {row.nll_difference:+.5f} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="compare engines with the model's own answer")
    parser.add_argument("model", type=Path, help="a GGUF file (any model that pyllm loads, for a reference file)")
    parser.add_argument("--engine", action="append", help=f"{', '.join(ENGINES)}; may be given again (pyllm's two)")
    parser.add_argument("--reference", default=str(GOLDEN / "smollm2_logits.npz"), help="a .npz, or 'transformers'")
    parser.add_argument("--text", action="append", type=Path, help="a text or JSON file; may be given again")
    parser.add_argument("--longest", type=int, default=512, help="tokens to which texts are cut (512)")
    parser.add_argument("--save", type=Path, help="write the reference to this .npz")
    parser.add_argument("--converted", type=Path, help="the folder that convert.py filled, for engines that need it")
    parser.add_argument("--threads", type=int, default=2, help="threads of each engine (2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    source, reference = find_reference(arguments)
    if arguments.save:
        save(reference, arguments.save)
    results: dict[str, Figures] = {}
    versions: dict[str, str] = {}
    for name in arguments.engine or DEFAULT_ENGINES:
        print(f"{name} ...", file=sys.stderr)
        setup = (arguments.model, arguments.threads, arguments.converted)
        versions[name], results[name] = opened(measure, name, reference, *setup)
    if arguments.json:
        engines = {name: {"version": versions[name], **asdict(row)} for name, row in results.items()}
        record = {"date": conditions.today(), "model": arguments.model.name, "reference": source, "engines": engines}
        print(conditions.format_record(record), end="")
    else:
        print(f"{arguments.model.name}, {len(reference.ids):,} positions, against {source}\n\n{table(results)}")


if __name__ == "__main__":
    main()
