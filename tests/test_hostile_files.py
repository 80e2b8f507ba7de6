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
from pyllm.formats import open_checkpoint, safetensors

sys.path.insert(0, str(Path(__file__).resolve().parent / "fuzz"))

import fuzz_folders
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


# ---- folders ---------------------------------------------------------------------------------------------------------

FOLDERS = fuzz_folders.seeds()


def folder_outcomes(files: Iterable[bytes]) -> Counter[str]:
    start = time.perf_counter()
    counts = Counter(map(fuzz_folders.exercise, files))
    assert (time.perf_counter() - start) / max(1, counts.total()) < MEAN_SECONDS
    return counts


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_are_models_until_they_are_cut(name: str) -> None:
    assert fuzz_folders.exercise(FOLDERS[name]) == "model"
    config, weights = fuzz_folders.split(FOLDERS[name])
    ends = range(0, len(weights), 1 + len(weights) // 3000)
    counts = folder_outcomes(fuzz_folders.join(config, weights[:end]) for end in ends)
    assert counts == {"ModelFormatError": len(ends)}
    counts = folder_outcomes(fuzz_folders.join(config[:end], weights) for end in range(len(config)))
    assert counts == {"ModelFormatError": len(config)}


@pytest.mark.parametrize("name", FOLDERS)
def test_damaged_folders_give_a_model_or_an_error(name: str) -> None:
    counts = folder_outcomes(fuzz_folders.mutations(FOLDERS[name], ROUNDS, seed=1))
    assert counts["ModelFormatError"] > ROUNDS / 4
    assert counts["UnsupportedModelError"] > 0
    assert counts["model"] < ROUNDS / 4


def test_memory_stays_small_whatever_a_folder_claims() -> None:
    files = list(fuzz_folders.mutations(FOLDERS["llama"], 300, seed=2))
    tracemalloc.start()
    try:
        for damaged in files:
            fuzz_folders.exercise(damaged)
        assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES
    finally:
        tracemalloc.stop()


def header_of(entry: str) -> bytes:
    head = b'{"t":' + entry.encode() + b"}"
    return len(head).to_bytes(8, "little") + head + bytes(64)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (b"", "its header has 0 bytes, but there is room for 0"),
        (bytes(7), "its header has 0 bytes, but there is room for 0"),
        (bytes(8), "no valid JSON"),
        ((2**63).to_bytes(8, "little") + bytes(100), "header has 9223372036854775808 bytes, but there is room for 100"),
        (header_of('{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"t":1'), "'t' occurs twice"),
        (header_of("[" * 100_000), "no valid JSON"),
        (header_of("9" * 30_000), "a number of 30000 digits"),
        (header_of('{"dtype":"F32","shape":[4],"data_offsets":[0,16],"x":1}'), "expected dtype, shape and"),
        (header_of('{"dtype":"F32","shape":[4],"data_offsets":[0,15]}'), "expected 16 bytes"),
        (header_of('{"dtype":"F32","shape":[4],"data_offsets":[-16,0]}'), "expected 16 bytes"),
        (header_of('{"dtype":"F32","shape":[20],"data_offsets":[0,80]}'), "it was cut short"),
        (header_of('{"dtype":"F32","shape":[true],"data_offsets":[0,4]}'), r"has the shape \[True\]"),
        (header_of('{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}'), r"has the shape \[4\.0\]"),
        (header_of('{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'), r"impossible shape \(0,\)"),
        (header_of('{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}'), "impossible shape"),
        (header_of('{"dtype":"Q9","shape":[4],"data_offsets":[0,16]}'), "has the type 'Q9', unknown here"),
        (header_of('{"dtype":[],"shape":[4],"data_offsets":[0,16]}'), r"has the type '\[\]', unknown here"),
    ],
)
def test_damage_of_a_safetensors_header_is_named(weights: bytes, message: str) -> None:
    with pytest.raises(PyllmError, match=message):
        safetensors.parse(Path("fuzzed"), memoryview(weights))
