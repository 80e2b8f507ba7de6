"""The public API as a typed program uses it. Never run: `mypy` checks it, under --strict."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import pyllm


def loading() -> pyllm.Model:
    """Every way to call `load`."""
    assert_type(pyllm.load("model.gguf"), pyllm.Model)
    assert_type(pyllm.Model.load("smollm2-135m", progress=True), pyllm.Model)
    tokenizer = pyllm.Tokenizer.load("tok512.bin")
    return pyllm.load(
        "stories260K.bin",
        threads=2,
        context_length=256,
        precision="fast",
        kv_dtype="f32",
        tokenizer=tokenizer,
        progress=lambda done, total: None,
    )


def generating(model: pyllm.Model) -> None:
    """A generation, read chunk by chunk and as a whole."""
    sampler = pyllm.Sampler(temperature=0.7, top_k=40, top_p=0.9, min_p=0.05, logit_bias={1: -1.0}, seed=1)
    generation = model.generate("Once", max_tokens=8, sampler=sampler, stop=("\n",), seed=2, logprobs=True)
    assert_type(generation, pyllm.Generation)
    for chunk in generation:
        assert_type(chunk, pyllm.Chunk)
        assert_type(chunk.text, str)
        assert_type(chunk.token, int)
        assert_type(chunk.logprob, "float | None")
    assert_type(generation.text, str)
    assert_type(generation.seed, int)
    assert_type(generation.stats, pyllm.Stats)
    assert_type(generation.stats.decode_tokens_per_second, float)
    generation.close()
    assert_type(model.generate([1, 2, 3], sampler=pyllm.Sampler.greedy()).text, str)
    assert_type(model.chat([{"role": "user", "content": "Hello"}]), pyllm.Generation)


async def awaiting(model: pyllm.Model) -> AsyncIterator[str]:
    """The same, from a coroutine."""
    async for chunk in model.generate("Once"):
        yield chunk.text


def measuring(model: pyllm.Model) -> None:
    """Logits and scores."""
    assert_type(model.logits([1, 2]), npt.NDArray[np.float32])
    score = model.score("text")
    assert_type(score, pyllm.Score)
    assert_type(score.perplexity, float)
    assert_type(model.config, pyllm.ModelConfig)
    assert_type(model.config.n_layers, int)
    assert_type(model.tokenizer, "pyllm.Tokenizer | None")
    assert_type(model.nbytes, int)


def timelines(model: pyllm.Model) -> None:
    """Sessions."""
    with model.session(context_length=64) as session:
        logits = session.eval([1, 2])
        assert_type(logits, npt.NDArray[np.float32])
        assert_type(session.tokens, list[int])
        assert_type(session.position, int)
        session.truncate(1)
        assert_type(session.fork(), pyllm.Session)
        session.save("timeline")
        assert_type(session.generate("more"), pyllm.Generation)
        assert_type(pyllm.Sampler()(logits), int)
    assert_type(model.restore("timeline"), pyllm.Session)


def tokenizing(tokenizer: pyllm.Tokenizer) -> None:
    """Tokenizers."""
    assert_type(tokenizer.encode("text", bos=True, eos=False, special=False), list[int])
    assert_type(tokenizer.encode_batch(["a", "b"]), list[list[int]])
    assert_type(tokenizer.decode([1, 2]), str)
    assert_type(tokenizer.id_to_piece(1), str)
    assert_type(tokenizer.vocab_size, int)
    assert_type(tokenizer.bos_id, "int | None")
    assert_type(tokenizer.eos_ids, frozenset[int])
    decoder = tokenizer.decoder()
    assert_type(decoder.push(1), str)
    assert_type(decoder.flush(), str)


def failing() -> None:
    """Errors are what a caller would expect, twice over."""
    try:
        loading()
    except pyllm.ModelFormatError as error:
        as_value_error: ValueError = error
        as_root: pyllm.PyllmError = error
        print(as_value_error, as_root)
    except pyllm.OutOfMemoryError as error:
        as_memory_error: MemoryError = error
        print(as_memory_error)
