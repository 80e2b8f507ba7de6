"""benchmarks/plot.py on a small record made by hand."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def plot(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("plot")


def row(
    engine: str, test: str, median: float, threads: int = 2, condition: str = "near", **more: Any
) -> dict[str, Any]:
    spread = {"median": median, "low": 0.9 * median, "high": 1.1 * median}
    return {"engine": engine, "test": test, "threads": threads, "condition": condition, **spread, **more}


@pytest.fixture
def record() -> dict[str, Any]:
    results = [
        row("pyllm:high", "decode 128", 500),
        row("llama.cpp", "decode 128", 700, condition="busy"),
        row("run.c=run@1", "decode 128", 100, threads=1),
        row("pyllm:high", "decode 128", 300, threads=1),
        row("llama.cpp", "cold start", 0.25, unit="s"),
        row("pyllm:high", "cold start", 0.125, unit="s"),
    ]
    return {
        "date": "2026-11-24",
        "machine": {"cpu": "Some CPU"},
        "model": {"file": "m.gguf"},
        "fidelity": {"pyllm:high": {"top1_kept": 0.9991}},
        "results": results,
    }


def test_panels_hold_the_rows_of_one_number_of_threads_best_first(plot: ModuleType, record: dict[str, Any]) -> None:
    found = {test: [(r["engine"], r["median"]) for r in rows] for test, rows in plot.panels(record, 2).items()}
    assert found == {
        "decode 128": [("llama.cpp", 700), ("pyllm:high", 500), ("run.c=run@1", 100)],
        "cold start": [("pyllm:high", 0.125), ("llama.cpp", 0.25)],
    }
    labels = [plot.label(r, record["fidelity"]) for r in plot.panels(record, 2)["decode 128"]]
    assert labels == ["llama.cpp", "pyllm:high\n99.91% kept", "run.c=run@1"]


def test_pictures(plot: ModuleType, record: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws the pictures: pip install pyllm[bench]")
    (tmp_path / "small.json").write_text(json.dumps(record))
    plot.main([str(tmp_path / "small.json"), "--out", str(tmp_path)])
    assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")
    picture = (tmp_path / "small.svg").read_text("utf-8")
    for words in (
        "decode 128, tokens/s",
        "cold start, s (less is better)",
        "99.91% kept",
        "hatched: on a busy machine",
    ):
        assert words in picture
    plot.main([str(tmp_path / "small.json"), "--out", str(tmp_path)])
    assert (tmp_path / "small.svg").read_text("utf-8") == picture  # the same record draws the same picture


def test_what_is_no_record(plot: ModuleType, record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for text, sentence in (("{", "r.json: "), ("[]", "no record of compare.py's"), ('{"summaries": []}', "no results")):
        path.write_text(text)
        with pytest.raises(SystemExit, match=sentence):
            plot.main([str(path)])
    path.write_text(json.dumps(record))
    pytest.importorskip("matplotlib", reason="matplotlib draws the pictures: pip install pyllm[bench]")
    with pytest.raises(SystemExit, match="nothing was measured with 3 threads"):
        plot.main([str(path), "--threads", "3"])
