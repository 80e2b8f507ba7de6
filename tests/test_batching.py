"""Many texts at once: `generate_batch`, threads and tasks that meet in one scheduler, and what one may do to others.

`PYLLM_SOAK=1` runs the crowd at full length.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinygguf import Q8_0, Shape, tiny_llama

import pyllm
from pyllm import Sampler, batching, scheduler
from pyllm._core import NativeModel
from pyllm.prefixes import Prefixes

VOCAB, CONTEXT = 300, 1024
GREEDY = Sampler.greedy()
SOAK = bool(os.environ.get("PYLLM_SOAK"))
CROWD = 1000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("batching") / "tiny.gguf", Q8_0, Shape(vocab=VOCAB, context=CONTEXT))


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(path, threads=2, prefix_cache=0, speculation=False) as model:
        yield model


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pyllm.Model]:
    """A model whose long prompts take seconds."""
    shape = Shape(dim=512, hidden=1024, layers=6, heads=8, kv_heads=4, vocab=300, context=8192)
    path = tiny_llama(tmp_path_factory.mktemp("batching") / "slow.gguf", Q8_0, shape)
    with pyllm.load(path, threads=2, prefix_cache=0, speculation=False) as model:
        yield model


def prompt(i: int) -> list[int]:
    return np.random.default_rng(i).integers(3, VOCAB, 5 + 7 * (i % 9)).tolist()


def sampler(i: int) -> Sampler:
    return Sampler(temperature=1.2, seed=i + 1) if i % 2 else GREEDY


def alone(model: pyllm.Model, i: int, n: int) -> list[int]:
    return model.generate(prompt(i), max_tokens=n, sampler=sampler(i)).tokens


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The number of tokens of each sequence in each forward pass from now on."""
    evaluate, seen = NativeModel.eval, []

    def eval_and_note(self: NativeModel, parts: Sequence[Any], poll: Any = None) -> Any:
        seen.append([len(part.tokens) for part in parts])
        return evaluate(self, parts, poll)

    monkeypatch.setattr(NativeModel, "eval", eval_and_note)
    return seen


