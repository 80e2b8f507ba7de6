"""Programs that time themselves: llama.cpp's llama-bench, and llama2.c's run."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyllm.measuring.peers import Floats, Setup, Taken


class Program:
    """What both have in common: they are run anew for every sample, load the model each time, and say their own rate.
    CPU time is that of the whole process, loading and warming up included.
    """

    costs = None

    def __init__(self, setup: Setup, path: str, arguments: Sequence[str]) -> None:
        if not os.access(path, os.X_OK):
            raise FileNotFoundError(f"{path} is no program")
        self._setup, self._path, self._arguments = setup, path, list(arguments)

    @property
    def version(self) -> str:
        """The program's name and arguments: it tells no version."""
        return " ".join([Path(self._path).name, *self._arguments])

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `Engine`. Raises `NotImplementedError`."""
        raise NotImplementedError(f"{Path(self._path).name} gives no logits")

    def close(self) -> None:
        """See `Engine`."""

    def run(self, *arguments: object, **environment: str) -> tuple[str, str, float]:
        """Its two outputs, and its CPU seconds."""
        command = [self._path, *map(str, arguments), *self._arguments]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:]
            raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}: {''.join(last)}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return done.stdout, done.stderr, cpu


class LlamaBench(Program):
    """llama.cpp's own benchmark: one repetition after its warm-up."""

    tests = frozenset({"prefill", "decode"})

    def prefill(self, ids: Sequence[int]) -> Taken:
        """See `Engine`; the program draws its own ids."""
        return self._bench("-p", len(ids), "-n", 0)

    def decode(self, ids: Sequence[int], before: Sequence[int] = ()) -> Taken:
        """See `Engine`; the program draws its own ids."""
        return self._bench("-p", 0, "-n", len(ids), *(["-d", len(before)] if before else []))

    def _bench(self, *arguments: object) -> Taken:
        common = ("-m", self._setup.model, "-t", self._setup.threads, "-r", 1, "-o", "json")
        out, _, cpu = self.run(*common, *arguments)
        return taken_from_llama_bench(out, cpu)


def taken_from_llama_bench(out: str, cpu: float) -> Taken:
    """What llama-bench's JSON says of its one test."""
    rows: list[dict[str, Any]] = json.loads(out[out.index("[") :])
    (row,) = rows
    return Taken(row["n_prompt"] + row["n_gen"], sum(row["samples_ns"]) / 1e9, cpu)


class RunC(Program):
    """llama2.c's run, from text to text; its own clock starts after the first token."""

    tests = frozenset({"text"})

    def text(self, prompt: str, n: int) -> Taken:
        """See `Engine`. The rate is what run.c prints; it may end early, so its tokens are counted as asked for."""
        if self._setup.tokenizer is None:
            raise FileNotFoundError("run.c needs --tokenizer")
        common = ("-t", 0, "-n", n, "-z", self._setup.tokenizer, "-i", prompt)
        _, errors, cpu = self.run(self._setup.model, *common, OMP_NUM_THREADS=str(self._setup.threads))
        return taken_from_run_c(errors, n, cpu)


def taken_from_run_c(errors: str, n: int, cpu: float) -> Taken:
    """What run.c's last line says: "achieved tok/s: 123.4"."""
    found = re.search(r"achieved tok/s: ([0-9.]+|inf)", errors)
    if not found or found[1] == "inf" or float(found[1]) == 0:
        raise RuntimeError(f"run.c told no rate: {errors.strip()[-200:]!r}")
    return Taken(n, n / float(found[1]), cpu)
