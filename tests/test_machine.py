"""How many threads this process may use, on machines made of files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pyllm import machine
from pyllm.machine import available_threads, peak_memory_bytes


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_allowed_cpus", lambda: set(range(8)))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def cores(of_cpu: list[tuple[int, int]]) -> dict[str, str]:
    """(package, core) of each CPU, as Linux tells it."""
    files = {}
    for cpu, (package, core) in enumerate(of_cpu):
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"] = str(package)
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/core_id"] = str(core)
    return files


@pytest.mark.usefixtures("eight_cpus")
class TestEightCpus:
    def test_nothing_known(self, tmp_path: Path) -> None:
        assert available_threads(tmp_path) == 8

    def test_hyperthreads_share_a_core(self, tmp_path: Path) -> None:
        assert available_threads(write(tmp_path, cores([(0, c % 4) for c in range(8)]))) == 4

    def test_packages_number_their_cores_alike(self, tmp_path: Path) -> None:
        assert available_threads(write(tmp_path, cores([(c // 4, c % 4) for c in range(8)]))) == 8

    def test_only_allowed_cpus_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "_allowed_cpus", lambda: {0, 1, 4})
        assert available_threads(write(tmp_path, cores([(0, c % 4) for c in range(8)]))) == 2

    @pytest.mark.parametrize(
        ("limit", "threads"),
        [
            ("max 100000", 8),
            ("200000 100000", 2),
            ("390000 100000", 3),
            ("50000 100000", 1),
            ("", 8),
            ("x y", 8),
            ("5 0", 8),
        ],
    )
    def test_a_v2_quota_is_rounded_down(self, tmp_path: Path, limit: str, threads: int) -> None:
        files = {"proc/self/cgroup": "0::/app", "sys/fs/cgroup/app/cpu.max": limit}
        assert available_threads(write(tmp_path, files)) == threads

    def test_a_parent_s_quota_counts_too(self, tmp_path: Path) -> None:
        files = {"proc/self/cgroup": "0::/a/b/c"}
        files |= {"sys/fs/cgroup/a/cpu.max": "300000 100000", "sys/fs/cgroup/a/b/c/cpu.max": "600000 100000"}
        assert available_threads(write(tmp_path, files)) == 3

    def test_the_host_s_path_inside_a_container(self, tmp_path: Path) -> None:
        files = {"proc/self/cgroup": "0::/docker/abc", "sys/fs/cgroup/cpu.max": "200000 100000"}
        assert available_threads(write(tmp_path, files)) == 2

    def test_a_path_that_leaves_the_mount(self, tmp_path: Path) -> None:
        files = {"proc/self/cgroup": "0::/../../x", "sys/fs/cgroup/cpu.max": "200000 100000"}
        assert available_threads(write(tmp_path, files)) == 2

    @pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
    @pytest.mark.parametrize(("quota", "threads"), [("-1", 8), ("250000", 2)])
    def test_v1(self, tmp_path: Path, folder: str, quota: str, threads: int) -> None:
        group = f"sys/fs/cgroup/{folder}/job"
        files = {"proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/"}
        files |= {f"{group}/cpu.cfs_quota_us": quota, f"{group}/cpu.cfs_period_us": "100000"}
        assert available_threads(write(tmp_path, files)) == threads

    def test_the_least_counts(self, tmp_path: Path) -> None:
        files = cores([(0, c % 4) for c in range(8)])
        files |= {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "700000 100000"}
        assert available_threads(write(tmp_path, files)) == 4


def test_this_machine() -> None:
    assert 1 <= available_threads() <= (os.cpu_count() or 1)
    assert peak_memory_bytes() > 10 << 20


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_the_affinity_mask() -> None:
    assert sys.platform.startswith("linux")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_threads() == 1
    finally:
        os.sched_setaffinity(0, before)
