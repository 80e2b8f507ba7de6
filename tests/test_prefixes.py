"""Prefix reuse: what is found, that it never changes an answer, and that memory stays within its budget."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_families import folder_of
from tinygguf import Q8_0, Shape, tiny_llama

import pyllm
from pyllm import Sampler
from pyllm._core import NativeModel, Part
from pyllm.prefixes import WORTH_KEEPING, Prefixes
from pyllm.speculation import LONGEST, Speculation

VOCAB, CONTEXT = 300, 1024
GREEDY = Sampler.greedy()
rng = np.random.default_rng(0)
DOCUMENT: list[int] = rng.integers(3, VOCAB, 400).tolist()
OTHER: list[int] = rng.integers(3, VOCAB, 400).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("prefixes") / "tiny.gguf", Q8_0, Shape(vocab=VOCAB, context=CONTEXT))


@pytest.fixture
def model(path: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(path, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def plain(path: Path) -> Iterator[pyllm.Model]:
    """A model that keeps nothing."""
    with pyllm.load(path, threads=1, prefix_cache=0) as model:
        yield model


def run(model: pyllm.Model, prompt: list[int], n: int = 5) -> tuple[list[int], int]:
    """The tokens, and how many of the prompt's were cached."""
    generation = model.generate(prompt, max_tokens=n, sampler=GREEDY)
    return generation.tokens, generation.stats.cached_tokens


# ---- for users -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [WORTH_KEEPING, 63, 64, 65, 128, 200, 399, 400])
def test_a_second_prompt_reads_only_what_is_new(model: pyllm.Model, plain: pyllm.Model, shared: int) -> None:
    assert run(model, DOCUMENT) == run(plain, DOCUMENT)
    second = [*DOCUMENT[:shared], *OTHER[:30]]
    tokens, cached = run(model, second)
    assert cached == shared
    assert (tokens, 0) == run(plain, second)


def test_the_last_token_of_a_prompt_is_always_evaluated(model: pyllm.Model, plain: pyllm.Model) -> None:
    expected, _ = run(plain, DOCUMENT)
    assert [run(model, DOCUMENT) for _ in range(3)] == [(expected, 0), (expected, 399), (expected, 399)]


def test_generated_text_is_a_prefix_too(model: pyllm.Model, plain: pyllm.Model) -> None:
    """The next turn of a conversation reads neither the question nor the answer again, only the answer's last token."""
    tokens, _ = run(model, DOCUMENT[:100], 20)
    following = [*DOCUMENT[:100], *tokens, *OTHER[:20]]
    assert run(model, following) == (run(plain, following)[0], 119)


def test_short_and_strange_beginnings_are_not_looked_for(model: pyllm.Model) -> None:
    run(model, DOCUMENT)
    assert run(model, DOCUMENT[: WORTH_KEEPING - 1])[1] == 0
    assert run(model, OTHER)[1] == 0


def test_a_prompt_that_is_still_being_answered_is_found(model: pyllm.Model, plain: pyllm.Model) -> None:
    first = model.generate(DOCUMENT, max_tokens=50, sampler=GREEDY)
    next(first)
    assert run(model, DOCUMENT) == (run(plain, DOCUMENT)[0], 399)
    assert first.tokens == run(plain, DOCUMENT, 50)[0]


@pytest.mark.parametrize("off", [0, None])
def test_off(path: Path, off: int | None) -> None:
    with pyllm.load(path, prefix_cache=off) as model:
        assert [run(model, DOCUMENT)[1] for _ in range(2)] == [0, 0]
        assert model._native.kv_pages == 0


def test_bad_sizes(path: Path) -> None:
    for name in ("prefix_cache", "kv_memory"):
        with pytest.raises(ValueError, match=name):
            pyllm.load(path, **{name: -1})


