"""What all fuzz targets share: the command line, the seeded loop, and the way to atheris.

    python tests/fuzz/TARGET.py --write-corpus FOLDER               valid files to begin from
    python tests/fuzz/TARGET.py [libFuzzer options] FOLDER          with atheris (pip install atheris)
    python tests/fuzz/TARGET.py --rounds 100000 --seed 1            without it: seeded mutations

A failure prints what is needed to repeat it.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """`exercise` does everything with some bytes and names the outcome; what it must not raise is a finding.

    `seeds` makes valid files, by name; `mutations(data, rounds, seed)` damaged copies of one, the same for one seed.
    """

    what: str
    exercise: Callable[[bytes], str]
    seeds: Callable[[], dict[str, bytes]]
    mutations: Callable[[bytes, int, int], Iterator[bytes]]


def run_mutations(target: Target, rounds: int, seed: int) -> None:
    """The loop for machines without atheris."""
    for name, data in target.seeds().items():
        outcomes: Counter[str] = Counter()
        for i, damaged in enumerate(target.mutations(data, rounds, seed)):
            try:
                outcomes[target.exercise(damaged)] += 1
            except BaseException:  # a failed check in Rust is no Exception
                print(f"{name}, seed {seed}, round {i}: {damaged.hex()}", file=sys.stderr)
                raise
        print(name, dict(outcomes))


def run_atheris(target: Target) -> None:
    """Coverage-guided fuzzing; libFuzzer reads the command line."""
    import atheris  # type: ignore[import-untyped]

    atheris.instrument_all()
    atheris.Setup(sys.argv, lambda data: target.exercise(data) and None)
    atheris.Fuzz()


def main(target: Target) -> None:
    parser = argparse.ArgumentParser(description=f"fuzz {target.what}")
    parser.add_argument("--rounds", type=int, help="run so many seeded mutations per file instead of atheris")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write-corpus", type=Path, metavar="FOLDER", help="write the valid files there, and no more")
    options, rest = parser.parse_known_args()
    if options.write_corpus:
        options.write_corpus.mkdir(parents=True, exist_ok=True)
        for name, data in target.seeds().items():
            (options.write_corpus / name).write_bytes(data)
    elif options.rounds is None and rest:
        run_atheris(target)
    else:
        run_mutations(target, options.rounds or 10_000, options.seed)
