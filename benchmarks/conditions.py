"""What stands beside every figure: the machine, how busy others kept it, how fast it reads memory; and the record."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

PROBE_LIMIT = 1 << 30  # bytes; a larger buffer is no longer in any cache, and tells nothing more
PROBE_REPEATS = 5
QUIET = 0.94  # idle share of all CPUs from which on nothing else is running
IDLE_BEFORE, IDLE_AFTER = 0.7, 0.5  # seconds looked at before and after a sample

INSTRUCTIONS = "avx2 fma avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 asimd asimddp i8mm bf16"


def machine() -> dict[str, Any]:
    """The class of the machine: never its name."""
    facts = dict(_facts(Path("/proc/cpuinfo")))
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "architecture": platform.machine(),
        "instructions": [name for name in INSTRUCTIONS.split() if name in flags],
        "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": " ".join([platform.system(), *re.findall(r"^[\d.]*\d", platform.release())]),
        "huge_pages": _read(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "python": platform.python_version(),
        "omp_environment": {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_"))},
    }


def today() -> str:
    """The date, UTC, as in "2026-11-24"."""
    return datetime.now(timezone.utc).date().isoformat()


def load_average() -> tuple[float, float, float]:
    """Processes that wanted to run, over 1, 5 and 15 minutes."""
    return os.getloadavg()


def idle_share(seconds: float) -> float | None:
    """The share of all CPUs' time that nobody used, over the next `seconds`; None where the system does not tell."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def wait_until_quiet(patience: float) -> float | None:
    """Look at the idle share until it is that of a quiet machine, or `patience` seconds are over: the last look."""
    deadline = time.monotonic() + patience
    share = idle_share(IDLE_BEFORE)
    while share is not None and share < QUIET and time.monotonic() < deadline:
        share = idle_share(IDLE_BEFORE)
    return share


def read_bandwidth(nbytes: int, threads: int) -> float:
    """GB/s at which `threads` threads read a buffer of `nbytes` (at most 1 GiB): the best of five passes."""
    from pyllm import _core

    probe = np.ones(min(nbytes, PROBE_LIMIT), np.uint8)
    return _core.read_bandwidth(probe, threads, PROBE_REPEATS) / 1e9


def format_record(record: dict[str, Any]) -> str:
    """JSON that a person can read: one line for each fact, sample or figure, floats in six digits."""
    rounded = json.loads(json.dumps(record), parse_float=lambda text: float(f"{float(text):.6g}"))
    lines = [f"{json.dumps(name)}: {_block(value)}" for name, value in rounded.items()]
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def _block(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
    if isinstance(value, dict) and value and all(isinstance(item, dict) for item in value.values()):
        return (
            "{\n  " + ",\n  ".join(f"{json.dumps(name)}: {json.dumps(item)}" for name, item in value.items()) + "\n }"
        )
    return json.dumps(value)


def _ticks() -> tuple[int, int] | None:
    """(idle, all) ticks of all CPUs since boot. Guest time is left out: it is part of user time already."""
    fields = _read(Path("/proc/stat")).partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None
    ticks = [int(field) for field in fields[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _facts(path: Path) -> list[tuple[str, str]]:
    """The "name : value" lines of the first paragraph."""
    lines = _read(path).partition("\n\n")[0].splitlines()
    return [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]


def _read(path: Path) -> str:
    """The text of a file of the system, "" where it does not exist or may not be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
