"""Law 6: any bytes given as a model give a model or a `PyllmError`, in bounded time and memory."""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from pyllm.errors import PyllmError
from pyllm.formats import open_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent / "fuzz"))

import fuzz_formats

SEEDS = fuzz_formats.seeds()
ROUNDS = 4000
MEAN_SECONDS = 0.01  # of one file; the true figure is a twentieth of it
PEAK_BYTES = 1 << 20  # for files of a few kilobytes


def outcomes(files: Iterable[bytes]) -> Counter[str]:
    """Runs the target over files and counts how they ended, failing where they took long on average."""
    start = time.perf_counter()
    counts = Counter(map(fuzz_formats.exercise, files))
    assert (time.perf_counter() - start) / max(1, counts.total()) < MEAN_SECONDS
    return counts


@pytest.mark.parametrize("name", SEEDS)
def test_seed_files_are_models(name: str) -> None:
    assert fuzz_formats.exercise(SEEDS[name]) == "model"


@pytest.mark.parametrize("name", SEEDS)
def test_every_truncation_is_refused(name: str) -> None:
    data = SEEDS[name]
    counts = outcomes(data[:end] for end in range(len(data)))
    assert counts == {"ModelFormatError": len(data)}


@pytest.mark.parametrize("name", SEEDS)
def test_mutations_give_a_model_or_an_error(name: str) -> None:
    counts = outcomes(fuzz_formats.mutations(SEEDS[name], ROUNDS, seed=1))
    assert counts["ModelFormatError"] > ROUNDS / 4
    assert counts["model"] < ROUNDS / 2


@pytest.mark.parametrize("name", SEEDS)
def test_extreme_numbers_everywhere(name: str) -> None:
    data = SEEDS[name]
    counts = outcomes(fuzz_formats.every_field(data, fuzz_formats.header_bytes(data)))
    assert counts["ModelFormatError"] > counts["model"]
    assert counts["UnsupportedModelError"] > 0 or name == "v0"


@pytest.mark.parametrize("name", SEEDS)
def test_memory_stays_small_whatever_a_header_claims(name: str) -> None:
    """A count of 2^63 in ten bytes of file must not become a list, an array or a string."""
    data = SEEDS[name]
    files = list(fuzz_formats.mutations(data, 300, seed=2))
    files += list(fuzz_formats.every_field(data, fuzz_formats.header_bytes(data)))[::7]
    tracemalloc.start()
    try:
        for damaged in files:
            fuzz_formats.exercise(damaged)
        assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES
    finally:
        tracemalloc.stop()


def test_cut_real_file(stories260k: Path, tmp_path: Path) -> None:
    """Every length in the header and behind it, and a few thousand further on: the sizes never fit by chance."""
    data = stories260k.read_bytes()
    ends = [*range(600), *range(600, len(data), 997), len(data) - 1]
    assert outcomes(data[:end] for end in ends)["model"] == 0
    path = tmp_path / "half.bin"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(PyllmError, match=r"half\.bin: .* has exactly 1056540 bytes, but this one has 528270"):
        open_checkpoint(path)


def test_mutated_header_of_a_real_file(stories260k: Path) -> None:
    data = stories260k.read_bytes()
    damaged = fuzz_formats.every_field(data, 28)
    assert outcomes(damaged)["model"] == 0  # each field changes the exact size
    for seed in range(200):
        head = next(fuzz_formats.mutations(data[:28], 1, seed))
        fuzz_formats.exercise(head + data[28:])
