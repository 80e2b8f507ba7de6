"""What stands beside every figure: the machine, how busy others kept it, how fast it reads memory; and the record."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pyllm import _core
from pyllm.measuring.probes import PASSES, buffer_of

INSTRUCTIONS = "avx2 fma avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 asimd asimddp i8mm bf16"


def machine() -> dict[str, Any]:
    """The class of the machine: never its name."""
    facts = dict(_facts(Path("/proc/cpuinfo")))
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "family": facts.get("cpu family", ""),
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


def read_bandwidth(nbytes: int, threads: int) -> float:
    """GB/s at which `threads` threads read a buffer of `nbytes` (at most 1 GiB): the best of five passes."""
    return _core.read_bandwidth(buffer_of(nbytes), threads, PASSES) / 1e9


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


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