@pytest.fixture
def slow_passes(passes: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The same, where each takes so long that whoever may be in the next has come by then, on a busy machine too."""
    evaluate = NativeModel.eval

    def eval_slowly(self: NativeModel, parts: Sequence[Any], poll: Any = None) -> Any:
        time.sleep(0.01)
        return evaluate(self, parts, poll)

    monkeypatch.setattr(NativeModel, "eval", eval_slowly)
    return passes


# ---- generate_batch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [1, 3, 8, None])
@pytest.mark.parametrize("order", ["forwards", "backwards", "in turns"])
def test_a_batch_equals_each_alone(model: pyllm.Model, max_batch: int | None, order: str) -> None:
    """Whatever the order of reading, and however many are at work at once."""
    expected = [alone(model, i, 5 + i) for i in range(12)]
    samplers = [sampler(i) for i in range(12)]
    batch = model.generate_batch([prompt(i) for i in range(12)], max_tokens=16, sampler=samplers, max_batch=max_batch)
    found: list[list[int]] = [[] for _ in batch]
    if order == "in turns":
        for _ in range(16):
            for tokens, generation in zip(found, batch, strict=True):
                tokens += [chunk.token for chunk in [next(generation, None)] if chunk is not None]
    else:
        for i in range(12) if order == "forwards" else reversed(range(12)):
            found[i] = [chunk.token for chunk in batch[i]]
    assert [tokens[: 5 + i] for i, tokens in enumerate(found)] == expected
    assert all(generation.finish_reason in ("length", "stop") for generation in batch)
    assert model._native.kv_pages == 0


def test_nothing_is_computed_before_it_is_read(model: pyllm.Model, passes: list[list[int]]) -> None:
    batch = model.generate_batch([prompt(i) for i in range(4)], max_tokens=6, sampler=GREEDY)
    assert passes == []
    assert model._native.kv_pages == 0
    next(batch[2])
    assert [len(p) for p in passes] == [4]


def test_texts_share_passes_and_others_follow_when_one_ends(model: pyllm.Model, passes: list[list[int]]) -> None:
    batch = model.generate_batch([[5, i] for i in range(3, 13)], max_tokens=6, sampler=GREEDY, max_batch=4)
    for generation in batch:
        assert len(generation.tokens) <= 6
    sizes = [len(p) for p in passes]
    assert max(sizes) == 4
    assert sum(sizes) <= 10 * 6
    assert len(sizes) <= 6 * 3  # ten texts in three groups, or better


def test_one_sampler_and_no_prompts(model: pyllm.Model) -> None:
    assert model.generate_batch([]) == []
    sampler = Sampler(seed=9)
    batch = model.generate_batch([[5], [6, 7]], max_tokens=4, sampler=sampler)
    assert [g.tokens for g in batch] == [model.generate(p, max_tokens=4, sampler=sampler).tokens for p in ([5], [6, 7])]
    assert [g.seed for g in batch] == [9, 9]


def test_samples_of_one_prompt(path: Path, passes: list[list[int]]) -> None:
    """They have seeds that follow each other, and the prompt is read once, whether or not anything is kept after."""
    long = np.random.default_rng(0).integers(3, VOCAB, 300).tolist()
    for cache in (0, 1 << 20):
        with pyllm.load(path, threads=1, prefix_cache=cache, speculation=False) as model:
            expected = [
                model.generate(p, max_tokens=5, sampler=Sampler(seed=seed)).tokens
                for p in (long, [7, 8])
                for seed in (4, 5, 6)
            ]
        with pyllm.load(path, threads=1, prefix_cache=cache, speculation=False) as model:
            passes.clear()
            batch = model.generate_batch([long, [7, 8]], n=3, max_tokens=5, sampler=Sampler(temperature=1.0, seed=4))
            assert [g.tokens for g in batch] == expected
            assert sum(map(sum, passes)) < 330 + 6 * 6
            assert [g.stats.cached_tokens for g in batch[:3]] == [0, 299, 299]
            assert [g.seed for g in batch] == [4, 5, 6] * 2
            if not cache:
                del batch
                assert model._native.kv_pages == 0
    with pyllm.load(path, threads=1) as model:
        unseeded = model.generate_batch([[5]], n=4, sampler=Sampler())
        assert len({g.seed for g in unseeded}) == 4


def test_a_common_beginning_is_read_once(path: Path, passes: list[list[int]]) -> None:
    """By the first of them; the others begin when it is known."""
    common = np.random.default_rng(0).integers(3, VOCAB, 250).tolist()
    with pyllm.load(path, threads=1, speculation=False) as model:
        batch = model.generate_batch([[*common, *prompt(i)] for i in range(8)], max_tokens=3, sampler=GREEDY)
        found = [g.tokens for g in batch]
        assert sum(map(sum, passes)) < 250 + 8 * 70 + 8 * 3
    with pyllm.load(path, threads=1, prefix_cache=0) as model:
        assert found == [model.generate([*common, *prompt(i)], max_tokens=3, sampler=GREEDY).tokens for i in range(8)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "at least 1"),
        ({"max_batch": 0}, "at least 1"),
        ({"sampler": [GREEDY]}, "1 samplers for 2 prompts"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments(model: pyllm.Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate_batch([[5], [6]], **options)
    with pytest.raises(pyllm.ContextLengthError):
        model.generate_batch([[5], [6] * (CONTEXT + 1)])


def test_one_that_fails_leaves_the_others(model: pyllm.Model) -> None:
    """Its own reader gets the error, once; all the others get their texts."""
    banned = Sampler(logit_bias=dict.fromkeys(range(VOCAB), -float("inf")))
    samplers = [sampler(i) if i != 2 else banned for i in range(5)]
    batch = model.generate_batch([prompt(i) for i in range(5)], max_tokens=8, sampler=samplers)
    for i in (0, 1, 3, 4):
        assert batch[i].tokens == alone(model, i, 8)
    with pytest.raises(ValueError, match=r"\w"):
        next(batch[2])
    assert batch[2].tokens == []
    assert batch[2].finish_reason == "cancelled"
    assert model._native.kv_pages == 0


def test_closed_and_dropped_members_are_left_out(model: pyllm.Model, passes: list[list[int]]) -> None:
    gc.disable()
    try:
        batch = model.generate_batch([prompt(i) for i in range(5)], max_tokens=40, sampler=GREEDY)
        next(batch[0])
        batch[1].close()
        del batch[4]
        passes.clear()
        assert batch[0].tokens == model.generate(prompt(0), max_tokens=40, sampler=GREEDY).tokens
        assert max(len(p) for p in passes) == 3
        assert batch[1].finish_reason == "cancelled"
        del batch
        assert model._native.kv_pages == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("max_batch", [2, None])
def test_an_abandoned_batch_holds_nobody_up(model: pyllm.Model, max_batch: int | None) -> None:
    """Whether or not all its prompts were read; and once it is closed it holds nothing."""
    prompts = [prompt(i) for i in range(4)] + [prompt(8) * 9]
    batch = model.generate_batch(prompts, max_tokens=500, sampler=GREEDY, max_batch=max_batch)
    next(batch[0])
    started = time.monotonic()
    assert alone(model, 7, 10) == alone(model, 7, 10)
    assert time.monotonic() - started < 5
    for generation in batch:
        generation.close()
    assert model._native.kv_pages == 0


def test_members_may_be_read_by_threads_and_tasks(model: pyllm.Model) -> None:
    expected = [alone(model, i, 20) for i in range(10)]

    def start() -> list[pyllm.Generation]:
        return model.generate_batch(
            [prompt(i) for i in range(10)], max_tokens=20, sampler=[sampler(i) for i in range(10)], max_batch=4
        )

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(lambda g: g.tokens, start(), timeout=60)) == expected

    async def read(generation: pyllm.Generation) -> list[int]:
        return [chunk.token async for chunk in generation]

    async def read_all() -> list[list[int]]:
        return list(await asyncio.wait_for(asyncio.gather(*map(read, start())), 60))

    assert asyncio.run(read_all()) == expected


def test_the_last_token_reaches_its_reader(model: pyllm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one who looks in the moment between the end of the text and the delivery of its last token."""
    complete = pyllm.Generation.complete

    def complete_slowly(self: pyllm.Generation) -> pyllm.Chunk | None:
        chunk = complete(self)
        time.sleep(0.05)
        return chunk

    monkeypatch.setattr(pyllm.Generation, "complete", complete_slowly)
    monkeypatch.setattr(batching, "NAP", 0.001)
    batch = model.generate_batch([prompt(i) for i in range(4)], max_tokens=1, sampler=GREEDY)
    with ThreadPoolExecutor(4) as pool:
        assert [len(chunks) for chunks in pool.map(list, batch, timeout=60)] == [1] * 4


# ---- meeting in the scheduler ----------------------------------------------------------------------------------------


def test_threads_meet(model: pyllm.Model, slow_passes: list[list[int]]) -> None:
    """Their texts are their own, in fewer passes than tokens."""
    expected = [alone(model, i, 12) for i in range(6)]
    slow_passes.clear()
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda i: alone(model, i, 12), range(6), timeout=60)) == expected
    assert len(slow_passes) < 6 * 12 * 0.6
    assert model._native.kv_pages == 0


