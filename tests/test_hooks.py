"""`logits_processor=`: functions of the caller's between the model and the sampler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bits import Array, bits
from tinygguf import Q8_0, Shape, tiny_llama

import pyllm

PROMPT = [5, 6, 7]
Use = Callable[..., pyllm.Generation]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pyllm.Model]:
    with pyllm.load(tiny_llama(tmp_path_factory.mktemp("hooks") / "tiny.gguf", Q8_0, Shape(context=64))) as model:
        yield model


@pytest.fixture(params=["model", "session"])
def generate(model: pyllm.Model, request: pytest.FixtureRequest) -> Use:
    """`generate` of a model, and of a new session of it."""
    return model.generate if request.param == "model" else model.session().generate


def only(*allowed: int) -> Callable[[tuple[int, ...], Array], None]:
    """A processor that bans every other token, in place."""

    def processor(tokens: tuple[int, ...], logits: Array) -> None:
        kept = logits[list(allowed)]
        logits[:] = -np.inf
        logits[list(allowed)] = kept

    return processor


def test_it_sees_the_text_so_far_and_the_models_logits(model: pyllm.Model, generate: Use) -> None:
    seen: list[tuple[tuple[int, ...], Array]] = []

    def look(tokens: tuple[int, ...], logits: Array) -> None:
        assert logits.dtype == np.float32
        assert logits.flags.writeable
        seen.append((tokens, logits.copy()))

    tokens = generate(PROMPT, max_tokens=4, seed=3, logits_processor=look).tokens
    assert tokens == model.generate(PROMPT, max_tokens=4, seed=3).tokens
    assert [text for text, _ in seen] == [(*PROMPT, *tokens[:n]) for n in range(4)]
    expected = model.logits([*PROMPT, *tokens[:3]])[2:]
    assert np.array_equal(bits(np.array([row for _, row in seen])), bits(expected))


def test_logits_changed_in_place(generate: Use) -> None:
    tokens = generate(PROMPT, max_tokens=6, seed=1, logits_processor=only(9, 11)).tokens
    assert len(tokens) == 6
    assert set(tokens) <= {9, 11}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_other_logits_returned(model: pyllm.Model, generate: Use, dtype: Any) -> None:
    """The same tokens as by a bias of the sampler, which does the same."""
    bias = {9: 40.0, 11: 41.0}

    def add(tokens: tuple[int, ...], logits: Array) -> Array:
        changed = logits.astype(dtype)
        for token, value in bias.items():
            changed[token] += np.float32(value)
        return changed

    tokens = generate(PROMPT, max_tokens=6, seed=2, logits_processor=add).tokens
    assert tokens == model.generate(PROMPT, max_tokens=6, sampler=pyllm.Sampler(logit_bias=bias), seed=2).tokens
    assert set(tokens) <= {9, 11}


def test_several_work_in_order(generate: Use) -> None:
    def swap(tokens: tuple[int, ...], logits: Array) -> Any:
        return logits[::-1]  # no array that C could read as it is: it is copied

    last = Shape().vocab - 1
    assert set(generate(PROMPT, max_tokens=3, logits_processor=[only(9), swap]).tokens) == {last - 9}
    assert set(generate(PROMPT, max_tokens=3, logits_processor=(swap, only(9))).tokens) == {9}


def test_it_runs_before_the_sampler(generate: Use) -> None:
    """A ban of the sampler's cannot be lifted by it, but what it bans the sampler cannot bring back either."""
    greedy = pyllm.Sampler(temperature=0, logit_bias={9: float("-inf")})
    assert set(generate(PROMPT, max_tokens=3, sampler=greedy, logits_processor=only(9, 11)).tokens) == {11}


def test_log_probabilities_stay_the_models_own(model: pyllm.Model, generate: Use) -> None:
    chunks = list(generate(PROMPT, max_tokens=4, logprobs=True, logits_processor=only(9)))
    score = model.score([*PROMPT, 9, 9, 9, 9])
    assert tuple(chunk.logprob for chunk in chunks) == score.logprobs[len(PROMPT) - 1 :]


def test_an_exception_is_the_callers_and_ends_the_generation(model: pyllm.Model) -> None:
    def stop(tokens: tuple[int, ...], logits: Array) -> None:
        if len(tokens) == 5:
            raise KeyError("enough")

    session = model.session()
    generation = session.generate(PROMPT, logits_processor=stop)
    with pytest.raises(KeyError, match="enough"):
        generation.tokens  # noqa: B018
    assert generation.finish_reason == "cancelled"
    assert len(generation.tokens) == 2
    again = model.session()
    again.eval(session.tokens)
    assert np.array_equal(bits(session.eval([1])), bits(again.eval([1])))


def run_out(tokens: tuple[int, ...], logits: Array) -> None:
    next(iter(()))


