"""Speculation: drafts never change a text, come where the text repeats itself, and stop where they do not pay."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from bits import Array
from tinygguf import Q8_0, Shape, tiny_llama

import pyllm
from pyllm import Sampler, speculation
from pyllm.ahead import SHORT_PASS
from pyllm.speculation import LONGEST, LOSS, MEASURED, MOST_COPIED, PromptLookup, SmallerModel, Speculation

VOCAB, CONTEXT = 300, 512
PROMPT: list[int] = np.random.default_rng(0).integers(3, VOCAB, 40).tolist()
HOT, PENALISED = Sampler(temperature=1.3, seed=7), Sampler(temperature=0.8, repetition_penalty=1.2, seed=2)
SAMPLERS = [Sampler.greedy(), HOT, PENALISED]


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("speculation") / "tiny.gguf", Q8_0, Shape(vocab=VOCAB, context=CONTEXT))


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(path, threads=1) as model:
        yield model


class Oracle:
    """Drafts from a list of texts; `wrong`: after so many tokens each draft errs."""

    def __init__(self, text: Sequence[int], wrong: Sequence[int]) -> None:
        self.text = list(text)
        self.wrong = itertools.cycle(wrong)

    def begin(self, text: Sequence[int], poll: Callable[[], bool]) -> None:
        """It knows the text."""

    def propose(self, text: Sequence[int], most: int, poll: Callable[[], bool]) -> Sequence[int]:
        at, right = len(text), next(self.wrong)
        draft = self.text[at : at + right]
        return [*draft, (self.text[at + right] + 1) % VOCAB, 5][:most] if at + right < len(self.text) else draft[:most]


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts whether they pay or not."""
    monkeypatch.setattr(Speculation, "_most", lambda self: LONGEST)


