"""Hugging Face transformers: in fp32 the reference of law 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peers.converted import converted
from pyllm.measuring.peers import EVERY_TEST, Floats, Setup, Taken, need, release, timing


class Transformers:
    """The weights that a GGUF file means, in fp32 with eager attention or in bf16 with torch's own: from the folder
    that convert.py made, or, without one, by transformers' own reader, which may keep them packed.
    """

    tests = EVERY_TEST
    costs = None

    def __init__(self, setup: Setup, dtype: str) -> None:
        packages = "torch transformers accelerate gguf"
        self._torch, self._dtype = need("torch", packages), dtype
        self._torch.set_num_threads(setup.threads)
        transformers = need("transformers", packages)
        source = {"pretrained_model_name_or_path": str(setup.model.parent), "gguf_file": setup.model.name}
        if setup.converted:
            source = {"pretrained_model_name_or_path": str(converted(setup, "hf"))}
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            **source,
            dtype=getattr(self._torch, dtype),
            attn_implementation="eager" if dtype == "float32" else "sdpa",
        )
        self._model.eval()
        self._open_tokenizer = lambda: transformers.AutoTokenizer.from_pretrained(**source)
        self._tokenizer: Any = None

    @property
    def version(self) -> str:
        """The releases of transformers and of torch."""
        return f"{release('transformers')}, {release('torch')}, {self._dtype}"

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `Engine`."""
        with self._torch.inference_mode():
            rows: Floats = self._model(self._torch.tensor([list(ids)])).logits[0].float().numpy()
        return rows

    def prefill(self, ids: Sequence[int]) -> Taken:
        """See `Engine`."""
        with timing(len(ids)) as taken:
            self._read(ids, None)
        return taken

    def decode(self, ids: Sequence[int], before: Sequence[int] = ()) -> Taken:
        """See `Engine`."""
        cache = self._read(before, None) if before else None
        with timing(len(ids)) as taken:
            for token in ids:
                cache = self._read([token], cache)
        return taken

    def batch(self, prompts: Sequence[Sequence[int]], n: int) -> Taken:
        """See `Engine`."""
        with timing(n * len(prompts)) as taken:
            self._generate(self._torch.tensor([list(ids) for ids in prompts]), n)
        return taken

    def text(self, prompt: str, n: int) -> Taken:
        """See `Engine`."""
        self._tokenizer = self._tokenizer or self._open_tokenizer()
        with timing() as taken:
            ids = self._tokenizer(prompt, return_tensors="pt").input_ids
            made = self._generate(ids, n)[0, ids.shape[1] :]
            self._tokenizer.decode(made)
            taken.tokens = len(made)
        return taken

    def close(self) -> None:
        """See `Engine`."""
        del self._model

    def _generate(self, ids: Any, n: int) -> Any:
        with self._torch.inference_mode():
            mask = self._torch.ones_like(ids)
            return self._model.generate(ids, attention_mask=mask, min_new_tokens=n, max_new_tokens=n, do_sample=False)

    def _read(self, ids: Sequence[int], cache: Any) -> Any:
        with self._torch.inference_mode():
            fed = self._torch.tensor([list(ids)])
            return self._model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
