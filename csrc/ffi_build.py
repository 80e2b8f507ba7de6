"""Builds the extension `pyllm._native`: the C sources of this folder behind the declarations of `pyllm_api.h`.

Baseline machine code only: each kernel file raises its own target inside the source and is chosen at run time, so
one wheel serves every CPU of its architecture.

Environment: CC, CFLAGS and LDFLAGS as usual; PYLLM_SANITIZE=address,undefined or =thread for a build with sanitizers.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"

# -ffp-contract=off: every fused multiply-add is written out, so that all machines round at the same places.
# No -march: the wheel must start on any CPU. No -ffast-math: linking with it changes the FPU state of the process.
COMPILE_ARGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-pthread"]
COMPILE_ARGS += ["-Wall", "-Wextra", "-Werror=incompatible-pointer-types", "-Werror=int-conversion"]
LINK_ARGS = ["-lm", "-pthread"]

SANITIZERS = [name for name in os.environ.get("PYLLM_SANITIZE", "").split(",") if name]

# What compilers call OpenMP, as (compile, link): GCC and Clang; Apple's Clang with a libomp beside it.
OPENMP_SPELLINGS = [(["-fopenmp"], ["-fopenmp"]), (["-Xpreprocessor", "-fopenmp"], ["-lomp"])]
OPENMP_PROBE = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


def builds(compile_args: list[str], link_args: list[str]) -> bool:
    """Whether the compiler makes a program of OPENMP_PROBE with these flags."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    names = ("CPPFLAGS", "CFLAGS", "LDFLAGS")
    environment = [flag for name in names for flag in shlex.split(os.environ.get(name, ""))]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(OPENMP_PROBE)
        command = [*compiler, *compile_args, str(source), "-o", str(Path(folder, "probe"))]
        try:
            finished = subprocess.run([*command, *environment, *link_args], capture_output=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return False
    return finished.returncode == 0


def openmp_flags() -> tuple[list[str], list[str]]:
    """The flags that turn OpenMP on; none where the compiler has no OpenMP, and for the thread sanitizer, which does
    not see how the threads of libgomp wait for each other: regions run on threads of our own there.
    """
    if "thread" in SANITIZERS:
        return [], []
    for compile_args, link_args in OPENMP_SPELLINGS:
        if builds(compile_args, link_args):
            return compile_args, link_args
    print("pyllm: this compiler has no OpenMP; regions will start threads of their own", file=sys.stderr)
    return [], []


def sanitizer_flags() -> tuple[list[str], list[str]]:
    """Flags for PYLLM_SANITIZE, such as "address,undefined": the first finding ends the process, with a trace."""
    if not SANITIZERS:
        return [], []
    names = ",".join(SANITIZERS)
    if "undefined" in SANITIZERS:
        names += ",float-cast-overflow"  # which "undefined" leaves out
    sanitize = [f"-fsanitize={names}", "-fno-sanitize-recover=all"]
    return [*sanitize, "-fno-omit-frame-pointer", "-g1", "-O1", "-UNDEBUG"], sanitize


def relative(paths: list[Path]) -> list[str]:
    """Paths as setuptools wants them: relative to the project, in a fixed order."""
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


flags = [openmp_flags(), sanitizer_flags()]
ffi = FFI()
ffi.cdef((CSRC / "pyllm_api.h").read_text() + '\nextern "Python" int32_t pyllm_poll(void *context);\n')
ffi.set_source(
    "pyllm._native",
    '#include "pyllm.h"',
    sources=relative(list(CSRC.rglob("*.c"))),
    depends=relative([p for p in CSRC.rglob("*") if p.suffix in {".h", ".inc", ".py"}]),
    include_dirs=["csrc"],
    extra_compile_args=sum((compile_args for compile_args, _ in flags), COMPILE_ARGS),
    extra_link_args=sum((link_args for _, link_args in flags), LINK_ARGS),
    define_macros=[("_GNU_SOURCE", "1")],
)