@pytest.mark.parametrize("batch", [False, True])
def test_an_iterator_that_runs_out_is_no_end_of_the_text(model: pyllm.Model, batch: bool) -> None:
    """`StopIteration` would end a `for` in silence, and never reach an `async for`."""

    def start() -> pyllm.Generation:
        options: dict[str, Any] = {"logits_processor": run_out, "max_tokens": 3}
        return model.generate_batch([PROMPT], **options)[0] if batch else model.generate(PROMPT, **options)

    async def read() -> None:
        async for _ in start():
            pass

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        list(start())
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        asyncio.run(asyncio.wait_for(read(), 20))


def test_a_processors_array_stays_its_own(model: pyllm.Model) -> None:
    constant = np.zeros(Shape().vocab, np.float32)
    options = {"logits_processor": [lambda tokens, logits: constant, only(9)], "max_tokens": 3}
    assert model.generate(PROMPT, **options).tokens == [9] * 3  # type: ignore[arg-type]
    assert not constant.any()


def test_reading_the_same_batch_is_refused(model: pyllm.Model) -> None:
    """Or it would wait for itself."""
    members: list[pyllm.Generation] = []

    def look(tokens: tuple[int, ...], logits: Array) -> None:
        next(members[1])

    members += model.generate_batch([PROMPT, PROMPT], max_tokens=3, logits_processor=look)
    with pytest.raises(pyllm.SessionBusyError, match="in the midst of a step"):
        next(members[0])


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (np.zeros(299, np.float32), ValueError, r"Named.*\(299,\) instead of \(300,\)"),
        (np.zeros((1, 300), np.float32), ValueError, r"\(1, 300\) instead of \(300,\)"),
        (7.0, ValueError, r"\(\) instead of"),
        ("nonsense", TypeError, "returned str"),
        ({9: 1.0}, TypeError, "returned dict"),
        (np.full(300, np.nan, np.float32), ValueError, "NaN"),
        (np.full(300, -np.inf, np.float32), ValueError, "no token can be drawn"),
    ],
)
def test_what_are_no_logits(model: pyllm.Model, result: Any, error: type[Exception], message: str) -> None:
    class Named:
        def __call__(self, tokens: tuple[int, ...], logits: Array) -> Any:
            return result

    generation = model.generate(PROMPT, logits_processor=Named())
    with pytest.raises(error, match=message) as caught:
        next(generation)
    assert not isinstance(caught.value, pyllm.ModelFormatError)  # the model is not to blame
    assert generation.finish_reason == "cancelled"


@pytest.mark.parametrize("processor", [3, "f", [print, 3]])
def test_what_cannot_be_called_is_refused_at_once(model: pyllm.Model, processor: Any) -> None:
    with pytest.raises(TypeError, match="logits_processor must be a function"):
        model.generate(PROMPT, logits_processor=processor)


def test_a_chat_takes_them_too(tmp_path: Path) -> None:
    from tinygguf import llama_metadata, llama_tensors, tiny_vocabulary, write_gguf

    metadata = llama_metadata(Shape()) | tiny_vocabulary(300)
    metadata["tokenizer.chat_template"] = "{{ messages[0]['content'] }}"
    path = write_gguf(tmp_path / "chat.gguf", metadata, llama_tensors(Shape(), Q8_0))
    with pyllm.load(path) as model:
        reply = model.chat([{"role": "user", "content": "a"}], max_tokens=3, logits_processor=only(9))
        assert set(reply.tokens) == {9}


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_drafts_do_not_show(model: pyllm.Model, temperature: float) -> None:
    """With speculation each token is asked for once, in order, with the same logits as without."""

    def calls(speculation: bool) -> list[tuple[tuple[int, ...], bytes]]:
        seen: list[tuple[tuple[int, ...], bytes]] = []

        def look(tokens: tuple[int, ...], logits: Array) -> None:
            seen.append((tokens, logits.tobytes()))
            logits[5 + len(tokens) % 4] += 9  # what drafts from the text so far foresee

        options: dict[str, Any] = {"sampler": pyllm.Sampler(temperature=temperature), "speculation": speculation}
        tokens = model.generate([5, 6, 7, 8] * 6, max_tokens=24, seed=1, logits_processor=look, **options).tokens
        assert len(seen) == len(tokens) == 24
        return seen

    assert calls(speculation=True) == calls(speculation=False)


def test_each_text_of_a_batch(model: pyllm.Model) -> None:
    prompts = [[5, 6], [7, 8, 9], [10]]
    together = model.generate_batch(prompts, max_tokens=5, seed=1, logits_processor=only(9, 11, 12))
    alone = [model.generate(prompt, max_tokens=5, seed=1, logits_processor=only(9, 11, 12)) for prompt in prompts]
    assert [generation.tokens for generation in together] == [generation.tokens for generation in alone]
    assert all(set(generation.tokens) <= {9, 11, 12} for generation in together)
