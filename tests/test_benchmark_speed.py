"""What benchmarks/speed.py makes of its samples, and one short run of it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tinygguf import Q4_0, tiny_llama

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("speed")


def samples(speed: ModuleType, engine: str, rates: list[float], idle: list[float]):
    """One sample per half round, in the order in which a round's second half runs: backwards."""
    rows = [
        speed.Sample(engine, "decode", 1, i, rate, rate, share, 1.0)
        for i, (rate, share) in enumerate(zip(rates, idle, strict=True))
    ]
    return rows[::-1]


def test_only_quiet_samples_count_where_there_are_enough(speed):
    ours = samples(speed, "a", [100, 50, 120, 90, 80], [0.99, 0.3, 0.94, 0.95, 1.0])
    theirs = samples(speed, "b", [50, 50, 100, 30, 20], [0.99, 1.0, 1.0, 0.2, 1.0])
    assert sorted(s.tokens_per_second for s in speed.chosen(ours)) == [80, 90, 100, 120]
    assert speed.ratios(ours, theirs) == [2.0, 1.2, 4.0]  # in half rounds 1 and 3 one of the two was not quiet
    row = speed.summarise(ours, {"b": theirs}, token_bytes=10**9)
    assert (row["median"], row["low"], row["high"], row["quiet"], row["samples"]) == (95, 80, 120, 4, 5)
    assert row["gb_per_second"] == 95
    assert row["ratios"]["b"] == [2.0, 1.2, 4.0]


def test_all_samples_count_where_too_few_are_quiet(speed):
    ours = samples(speed, "a", [100, 50, 30], [0.99, 0.3, 0.94])
    theirs = samples(speed, "b", [50, 50, 10], [0.99, 1.0, 1.0])
    assert len(speed.chosen(ours)) == 3
    assert speed.ratios(ours, theirs) == [2.0, 1.0, 3.0]
    unknown = speed.Sample("a", "decode", 1, 0, 1.0, 1.0, None, None)
    assert not unknown.quiet  # a system that tells nothing is not called quiet


def test_the_command_on_a_small_model(tmp_path):
    model = tiny_llama(tmp_path / "tiny.gguf", Q4_0)
    command = [
        sys.executable,
        str(BENCHMARKS / "speed.py"),
        str(model),
        "--peer",
        "pyllm:fast",
        "--engine",
        "pyllm:high",
    ]
    command += [
        "--threads",
        "1",
        "--prompt",
        "8",
        "--generate",
        "4",
        "--rounds",
        "1",
        "--json",
        str(tmp_path / "r.json"),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    record = json.loads((tmp_path / "r.json").read_text())
    order = [(s["test"], s["engine"], s["half_round"]) for s in record["samples"]]
    there_and_back = [("pyllm:high", 0), ("pyllm:fast", 0), ("pyllm:fast", 1), ("pyllm:high", 1)]
    assert order == [(test, engine, half) for test in ("prefill", "decode") for engine, half in there_and_back]
    assert all(s["tokens_per_second"] > 0 for s in record["samples"])
    assert len(record["read_gb_per_second"]["1"]) == 2
    assert finished.stdout.count("| pyllm:high |") == 2


def test_an_engine_that_cannot_be_opened_ends_the_command(tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"GGUF nonsense")
    command = [sys.executable, str(BENCHMARKS / "speed.py"), str(tmp_path / "no.gguf"), "--threads", "1"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 1
    assert "pyllm:high: its process ended with status 1" in finished.stderr
