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

from pyllm import _core

ROOT = Path(__file__).resolve().parent.parent
PROBE = ROOT / "tests" / "cross" / "law1_probe.c"

# The flags of csrc/ffi_build.py that decide about rounding, and -O3 since the optimiser must not change a bit either.
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O3", "-ffp-contract=off", "-fno-math-errno", "-pthread", "-w"]

# A processor with AVX-512 but no AVX-VNNI can run that level all the same, by another encoding of its instruction.
BY_AVX512 = {"avx512", "avxvnni"} & set(_core.isa_names()) == {"avx512"}


@dataclass(frozen=True)
class Other:
    """A machine that is not this one, and the processors to emulate with the levels each must offer, best first."""

    compiler: str
    emulator: str
    processors: dict[str, list[str]]


AARCH64 = Other(
    "aarch64-linux-gnu-gcc",
    "qemu-aarch64",
    {
        "max": ["i8mm", "dotprod", "neon", "scalar"],
        "neoverse-n1": ["dotprod", "neon", "scalar"],
        "cortex-a53": ["neon", "scalar"],
    },
)
X86_64 = Other("x86_64-linux-gnu-gcc", "qemu-x86_64", {"max": ["avx2", "scalar"], "Nehalem": ["scalar"]})
OTHERS = {"x86_64": AARCH64, "aarch64": X86_64}

#: Hash of each subject at each level, in the probe's order: best level first.
Hashes = dict[tuple[str, str], str]


def compile_with(command: list[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr


def build(compiler: list[str], program: Path, *link: str) -> list[str]:
    """Compiles the probe with all of csrc, on all cores; the command that runs it."""
    longest_first = sorted((ROOT / "csrc").rglob("*.c"), key=lambda path: ("quantised" not in path.name, path))
    sources = (*longest_first, PROBE)
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


def levels_of(hashes: Hashes) -> list[str]:
    return [level for level in dict.fromkeys(level for _, level in hashes) if level != "-"]


def by_subject(hashes: Hashes) -> dict[str, set[str]]:
    """The hashes of each subject, whatever the level: one, if law 1 holds."""
    found: dict[str, set[str]] = {}
    for (subject, _), digest in hashes.items():
        found.setdefault(subject, set()).add(digest)
    return found


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    """This machine's."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C compiler ({compiler[0]}) on this machine")
    return compiler


@pytest.fixture(scope="module")
def here(compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> Hashes:
    flags = ["-DPL_AVXVNNI_BY_AVX512"] if BY_AVX512 else []
    return run(build([*compiler, *flags], tmp_path_factory.mktemp("here") / "probe"))


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
    levels = levels_of(here)
    assert levels[-1] == "scalar"
    for level in levels:
        assert {subject for subject, at in here if at == level} == {subject for subject, at in here if at == "scalar"}
    assert disagreements(here) == {}


def test_the_probe_computes_each_subject(here: Hashes) -> None:
    subjects = by_subject(here)
    some = {"expf", "log", "matmul/0", "quantize", "softmax", "activate", "values/IQ3_S", "model/Q4_K", "model/experts"}
    assert some <= subjects.keys()
    assert len(set().union(*subjects.values())) == len(subjects)  # equal hashes of two would mean an empty result


def test_another_machine_agrees_bit_for_bit(here: Hashes, other: Other, other_program: list[str]) -> None:
    commands = [[other.emulator, "-cpu", processor, *other_program] for processor in other.processors]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        emulated = list(pool.map(run, commands))
    for (processor, levels), there in zip(other.processors.items(), emulated, strict=True):
        assert levels_of(there) == levels
        assert by_subject(there).keys() == by_subject(here).keys()
        renamed = {(subject, f"{level} on {processor}"): digest for (subject, level), digest in there.items()}
        assert disagreements({**here, **renamed}) == {}


# ---- the level avxvnni, where no machine at hand has it --------------------------------------------------------------

on_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX-VNNI is an extension of x86-64")


@on_x86_64
@pytest.mark.skipif(not BY_AVX512, reason="needs AVX-512, and no AVX-VNNI, which any test of levels then covers")
def test_avxvnni_stands_between_avx512_and_avx2(here: Hashes) -> None:
    """And with the test above: has the bits of both."""
    assert levels_of(here) == ["avx512", "avxvnni", "avx2", "scalar"]


@on_x86_64
def test_avxvnni_needs_no_avx512(compiler: list[str], tmp_path: Path) -> None:
    """Processors with AVX-VNNI alone do not know the other encoding, whose instructions begin with 0x62."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    source, program = ROOT / "csrc" / "kernels" / "avxvnni_quantised.c", tmp_path / "avxvnni.o"
    compile_with([*compiler, *FLAGS, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(program)])
    command = ["objdump", "--disassemble", "--wide", str(program)]
    listing = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    if "<pl_avxvnni_matmul_q4>" not in listing:
        pytest.skip("this compiler does not know AVX-VNNI")
    instructions = [line.split("\t")[1:] for line in listing.splitlines() if ":\t" in line]  # bytes, text
    assert sum("vpdpbusd" in text for _, text in instructions) > 1000
    assert [text for encoding, text in instructions if encoding.startswith("62 ")] == []


#: CPUID leaves of processors: AVX, FMA and F16C with the operating system's consent; AVX2; AVX-VNNI.
AVX = "1.0=0,0,38001000,0"
WITH_MORE = "7.0=1,20,0,0"
PROCESSORS = {
    "Alder Lake": ([AVX, WITH_MORE, "7.1=10,0,0,0"], ["avxvnni", "avx2"]),
    "another bit of the leaf": ([AVX, WITH_MORE, "7.1=20,0,0,0"], ["avx2"]),
    "no second part of the leaf": ([AVX, "7.0=0,20,0,0", "7.1=10,0,0,0"], ["avx2"]),
    "Haswell": ([AVX, "7.0=0,20,0,0"], ["avx2"]),
    "no AVX2": ([AVX, "7.0=1,0,0,0", "7.1=10,0,0,0"], []),
    "an operating system without AVX": (["1.0=0,0,30001000,0", WITH_MORE, "7.1=10,0,0,0"], []),
}


@pytest.fixture(scope="module")
def cpu_probe(compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    program, cross = tmp_path_factory.mktemp("cpu") / "probe", PROBE.parent
    sources = [str(cross / "cpu_probe.c"), str(ROOT / "csrc" / "kernels" / "cpu.c")]
    compile_with([*compiler, *FLAGS, f"-I{cross / 'faked'}", f"-I{ROOT / 'csrc'}", *sources, "-o", str(program)])
    return program


@on_x86_64
@pytest.mark.skipif(not {"avx2", "avx512"} & set(_core.isa_names()), reason="the operating system saves no ymm here")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_what_a_processor_says_of_itself(cpu_probe: Path, processor: str) -> None:
    leaves, levels = PROCESSORS[processor]
    finished = subprocess.run([str(cpu_probe), *leaves], capture_output=True, text=True, timeout=60, check=True)
    assert finished.stdout.split() == levels
