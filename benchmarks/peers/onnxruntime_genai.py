"""onnxruntime-genai, on a folder of its model builder's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from peers.converted import converted
from pyllm.measuring.peers import EVERY_TEST, Floats, Setup, Taken, need, release, timing


class OnnxruntimeGenai:
    """A generator per context; tokens are chosen by the library, which offers no other way to go on."""

    tests = EVERY_TEST
    costs = None

    def __init__(self, setup: Setup, weights: str) -> None:
        self._api, self._weights = need("onnxruntime_genai", "onnxruntime-genai"), weights
        self._longest = setup.context_length + 1
        config = self._api.Config(str(converted(setup, f"onnxruntime-genai:{weights}")))
        threads = {"model": {"decoder": {"session_options": {"intra_op_num_threads": setup.threads}}}}
        config.overlay(_json(threads))
        self._model = self._api.Model(config)
        self._tokenizer = self._api.Tokenizer(self._model)
        self._deep: Any = None  # a generator, and the tokens that it holds
        self._held: list[int] = []

    @property
    def version(self) -> str:
        """The releases of both packages."""
        return f"{release('onnxruntime-genai')}, {release('onnxruntime')}, {self._weights}"

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `Engine`. One token at a time: a generator keeps the last token's logits alone."""
        generator, rows = self._generator(1, len(ids) + 1), []
        for token in ids:
            generator.append_tokens(np.array([[token]], np.int32))
            rows.append(np.array(generator.get_logits(), np.float32).reshape(-1))
        return np.stack(rows)

    def prefill(self, ids: Sequence[int]) -> Taken:
        """See `Engine`."""
        generator = self._generator(1, self._longest)
        with timing(len(ids)) as taken:
            generator.append_tokens(np.array([ids], np.int32))
        return taken

    def decode(self, ids: Sequence[int], before: Sequence[int] = ()) -> Taken:
        """See `Engine`."""
        if self._held != list(before) or self._deep is None:
            self._deep, self._held = self._generator(1, len(before) + len(ids) + 1), list(before)
            if before:
                self._deep.append_tokens(np.array([before], np.int32))
        self._deep.rewind_to(len(before))
        with timing(len(ids)) as taken:
            for token in ids:
                self._deep.append_tokens(np.array([[token]], np.int32))
        return taken

    def batch(self, prompts: Sequence[Sequence[int]], n: int) -> Taken:
        """See `Engine`."""
        with timing(n * len(prompts)) as taken:
            generator = self._generator(len(prompts), len(prompts[0]) + n, at_least=True)
            generator.append_tokens(np.array(prompts, np.int32))
            for _ in range(n):
                generator.generate_next_token()
        return taken

    def text(self, prompt: str, n: int) -> Taken:
        """See `Engine`."""
        with timing() as taken:
            ids = self._tokenizer.encode(prompt)
            generator, stream = self._generator(1, len(ids) + n), self._tokenizer.create_stream()
            generator.append_tokens(ids)
            while not generator.is_done():
                generator.generate_next_token()
                stream.decode(generator.get_next_tokens()[0])
                taken.tokens += 1
        return taken

    def close(self) -> None:
        """See `Engine`."""
        del self._deep, self._tokenizer, self._model

    def _generator(self, sequences: int, longest: int, at_least: bool = False) -> Any:
        parameters = self._api.GeneratorParams(self._model)
        least = {"min_length": longest} if at_least else {}
        parameters.set_search_options(max_length=longest, batch_size=sequences, do_sample=False, **least)
        return self._api.Generator(self._model, parameters)


def _json(value: object) -> str:
    import json

    return json.dumps(value)