@pytest.mark.parametrize("close", [True, False], ids=["closed", "dropped"])
def test_nothing_outlives_the_model(path: Path, close: bool) -> None:
    """Not even until the garbage collector comes."""
    gc.disable()
    try:
        model = pyllm.load(path)
        for document in (DOCUMENT, [*DOCUMENT[:100], *OTHER], OTHER):
            run(model, document)
        assert model._native.kv_pages == 7 + 7 + 7
        kept = [weakref.ref(node.session) for node in model.prefixes._leaves]
        assert len(kept) == 3
        if close:
            model.close()
        else:
            del model
        assert [session() for session in kept] == [None] * 3
    finally:
        gc.enable()


def test_what_stays_fits_the_budget(path: Path) -> None:
    """Twenty documents of seven pages through a tree of ten."""
    with pyllm.load(path, prefix_cache=10 * pages_bytes(path)) as model:
        documents = [np.random.default_rng(i).integers(3, VOCAB, 400).tolist() for i in range(20)]
        for document in documents:
            run(model, document)
            assert model._native.kv_pages <= 10
        assert model._native.kv_pages >= 7
        assert run(model, documents[-1])[1] == 399
        assert run(model, documents[-2])[1] > 0  # its first pages are the last to go
        assert run(model, documents[0])[1] == 0


def pages_bytes(path: Path) -> int:
    with pyllm.load(path) as model:
        return model._native.kv_page_bytes


def test_what_is_used_stays(path: Path) -> None:
    with pyllm.load(path, prefix_cache=16 * pages_bytes(path)) as model:
        run(model, DOCUMENT)
        for i in range(10):
            run(model, np.random.default_rng(i).integers(3, VOCAB, 400).tolist())
            assert run(model, DOCUMENT)[1] == 399


def test_the_cache_makes_room_for_sessions(path: Path) -> None:
    """Where keys and values may take no more, what is kept for later goes, before anybody is refused."""
    with pyllm.load(path, kv_memory=8 * pages_bytes(path)) as model:
        run(model, DOCUMENT)
        expected = run(model, OTHER)[0]
        assert model._native.kv_pages <= 8
        with model.session() as session:
            session.eval(OTHER)
            assert session.generate(max_tokens=5, sampler=GREEDY).tokens == expected
            with pytest.raises(pyllm.OutOfMemoryError, match="KV page"):
                model.generate(DOCUMENT, max_tokens=1).tokens  # noqa: B018
            assert session.eval([1]).shape == (VOCAB,)
        assert run(model, OTHER)[0] == expected


@pytest.mark.parametrize("way", ["score", "logits", "hidden", "embed", "restore", "continuations"])
def test_the_cache_makes_room_for_whatever_is_evaluated(path: Path, tmp_path: Path, way: str) -> None:
    with pyllm.load(path, kv_memory=8 * pages_bytes(path)) as model:
        with model.session() as session:
            session.eval(OTHER)
            session.save(tmp_path / "session")
        run(model, DOCUMENT)
        assert model._native.kv_pages > 1
        ways = {
            "score": lambda: len(model.score(OTHER).logprobs) == 399,
            "logits": lambda: len(model.logits(OTHER)) == 400,
            "hidden": lambda: model.session().hidden_states(OTHER, [0]).shape[1] == 400,
            "embed": lambda: len(model.embed([OTHER])) == 1,
            "restore": lambda: model.restore(tmp_path / "session").position == 400,
            "continuations": lambda: len(model.score_continuations([5, 6], [OTHER])) == 1,
        }
        assert ways[way]()


def test_a_batch_makes_room_for_itself(path: Path) -> None:
    """What it keeps for its own prompts, where the model keeps nothing, is given up for them."""
    prompts = [np.random.default_rng(i).integers(3, VOCAB, 150).tolist() for i in range(8)]
    with pyllm.load(path, kv_memory=8 * pages_bytes(path), prefix_cache=0) as model:
        members = model.generate_batch(prompts, max_tokens=3, max_batch=2, sampler=GREEDY)
        assert [len(member.tokens) for member in members] == [3] * 8
        assert model._native.kv_pages == 0


