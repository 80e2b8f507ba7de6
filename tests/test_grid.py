"""Law 1 for texts: however they are computed, the logits at every step are the same bytes, and so are the tokens.

Threads, chunks of the prompt, sequences at once, where the session comes from, drafts, kernel levels: all of it against
each text alone, read in one piece, by the scalar kernels, on one thread, with nothing kept from before.
`PYLLM_SOAK=1` tries every combination on the small model, `PYLLM_SOAK=whole` on SmolLM2 too (about two hours on two
cores, nearly all of it at "scalar"); otherwise enough at random for every pair of choices to occur. On busy cores
threads may be left out here; test_law1.py insists on them.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bits import kernel_level
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyllm
from pyllm import Sampler, _core, scheduler
from pyllm.batching import Batch
from pyllm.generation import Generation
from pyllm.sampling import SamplerState
from pyllm.speculation import LONGEST, Speculation

SOAK = bool(os.environ.get("PYLLM_SOAK"))
WHOLE = os.environ.get("PYLLM_SOAK") == "whole"
MORE = 60  # combinations beside those
TOKENS = 5  # generated for each text
CHOICES: dict[str, tuple[Any, ...]] = {
    "threads": (1, 2, 3),
    "chunk": (1, 7, 64, 512),
    "batch": (1, 2, 5, 16),
    "way": ("fresh", "hit", "fork", "truncate", "restored"),
    "drafts": (False, True),
}


class Recorder(Sampler):
    """A sampler that keeps a digest of the logits at each step."""

    def start(self, seed: int | None = None) -> SamplerState:
        return Recording(self, (self.seed or 0) if seed is None else seed)


class Recording(SamplerState):
    """One at work."""

    def __init__(self, sampler: Sampler, seed: int) -> None:
        super().__init__(sampler, seed)
        self.digests: list[bytes] = []

    def draw(self, logits: Any, history: Sequence[int] = (), allowed: bytes | None = None) -> int:
        self.digests.append(blake2b(logits.tobytes(), digest_size=8).digest())
        return super().draw(logits, history, allowed)


def story(i: int) -> list[int]:
    """A prompt of 20 to 140 tokens: every second one begins like the others."""
    rng = np.random.default_rng(i)
    common = np.random.default_rng(99).integers(3, 512, 65).tolist() if i % 2 == 0 else []
    return [1, *common, *rng.integers(3, 512, 20 + 3 * i).tolist()]


PROMPTS = [story(i) for i in range(max(CHOICES["batch"]))]


def sampler(i: int, kind: type[Sampler] = Recorder) -> Sampler:
    return kind(temperature=0.0 if i % 3 == 0 else 1.0, top_p=0.9, seed=i + 1)


def outcome(generation: Generation) -> tuple[list[int], list[bytes]]:
    """The tokens, and the digests of what they were drawn from."""
    tokens = generation.tokens
    assert isinstance(generation._sampler, Recording)
    return tokens, list(generation._sampler.digests)


class Guesser:
    """Drafts the true continuation, and errs now and then."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.texts = texts
        self.calls = 0

    def begin(self, text: Sequence[int], poll: Callable[[], bool]) -> None:
        """It knows the texts."""

    def propose(self, text: Sequence[int], most: int, poll: Callable[[], bool]) -> Sequence[int]:
        self.calls += 1
        at = len(text)
        follows = next((list(t[at : at + 4]) for t in self.texts if list(t[:at]) == list(text)), [5])
        return (follows if self.calls % 3 else [*follows[:1], 7, 8])[:most]


class Subject:
    """A model file, and what each of the prompts gives alone."""

    def __init__(
        self, path: Path, prompts: Sequence[Sequence[int]], isa: str = "scalar", kv_dtype: str | None = None
    ) -> None:
        self.path, self.prompts, self.kv_dtype = path, prompts, kv_dtype
        plain: dict[str, Any] = {"threads": 1, "prefix_cache": 0, "speculation": False}
        with kernel_level(isa), pyllm.load(path, kv_dtype=kv_dtype, **plain) as model:
            self.expected = [
                outcome(model.generate(prompt, max_tokens=TOKENS, sampler=sampler(i)))
                for i, prompt in enumerate(prompts)
            ]
        self.texts = [[*prompt, *tokens] for prompt, (tokens, _) in zip(prompts, self.expected, strict=True)]
        self.models: dict[int, pyllm.Model] = {}

    def model(self, threads: int) -> pyllm.Model:
        if threads not in self.models:
            self.models[threads] = pyllm.load(self.path, threads=threads, kv_dtype=self.kv_dtype)
        return self.models[threads]

    def check(self, threads: int, chunk: int, batch: int, way: str, drafts: bool, folder: Path) -> None:
        """One combination."""
        model = self.model(threads)
        while model.prefixes.make_room():
            pass
        with pytest.MonkeyPatch.context() as patch:
            for name in ("CHUNK", "CHUNK_IN_COMPANY", "SHORT"):
                patch.setattr(scheduler, name, chunk)
            patch.setattr(Speculation, "_most", lambda _: LONGEST)
            guesser = Guesser(self.texts)
            patch.setattr(pyllm.Model, "speculate", lambda *_: Speculation(guesser) if drafts else None)
            first = (threads + chunk) % len(self.prompts)
            chosen = [(first + i) % len(self.prompts) for i in range(batch)]
            found = WAYS[way](model, [(i, self.prompts[i]) for i in chosen], folder)
        assert found == [self.expected[i] for i in chosen]
        assert bool(guesser.calls) == drafts

    def close(self) -> None:
        for model in self.models.values():
            model.close()