def test_tasks_meet(model: pyllm.Model, slow_passes: list[list[int]]) -> None:
    """Twenty at once, more than asyncio has worker threads."""
    expected = [alone(model, i, 6) for i in range(20)]
    slow_passes.clear()

    async def read(i: int) -> list[int]:
        return [chunk.token async for chunk in model.generate(prompt(i), max_tokens=6, sampler=sampler(i))]

    async def read_all() -> list[list[int]]:
        return list(await asyncio.wait_for(asyncio.gather(*map(read, range(20))), 60))

    assert asyncio.run(read_all()) == expected
    assert len(slow_passes) < 20 * 6 * 0.5


def test_sessions_meet_too(model: pyllm.Model, slow_passes: list[list[int]]) -> None:
    with ThreadPoolExecutor(4) as pool:

        def run(i: int) -> bytes:
            with model.session() as session:
                for token in prompt(i)[:5] * 2:
                    logits = session.eval([token]).tobytes()
                return logits

        found = list(pool.map(run, range(4), timeout=60))
        assert max(len(p) for p in slow_passes) > 1
    assert found == [run(i) for i in range(4)]


def test_a_long_prompt_does_not_stop_the_others(slow: pyllm.Model, passes: list[list[int]]) -> None:
    """They go on getting tokens while it is read, and it is read at the rate that leaves them."""
    long = np.random.default_rng(0).integers(3, 300, 1500).tolist()
    reader = threading.Thread(target=lambda: slow.generate(long, max_tokens=1, sampler=GREEDY).tokens)
    short = slow.generate([5, 6], max_tokens=1000, sampler=Sampler(seed=1))
    next(short)
    reader.start()
    came = 0
    while reader.is_alive():
        came += next(short, None) is not None
    reader.join()
    short.close()
    assert came >= 5
    assert all(max(p) <= scheduler.CHUNK_IN_COMPANY for p in passes if len(p) > 1)


