"""Law 1 across machines: the same bits from every kernel level, on this processor and on an emulated other one.

The inputs and what is hashed are in cross/law1_probe.c; crossing.py builds and runs it. On Debian the other half needs
gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user (on an Arm machine: gcc-x86-64-linux-gnu and
libc6-dev-amd64-cross).
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest
from crossing import CROSS, FLAGS, INCLUDE, ROOT, Half, Other, by_avx512, other_machine, run, this_compiler

from pyllm import _core

BY_AVX512 = by_avx512()

#: Hash of each subject at each level, in the probe's order: best level first.
Hashes = dict[tuple[str, str], str]


def hashes_of(output: str) -> Hashes:
    """What the probe printed behind its first line."""
    lines = [line.split() for line in output.splitlines()[1:]]
    return {(subject, level): digest for subject, level, digest in lines}


def levels_of(output: str) -> list[str]:
    """The levels of the processor, best first, as the probe's first line names them."""
    word, *levels = output.splitlines()[0].split()
    assert word == "levels"
    return levels


def by_subject(hashes: Hashes) -> dict[str, set[str]]:
    """The hashes of each subject, whatever the level: one, if law 1 holds."""
    found: dict[str, set[str]] = {}
    for (subject, _), digest in hashes.items():
        found.setdefault(subject, set()).add(digest)
    return found


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    """This machine's."""
    compiler = this_compiler()
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    return compiler


@pytest.fixture(scope="module")
def probe_here(compiler: list[str], _beside: dict[str, Half]) -> str:
    """What the probe prints on this machine."""
    return _beside["here"].output("here")


@pytest.fixture(scope="module")
def other() -> Other:
    other = other_machine()
    if other is None:
        pytest.skip(f"no other machine to compare with is known for {platform.system()} on {platform.machine()}")
    if other.missing:
        pytest.skip(f"{other.missing} is not installed")
    return other


@pytest.fixture(scope="module")
def probe_there(other: Other, _beside: dict[str, Half]) -> Half:
    """The probe on the other machine."""
    return _beside["there"]


def disagreements(hashes: Hashes) -> dict[str, set[str]]:
    """The subjects that break law 1."""
    return {subject: digests for subject, digests in by_subject(hashes).items() if len(digests) > 1}


def test_every_level_of_this_machine_gives_the_same_bits(probe_here: str) -> None:
    levels, hashes = levels_of(probe_here), hashes_of(probe_here)
    assert levels[-1] == "scalar"
    subjects = {level: {subject for subject, at in hashes if at == level} for level in levels}
    assert all(subjects[level] == subjects["scalar"] for level in levels)
    assert disagreements(hashes) == {}


def test_the_probe_computes_each_subject(probe_here: str) -> None:
    subjects = by_subject(hashes_of(probe_here))
    some = {"expf", "log", "matmul/0", "quantize", "softmax", "activate", "values/IQ3_S", "model/Q4_K", "model/experts"}
    assert some <= subjects.keys()
    assert len(set().union(*subjects.values())) == len(subjects)  # equal hashes of two would mean an empty result


def test_another_machine_agrees_bit_for_bit(probe_here: str, other: Other, probe_there: Half) -> None:
    """Each level of its best processor, and the best level of each lesser one."""
    expected = hashes_of(probe_here)
    for processor, level in other.runs:
        there = probe_there.output(f"{processor}-{level}")
        assert levels_of(there) == other.processors[processor]
        hashes = hashes_of(there)
        assert {at for _, at in hashes} == {level}
        assert {subject for subject, _ in hashes} == {s for s, at in expected if (at == "-") == (level == "-")}
        renamed = {(subject, f"{level} on {processor}"): digest for (subject, _), digest in hashes.items()}
        assert disagreements({**expected, **renamed}) == {}


# ---- the level avxvnni, where no machine at hand has it --------------------------------------------------------------

on_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX-VNNI is an extension of x86-64")


@on_x86_64
@pytest.mark.skipif(not BY_AVX512, reason="needs AVX-512, and no AVX-VNNI, which any test of levels then covers")
def test_avxvnni_stands_between_avx512_and_avx2(probe_here: str) -> None:
    """And with the test above: has the bits of both."""
    assert levels_of(probe_here) == ["avx512", "avxvnni", "avx2", "scalar"]


@on_x86_64
def test_avxvnni_needs_no_avx512(compiler: list[str], tmp_path: Path) -> None:
    """Processors with AVX-VNNI alone do not know the other encoding, whose instructions begin with 0x62."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    source, program = ROOT / "csrc" / "kernels" / "avxvnni_quantised.c", tmp_path / "avxvnni.o"
    run([*compiler, *FLAGS, INCLUDE, "-c", str(source), "-o", str(program)])
    listing = run(["objdump", "--disassemble", "--wide", str(program)])
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
    program = tmp_path_factory.mktemp("cpu") / "probe"
    sources = [str(CROSS / "cpu_probe.c"), str(ROOT / "csrc" / "kernels" / "cpu.c")]
    run([*compiler, *FLAGS, f"-I{CROSS / 'faked'}", INCLUDE, *sources, "-o", str(program)])
    return program


@on_x86_64
@pytest.mark.skipif(not {"avx2", "avx512"} & set(_core.isa_names()), reason="the operating system saves no ymm here")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_what_a_processor_says_of_itself(cpu_probe: Path, processor: str) -> None:
    leaves, levels = PROCESSORS[processor]
    assert run([str(cpu_probe), *leaves]).split() == levels