# ---- the same text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "hot", "penalised"])
@pytest.mark.parametrize("wrong", [[0], [1], [7, 0, 3], [LONGEST], [100]], ids=str)
@pytest.mark.usefixtures("forced")
def test_any_draft_gives_the_same_text(
    model: pyllm.Model, sampler: Sampler, wrong: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right, wrong, or right for a while: tokens and log-probabilities to the bit, and the session's logits after."""
    plain = model.generate(PROMPT, max_tokens=120, sampler=sampler, logprobs=True, speculation=False)
    expected = list(plain)
    text = [*PROMPT, *plain.tokens]
    monkeypatch.setattr(model, "speculate", lambda wanted: Speculation(Oracle(text, wrong)))
    evaluated = count_passes(monkeypatch)
    assert list(model.generate(PROMPT, max_tokens=120, sampler=sampler, logprobs=True)) == expected
    if wrong == [LONGEST]:
        assert len(evaluated) < 20
    with model.session() as session:
        assert list(session.generate(PROMPT, max_tokens=119, sampler=sampler, logprobs=True)) == expected[:119]
        assert session.tokens == text[: 40 + 119]
        assert np.array_equal(session.eval([]), model.logits(text[: 40 + 119])[-1])


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each forward pass from now on."""
    from pyllm._core import NativeModel

    evaluate, seen = NativeModel.eval, []

    def eval_and_count(self: NativeModel, parts: Any, poll: Any = None) -> Any:
        seen.append(sum(len(part.tokens) for part in parts))
        return evaluate(self, parts, poll)

    monkeypatch.setattr(NativeModel, "eval", eval_and_count)
    return seen


@pytest.mark.usefixtures("forced")
def test_a_session_may_be_used_between_tokens(model: pyllm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was evaluated beyond its tokens is never seen: not by forks, nor in a saved file, nor after a truncation."""
    plain = model.generate(PROMPT, max_tokens=30, sampler=SAMPLERS[0], speculation=False).tokens
    text = [*PROMPT, *plain]
    monkeypatch.setattr(model, "speculate", lambda wanted: Speculation(Oracle(text, [9])))
    logits = model.logits(text)
    session = model.session()
    generation = session.generate(PROMPT, max_tokens=30, sampler=SAMPLERS[0])
    for i in range(10):
        next(generation)
        fork = session.fork()
        assert fork.tokens == text[: 41 + i]
        assert np.array_equal(fork.eval([9]), model.logits([*text[: 41 + i], 9])[-1])
        fork.close()
    assert generation.tokens == plain
    assert np.array_equal(session.eval([]), logits[-1])
    session.truncate(45)
    again = session.generate(text[45:50], max_tokens=20, sampler=SAMPLERS[0])
    assert again.tokens == plain[10:]
    session.close()


@pytest.mark.usefixtures("forced")
def test_drafts_end_with_the_context(path: Path) -> None:
    with pyllm.load(path, threads=1, context_length=64) as model:
        plain = model.generate(PROMPT, max_tokens=None, sampler=SAMPLERS[0], speculation=False)
        drafted = model.generate(PROMPT, max_tokens=None, sampler=SAMPLERS[0], speculation=True)
        assert (drafted.tokens, drafted.finish_reason) == (plain.tokens, plain.finish_reason)


@pytest.mark.usefixtures("forced")
def test_a_second_model_drafts(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Itself, which is always right; another one, which is mostly wrong; and never one with another vocabulary."""
    other = tiny_llama(tmp_path / "other.gguf", Q8_0, Shape(dim=32, hidden=64, heads=2, vocab=VOCAB, context=CONTEXT))
    foreign = tiny_llama(tmp_path / "foreign.gguf", Q8_0, Shape(vocab=VOCAB + 1, context=CONTEXT))
    with pyllm.load(path, threads=1) as plain:
        expected = plain.generate(PROMPT, max_tokens=100, sampler=SAMPLERS[0], speculation=False).tokens
        for draft in (path, plain, other):
            with pyllm.load(path, threads=1, draft=draft) as model:
                for sampler in SAMPLERS:
                    alone = plain.generate(PROMPT, max_tokens=100, sampler=sampler, speculation=False).tokens
                    assert model.generate(PROMPT, max_tokens=100, sampler=sampler).tokens == alone
        assert not plain.closed  # it is the caller's
        with pyllm.load(path, threads=1, draft=plain) as model:
            evaluated = count_passes(monkeypatch)
            assert model.generate(PROMPT, max_tokens=100, sampler=SAMPLERS[0]).tokens == expected
            assert max(evaluated[2:]) > 1 + LONGEST // 4  # drafts that were right grow
    with pytest.raises(ValueError, match=f"{VOCAB + 1} tokens, and the model {VOCAB}"):
        pyllm.load(path, draft=foreign)


@pytest.mark.usefixtures("forced")
def test_a_draft_that_is_loaded_here_keeps_to_what_the_model_was_given(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads, and memory for keys and values: what does not fit is not guessed, and the text is the same."""
    long = PROMPT * 3  # in pages of 64
    with pyllm.load(path, threads=1) as plain:
        budget = 8 * plain._native.kv_page_bytes
        expected = plain.generate(long, max_tokens=60, sampler=SAMPLERS[0], speculation=False).tokens
    evaluated = count_passes(monkeypatch)
    for pages, guesses in ((1, False), (8, True)):
        with pyllm.load(path, threads=1, draft=path, kv_memory=budget) as model:
            assert model._draft is not None
            assert (model._draft.threads, model._draft.kv_memory) == (1, budget)
            model._draft._native.limit_kv(pages)
            evaluated.clear()
            assert model.generate(long, max_tokens=60, sampler=SAMPLERS[0]).tokens == expected
            assert any(1 < n <= 1 + LONGEST for n in evaluated) == guesses


@pytest.mark.usefixtures("forced")
def test_cancelling_with_a_draft_under_way(model: pyllm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    text = [*PROMPT, *model.generate(PROMPT, max_tokens=30, sampler=SAMPLERS[0], speculation=False).tokens]
    monkeypatch.setattr(model, "speculate", lambda wanted: Speculation(Oracle(text, [9])))
    with model.session() as session:
        generation = session.generate(PROMPT, max_tokens=30, sampler=SAMPLERS[0])
        for _ in range(4):
            next(generation)
        generation.close()
        assert session.tokens == text[:44]
        assert np.array_equal(session.eval([8]), model.logits([*text[:44], 8])[-1])


def test_off_means_off(model: pyllm.Model, path: Path) -> None:
    assert model.speculate(None) is not None
    assert model.speculate(False) is None
    with pyllm.load(path, speculation=False) as off:
        assert off.speculate(None) is None
        assert off.speculate(True) is not None


# ---- what is drafted -------------------------------------------------------------------------------------------------


def test_lookup_copies_what_repeats() -> None:
    """As soon as two tokens are the same; the longer the two places read alike, the more of what followed."""
    lookup, source = PromptLookup(), list(range(100, 200))
    lengths = []
    for n in range(30):
        draft = list(lookup.propose([*source, 1, 2, *source[:n]], LONGEST, never))
        assert draft == source[n : n + len(draft)]
        lengths.append(len(draft))
    assert lengths[:2] == [0, 0]
    assert lengths[2] > 0
    assert lengths[-1] == MOST_COPIED
    assert lengths == sorted(lengths)


def test_lookup_copies_no_more_than_is_wanted() -> None:
    source = list(range(100, 200))
    for most in (0, 1, 5):
        assert PromptLookup().propose([*source, *source[:20]], most, never) == source[20 : 20 + most]


def test_lookup_copies_from_the_place_that_reads_alike_for_longest() -> None:
    """Not from the last one, and from the last one of those that are equally good; also in the midst of a copy."""
    first, second = [1, 2, 3, 4, 5, 50, 51, 52], [8, 3, 4, 5, 60, 61, 62]
    assert PromptLookup().propose([*first, *second, 2, 3, 4, 5], 1, never) == [50]
    assert PromptLookup().propose([*first, *second, 9, 3, 4, 5], 1, never) == [60]
    lookup, text = PromptLookup(), [1, 2, 3, 4, 70, 9, 3, 4, 5, 80, 1, 2]
    assert lookup.propose(text, 1, never) == [3]
    text += [3, 4, 5]  # it was copying from the beginning; now the other place is like it
    assert lookup.propose(text, 1, never) == [80]


def test_lookup_learns_from_the_text() -> None:
    """Where what begins alike never goes on alike, it stops drafting, and begins again when it does."""
    lookup, text = PromptLookup(), [1, 2, 3]
    drafted = []
    for new in range(100, 130):
        text += [new, 1, 2, 3]
        drafted.append(len(lookup.propose(text, LONGEST, never)))
    assert drafted[0] > 0
    assert not any(drafted[6:])
    for _ in range(60):
        text += [7, 8, 9, 1, 2, 3]
        drafted.append(len(lookup.propose(text, LONGEST, never)))
    assert drafted[-1] == MOST_COPIED


def test_lookup_goes_round_in_circles() -> None:
    lookup, circle = PromptLookup(), [5, 6, 7, 8]
    draft = lookup.propose(circle * 16, LONGEST, never)
    assert draft == (circle * 10)[: len(draft)]
    assert len(draft) > len(circle)


def test_lookup_has_no_idea_of_new_text() -> None:
    lookup = PromptLookup()
    text = np.random.default_rng(0).permutation(3000).tolist()
    assert all(not lookup.propose(text[:n], LONGEST, never) for n in range(0, 3000, 7))


# ---- whether it pays -------------------------------------------------------------------------------------------------


class Clock:
    """Runs a generation of so many tokens through a `Speculation`, with made-up times."""

    def __init__(self, right: int, length: int, cost: float) -> None:
        self.right, self.length, self.cost = right, length, cost
        self.seconds, self.tokens = 0.0, 0
        self.drafts: list[int] = []  # how long each was

    def begin(self, text: Sequence[int], poll: Callable[[], bool]) -> None:
        """There is nothing to read."""

    def propose(self, text: Sequence[int], most: int, poll: Callable[[], bool]) -> Sequence[int]:
        return [1] * min(self.length, most)

    def run(self, tokens: int, plain: float, alone: bool = True) -> None:
        speculation, right = Speculation(self), 0
        while self.tokens < tokens:
            drafted = len(speculation.draft([0] * self.tokens, right, never))
            seconds = plain * (1 + self.cost * drafted)
            self.seconds += seconds
            self.drafts += [drafted] if drafted else []
            right = min(self.right, drafted)
            self.tokens += right + 1
            speculation.passed(seconds, alone)


@pytest.mark.parametrize("cost", [0.05, 0.3, 1.0, 3.0])
def test_drafts_that_are_wrong_cost_little(cost: float) -> None:
    """Never 3 % of the time, once there is enough of it to tell; what may be lost at once is a token or two."""
    clock = Clock(right=0, length=8, cost=cost)
    clock.run(4000, 0.01)
    assert set(clock.drafts) == {1}
    assert clock.seconds < 0.01 * 4000 / (1 - LOSS) + 0.01 * (cost + 1)  # the last draft may be one too many


def test_drafts_that_are_right_go_on() -> None:
    clock = Clock(right=8, length=8, cost=0.3)
    clock.run(4000, 0.01)
    assert clock.seconds < 0.01 * 4000 / 2
    assert len(clock.drafts) > 400


def test_drafts_are_as_long_as_was_gained() -> None:
    """They begin with one token, and lose no more at once than was gained before."""
    clock = Clock(right=8, length=8, cost=0.3)
    clock.run(60, 0.01)
    assert clock.drafts[0] == 1
    assert clock.drafts == sorted(clock.drafts)
    assert clock.drafts[-1] == 8
    assert len(clock.drafts) < 20


def test_drafts_that_are_right_but_too_slow_stop() -> None:
    clock = Clock(right=8, length=8, cost=1.5)
    clock.run(4000, 0.01)
    assert clock.seconds < 0.01 * 4000 / (1 - LOSS) + 0.01 * (1.5 + 1)


class ClockedModel:
    """A session of a smaller model that is right up to position `until`, and its passes' time by a made-up clock."""

    def __init__(self, until: int, reading: float, drafting: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.until, self.reading, self.drafting = until, reading, drafting
        self.seconds, self.position, self.context_length = 0.0, 0, 100_000
        monkeypatch.setattr(speculation.time, "perf_counter", lambda: self.seconds)

    def truncate(self, position: int) -> None:
        self.position = position

    def ask(self, tokens: Sequence[int], poll: Callable[[], bool]) -> None:
        self.seconds += self.drafting + self.reading * (len(tokens) - 1)
        self.position += len(tokens)

    def answer(self) -> Array:
        return np.eye(2, dtype=np.float32)[0 if self.position <= self.until else 1]

    def generate(self, prompt: int, tokens: int, plain: float, more: float) -> list[int]:
        """How long the drafts were, while the large model says 0 for ever."""
        drafter, right, drafts, start = Speculation(SmallerModel(lambda: cast(Any, self))), 0, [], prompt
        while prompt < start + tokens:
            draft = drafter.draft([0] * prompt, right, never)
            seconds = plain + more * len(draft)
            self.seconds += seconds
            right = next((i for i, token in enumerate(draft) if token), len(draft))
            prompt += right + 1
            drafter.passed(seconds, True)
            drafts.append(len(draft))
        return drafts


@pytest.mark.parametrize("prompt", [1, 50, 200, 1000])
def test_a_smaller_model_that_is_right_goes_on(prompt: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes to read the prompt, which counts on neither side."""
    model = ClockedModel(10_000, reading=0.0004, drafting=0.0015, monkeypatch=monkeypatch)
    drafts = model.generate(prompt, 2000, plain=0.01, more=0.002)
    assert drafts[MEASURED] == 1
    assert max(drafts) == LONGEST
    assert model.seconds - 0.0004 * prompt < 2000 * 0.01 / 2


def test_a_smaller_model_that_is_wrong_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its drafts become short where it errs, and then rare."""
    model = ClockedModel(300, reading=0.0004, drafting=0.0015, monkeypatch=monkeypatch)
    drafts = model.generate(100, 2000, plain=0.01, more=0.002)
    assert max(drafts) == LONGEST
    assert set(drafts[100:]) == {0, 1}
    assert 0 < sum(drafts[-1000:]) < 200
    assert model.seconds - 0.0004 * 102 < 2000 * 0.01 / (1 - LOSS)


def test_none_where_tokens_come_at_once_or_others_wait() -> None:
    for plain, alone in ((SHORT_PASS / 2, True), (0.01, False)):
        clock = Clock(right=8, length=8, cost=0.1)
        clock.run(500, plain, alone)
        assert not clock.drafts


def test_none_before_a_plain_pass_was_measured() -> None:
    clock = Clock(right=0, length=8, cost=0.0)
    clock.run(MEASURED, 0.01)
    assert not clock.drafts