@pytest.mark.parametrize(("longest", "least", "most"), [(1e6, 512, 512), (0.05, 64, 100), (1e-9, 64, 64)])
def test_passes_are_as_large_as_the_pace_allows(
    path: Path, passes: list[list[int]], monkeypatch: pytest.MonkeyPatch, longest: float, least: int, most: int
) -> None:
    """A layer takes no longer than it may, here where two layers take a millisecond for each token."""
    evaluate = NativeModel.eval

    def eval_slowly(self: NativeModel, parts: Sequence[Any], poll: Any = None) -> Any:
        time.sleep(0.001 * sum(len(part.tokens) for part in parts))
        return evaluate(self, parts, poll)

    monkeypatch.setattr(NativeModel, "eval", eval_slowly)
    monkeypatch.setattr(scheduler, "LONGEST_LAYER", longest)
    with pyllm.load(path, threads=1) as model:
        assert model.config.n_layers == 2
        model.generate([5] * 900, max_tokens=1).tokens  # noqa: B018
    assert passes[0] == [64]  # nothing is known yet
    assert least <= max(size for (size,) in passes) <= most


def test_a_pass_with_less_room_than_is_short(model: pyllm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the constants are: the first passes of a model, whose pace is not known, admit 64 tokens."""
    monkeypatch.setattr(scheduler, "SHORT", 512)
    model.scheduler._chunk = scheduler.MOST_SEQUENCES
    prompts = [[(3 + i * k) % 60 for k in range(100)] for i in range(1, 4)]
    batch = model.generate_batch(prompts, max_tokens=3, sampler=Sampler.greedy(), timeout=9)
    assert [len(generation.tokens) for generation in batch] == [3, 3, 3]
    assert all(generation.finish_reason == "length" for generation in batch)


def test_prompts_are_read_in_turns(slow: pyllm.Model) -> None:
    """A prompt of thirty tokens is not kept waiting for one of six thousand."""
    long = np.random.default_rng(0).integers(3, 300, 6000).tolist()
    generation = slow.generate(long, max_tokens=1)
    reader = threading.Thread(target=lambda: generation.tokens)
    reader.start()
    time.sleep(0.1)
    assert len(slow.generate(prompt(3), max_tokens=2, sampler=GREEDY).tokens) <= 2
    assert reader.is_alive()
    generation.close()
    reader.join(20)


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_cancelling_in_a_shared_pass(slow: pyllm.Model, who: str) -> None:
    """Either ends at once, and the other never notices."""
    long = np.random.default_rng(1).integers(3, 300, 8000).tolist()
    other = np.random.default_rng(2).integers(3, 300, 600).tolist()
    expected = slow.generate(other, max_tokens=3, sampler=GREEDY).tokens
    cancelled, stays = slow.generate(long), slow.generate(other, max_tokens=3, sampler=GREEDY)
    found: dict[str, list[int]] = {}
    readers = [
        threading.Thread(target=lambda: found.update(cancelled=cancelled.tokens)),
        threading.Thread(target=lambda: found.update(stays=stays.tokens)),
    ]
    for reader in readers if who == "leader" else reversed(readers):
        reader.start()
        time.sleep(0.05)
    started = time.monotonic()
    cancelled.close()
    readers[0].join(20)
    assert time.monotonic() - started < 6  # the rest of the prompt takes longer, even alone
    readers[1].join(60)
    assert found == {"cancelled": [], "stays": expected}
    assert slow._native.kv_pages == 0


def test_ctrl_c_while_another_thread_leads(slow: pyllm.Model) -> None:
    long = np.random.default_rng(1).integers(3, 300, 4000).tolist()
    other = slow.generate(long, max_tokens=1)
    leader = threading.Thread(target=lambda: other.tokens)
    leader.start()
    time.sleep(0.1)
    mine = slow.generate(long[::-1], max_tokens=1)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            mine.tokens  # noqa: B018
    finally:
        timer.join()
        signal.signal(signal.SIGINT, previous)
    assert mine.finish_reason == "cancelled"
    assert leader.is_alive()
    other.close()
    leader.join(20)
    assert slow._native.kv_pages == 0


STORM = """
    import gc, os, random, signal, sys, threading, time
    import pyllm

    model = pyllm.load(sys.argv[1], threads=1, prefix_cache=0, speculation=False)
    def run():
        return model.generate([5, 6, 7], max_tokens=30, sampler=pyllm.Sampler.greedy()).tokens
    expected, wrong, over, armed = run(), [], False, False
    def work():
        while not over:
            if run() != expected:
                wrong.append("in a thread")
    def handler(*_):
        if armed:
            raise KeyboardInterrupt
    def storm():
        while not over:
            time.sleep(random.random() * 0.01)
            os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, handler)
    threads = [threading.Thread(target=work) for _ in range(3)] + [threading.Thread(target=storm)]
    for thread in threads:
        thread.start()
    interrupted, end = 0, time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        try:
            armed = True
            tokens = run()
            armed = False
            if tokens != expected:
                wrong.append("here")
        except KeyboardInterrupt:
            armed = False
            interrupted += 1
    over = True
    for thread in threads:
        thread.join(20)
    run()  # whoever was left behind in the scheduler is gone with this pass
    gc.collect()  # an interrupted step may leave a cycle
    alive = sum(thread.is_alive() for thread in threads)
    print(interrupted > 20, wrong, alive, model._native.kv_pages <= 1)  # one may be in a frame that just ended
