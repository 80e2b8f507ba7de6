"""Builds and runs cross/law1_probe.c for this machine and an emulated other one, beside the tests that compare.

Compilers and emulators take two minutes of a core, and most tests leave one idle: processes of the lowest priority do
it meanwhile, so that test_cross.py, the last file, finds the results.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CROSS = ROOT / "tests" / "cross"

# The flags of csrc/ffi_build.py that decide about rounding, and -O3 since the optimiser must not change a bit either.
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O3", "-ffp-contract=off", "-fno-math-errno", "-pthread", "-w"]
INCLUDE = f"-I{ROOT / 'csrc'}"
LONGEST = 600  # seconds of one command, on cores that others keep busy


@dataclass(frozen=True)
class Other:
    """A machine that is not this one, and the processors to emulate with the levels each must offer, best first."""

    compiler: str
    emulator: str
    processors: dict[str, list[str]]

    @property
    def missing(self) -> str | None:
        """A tool that is not installed."""
        return next((tool for tool in (self.compiler, self.emulator) if shutil.which(tool) is None), None)

    @property
    def runs(self) -> list[tuple[str, str]]:
        """Processors and levels: every level of the first, and of the others the best, to see that they know all of its
        instructions. What it computes there the first one did at the same level.
        """
        (first, levels), *others = self.processors.items()
        return [*((first, level) for level in (*reversed(levels), "-")), *((name, best[0]) for name, best in others)]


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


def this_compiler() -> list[str] | None:
    """This machine's, if there is one."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    return compiler if shutil.which(compiler[0]) else None


def other_machine() -> Other | None:
    """What to compare this machine with, if anything is known."""
    return OTHERS.get(platform.machine()) if platform.system() == "Linux" else None


def by_avx512() -> bool:
    """Whether the level avxvnni can be run by another encoding of its instruction alone: AVX-512 without AVX-VNNI."""
    from pyllm import _core

    return {"avx512", "avxvnni"} & set(_core.isa_names()) == {"avx512"}


# ---- the tests' side -------------------------------------------------------------------------------------------------


class Half:
    """A process that builds and runs the probe for this machine ("here") or the other one ("there")."""

    def __init__(self, name: str, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "log"
        with self._log.open("w") as log:
            command = [sys.executable, __file__, name, str(folder)]
            environment = {**os.environ, "TMPDIR": str(folder)}  # compilers that are killed leave files there
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, env=environment)

    def output(self, name: str) -> str:
        """What a run of the probe printed, once all have. Raises `AssertionError` where something failed."""
        assert self._process.wait(4 * LONGEST) == 0, self._log.read_text()
        return (self._folder / name).read_text()

    def stop(self) -> None:
        """The tests are over: it ends where its input does, as when they are killed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


# ---- the process -----------------------------------------------------------------------------------------------------


def run(command: list[str]) -> str:
    """What it prints. Raises `RuntimeError` with its complaint where it fails."""
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONGEST)
    if finished.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {finished.returncode}\n{finished.stderr}")
    return finished.stdout


def build(compiler: list[str], program: Path, *link: str) -> list[str]:
    """Compiles the probe with all of csrc, on all cores; the command that runs it."""
    longest_first = sorted((ROOT / "csrc").rglob("*.c"), key=lambda path: ("quantised" not in path.name, path))
    sources = (*longest_first, CROSS / "law1_probe.c")
    objects = [program.with_suffix(f".{i}.o") for i in range(len(sources))]
    compile_one = [*compiler, *FLAGS, INCLUDE, "-c"]
    at_once([[*compile_one, str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)])
    run([*compiler, "-pthread", *map(str, objects), "-o", str(program), *link, "-lm"])
    return [str(program)]


def at_once(commands: list[list[str]]) -> list[str]:
    """What each prints; as many run at a time as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(run, commands))


def here(folder: Path) -> None:
    """What the probe prints on this machine, as folder/here."""
    compiler = this_compiler()
    assert compiler
    flags = ["-DPL_AVXVNNI_BY_AVX512"] if by_avx512() else []
    (folder / "here").write_text(run(build([*compiler, *flags], folder / "probe")))


def there(folder: Path) -> None:
    """What it prints on the processors of the other machine, as folder/PROCESSOR-LEVEL."""
    other = other_machine()
    assert other
    program = build([other.compiler], folder / "probe", "-static")
    outputs = at_once([[other.emulator, "-cpu", name, *program, level] for name, level in other.runs])
    for (name, level), output in zip(other.runs, outputs, strict=True):
        (folder / f"{name}-{level}").write_text(output)


def end_with_the_tests() -> None:
    """With all that was started: the input is a pipe whose other end they hold."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    os.setpgrp()  # no session of its own: Linux would weigh that against the others', whatever its priority
    os.nice(19)
    threading.Thread(target=end_with_the_tests, daemon=True).start()
    {"here": here, "there": there}[sys.argv[1]](Path(sys.argv[2]))
