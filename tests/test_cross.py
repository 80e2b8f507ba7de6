"""Law 1 across machines: the same bits from every kernel level, on this processor and on an emulated other one.

The inputs and what is hashed are in cross/law1_probe.c. On Debian the other half needs gcc-aarch64-linux-gnu,
libc6-dev-arm64-cross and qemu-user (on an Arm machine: gcc-x86-64-linux-gnu and libc6-dev-amd64-cross).
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROBE = ROOT / "tests" / "cross" / "law1_probe.c"

# The flags of csrc/ffi_build.py that decide about rounding, and -O3 since the optimiser must not change a bit either.
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O3", "-ffp-contract=off", "-fno-math-errno", "-pthread", "-w"]


@dataclass(frozen=True)
class Other:
    """A machine that is not this one, and the processors to emulate with the levels each must offer."""

    compiler: str
    emulator: str
    processors: dict[str, set[str]]


AARCH64 = Other(
    "aarch64-linux-gnu-gcc",
    "qemu-aarch64",
    {
        "max": {"i8mm", "dotprod", "neon", "scalar"},
        "neoverse-n1": {"dotprod", "neon", "scalar"},
        "cortex-a53": {"neon", "scalar"},
    },
)
X86_64 = Other("x86_64-linux-gnu-gcc", "qemu-x86_64", {"max": {"avx2", "scalar"}, "Nehalem": {"scalar"}})
OTHERS = {"x86_64": AARCH64, "aarch64": X86_64}

#: Hash of each subject at each level.
Hashes = dict[tuple[str, str], str]


def compile_with(command: list[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr


def build(compiler: list[str], program: Path, *link: str) -> list[str]:
    """Compiles the probe with all of csrc, on all cores; the command that runs it."""
    sources = (PROBE, *sorted((ROOT / "csrc").rglob("*.c")))
    objects = [program.with_suffix(f".{i}.o") for i in range(len(sources))]
    compile_one = [*compiler, *FLAGS, f"-I{ROOT / 'csrc'}", "-c"]
    commands = [[*compile_one, str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_with, commands))
    compile_with([*compiler, "-pthread", *map(str, objects), "-o", str(program), *link, "-lm"])
    return [str(program)]


def run(command: list[str]) -> Hashes:
    """What the probe prints."""
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    lines = [line.split() for line in finished.stdout.splitlines()]
    return {(subject, level): digest for subject, level, digest in lines}


def by_subject(hashes: Hashes) -> dict[str, set[str]]:
    """The hashes of each subject, whatever the level: one, if law 1 holds."""
    found: dict[str, set[str]] = {}
    for (subject, _), digest in hashes.items():
        found.setdefault(subject, set()).add(digest)
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Hashes:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C compiler ({compiler[0]}) on this machine")
    return run(build(compiler, tmp_path_factory.mktemp("here") / "probe"))


@pytest.fixture(scope="module")
def other() -> Other:
    if platform.system() != "Linux" or platform.machine() not in OTHERS:
        pytest.skip(f"no other machine to compare with is known for {platform.system()} on {platform.machine()}")
    other = OTHERS[platform.machine()]
    for tool in (other.compiler, other.emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    return other


@pytest.fixture(scope="module")
def other_program(other: Other, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Linked statically, so that the emulator needs no libraries of the other machine."""
    return build([other.compiler], tmp_path_factory.mktemp("other") / "probe", "-static")


def disagreements(hashes: Hashes) -> dict[str, set[str]]:
    """The subjects that break law 1."""
    return {subject: digests for subject, digests in by_subject(hashes).items() if len(digests) > 1}


def test_every_level_of_this_machine_gives_the_same_bits(here: Hashes) -> None:
    levels = {level for _, level in here} - {"-"}
    assert "scalar" in levels
    for level in levels:
        assert {subject for subject, at in here if at == level} == {subject for subject, at in here if at == "scalar"}
    assert disagreements(here) == {}


def test_the_probe_computes_each_subject(here: Hashes) -> None:
    subjects = by_subject(here)
    some = {"expf", "log", "matmul/0", "quantize", "softmax", "activate", "values/IQ3_S", "model/Q4_K", "model/experts"}
    assert some <= subjects.keys()
    assert len(set().union(*subjects.values())) == len(subjects)  # equal hashes of two would mean an empty result


def test_another_machine_agrees_bit_for_bit(here: Hashes, other: Other, other_program: list[str]) -> None:
    for processor, levels in other.processors.items():
        there = run([other.emulator, "-cpu", processor, *other_program])
        assert {level for _, level in there} - {"-"} == levels
        assert by_subject(there).keys() == by_subject(here).keys()
        renamed = {(subject, f"{level} on {processor}"): digest for (subject, level), digest in there.items()}
        assert disagreements({**here, **renamed}) == {}
