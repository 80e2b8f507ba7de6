"""Many texts at once, second questions about one document, and copying: what sharing passes and pages gains.

    python benchmarks/serving.py [MODEL] [--threads N] [--rounds 5] [--json FILE]

Every figure is a ratio of two ways measured in turns within this run (A B A), by the clock and in CPU time of all
threads, since only that says anything where others use the same cores; medians over the rounds, after a warm-up. The
texts of both ways are compared: where one token differs, there is no figure.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import conditions
import numpy as np

import pyllm
from pyllm import Sampler

GREEDY = Sampler.greedy()
DOCUMENT_TOKENS = 2000
BATCHES = (1, 8, 32)

STORY = """The harbour of Elmstead lies between two low hills. Every morning at six the ferry Marigold leaves for the
island of Tern, carrying flour, letters and the schoolteacher, Miss Abernathy. The captain, Olaf Brandt, has made the
crossing for thirty-one years and claims to know each rock by name. In winter the fog is so thick that he steers by the
bell of Saint Anselm's, which rings every quarter of an hour. The islanders pay him in cheese, wool and stories, and he
has never once asked for money. Last spring the bell cracked, and for a month nobody crossed. """
CODE = """def load(path):
    with open(path) as file:
        data = json.load(file)
    for key, value in data.items():
        if not isinstance(value, str):
            raise TypeError(f"{key} must be a string, not {type(value)}")
    return data


def save(path, data):
    with open(path, "w") as file:
        json.dump(data, file, indent=4)


"""
JSON = '{"users": [{"id": 1, "name": "Ada", "city": "Paris"}, {"id": 2, "name": "Bob", "city": "Rome"}, ' * 2
COPIES = {"prose": STORY * 2 + STORY[:60], "code": CODE * 2 + CODE[:40], "json": JSON * 2}
TASKS = {
    "summary": "Summarise this text in a few sentences, with quotes from it:\n\n" + STORY,
    "edit": "Print this code again, with a docstring in each function:\n\n" + CODE,
    "data": "Print this JSON again, with one more user:\n\n" + JSON,
}
FREE = {
    "sea": "Here is a story about the sea, the wind and an old sailor:",
    "plants": "Photosynthesis, explained for children:",
    "letter": "Dear Sir, I am writing to complain about",
}


@dataclass(frozen=True)
class Figure:
    """How many times one way is faster than another. `clock` and `cpu`: medians; `low`, `high`: of the clock's."""

    name: str
    clock: float
    cpu: float
    low: float
    high: float
    rounds: int


Way = Callable[[], list[list[int]]]


def timed(way: Way) -> tuple[list[list[int]], float, float]:
    """(texts, seconds, CPU seconds)"""
    start, cpu_start = time.perf_counter(), time.process_time()
    texts = way()
    return texts, time.perf_counter() - start, time.process_time() - cpu_start


def compare(name: str, slow: Way, fast: Way, rounds: int) -> Figure:
    """How many times faster `fast` is. Raises `SystemExit` where the texts differ."""
    print(name, file=sys.stderr)
    slow(), fast()
    clock, cpu = [], []
    for _ in range(rounds):
        runs = [timed(slow), timed(fast), timed(slow)]
        if not runs[0][0] == runs[1][0] == runs[2][0]:
            raise SystemExit(f"{name}: the texts differ")
        clock.append((runs[0][1] + runs[2][1]) / 2 / runs[1][1])
        cpu.append((runs[0][2] + runs[2][2]) / 2 / runs[1][2])
    return Figure(name, statistics.median(clock), statistics.median(cpu), min(clock), max(clock), rounds)


# ---- what is compared ------------------------------------------------------------------------------------------------


def throughput(model: pyllm.Model, rounds: int) -> list[Figure]:
    """Texts at once, by `generate_batch` and by threads, against one after another."""
    figures = []
    for n in BATCHES:
        prompts = [[int(id) for id in np.random.default_rng(i).integers(100, 40_000, 16)] for i in range(n)]

        def one(prompt: Sequence[int]) -> list[int]:
            return model.generate(prompt, max_tokens=48, sampler=GREEDY, speculation=False).tokens

        def in_turn(prompts: Sequence[Sequence[int]] = prompts) -> list[list[int]]:
            return [one(prompt) for prompt in prompts]

        def together(prompts: Sequence[Sequence[int]] = prompts) -> list[list[int]]:
            batch = model.generate_batch(prompts, max_tokens=48, sampler=GREEDY, speculation=False)
            return [generation.tokens for generation in batch]

        def threads(prompts: Sequence[Sequence[int]] = prompts) -> list[list[int]]:
            with ThreadPoolExecutor(len(prompts)) as pool:
                return list(pool.map(one, prompts))

        figures.append(compare(f"{n} texts, generate_batch", in_turn, together, rounds))
        figures.append(compare(f"{n} texts, {n} threads", in_turn, threads, rounds))
    return figures


