"""CTranslate2, on a folder of its converter's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from peers.converted import converted
from pyllm.measuring.peers import Floats, Setup, Taken, need, release, timing


class CTranslate2:
    """int8 weights and activations; tokens are chosen by the library, which offers no other way to go on."""

    tests = frozenset({"prefill", "decode", "batch"})
    costs = None

    def __init__(self, setup: Setup, weights: str) -> None:
        self._api, self._weights = need("ctranslate2", "ctranslate2"), weights
        folder = str(converted(setup, f"ctranslate2:{weights}"))
        self._model = self._api.Generator(folder, compute_type=weights, intra_threads=setup.threads, inter_threads=1)
        self._pieces = need("json", "python").loads(_vocabulary(folder))

    @property
    def version(self) -> str:
        """The release, and the weights' type."""
        return f"{release('ctranslate2')}, {self._weights}"

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `Engine`."""
        rows: Floats = np.array(self._model.forward_batch([list(ids)]), np.float32)[0]
        return rows

    def prefill(self, ids: Sequence[int]) -> Taken:
        """See `Engine`."""
        with timing(len(ids)) as taken:
            self._generate([ids], 1)
        return taken

    def decode(self, ids: Sequence[int], before: Sequence[int] = ()) -> Taken:
        """See `Engine`. It goes on by tokens of its own, after a prompt of at least one; the first of them ends the
        prompt, and is not timed.
        """
        clock, cpu = [], []

        def step(_: Any) -> bool:
            clock.append(time.perf_counter())
            cpu.append(time.process_time())
            return False

        self._generate([before or ids[:1]], len(ids) + 1, callback=step)
        return Taken(len(clock) - 1, clock[-1] - clock[0], cpu[-1] - cpu[0])

    def batch(self, prompts: Sequence[Sequence[int]], n: int) -> Taken:
        """See `Engine`."""
        with timing(n * len(prompts)) as taken:
            self._generate(prompts, n)
        return taken

    def close(self) -> None:
        """See `Engine`."""
        del self._model

    def _generate(self, prompts: Sequence[Sequence[int]], n: int, **options: Any) -> None:
        tokens = [[self._pieces[i] for i in ids] for ids in prompts]
        self._model.generate_batch(
            tokens, min_length=n, max_length=n, sampling_topk=1, include_prompt_in_result=False, **options
        )


def _vocabulary(folder: str) -> str:
    from pathlib import Path

    return (Path(folder) / "vocabulary.json").read_text("utf-8")
