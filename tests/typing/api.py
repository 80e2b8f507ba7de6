"""The annotations of the public interface, as a user's type checker sees them. Checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import pyllm


def progress(done: int, total: int) -> None:
    """What `progress=` takes."""


model: pyllm.Model = pyllm.load("model.gguf")
model = pyllm.Model.load(Path("model.gguf"))
model = pyllm.load(
    "smollm2-135m",
    threads=4,
    context_length=2048,
    precision="fast",
    kv_dtype="f32",
    tokenizer=Path("tokenizer.bin"),
    progress=progress,
)
model = pyllm.load("model.bin", tokenizer=pyllm.Tokenizer.load("tokenizer.model"), progress=True)

assert_type(model.config, pyllm.ModelConfig)
assert_type(model.config.dim, int)
assert_type(model.tokenizer, pyllm.Tokenizer | None)
assert_type(model.threads, int)
assert_type(model.nbytes, int)
assert_type(model.info(), dict[str, Any])

sampler = pyllm.Sampler(temperature=0.7, top_k=40, top_p=0.9, min_p=0.05, logit_bias={3: -1.0}, seed=1)
sampler = pyllm.Sampler.greedy()
assert_type(sampler([0.1, 0.2]), int)
assert_type(sampler(np.zeros(4, np.float32)), int)

generation: pyllm.Generation = model.generate("Once", max_tokens=8, sampler=sampler, stop="\n", seed=3, logprobs=True)
generation = model.generate([1, 2, 3], max_tokens=None, stop=["a", "b"], timeout=1.5, context_length=100)
generation = model.chat([{"role": "user", "content": "Hi"}], tools=[{"type": "function"}], max_tokens=4)
grammar = pyllm.Grammar.json_schema({"type": "object"}, whitespace=True)
assert_type(grammar, pyllm.Grammar)
assert_type(pyllm.Grammar.regex("[0-9]+"), pyllm.Grammar)
assert_type(pyllm.Grammar.lark('start: "a"'), pyllm.Grammar)
generation = model.generate("Once", grammar=grammar)
generation = model.generate("Once", grammar={"type": "object"})


def ban(tokens: tuple[int, ...], logits: npt.NDArray[np.float32]) -> None:
    """What `logits_processor=` takes; it may also return logits."""
    logits[tokens[-1]] = -np.inf


def copied(tokens: tuple[int, ...], logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """See `ban`."""
    copy: npt.NDArray[np.float32] = logits.copy()
    return copy


generation = model.generate("Once", logits_processor=ban)
generation = model.generate("Once", logits_processor=[ban, copied])
messages: list[Mapping[str, str]] = [{"role": "user", "content": "Hi"}]
generation = model.chat(messages)


def add(a: int, b: int) -> int:
    """What `tools=` takes."""
    return a + b


generation = model.chat(messages, tools=[add, {"name": "other", "parameters": {}}])
assert_type(generation.tool_calls, list[pyllm.ToolCall])
assert_type(generation.tool_errors, list[str])
assert_type(generation.message, dict[str, Any])
end = pyllm.tools.run(model, messages, [add], max_rounds=3, max_tokens=100)
assert_type(end, pyllm.tools.Conversation)
assert_type(end.messages, list[dict[str, Any]])
assert_type(end.finished, bool)
assert_type(pyllm.tools.describe(add), dict[str, Any])
assert_type(pyllm.tools.answer(generation.tool_calls[0], add), dict[str, Any])

for chunk in generation:
    assert_type(chunk, pyllm.Chunk)
    assert_type(chunk.text, str)
    assert_type(chunk.token, int)
    assert_type(chunk.logprob, float | None)
assert_type(generation.text, str)
assert_type(generation.tokens, list[int])
assert_type(generation.finish_reason, Literal["stop", "length", "cancelled"] | None)
assert_type(generation.seed, int)
assert_type(generation.stats, pyllm.Stats)
assert_type(generation.stats.decode_tokens_per_second, float)
with generation as same:
    assert_type(same, pyllm.Generation)


async def read() -> None:
    """Chunk by chunk, in an event loop."""
    async for chunk in model.generate("Once"):
        assert_type(chunk, pyllm.Chunk)


assert_type(model.logits([1, 2]), npt.NDArray[np.float32])
score = model.score("Once upon a time")
assert_type(score, pyllm.Score)
assert_type(score.perplexity, float)
assert_type(score.logprobs, tuple[float, ...])

with model.session(context_length=128) as session:
    assert_type(session, pyllm.Session)
    assert_type(session.eval([1, 2]), npt.NDArray[np.float32])
    assert_type(session.tokens, list[int])
    assert_type(session.position, int)
    session.truncate(1)
    assert_type(session.fork(), pyllm.Session)
    assert_type(session.hidden_states([1, 2], layers=[0, -1]), npt.NDArray[np.float32])
    assert_type(session.keys(0), npt.NDArray[np.float32])
    assert_type(session.values(0), npt.NDArray[np.float32])
    session.save("session.bin")
    assert_type(session.generate(max_tokens=3), pyllm.Generation)
    assert_type(session.chat(messages, tools=[add], grammar=grammar), pyllm.Generation)
assert_type(model.restore(Path("session.bin")), pyllm.Session)
model.export("out.bin", version=2, group_size=32)
with model as same_model:
    assert_type(same_model, pyllm.Model)

error: pyllm.PyllmError = pyllm.ContextLengthError("too long")
value_error: ValueError = pyllm.ModelFormatError("damaged")
version: str = pyllm.__version__