def second_question(path: Path, threads: int, rounds: int) -> Figure:
    """The first token of an answer about a document that was asked about before, against one that was not: the same
    document with nothing kept. Every question is a new one.
    """
    document = np.random.default_rng(0).integers(100, 40_000, DOCUMENT_TOKENS).tolist()
    seeds = itertools.count()

    def ask(model: pyllm.Model, seed: int) -> list[int]:
        question = np.random.default_rng(seed).integers(100, 40_000, 12).tolist()
        return model.generate([*document, *question], max_tokens=1, sampler=GREEDY).tokens

    def first_token(model: pyllm.Model) -> list[list[int]]:
        ask(model, next(seeds))
        return []

    with pyllm.load(path, threads=threads) as keeps, pyllm.load(path, threads=threads, prefix_cache=0) as forgets:
        if [ask(keeps, seed) for seed in (1, 2)] != [ask(forgets, seed) for seed in (1, 2)]:
            raise SystemExit("the answers differ")
        name = f"first token of a second question about {DOCUMENT_TOKENS} tokens"
        return compare(name, lambda: first_token(forgets), lambda: first_token(keeps), rounds)


def speculation(model: pyllm.Model, rounds: int) -> list[Figure]:
    """With drafts against without: where text is copied, asked for, or new, greedy and at a temperature."""
    figures = []
    tasks = TASKS if model.tokenizer and model.tokenizer.chat_template else {}
    for kind, texts in (("copy", COPIES), ("task", tasks), ("free", FREE)):
        for (name, text), sampler in itertools.product(texts.items(), (GREEDY, Sampler(temperature=0.7, seed=1))):
            write = partial(written, model, text, kind == "task", sampler)
            label = f"drafts, {kind} {name}, temperature {sampler.temperature}"
            figures.append(compare(label, partial(write, False), partial(write, True), rounds))
    return figures


def written(model: pyllm.Model, text: str, asked: bool, sampler: Sampler, drafts: bool) -> list[list[int]]:
    """What the model writes behind `text`, or in answer to it."""
    options: dict[str, Any] = {"max_tokens": 160, "sampler": sampler, "speculation": drafts}
    if asked:
        return [model.chat([{"role": "user", "content": text}], **options).tokens]
    return [model.generate(text, **options).tokens]


# ---- the command -----------------------------------------------------------------------------------------------------


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| what | times as fast | by CPU time | range |", "|---|---|---|---|"]
    lines += [f"| {f.name} | {f.clock:.2f} | {f.cpu:.2f} | {f.low:.2f} to {f.high:.2f} |" for f in figures]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="measure what sharing passes and pages gains")
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="a model file or a catalogue name")
    parser.add_argument("--threads", type=int, help="threads of a pass (what this process may use)")
    parser.add_argument("--rounds", type=int, default=5, help="each compares every pair once (5)")
    parser.add_argument("--json", type=Path, help="write the whole record to this file")
    arguments = parser.parse_args(argv)
    load_before = conditions.load_average()
    with pyllm.load(arguments.model, threads=arguments.threads) as model:
        figures = [second_question(model.path, model.threads, arguments.rounds)]
        figures += speculation(model, arguments.rounds)
        with pyllm.load(model.path, threads=model.threads, prefix_cache=0) as forgets:
            figures += throughput(forgets, arguments.rounds)
        record: dict[str, Any] = {
            "date": conditions.today(),
            "machine": conditions.machine(),
            "load_average": [load_before, conditions.load_average()],
            "model": model.path.name,
            "threads": model.threads,
            "figures": [asdict(figure) for figure in figures],
        }
    if arguments.json:
        arguments.json.write_text(conditions.format_record(record), "utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
