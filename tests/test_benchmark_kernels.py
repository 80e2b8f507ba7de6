"""benchmarks/kernels.py: that its C program fits the library's sources, and what it makes of the figures."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("kernels")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_program_fits_the_sources(kernels: ModuleType) -> None:
    """Only read by the compiler: to build it takes half a minute."""
    include = f"-I{BENCHMARKS.parent / 'csrc'}"
    command = ["cc", *kernels.TILE_FLAGS, "-fsyntax-only", "-Wall", "-Werror", include, str(BENCHMARKS / "kernels.c")]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    for glob in kernels.TILE_SOURCES:
        assert list((BENCHMARKS.parent / "csrc").glob(glob))


def test_shares_are_of_the_ceilings(kernels: ModuleType) -> None:
    tiles = [kernels.Tile("Q4_0", "avx512", "high", n, 50.0, 100.0, 10.0, 40.0) for n in kernels.TILE_COLUMNS]
    tiles += [kernels.Tile("Q4_0", "scalar", "high", n, 2.0, 0.0, 1.0, 40.0) for n in kernels.TILE_COLUMNS]
    lines = [line for line in kernels.tile_table(tiles).splitlines() if line.startswith("| Q4_0")]
    cells = ("50.0 (50%)", "| 2.0 ", "10.0 (25%)", "1.0 (2%)")
    assert [line.count(cell) for line, cell in zip(lines, cells, strict=True)] == [len(kernels.TILE_COLUMNS)] * 4