@pytest.mark.parametrize("step", ["_descend", "_touch", "_path"])
def test_an_interrupted_change_leaves_no_half_of_it(path: Path, plain: pyllm.Model, step: str) -> None:
    """Ctrl-C in the midst of it: the tree begins afresh, and knows what it holds."""
    work = getattr(Prefixes, step)
    with pyllm.load(path, threads=1, prefix_cache=16 * pages_bytes(path)) as model:
        run(model, DOCUMENT)

        def work_and_die(self: Prefixes, *arguments: Any) -> Any:
            work(self, *arguments)
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Prefixes, step, work_and_die)
            with pytest.raises(KeyboardInterrupt):
                run(model, DOCUMENT)
        for prompt in (OTHER, DOCUMENT, OTHER):
            assert run(model, prompt)[0] == run(plain, prompt)[0]
        assert run(model, OTHER)[1] == 399
        assert model._native.kv_pages == model.prefixes.pages <= 16


def test_threads_share_one_tree(path: Path, plain: pyllm.Model) -> None:
    prompts = [[*DOCUMENT[: 40 * (i % 5) + 30], *OTHER[i : i + 20]] for i in range(24)]
    expected = [run(plain, prompt)[0] for prompt in prompts]
    with pyllm.load(path, threads=2, prefix_cache=12 * pages_bytes(path)) as model, ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            assert [tokens for tokens, _ in pool.map(lambda p: run(model, p), prompts)] == expected
        assert model._native.kv_pages <= 12


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads is what is tested
def test_fork_while_the_tree_is_in_use(path: Path, plain: pyllm.Model) -> None:
    expected, _ = run(plain, DOCUMENT)
    stop = threading.Event()
    with pyllm.load(path, threads=2) as model:

        def work() -> None:
            i = 0
            while not stop.is_set():
                i += 1
                run(model, [*DOCUMENT[: i % 300 + 20], *OTHER[:30]])

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for _ in range(8):
                child = os.fork()
                if child == 0:
                    os._exit(0 if run(model, DOCUMENT)[0] == expected else 1)
                assert os.waitpid(child, 0)[1] == 0
        finally:
            stop.set()
            worker.join(20)


def test_texts_that_grow_beyond_what_their_rotations_were_made_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond 32 tokens this model's keys are rotated in another way, the first ones' too: neither what was kept, nor
    drafts, nor a session that grows, mixes the two.
    """
    folder = folder_of("phi3-partial", tmp_path)
    ids = np.random.default_rng(0).integers(3, 64, 64).tolist()
    monkeypatch.setattr(Speculation, "_most", lambda _: LONGEST)
    with pyllm.load(folder, prefix_cache=0, speculation=False) as plain, pyllm.load(folder) as model:
        assert plain.config.rope_original == 32
        expected = {}
        for n in (20, 29, 31, 32, 33, 36):
            text = ids[:n]
            for _ in range(12):
                with plain.session() as session:  # in one piece
                    text = [*text, int(session.eval(text).argmax())]
            expected[n] = text[n:]
            assert plain.generate(ids[:n], max_tokens=12, sampler=GREEDY).tokens == expected[n]
        assert len({tuple(tokens) for tokens in expected.values()}) == len(expected)
        for n in [*expected, *reversed(expected)] * 2:
            assert model.generate(ids[:n], max_tokens=12, sampler=GREEDY).tokens == expected[n]
        batch = model.generate_batch([ids[:n] for n in expected], max_tokens=12, sampler=GREEDY)
        assert [g.tokens for g in batch] == list(expected.values())
        assert any(g.stats.cached_tokens for g in batch)
        with model.session() as session:
            session.eval(ids[:40])
            session.truncate(20)
            session.save(tmp_path / "saved")
            with session.fork() as fork, model.restore(tmp_path / "saved") as again:
                for other in (session, fork, again):
                    assert other.generate(max_tokens=12, sampler=GREEDY).tokens == expected[20]
        whole = plain.score([*ids[:36], *ids[40:44]])
        (score,) = model.score_continuations(ids[:36], [ids[40:44]])
        assert score.logprobs == whole.logprobs[-4:]


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_continuations_of_one_context(path: Path, plain: pyllm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as in a text of its own, to the bit; the context is read once, and never again where it is kept."""
    evaluate, seen = NativeModel.eval, []

    def eval_and_note(self: NativeModel, parts: Sequence[Part], poll: Any = None) -> Any:
        seen.extend(len(part.tokens) for part in parts)
        return evaluate(self, parts, poll)

    endings = [[7], [8, 9], OTHER[:50], [7]]
    whole = [plain.score([*DOCUMENT, *ending]).logprobs[-len(ending) :] for ending in endings]
    with pyllm.load(path, threads=1) as model:
        monkeypatch.setattr(NativeModel, "eval", eval_and_note)
        scores = model.score_continuations(DOCUMENT, endings)
        assert sum(seen) == 399 + sum(map(len, endings))
        assert [score.logprobs for score in scores] == whole
        assert [score.tokens for score in scores] == [(DOCUMENT[-1], *ending) for ending in endings]
        seen.clear()
        assert [score.logprobs for score in model.score_continuations(DOCUMENT, endings[:2])] == whole[:2]
        assert sum(seen) == 3
        assert model.score_continuations([5], [[6, 7]])[0].logprobs == plain.score([5, 6, 7]).logprobs
        assert model.score_continuations(DOCUMENT, []) == []
        with pytest.raises(ValueError, match="continuation 1 is empty"):
            model.score_continuations(DOCUMENT, [[1], []])
        with pytest.raises(pyllm.ContextLengthError):
            model.score_continuations(DOCUMENT, [[1], [1] * CONTEXT])