# ---- ways to a text --------------------------------------------------------------------------------------------------

Tasks = list[tuple[int, Sequence[int]]]


def fresh(model: pyllm.Model, tasks: Tasks, folder: Path) -> list[Any]:
    """Nothing is known beforehand, but one prompt may begin like another."""
    prompts, samplers = [prompt for _, prompt in tasks], [sampler(i) for i, _ in tasks]
    return [outcome(g) for g in model.generate_batch(prompts, max_tokens=TOKENS, sampler=samplers, max_batch=7)]


def hit(model: pyllm.Model, tasks: Tasks, folder: Path) -> list[Any]:
    """Most of each prompt was read before."""
    for i, prompt in tasks:
        model.generate(prompt[: 16 + 5 * i], max_tokens=2, sampler=Sampler.greedy()).tokens  # noqa: B018
    return fresh(model, tasks, folder)


def fork(model: pyllm.Model, tasks: Tasks, folder: Path) -> list[Any]:
    """Sessions that are forks of others, which go on with something else."""
    return in_sessions(model, tasks, lambda session, prompt: (session.fork(), session.eval([9] * 5))[0])


def truncate(model: pyllm.Model, tasks: Tasks, folder: Path) -> list[Any]:
    """Sessions that went wrong and back."""

    def back(session: pyllm.Session, prompt: Sequence[int]) -> pyllm.Session:
        position = session.position
        session.eval([9] * 70)
        session.truncate(position)
        return session

    return in_sessions(model, tasks, back)


def restored(model: pyllm.Model, tasks: Tasks, folder: Path) -> list[Any]:
    """Sessions that went through a file."""

    def through_a_file(session: pyllm.Session, prompt: Sequence[int]) -> pyllm.Session:
        session.save(folder / "session")
        return model.restore(folder / "session")

    return in_sessions(model, tasks, through_a_file)


def in_sessions(
    model: pyllm.Model, tasks: Tasks, change: Callable[[pyllm.Session, Sequence[int]], pyllm.Session]
) -> list[Any]:
    """Each prompt's first part in a session, which is then changed; the rest in one batch of them all."""
    sources, sessions, members = [], [], []
    for i, prompt in tasks:
        session = model.session(len(prompt) + 80)
        half = len(prompt) // 2
        session.eval(prompt[:half])
        sources.append(session)
        sessions.append(change(session, prompt))
        members.append(sessions[-1].generate(prompt[half:], max_tokens=TOKENS, sampler=sampler(i)))
    Batch(members, 7, lambda *_: True, lambda: None)
    found = [outcome(member) for member in members]
    for session in (*sources, *sessions):
        session.close()
    return found


WAYS = {way.__name__: way for way in (fresh, hit, fork, truncate, restored)}

# ---- the grid --------------------------------------------------------------------------------------------------------


def pairs(combination: tuple[Any, ...]) -> set[Any]:
    """The choices of two things together."""
    return set(itertools.combinations(enumerate(combination), 2))


def combinations(seed: int) -> list[tuple[Any, ...]]:
    """All of them, or enough for every pair of choices to occur."""
    return list(itertools.product(*CHOICES.values())) if SOAK else pairwise(seed)


def pairwise(seed: int) -> list[tuple[Any, ...]]:
    """About as few as it takes for every pair of choices to occur, and some more."""
    every = list(itertools.product(*CHOICES.values()))
    random.Random(seed).shuffle(every)
    chosen, seen, left = [], set[Any](), pairs_of(every)
    while not left <= seen:
        best = max(every[:200], key=lambda combination: len(pairs(combination) - seen))
        chosen.append(best)
        seen |= pairs(best)
        random.Random(len(chosen)).shuffle(every)
    return [*chosen, *every[:MORE]]


def pairs_of(every: Sequence[tuple[Any, ...]]) -> set[Any]:
    """Those of all combinations."""
    return set[Any]().union(*map(pairs, every))


@pytest.fixture(scope="module")
def stories(stories260k: Path) -> Iterator[Subject]:
    subject = Subject(stories260k, PROMPTS)
    yield subject
    subject.close()


def test_the_texts_differ(stories: Subject) -> None:
    """Or else nothing is shown by their being equal."""
    assert len({tuple(tokens) for tokens, _ in stories.expected}) >= len(PROMPTS) - 2
    assert len({digests[0] for _, digests in stories.expected}) == len(PROMPTS)


@pytest.mark.parametrize("isa", _core.isa_names())
def test_every_way_to_a_text(stories: Subject, tmp_path: Path, isa: str) -> None:
    with kernel_level(isa):
        for combination in combinations(len(isa))[: 8 if isa == "scalar" and not SOAK else None]:
            stories.check(*combination, tmp_path)


