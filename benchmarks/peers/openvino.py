"""OpenVINO: its runtime on the stateful model, token by token, and OpenVINO GenAI's continuous batching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from peers.converted import converted
from pyllm.measuring.peers import Floats, Setup, Taken, need, release, timing


class OpenVino:
    """The stateful model, compiled for the CPU; keys and values as the runtime chooses them."""

    tests = frozenset({"prefill", "decode", "batch"})
    costs = None

    def __init__(self, setup: Setup, weights: str) -> None:
        self._api, self._weights = need("openvino", "openvino"), weights
        folder = converted(setup, f"openvino:{weights}")
        options = {"INFERENCE_NUM_THREADS": setup.threads, "PERFORMANCE_HINT": "LATENCY"}
        self._model = self._api.Core().compile_model(str(folder / "openvino_model.xml"), "CPU", options)
        self._request = self._model.create_infer_request()
        self._inputs = {name for port in self._model.inputs for name in port.names}

    @property
    def version(self) -> str:
        """The release, and the weights' type."""
        return f"{release('openvino')}, {self._weights}"

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `Engine`."""
        self._request.reset_state()
        rows: Floats = np.array(self._read(np.array([ids], np.int64), 0)[0], np.float32)
        return rows

    def prefill(self, ids: Sequence[int]) -> Taken:
        """See `Engine`. The exported model computes every position's logits, unless it slices by itself."""
        self._request.reset_state()
        with timing(len(ids)) as taken:
            self._read(np.array([ids], np.int64), 0)
        return taken

    def decode(self, ids: Sequence[int], before: Sequence[int] = ()) -> Taken:
        """See `Engine`."""
        self._request.reset_state()
        if before:
            self._read(np.array([before], np.int64), 0)
        with timing(len(ids)) as taken:
            for i, token in enumerate(ids):
                self._read(np.array([[token]], np.int64), len(before) + i)
        return taken

    def batch(self, prompts: Sequence[Sequence[int]], n: int) -> Taken:
        """See `Engine`."""
        self._request.reset_state()
        with timing(n * len(prompts)) as taken:
            ids = np.array(prompts, np.int64)
            for i in range(n):
                position = 0 if i == 0 else len(prompts[0]) + i - 1
                ids = self._read(ids, position)[:, -1].argmax(-1)[:, None]
        return taken

    def close(self) -> None:
        """See `Engine`."""
        del self._request, self._model

    def _read(self, ids: Any, position: int) -> Any:
        sequences, n = ids.shape
        places = np.arange(position, position + n, dtype=np.int64)
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((sequences, position + n), np.int64),
            "position_ids": np.broadcast_to(places, (sequences, n)),
            "beam_idx": np.arange(sequences, dtype=np.int32),
        }
        self._request.infer({name: value for name, value in inputs.items() if name in self._inputs}, share_inputs=True)
        return self._request.get_output_tensor(0).data


class OpenVinoGenai:
    """Continuous batching with paged attention; tokens are chosen by the library. Its logits cannot be had: `OpenVino`
    has the same weights with other attention kernels.
    """

    tests = frozenset({"prefill", "decode", "batch", "text"})
    costs = None

    def __init__(self, setup: Setup, weights: str) -> None:
        self._api, self._weights = need("openvino_genai", "openvino-genai"), weights
        self._array = need("openvino", "openvino").Tensor
        scheduler = self._api.SchedulerConfig()
        scheduler.cache_size = 1  # GB
        scheduler.max_num_batched_tokens = max(setup.context_length, 256)  # a prompt in one step
        folder = converted(setup, f"openvino:{weights}")
        options = {"INFERENCE_NUM_THREADS": setup.threads}
        self._pipeline = self._api.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", options)
        self._tokenizer, self._next = self._pipeline.get_tokenizer(), 0

    @property
    def version(self) -> str:
        """The releases, and the weights' type."""
        return f"{release('openvino-genai')}, {release('openvino')}, {self._weights}"

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `Engine`. Raises `NotImplementedError`."""
        raise NotImplementedError("OpenVINO GenAI does not give logits; openvino has the same weights")

    def prefill(self, ids: Sequence[int]) -> Taken:
        """See `Engine`."""
        with timing(len(ids)) as taken:
            self._finish(self._add(ids, 1))
        return taken

    def decode(self, ids: Sequence[int], before: Sequence[int] = ()) -> Taken:
        """See `Engine`. It goes on by tokens of its own, after a prompt of at least one."""
        request = self._add(before or ids[:1], len(ids) + 1)
        self._pipeline.step()
        with timing(len(ids)) as taken:
            self._finish(request)
        return taken

    def batch(self, prompts: Sequence[Sequence[int]], n: int) -> Taken:
        """See `Engine`."""
        with timing(n * len(prompts)) as taken:
            self._finish(*[self._add(ids, n) for ids in prompts])
        return taken

    def text(self, prompt: str, n: int) -> Taken:
        """See `Engine`."""
        with timing() as taken:
            ids = self._tokenizer.encode(prompt).input_ids.data[0]
            (made,) = self._finish(self._add(ids, n))
            self._tokenizer.decode(made)
            taken.tokens = len(made)
        return taken

    def close(self) -> None:
        """See `Engine`."""
        del self._pipeline

    def _add(self, ids: Sequence[int], n: int) -> Any:
        options = self._api.GenerationConfig()
        options.max_new_tokens, options.ignore_eos, options.do_sample = n, True, False
        self._next += 1
        return self._pipeline.add_request(self._next, self._array(np.array([ids], np.int64)), options)

    def _finish(self, *requests: Any) -> list[list[int]]:
        """What each request generated. One whose handle is let go is dropped."""
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return [request.read_all()[0].generated_ids for request in requests]