"""


def test_ctrl_c_at_any_moment(path: Path) -> None:
    """Hundreds of times, while other threads share the passes: none of them ever sees it, and nothing stays behind."""
    command = [sys.executable, "-c", textwrap.dedent(STORM), str(path), "60" if SOAK else "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (done.stderr, done.stdout.strip()) == ("", "True [] 0 True")


def test_a_failing_pass_tells_only_the_cause(model: pyllm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one sequence makes a shared pass fail, the others are evaluated without it."""
    evaluate = NativeModel.eval

    def fail_on_13(self: NativeModel, parts: Sequence[Any], poll: Any = None) -> Any:
        if any(13 in part.tokens for part in parts):
            raise ZeroDivisionError("thirteen")
        return evaluate(self, parts, poll)

    expected = model.generate([5, 6], max_tokens=1, sampler=GREEDY).tokens
    monkeypatch.setattr(NativeModel, "eval", fail_on_13)
    batch = model.generate_batch([[5, 6], [5, 13], [5, 6]], max_tokens=1, sampler=GREEDY)
    assert batch[0].tokens == batch[2].tokens == expected
    with pytest.raises(ZeroDivisionError, match="thirteen"):
        batch[1].tokens  # noqa: B018


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads is what is tested
def test_fork_while_threads_share_passes(model: pyllm.Model) -> None:
    expected = [alone(model, i, 12) for i in range(4)]
    stop = threading.Event()

    def work(i: int) -> None:
        while not stop.is_set():
            alone(model, i, 12)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(6):
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                samplers = [sampler(i) for i in range(4)]
                batch = model.generate_batch([prompt(i) for i in range(4)], max_tokens=12, sampler=samplers)
                os._exit(0 if [g.tokens for g in batch] == expected else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for worker in workers:
            worker.join(30)


def test_a_session_refuses_a_second_reader_and_the_first_goes_on(
    model: pyllm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, expected = NativeModel.eval, alone(model, 8, 3)
    begun, go_on = threading.Event(), threading.Event()

    def eval_when_told(self: NativeModel, parts: Sequence[Any], poll: Any = None) -> Any:
        begun.set()
        assert go_on.wait(60)
        return evaluate(self, parts, poll)

    monkeypatch.setattr(NativeModel, "eval", eval_when_told)
    with model.session() as session, ThreadPoolExecutor(1) as pool:
        reader = pool.submit(lambda: session.generate(prompt(8), max_tokens=3, sampler=GREEDY).tokens)
        assert begun.wait(60)
        second = session.generate([5], max_tokens=1)
        with pytest.raises(pyllm.SessionBusyError):
            second.tokens  # noqa: B018
        go_on.set()
        assert reader.result(60) == expected


# ---- little memory ---------------------------------------------------------------------------------------------------


def test_where_memory_is_short_texts_wait_for_each_other(
    path: Path, passes: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve texts of up to five pages through memory of nine: some give theirs up and begin again, none differs."""
    monkeypatch.setattr(scheduler, "RELIEF", 0.01)  # less than a thread may be kept from coming back
    prompts = [np.random.default_rng(i).integers(3, VOCAB, 20 + 20 * i).tolist() for i in range(12)]
    with pyllm.load(path, threads=1, prefix_cache=0, speculation=False) as model:
        expected = [model.generate(p, max_tokens=60, sampler=sampler(i)).tokens for i, p in enumerate(prompts)]
        page_bytes = model._native.kv_page_bytes
    samplers = [sampler(i) for i in range(12)]
    passes.clear()
    with pyllm.load(path, threads=1, kv_memory=9 * page_bytes, speculation=False) as model:
        batch = model.generate_batch(prompts, max_tokens=60, sampler=samplers)
        assert [g.tokens for g in batch] == expected
        assert sum(map(sum, passes)) > sum(map(len, prompts)) + sum(map(len, expected))  # something was read again
        with ThreadPoolExecutor(6) as pool:
            run = lambda i: model.generate(prompts[i], max_tokens=60, sampler=sampler(i)).tokens  # noqa: E731
            assert list(pool.map(run, range(12), timeout=60)) == expected
        while model.prefixes.make_room():
            pass
        assert model._native.kv_pages == 0


@pytest.mark.parametrize("where", ["before the first pass", "behind the last one"])
def test_a_thread_that_is_slow_to_join_or_to_end(path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds meanwhile comes back: nobody is refused for it."""
    long, other = (np.random.default_rng(i).integers(3, VOCAB, 250).tolist() for i in (1, 2))
    with pyllm.load(path, threads=1) as model:
        expected = [model.generate(prompt, max_tokens=9, sampler=GREEDY).tokens for prompt in (long, other)]
        page_bytes = model._native.kv_page_bytes
    with pyllm.load(path, threads=1, kv_memory=6 * page_bytes, speculation=False) as model:
        model.generate(long, max_tokens=1, sampler=GREEDY).tokens  # noqa: B018
        held = threading.Event()

        def slow(method: Any) -> Any:
            def wait_behind(*arguments: Any, **options: Any) -> Any:
                result = method(*arguments, **options)
                if threading.current_thread() is first:
                    held.set()
                    time.sleep(3 * scheduler.RELIEF)
                return result

            return wait_behind

        name = {"before the first pass": "find", "behind the last one": "keep"}[where]
        monkeypatch.setattr(Prefixes, name, slow(getattr(Prefixes, name)))
        found: list[list[int]] = []
        first = threading.Thread(target=lambda: found.append(model.generate(long, max_tokens=9, sampler=GREEDY).tokens))
        first.start()
        assert held.wait(20)
        assert model.generate(other, max_tokens=9, sampler=GREEDY).tokens == expected[1]
        first.join()
        assert found == expected[:1]


def test_memory_may_be_given_up_twice(model: pyllm.Model) -> None:
    """A sequence that has to do so before it got anywhere again still reads its text once."""
    text = np.random.default_rng(0).integers(3, VOCAB, 61).tolist()
    with model.session() as session:
        session.eval(text[:60])
        session.ask(text[60:], lambda: False)
        (seat,) = model.scheduler._waiting
        for _ in range(2):
            model.scheduler._take_memory(seat)
        assert np.array_equal(session.answer(), model.logits(text)[60])
        assert (session.position, session._native.position) == (61, 61)


@pytest.mark.parametrize("speculation", [False, True])
def test_texts_that_fit_one_by_one(path: Path, speculation: bool) -> None:
    """Each takes all the memory there may be. Neither pages of a pass that failed nor guesses stand in their way."""
    prompts = [np.random.default_rng(i).integers(3, VOCAB, 60).tolist() for i in range(6)]
    with pyllm.load(path, threads=1) as model:
        expected = [model.generate(prompt, max_tokens=130, sampler=GREEDY).tokens for prompt in prompts]
        page_bytes = model._native.kv_page_bytes
    with pyllm.load(path, threads=1, kv_memory=3 * page_bytes, prefix_cache=0, speculation=speculation) as model:
        batch = model.generate_batch(prompts, max_tokens=130, sampler=GREEDY)
        assert [generation.tokens for generation in batch] == expected
        assert model._native.kv_pages == 0


def test_a_handler_between_a_choice_and_its_pass(model: pyllm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler that generates evaluates whoever waits: what was to be done is then done."""
    expected, other = alone(model, 3, 6), alone(model, 4, 3)
    claim, found = scheduler.Scheduler._claim, list[list[int]]()

    def handle_first(self: scheduler.Scheduler, seat: Any, now: Any) -> bool:
        if len(found) < 4:
            found.append([])
            found[-1] += alone(model, 4, 3)
        return claim(self, seat, now)

    monkeypatch.setattr(scheduler.Scheduler, "_claim", handle_first)
    assert alone(model, 3, 6) == expected
    assert found == [other] * 4


def test_a_long_prompt_gets_in_beside_many(model: pyllm.Model, passes: list[list[int]]) -> None:
    """However many others are short: one place is its own."""
    prompts = [np.random.default_rng(0).integers(3, VOCAB, 400).tolist(), *[[5 + i] for i in range(80)]]
    batch = model.generate_batch(prompts, max_tokens=60, sampler=GREEDY, max_batch=81)
    next(batch[0])
    assert len(passes) < 10
    for generation in batch:
        generation.close()


def test_nobody_is_remembered_for_long(model: pyllm.Model) -> None:
    """Sessions that were closed, or dropped, do not make the others wait or search."""
    for _ in range(200):
        with model.session() as session:
            session.eval([5])
    assert len(model.scheduler._away) <= 1
    dropped = [model.session() for _ in range(50)]
    for session in dropped:
        session.eval([5])
    del dropped
    time.sleep(scheduler.RECENT)
    model.session().eval([5])
    assert len(model.scheduler._away) <= 1


def test_dropped_members_are_not_computed(model: pyllm.Model, passes: list[list[int]]) -> None:
    prompts = [[5], *[np.random.default_rng(i).integers(3, VOCAB, 500).tolist() for i in range(4)]]
    batch = model.generate_batch(prompts, max_tokens=1, sampler=GREEDY)
    next(batch[0])
    references = [weakref.ref(generation) for generation in batch]
    del batch
    passes.clear()
    alone(model, 1, 4)
    assert [reference() for reference in references] == [None] * 5
    assert all(len(tokens) == 1 for tokens in passes)
    assert model._native.kv_pages == 0


def test_what_a_batch_keeps_for_itself_is_bounded(path: Path) -> None:
    prompts = [np.random.default_rng(i).integers(3, VOCAB, 200).tolist() for i in range(20)]
    with pyllm.load(path, threads=1, prefix_cache=0) as model:
        batch = model.generate_batch(prompts, max_tokens=5, sampler=GREEDY, max_batch=2)
        for generation in batch[:-2]:
            generation.tokens  # noqa: B018
            assert model._native.kv_pages <= 2 * 2 * 4


def test_closing_a_member_computes_nothing(slow: pyllm.Model, passes: list[list[int]]) -> None:
    prompts = [[5], *[np.random.default_rng(i).integers(3, VOCAB, 800).tolist() for i in range(3)]]
    batch = slow.generate_batch(prompts, max_tokens=5, sampler=GREEDY)
    next(batch[0])
    passes.clear()
    for generation in batch:
        generation.close()
    assert passes == []
    assert slow._native.kv_pages == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads is what is tested
def test_fork_in_the_midst_of_a_pass(slow: pyllm.Model) -> None:
    """Which goes on in the parent alone: the child reads an error, and does not wait for it."""
    prompts = [np.random.default_rng(i).integers(3, VOCAB, 400).tolist() for i in range(4)]
    batch = slow.generate_batch(prompts, max_tokens=3, sampler=GREEDY)
    worker = threading.Thread(target=lambda: batch[0].tokens)
    worker.start()
    time.sleep(0.05)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            batch[1].tokens  # noqa: B018
        except pyllm.PyllmError:
            os._exit(3)
        os._exit(4)
    worker.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert [len(generation.tokens) for generation in batch] == [3] * 4


def test_what_never_fits_is_refused(path: Path) -> None:
    """With an error that names the limit, and without harm to others; and so does a session that nobody gives back."""
    long = np.random.default_rng(0).integers(3, VOCAB, 400).tolist()
    with pyllm.load(path, threads=1) as model:
        page_bytes = model._native.kv_page_bytes
    with pyllm.load(path, threads=1, kv_memory=5 * page_bytes + 7, speculation=False) as model:
        expected = model.generate([5, 6], max_tokens=30, sampler=GREEDY).tokens
        batch = model.generate_batch([[5, 6], long, [5, 6]], max_tokens=30, sampler=GREEDY)
        assert batch[0].tokens == batch[2].tokens == expected
        with pytest.raises(pyllm.OutOfMemoryError, match="no KV page is left of the 5"):
            batch[1].tokens  # noqa: B018
        with model.session() as session:
            session.eval(long[:300])
            started = time.monotonic()
            with pytest.raises(pyllm.OutOfMemoryError):
                model.generate([5, 6], max_tokens=30).tokens  # noqa: B018
            assert time.monotonic() - started < 5
            assert session.eval([5]).shape == (VOCAB,)
        assert model.generate([5, 6], max_tokens=30, sampler=GREEDY).tokens == expected


# ---- a crowd ---------------------------------------------------------------------------------------------------------


def test_a_crowd_with_random_cancellations(path: Path) -> None:
    """A thousand requests by threads, tasks and batches: survivors equal their lone runs, memory is bounded."""
    with pyllm.load(path, threads=2, prefix_cache=0, speculation=False) as model:
        expected = {(i, n): alone(model, i, n) for i in range(40) for n in (3, 9, 20)}
        page_bytes = model._native.kv_page_bytes
    budget = 60
    with pyllm.load(path, threads=2, prefix_cache=20 * page_bytes, kv_memory=budget * page_bytes) as model:
        crowd = Crowd(model, expected, budget)
        kinds = [crowd.in_threads, crowd.in_tasks, crowd.in_batches]
        with ThreadPoolExecutor(3) as pool:
            for future in [pool.submit(kind, CROWD * (10 if SOAK else 1) // 3) for kind in kinds]:
                future.result(timeout=600)
        assert crowd.survivors > CROWD / 2
        assert crowd.cancelled > CROWD / 10
        assert crowd.wrong == []
        assert crowd.most_pages <= budget
        while model.prefixes.make_room():
            pass
        assert model._native.kv_pages == 0


class Crowd:
    """Requests of mixed length, a third of which are given up at some point."""

    def __init__(self, model: pyllm.Model, expected: dict[tuple[int, int], list[int]], budget: int) -> None:
        self.model, self.expected = model, expected
        self.wrong: list[Any] = []
        self.survivors = self.cancelled = self.most_pages = 0

    def request(self, rng: random.Random) -> tuple[tuple[int, int], int | None, Callable[[], pyllm.Generation]]:
        """Which text, after how many tokens it is given up, and how it is begun."""
        i, n = rng.choice(list(self.expected))
        given_up = rng.randrange(n) if rng.random() < 1 / 3 else None
        return (i, n), given_up, lambda: self.model.generate(prompt(i), max_tokens=n, sampler=sampler(i))

    def note(self, key: tuple[int, int], given_up: int | None, tokens: list[int]) -> None:
        self.most_pages = max(self.most_pages, self.model._native.kv_pages)
        if tokens != self.expected[key][: len(tokens) if given_up is not None else None]:
            self.wrong.append((key, given_up, tokens))
        self.survivors += given_up is None
        self.cancelled += given_up is not None

    def in_threads(self, requests: int) -> None:
        def serve(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(requests // 6):
                key, given_up, begin = self.request(rng)
                with begin() as generation:
                    tokens = [c.token for c, _ in zip(generation, range(given_up or 99), strict=False)]
                self.note(key, given_up, tokens[: given_up if given_up is not None else 99])

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(serve, range(6)))

    def in_tasks(self, requests: int) -> None:
        async def serve(seed: int) -> None:
            rng = random.Random(100 + seed)
            for _ in range(requests // 8):
                key, given_up, begin = self.request(rng)
                tokens: list[int] = []
                generation = begin()
                if given_up is not None:
                    asyncio.get_running_loop().call_later(rng.random() / 50, generation.close)
                async for chunk in generation:
                    tokens.append(chunk.token)
                self.note(key, given_up, tokens)

        async def main() -> None:
            await asyncio.gather(*map(serve, range(8)))

        asyncio.run(main())

    def in_batches(self, requests: int) -> None:
        rng = random.Random(200)
        for _ in range(requests // 16):
            asked = [self.request(rng) for _ in range(16)]
            ids = [i for (i, _), _, _ in asked]
            samplers = [sampler(i) for i in ids]
            batch = self.model.generate_batch([prompt(i) for i in ids], max_tokens=20, sampler=samplers, max_batch=8)
            for generation, (key, given_up, _) in zip(batch, asked, strict=True):
                if given_up is not None:
                    generation.close()
                self.note(key, given_up, generation.tokens[: key[1]])