# ---- the tree --------------------------------------------------------------------------------------------------------


class FakeSession:
    """Keys and values that are the tokens themselves, and pages that are counted."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def fork(self, position: int | None = None, context_length: int | None = None) -> FakeSession:
        assert position is not None
        assert position <= len(self.tokens)
        return FakeSession(self.tokens[:position])

    def unite(self, other: FakeSession, position: int) -> None:
        assert self.tokens[:position] == other.tokens[:position]

    def truncate(self, position: int) -> None:
        assert position <= len(self.tokens)
        self.tokens = self.tokens[:position]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 90)), max_size=5), max_size=25),
    budget=st.integers(0, 12),
)
def test_the_tree_never_lies(texts: list[list[tuple[int, int]]], budget: int) -> None:
    """Whatever was kept before: what is found are the very tokens, and pages stay in the budget, truly counted."""
    tree, roomy = Prefixes(budget, 1), Prefixes(10_000, 1)
    for text in texts:
        tokens = [token for token, times in text for _ in range(times)]
        found = tree.find(tokens, CONTEXT, len(tokens))
        if found is not None:
            assert found.session.tokens == tokens[: found.n]  # type: ignore[attr-defined]
            assert found.n == tree.known(tokens, len(tokens)) >= WORTH_KEEPING
        tree.keep(tokens, FakeSession(tokens), len(tokens))  # type: ignore[arg-type]
        assert tree.pages <= budget
        assert tree.pages == sum(node_pages(tree))
        roomy.keep(tokens, FakeSession(tokens), len(tokens))  # type: ignore[arg-type]
        if len(tokens) >= 2 * WORTH_KEEPING:
            assert roomy.known(tokens, len(tokens)) > len(tokens) - WORTH_KEEPING
    while tree.make_room():
        pass
    assert (tree.pages, node_pages(tree)) == (0, [])


def node_pages(tree: Prefixes) -> list[int]:
    """The pages of each node, which must fit together and be leaves or have children."""
    counts, nodes = [], list(tree._root.children.values())
    while nodes:
        node = nodes.pop()
        assert node.session is not None
        assert len(node.session.tokens) == node.end  # type: ignore[attr-defined]
        assert (node in tree._leaves) == (not node.children)
        assert node.parent.end == node.start
        counts.append(node.pages)
        nodes += node.children.values()
    return counts
