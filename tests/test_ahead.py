"""Texts that go on in C for a moment: the same tokens, and sessions that stand where their readers do."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinygguf import Q8_0, Shape, llama_metadata, llama_tensors, tiny_llama, tiny_vocabulary, write_gguf

import pyllm
from pyllm import Sampler, ahead, scheduler
from pyllm._core import NativeModel, Part
from pyllm.ahead import MOST, Ahead

PROMPT = [5, 6, 7]
SHAPE = Shape(context=300)
FREE = Sampler(temperature=1.0, top_p=1.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("ahead") / "tiny.gguf", Q8_0, SHAPE)


@pytest.fixture
def model(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pyllm.Model]:
    """Every pass is short, however slow the machine, and a run ends by the number of its tokens only."""
    monkeypatch.setattr(scheduler, "SHORT_PASS", 1e9)
    monkeypatch.setattr(ahead, "LONGEST", 1e9)
    with pyllm.load(path, threads=1, speculation=False) as model:
        yield model


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each run drew."""
    run, drawn = Ahead.run, list[int]()

    def run_and_note(self: Ahead, session: Any) -> None:
        run(self, session)
        drawn.extend([len(self.drawn)] if self.drawn else [])

    monkeypatch.setattr(Ahead, "run", run_and_note)
    return drawn


def step_by_step(model: pyllm.Model, **options: Any) -> pyllm.Generation:
    """The same text by Python alone, to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "SHORT_PASS", 0.0)
        generation = model.generate(PROMPT, **options)
        generation.tokens  # noqa: B018
    return generation


def same(a: pyllm.Generation, b: pyllm.Generation) -> bool:
    return (a.tokens, a.text, a.finish_reason) == (b.tokens, b.text, b.finish_reason)


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler.greedy(),
        FREE,
        Sampler(temperature=0.8, top_p=0.9),
        Sampler(temperature=1.5, top_k=20, min_p=0.01),
        Sampler(temperature=1.0, repetition_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.1),
        Sampler(temperature=0, repetition_penalty=1.5, logit_bias={9: 2.0, 10: -np.inf}),
    ],
)
@pytest.mark.parametrize("most", [1, 2, 3, MOST, MOST + 1, MOST + 2, 200, None])
def test_the_same_text(model: pyllm.Model, runs: list[int], sampler: Sampler, most: int | None) -> None:
    expected = step_by_step(model, max_tokens=most, sampler=sampler, seed=3)
    assert not runs
    found = model.generate(PROMPT, max_tokens=most, sampler=sampler, seed=3)
    assert same(found, expected)
    assert bool(runs) == (len(found.tokens) > 2)
    assert all(n <= MOST for n in runs)
    assert found.stats.generated_tokens == len(found.tokens)


def test_up_to_the_end_of_the_context(model: pyllm.Model, runs: list[int]) -> None:
    found = model.generate(PROMPT, max_tokens=None, sampler=Sampler.greedy(), context_length=40)
    assert len(found.tokens) == 38
    assert found.finish_reason == "length"
    assert runs == [37]  # the last of which is only drawn
    assert same(found, step_by_step(model, max_tokens=None, sampler=Sampler.greedy(), context_length=40))


def test_stop_strings_and_tokens(model: pyllm.Model, runs: list[int]) -> None:
    for seed in range(12):
        options = {"max_tokens": 200, "sampler": FREE, "seed": seed}
        whole = step_by_step(model, **options)
        assert same(model.generate(PROMPT, **options), whole)  # ended by the model, or not
        stop = whole.text[len(whole.text) // 2 :][:2]
        if stop:
            found = model.generate(PROMPT, stop=stop, **options)
            assert same(found, step_by_step(model, stop=stop, **options))
            assert found.finish_reason == "stop"
    assert runs


@pytest.mark.parametrize("taken", [0, 1, 2, 5, 30, 70])
def test_a_session_holds_what_was_read_of_it(model: pyllm.Model, runs: list[int], taken: int) -> None:
    """Not what was drawn beyond: the next evaluation gives the bits of a fresh session, and so does the next text."""
    expected = step_by_step(model, max_tokens=100, sampler=FREE, seed=8).tokens
    with model.session() as session:
        generation = session.generate(PROMPT, max_tokens=100, sampler=FREE, seed=8)
        read = [chunk.token for _, chunk in zip(range(taken), generation, strict=False)]
        assert read == expected[:taken]
        assert session.tokens == [*(PROMPT if taken else []), *read]
        fork = session.fork()  # in the midst, which takes nothing from the reader
        assert next(generation).token == expected[taken]
        generation.close()
        assert runs or taken == 0
        check_logits(model, session, [*PROMPT, *expected[: taken + 1], 9, 8])
        if taken:
            check_logits(model, fork, [*PROMPT, *read, 9, 8])
        assert session.keys(0).shape[1] == session.position


def check_logits(model: pyllm.Model, session: pyllm.Session, text: Sequence[int]) -> None:
    """A session at some beginning of `text`, when it has evaluated the rest."""
    with model.session() as fresh:
        assert session.eval(text[session.position :]).tobytes() == fresh.eval(text).tobytes()


def test_using_the_session_is_noticed(model: pyllm.Model) -> None:
    with model.session() as session:
        generation = session.generate(PROMPT, max_tokens=50, sampler=FREE)
        for _ in range(4):
            next(generation)
        session.truncate(4)
        with pytest.raises(pyllm.SessionBusyError):
            next(generation)


def test_what_python_has_to_see_is_left_to_python(model: pyllm.Model, runs: list[int]) -> None:
    """Processors, grammars, log-probabilities, and samplers of one's own."""

    class Mine(Sampler):
        def start(self, seed: int | None = None) -> Any:
            state = super().start(seed)
            return type("State", (type(state),), {"draw": lambda *_: 9})(self, 1)

    options: dict[str, Any] = {"max_tokens": 9, "sampler": Sampler.greedy()}
    seen: list[int] = []
    model.generate(PROMPT, logits_processor=lambda tokens, logits: seen.append(len(tokens)), **options).text  # noqa: B018
    assert seen == list(range(3, 12))
    chunks = list(model.generate(PROMPT, logprobs=True, **options))
    assert all(chunk.logprob is not None for chunk in chunks)
    assert model.generate(PROMPT, max_tokens=9, sampler=Mine()).tokens == [9] * 9
    assert not runs