@pytest.mark.parametrize("isa", [name for name in _core.isa_names() if name != "scalar"])
def test_every_way_to_a_text_with_8_bits(stories260k: Path, stories: Subject, tmp_path: Path, isa: str) -> None:
    """Keys and values in blocks, which are not what they are in f32."""
    subject = Subject(stories260k, PROMPTS, kv_dtype="q8_0")
    assert subject.expected != stories.expected
    with kernel_level(isa):
        for combination in combinations(3)[: None if SOAK else 30]:
            subject.check(*combination, tmp_path)
    subject.close()


@pytest.fixture(scope="module")
def large(smollm2: Path) -> Iterator[Subject]:
    """SmolLM2, alone and in one piece, by the fastest kernels: that they equal the scalar ones is shown elsewhere."""
    rng = np.random.default_rng(5)
    common = rng.integers(100, 40000, 70).tolist()
    prompts = [[*common, *rng.integers(100, 40000, n).tolist()] for n in (3, 20, 40)]
    subject = Subject(smollm2, prompts, _core.isa_names()[0])
    yield subject
    subject.close()


@pytest.mark.parametrize("way", WAYS)
def test_smollm2(large: Subject, tmp_path: Path, way: str) -> None:
    """A larger model with f16 keys and values: every way, with drafts, three at once on two threads."""
    large.check(2, 64, 3, way, True, tmp_path)


@pytest.mark.skipif(not SOAK or WHOLE, reason="takes minutes: PYLLM_SOAK=1")
@pytest.mark.parametrize("isa", [name for name in _core.isa_names() if name != "scalar"])
def test_smollm2_as_the_small_one(large: Subject, tmp_path: Path, isa: str) -> None:
    """Every pair of choices, at each level that is quick enough."""
    with kernel_level(isa):
        for combination in pairwise(len(isa)):
            large.check(*combination, tmp_path)


@pytest.mark.skipif(not WHOLE, reason="takes two hours: PYLLM_SOAK=whole")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", CHOICES["threads"])
@pytest.mark.parametrize("isa", _core.isa_names())
def test_smollm2_whole(large: Subject, tmp_path: Path, isa: str, threads: int, way: str) -> None:
    """Every combination at every level, in parts that can be run one by one."""
    with kernel_level(isa):
        for chunk, batch, drafts in itertools.product(CHOICES["chunk"], CHOICES["batch"], CHOICES["drafts"]):
            large.check(threads, chunk, batch, way, drafts, tmp_path)


# ---- random histories ------------------------------------------------------------------------------------------------

token = st.integers(3, 511)
history = st.lists(
    st.one_of(
        st.tuples(st.just("eval"), st.integers(0, 3), st.lists(token, min_size=1, max_size=90)),
        st.tuples(st.just("fork"), st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.just("truncate"), st.integers(0, 3), st.floats(0, 1)),
        st.tuples(st.just("generate"), st.integers(0, 3), st.lists(token, max_size=5)),
        st.tuples(st.just("cancel"), st.integers(0, 3), st.integers(0, 4)),
        st.tuples(st.just("prompt"), st.integers(0, 3), st.lists(token, max_size=5)),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=400 if SOAK else 40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=history)
def test_random_histories(stories: Subject, events: list[tuple[str, int, Any]]) -> None:
    """Four sessions, and prompts beside them, in any order: each ends where a fresh run of its tokens ends."""
    model = stories.model(2)
    pages = model._native.kv_pages - model.prefixes.pages
    sessions = [model.session() for _ in range(4)]
    for name, at, argument in events:
        session = sessions[at]
        if name == "eval" and session.position + len(argument) < 480:
            session.eval(argument)
        elif name == "fork":
            sessions[argument].close()
            sessions[argument] = session.fork() if argument != at else model.session()
        elif name == "truncate":
            session.truncate(int(argument * session.position))
        elif name in ("generate", "cancel") and 0 < session.position < 470:
            prompt = argument if name == "generate" else []
            generation = session.generate(prompt, max_tokens=9, sampler=sampler(at, Sampler))
            if name == "cancel":
                for _ in zip(range(argument), generation, strict=False):
                    pass
                generation.close()
            else:
                generation.tokens  # noqa: B018
        elif name == "prompt" and session.position:
            prompt = [*session.tokens, *argument]
            assert outcome(model.generate(prompt, max_tokens=2, sampler=sampler(at))) == alone(stories, prompt, at)
        check_against_a_fresh_run(stories, sessions[at])
    for session in sessions:
        session.close()
    assert model._native.kv_pages - model.prefixes.pages <= pages


def check_against_a_fresh_run(stories: Subject, session: pyllm.Session) -> None:
    if session.position:
        model = stories.model(1)
        with model.session() as other:
            assert session.eval([]).tobytes() == other.eval(session.tokens).tobytes()


def alone(stories: Subject, prompt: list[int], i: int) -> Any:
    with stories.model(1).session() as session:
        return outcome(session.generate(prompt, max_tokens=2, sampler=sampler(i)))
