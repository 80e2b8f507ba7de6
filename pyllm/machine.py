"""What this process may really use of the machine it runs on."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def available_threads(root: str | os.PathLike[str] = "/") -> int:
    """The number of threads worth starting, at least 1.

    The least of three: the CPUs of the affinity mask, the CPU quota of the control group rounded down (v1 and v2,
    this group and all above it), and the physical cores behind the mask, since two hyperthreads of one core share
    the units that matrix products keep busy. `root` is where `/proc` and `/sys` are found.
    """
    cpus = _allowed_cpus()
    limits = [len(cpus), _physical_cores(Path(root), cpus)]
    limits += [math.floor(quota) for quota in _cpu_quotas(Path(root))]
    return max(1, min(limits))


def _allowed_cpus() -> set[int]:
    if sys.platform.startswith("linux"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_cores(root: Path, cpus: set[int]) -> int:
    """Distinct (package, core) pairs behind `cpus`; a CPU that tells nothing of itself counts as its own core."""
    cores: set[object] = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package, core = _read(topology / "physical_package_id"), _read(topology / "core_id")
        cores.add((package, core) if package and core else cpu)
    return len(cores)


def _cpu_quotas(root: Path) -> Iterator[float]:
    """The CPU quotas, in CPUs, of every control group this process is in and of their parents."""
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            for group in _upwards(mounts, path):
                yield from _ratio(*_read(group / "cpu.max").split()[:2])
        elif "cpu" in controllers.split(","):
            for group in _upwards(_first_folder(mounts / controllers, mounts / "cpu"), path):
                yield from _ratio(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _first_folder(*candidates: Path) -> Path:
    return next((folder for folder in candidates if folder.is_dir()), candidates[-1])


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder of the group `path` and of each group above it. Inside a container the path may be the host's, and
    then only the mount itself exists: it is the container's own group.
    """
    group = mount.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
    while group != mount:
        yield group
        group = group.parent
    yield mount


def _ratio(quota: str = "", period: str = "") -> Iterator[float]:
    """Quota / period where both are positive numbers; "max" and -1 mean no limit."""
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    """The text of a file of the system, "" where it does not exist or may not be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def peak_memory_bytes() -> int:
    """The largest resident size this process has had, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def resident_bytes() -> dict[str, int]:
    """What this process holds in memory: "all", and of that "anonymous", which nobody else can use; the rest lies in
    the page cache. Empty where the system does not tell.
    """
    names = {"Rss": "all", "Anonymous": "anonymous"}
    lines = (line.split() for line in _read(Path("/proc/self/smaps_rollup")).splitlines())
    return {names[name[:-1]]: int(kib) * 1024 for name, kib, *_ in lines if name[:-1] in names}