def test_a_run_leaves_room_for_others(model: pyllm.Model, runs: list[int]) -> None:
    """None while another waits, and one of a few milliseconds otherwise."""
    batch = model.generate_batch([PROMPT, PROMPT[:2]], max_tokens=40, sampler=Sampler.greedy())
    texts = [generation.tokens for generation in batch]
    assert not runs
    assert texts[0] == step_by_step(model, max_tokens=40, sampler=Sampler.greedy()).tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "LONGEST", 0.0)
        assert model.generate(PROMPT, max_tokens=40, sampler=Sampler.greedy()).tokens == texts[0]
    assert set(runs) == {1}  # drawn when the time was over


SAMPLERS = [
    Sampler.greedy(),
    FREE,
    Sampler(temperature=0.8, top_p=0.9, seed=4),
    Sampler(temperature=0, repetition_penalty=1.5),
    Sampler(temperature=1.2, top_k=20, presence_penalty=0.5, seed=6),
]


@pytest.mark.parametrize("threads", [1, 2])
def test_texts_of_one_pass_draw_at_once(path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On several threads, each as alone; but those that Python has to see draw there."""
    draw, drawn = Ahead.draw, list[int]()

    def draw_and_note(model: NativeModel, those: Any) -> None:
        draw(model, those)
        drawn.extend(len(one.drawn) for one, _ in those)

    monkeypatch.setattr(Ahead, "draw", draw_and_note)
    options: dict[str, Any] = {"max_tokens": 30, "seed": 3}
    with pyllm.load(path, threads=threads, speculation=False) as model:
        alone = [step_by_step(model, sampler=sampler, **options).tokens for sampler in SAMPLERS]
        assert not drawn
        batch = model.generate_batch([PROMPT] * len(SAMPLERS), sampler=SAMPLERS, **options)
        assert [generation.tokens for generation in batch] == alone
        assert set(drawn) == {1}
        assert len(drawn) >= 29 * len(SAMPLERS) - 30 - 5  # the last one of a batch is alone for the rest of its text
        drawn.clear()
        batch = model.generate_batch([PROMPT] * 5, sampler=SAMPLERS, logprobs=True, **options)
        assert [generation.tokens for generation in batch] == alone
        assert not drawn


def test_close_from_another_thread_ends_it_between_two_tokens(model: pyllm.Model) -> None:
    """At any moment, in the midst of a step or between two: never an error."""
    endless = Sampler(temperature=1.0, logit_bias=dict.fromkeys(model.stop_ids, -np.inf))
    reasons = set()
    for delay in np.linspace(0, 0.006, 60):
        generation = model.generate(PROMPT, max_tokens=290, sampler=endless)
        next(generation)
        timer = threading.Timer(delay, generation.close)
        timer.start()
        rest = sum(1 for _ in generation)
        timer.join()
        reasons.add(generation.finish_reason)
        assert generation.finish_reason == ("length" if rest == 289 else "cancelled")
    assert "cancelled" in reasons


def test_an_interrupt_behind_a_run_loses_nothing(model: pyllm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that leads for others may be ended by Ctrl-C at any line: their tokens wait in C."""
    expected = step_by_step(model, max_tokens=30, sampler=FREE, seed=5).tokens
    generation = model.generate(PROMPT, max_tokens=30, sampler=FREE, seed=5)
    next(generation)
    run = Ahead.run

    def run_and_die(self: Ahead, session: Any) -> None:
        run(self, session)
        raise KeyboardInterrupt

    generation.begin()
    (seat,) = model.scheduler._waiting
    with monkeypatch.context() as patch:
        patch.setattr(Ahead, "run", run_and_die)
        with pytest.raises(KeyboardInterrupt):
            model.scheduler._run([scheduler._share(seat, 1)], scheduler._Call([seat]))
    generation.complete()
    assert generation.tokens == expected
    assert generation.finish_reason == "length"


def test_an_interrupt_of_ones_own_puts_the_session_back(model: pyllm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Ahead, session: Any) -> None:
        raise KeyboardInterrupt

    with model.session() as session:
        generation = session.generate(PROMPT, max_tokens=30, sampler=FREE, seed=5)
        first = next(generation).token
        with monkeypatch.context() as patch:
            patch.setattr(Ahead, "run", die)
            with pytest.raises(KeyboardInterrupt):
                next(generation)
        assert generation.finish_reason == "cancelled"
        check_logits(model, session, [*PROMPT, first, 4])


def test_where_memory_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends there, and the text fails at the token where it would have failed."""
    monkeypatch.setattr(scheduler, "SHORT_PASS", 1e9)
    with pyllm.load(path, threads=1, prefix_cache=0) as model:
        model._native.limit_kv(2)  # of 64 positions
        generation = model.generate(PROMPT, max_tokens=None, sampler=FREE, seed=1)
        with pytest.raises(pyllm.OutOfMemoryError):
            generation.tokens  # noqa: B018
        assert generation.stats.generated_tokens == 128 - len(PROMPT) + 1


def test_weights_that_give_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token's embedding is NaN: the text ends with an error as soon as that was evaluated, not before."""
    monkeypatch.setattr(scheduler, "SHORT_PASS", 1e9)
    tensors, metadata = llama_tensors(Shape(), tied=False), llama_metadata(Shape()) | tiny_vocabulary(Shape().vocab)
    with pyllm.load(write_gguf(tmp_path / "good.gguf", metadata, tensors)) as model:
        tokens = model.generate(PROMPT, max_tokens=12, sampler=FREE, seed=1).tokens
    bad = next(i for i, token in enumerate(tokens) if i > 2 and token not in (*PROMPT, *tokens[:i]))
    kind, shape, data = tensors["token_embd.weight"]
    values = np.frombuffer(data, np.float32).reshape(shape).copy()
    values[tokens[bad]] = np.nan
    tensors["token_embd.weight"] = (kind, shape, values.tobytes())
    with pyllm.load(write_gguf(tmp_path / "bad.gguf", metadata, tensors)) as model:
        generation = model.generate(PROMPT, max_tokens=12, sampler=FREE, seed=1)
        with pytest.raises(pyllm.ModelFormatError, match="the model's weights give no numbers"):
            generation.tokens  # noqa: B018
        assert generation.stats.generated_tokens == bad + 1


def test_passes_are_saved(model: pyllm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is for: of 100 tokens all but a few come without a call of their own."""
    evaluate, calls = NativeModel.eval, []

    def eval_and_note(self: NativeModel, parts: Sequence[Part], poll: Any = None) -> Any:
        calls.append(len(parts))
        return evaluate(self, parts, poll)

    monkeypatch.setattr(NativeModel, "eval", eval_and_note)
    assert len(model.generate(PROMPT, max_tokens=100, sampler=FREE, seed=1).tokens) == 100
    assert len(calls) <= 4
