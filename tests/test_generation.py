"""The loop of generation, on a timeline and a tokenizer made of nothing: no weights, no compiled model."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import math
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm import Generation, Sampler, SessionBusyError, TokenizerError
from pyllm.ahead import Ahead
from pyllm.generation import Plan, StopScanner

VOCAB = 258
END = 256
OTHER_END = 257
CONTEXT = 64


class NoPool:
    """Nobody need wait: steppers answer when they are asked to."""

    def wait(self, items: Collection[Any]) -> None:
        assert all(item.ready for item in items)


class ScriptedStepper:
    """A timeline whose logits always prefer the next token of a script."""

    def __init__(self, script: Sequence[int], delay: float = 0.0, held: int = 0) -> None:
        self.script = list(script)
        self.held = held  # tokens of before
        self.delay = delay
        self.evaluated: list[int] = []
        self.pending: list[int] = []
        self.drawn = 0
        self.released = 0
        self.started = threading.Event()
        self.cached = 0
        self.ready = True
        self.pool = NoPool()
        self.asked: tuple[Sequence[int], Callable[[], bool]] = ((), lambda: False)

    @property
    def position(self) -> int:
        return self.held + len(self.evaluated) + len(self.pending)

    def ask(self, tokens: Sequence[int], poll: Callable[[], bool], ahead: Ahead | None = None) -> None:
        self.asked = (tokens, poll)

    def answer(self) -> Any:
        tokens, poll = self.asked
        self.asked = ((), lambda: False)  # a reference to the generation would be a cycle
        self.started.set()
        deadline = time.monotonic() + self.delay
        while time.monotonic() < deadline:
            if poll():
                return None
            time.sleep(0.001)
        if poll():
            return None
        self.evaluated += [*self.pending, *tokens]
        self.pending = []
        logits = np.zeros(VOCAB, np.float32)
        logits[self.script[self.drawn % len(self.script)]] = 5.0
        self.drawn += 1
        return logits

    def accept(self, token: int) -> None:
        self.pending = [token]

    def release(self) -> None:
        self.released += 1


class ByteDecoder:
    """Ids are bytes of UTF-8."""

    def __init__(self) -> None:
        self.held = b""

    def push(self, token: int, /) -> str:
        self.held += bytes([token]) if token < 256 else b""
        for size in range(len(self.held), 0, -1):
            with contextlib.suppress(UnicodeDecodeError):
                text = self.held[:size].decode()
                self.held = self.held[size:]
                return text
        return ""

    def flush(self) -> str:
        text, self.held = self.held.decode(errors="replace"), b""
        return text


class Bench:
    """A generation and the stepper under it."""

    def __init__(self, script: str | Sequence[int], delay: float = 0.0, **plan: Any) -> None:
        tokens = [*script.encode(), END] if isinstance(script, str) else script
        self.stepper = ScriptedStepper(tokens, delay, held=len(plan.get("history", ())))
        options: dict[str, Any] = {
            "prompt": [80],
            "history": [],
            "context_length": CONTEXT,
            "decoder": ByteDecoder(),
            "stop_ids": frozenset({END, OTHER_END}),
        }
        self.generation = Generation(self.stepper, Sampler.greedy().start(), Plan(**(options | plan)))

    def texts(self) -> list[str]:
        return [chunk.text for chunk in self.generation]


# ---- text ----------------------------------------------------------------------------------------------------------


def test_nothing_is_computed_before_it_is_read() -> None:
    bench = Bench("ab")
    assert bench.stepper.drawn == 0
    assert bench.generation.finish_reason is None
    assert next(bench.generation).text == "a"
    assert bench.stepper.drawn == 1


def test_text_is_the_whole_text() -> None:
    bench = Bench("hello")
    assert next(bench.generation).text == "h"
    assert bench.generation.text == "hello"
    assert bench.generation.tokens == list(b"hello")
    assert bench.generation.text == "hello"
    assert list(bench.generation) == []
    assert bench.generation.finish_reason == "stop"
    assert bench.stepper.released == 1


def test_the_prompt_goes_first_and_each_token_once() -> None:
    bench = Bench("abc", prompt=[1, 2, 3])
    bench.generation.text  # noqa: B018
    assert bench.stepper.evaluated == [1, 2, 3, *b"abc"]


def test_any_stop_id_ends_the_text() -> None:
    assert Bench([97, OTHER_END]).texts() == ["a"]
    assert Bench([END]).texts() == []


def test_characters_come_whole() -> None:
    text = "aé🦙ก"
    chunks = list(Bench(text).generation)
    assert "".join(chunk.text for chunk in chunks) == text
    assert [chunk.text for chunk in chunks if chunk.text] == list(text)
    assert [chunk.token for chunk in chunks] == list(text.encode())


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_that_is_never_completed(cut: int) -> None:
    """It becomes a replacement character, as in `decode`, whether the model or the limit ends the text."""
    tokens = [97, *"🦙".encode()[:cut]]
    assert Bench([*tokens, END]).generation.text == "a\ufffd"
    limited = Bench(tokens, max_tokens=len(tokens)).generation
    assert limited.text == "a\ufffd"
    assert "".join(c.text for c in Bench([*tokens, END]).generation) == "a\ufffd"
    assert limited.finish_reason == "length"


def test_the_decoder_knows_what_came_before() -> None:
    """The prompt's end is shown to the decoder and not given out again."""
    seen: list[int] = []

    class Spy(ByteDecoder):
        def push(self, token: int, /) -> str:
            seen.append(token)
            return super().push(token)

    assert Bench("b", history=list(b"xyz"), prompt=list(b"a"), decoder=Spy()).generation.text == "b"
    assert bytes(seen) == b"xyzab"


def test_without_a_decoder_there_are_tokens() -> None:
    bench = Bench("ab", decoder=None)
    assert bench.texts() == ["", ""]
    assert bench.generation.tokens == [97, 98]
    with pytest.raises(TokenizerError, match="tokenizer="):
        bench.generation.text  # noqa: B018


# ---- stop strings --------------------------------------------------------------------------------------------------


def test_a_stop_string_never_leaks() -> None:
    bench = Bench("one. STOP two", stop=("STOP",))
    assert "".join(bench.texts()) == "one. "
    assert bench.generation.text == "one. "
    assert bench.generation.finish_reason == "stop"


def test_text_that_only_resembled_a_stop_string_comes_out() -> None:
    bench = Bench("aSTOaSTO", stop=("STOP",))
    chunks = list(bench.generation)
    assert "".join(chunk.text for chunk in chunks) == "aSTOaSTO"
    assert (chunks[-1].text, chunks[-1].token) == ("STO", END)
    assert bench.generation.tokens == list(b"aSTOaSTO")


def test_held_text_comes_out_at_the_limit() -> None:
    bench = Bench("aSTO", stop=("STOP",), max_tokens=4)
    assert bench.texts() == ["a", "", "", "STO"]
    assert bench.generation.finish_reason == "length"


@given(
    text=st.text("ab", max_size=12), stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), data=st.data()
)
def test_the_scanner_does_not_depend_on_how_text_is_divided(text: str, stops: list[str], data: st.DataObject) -> None:
    ends = sorted((text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text)
    expected = text[: ends[0][1]] if ends else text
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    scanner = StopScanner(stops)
    out = ""
    for piece in pieces:
        out += scanner.push(piece)
        assert expected.startswith(out)
    assert out + scanner.flush() == expected
    assert scanner.stopped == bool(ends)


# ---- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_max_tokens(limit: int) -> None:
    bench = Bench("abcdef", max_tokens=limit)
    assert bench.generation.text == "abcdef"[:limit]
    assert bench.generation.finish_reason == "length"
    assert bench.stepper.drawn == limit  # and no work is done for a token that nobody gets
    assert bench.stepper.released == 1


def test_the_context_ends_a_text() -> None:
    """Every position is used: the last token is drawn after the last place was filled."""
    bench = Bench([97], prompt=[1] * 10, context_length=16)
    assert len(bench.generation.tokens) == 7
    assert len(bench.stepper.evaluated) == 16
    assert bench.generation.finish_reason == "length"


# ---- ending early --------------------------------------------------------------------------------------------------


def test_close_ends_it() -> None:
    bench = Bench([97])
    with bench.generation as generation:
        next(generation)
    assert generation.finish_reason == "cancelled"
    assert list(generation) == []
    assert generation.text == "a"
    generation.close()
    assert bench.stepper.released == 1


def test_close_after_the_end_changes_nothing() -> None:
    bench = Bench("a")
    assert bench.generation.text == "a"
    bench.generation.close()
    assert bench.generation.finish_reason == "stop"


def test_close_from_another_thread_stops_a_step() -> None:
    bench = Bench([97], delay=30.0)
    reader = threading.Thread(target=lambda: bench.generation.text)
    reader.start()
    assert bench.stepper.started.wait(5)
    started = time.monotonic()
    bench.generation.close()
    reader.join(5)
    assert time.monotonic() - started < 1
    assert bench.generation.finish_reason == "cancelled"
    assert bench.stepper.released == 1


def test_a_step_waits_for_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may hold the generation just then: whoever reads it finds the end, not an error."""
    bench = Bench([97])
    next(bench.generation)
    release, entered = bench.stepper.release, threading.Event()

    def release_slowly() -> None:
        entered.set()
        time.sleep(0.1)
        release()

    monkeypatch.setattr(bench.stepper, "release", release_slowly)
    closer = threading.Thread(target=bench.generation.close)
    closer.start()
    assert entered.wait(5)
    assert list(bench.generation) == []
    closer.join(5)
    assert bench.generation.finish_reason == "cancelled"


def test_timeout() -> None:
    bench = Bench([97], delay=0.02, timeout=0.1, max_tokens=None, context_length=10_000)
    started = time.monotonic()
    bench.generation.text  # noqa: B018
    assert 0.08 < time.monotonic() - started < 1
    assert bench.generation.finish_reason == "cancelled"
    assert 1 <= len(bench.generation.tokens) <= 5


def test_a_second_thread_is_refused() -> None:
    bench = Bench([97], delay=30.0)
    reader = threading.Thread(target=lambda: list(bench.generation))
    reader.start()
    assert bench.stepper.started.wait(5)
    with pytest.raises(SessionBusyError, match="another thread"):
        next(bench.generation)
    assert bench.stepper.released == 0  # the first goes on
    bench.generation.close()
    reader.join(5)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_in_a_step_closes(error: type[BaseException]) -> None:
    bench = Bench([97])
    next(bench.generation)

    def fail() -> Any:
        raise error

    bench.stepper.answer = fail  # type: ignore[method-assign]
    with pytest.raises(error):
        next(bench.generation)
    assert bench.generation.finish_reason == "cancelled"
    assert bench.stepper.released == 1
    assert bench.generation.text == "a"


def test_a_moved_timeline_is_noticed() -> None:
    bench = Bench([97])
    next(bench.generation)
    bench.stepper.ask([1, 2], lambda: False)
    bench.stepper.answer()
    with pytest.raises(SessionBusyError, match="something else"):
        next(bench.generation)


def test_a_dropped_generation_frees_its_timeline_at_once() -> None:
    """There is no reference cycle, so the session's memory does not wait for the garbage collector."""
    gc.disable()
    try:
        bench = Bench([97])
        next(iter(bench.generation))
        stepper = weakref.ref(bench.stepper)
        del bench
        assert stepper() is None
    finally:
        gc.enable()


# ---- facts ---------------------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_model() -> None:
    def measure(logits: Any, token: int) -> float:
        return float(logits[token] - math.log(np.exp(logits.astype(np.float64)).sum()))

    (chunk,) = Bench("a", log_probability=measure).generation
    assert chunk.logprob == pytest.approx(5 - math.log(math.exp(5) + VOCAB - 1))
    (chunk,) = Bench("a").generation
    assert chunk.logprob is None


def test_stats() -> None:
    bench = Bench([97], delay=0.01, prompt=[1, 2, 3], history=[4, 5], max_tokens=5)
    assert bench.generation.stats.generated_tokens == 0
    assert bench.generation.stats.prefill_tokens_per_second == 0
    for _ in bench.generation:
        time.sleep(0.05)  # the consumer's time does not count
    stats = bench.generation.stats
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (5, 2, 5)
    assert 0.01 <= stats.time_to_first_token < 0.05
    assert stats.prefill_tokens_per_second == pytest.approx(3 / stats.time_to_first_token)
    assert 20 < stats.decode_tokens_per_second <= 100
    assert stats.peak_memory_bytes > 1 << 20


def test_penalties_see_prompt_and_text() -> None:
    class Recorder:
        seed = 1
        seen: list[list[int]]

        def draw(self, logits: Any, history: Sequence[int] = ()) -> int:
            self.seen.append(list(history))
            return 97

    recorder = Recorder()
    recorder.seen = []
    stepper = ScriptedStepper([97], held=1)
    plan = Plan(prompt=[2], history=[1], context_length=9, decoder=None, max_tokens=3)
    assert Generation(stepper, recorder, plan).tokens == [97, 97, 97]
    assert recorder.seen == [[1, 2], [1, 2, 97], [1, 2, 97, 97]]


def test_padding_adds_no_text() -> None:
    """Ids behind the tokenizer's, from a vocabulary padded to a round number, never reach the decoder."""

    class Strict(ByteDecoder):
        def push(self, token: int, /) -> str:
            assert token < 200, "the decoder does not know this id"
            return super().push(token)

    bench = Bench([97, 201, 98], prompt=[201], decoder=Strict(), padding=200, max_tokens=3)
    assert bench.texts() == ["a", "", "b"]


# ---- asyncio -------------------------------------------------------------------------------------------------------


def test_async_for() -> None:
    async def read() -> tuple[list[str], list[int]]:
        bench = Bench("abc", delay=0.01)
        ticks: list[int] = []

        async def tick() -> None:
            for i in itertools.count():
                ticks.append(i)
                await asyncio.sleep(0.001)

        ticker = asyncio.create_task(tick())
        texts = [chunk.text async for chunk in bench.generation]
        ticker.cancel()
        return texts, ticks

    texts, ticks = asyncio.run(read())
    assert texts == ["a", "b", "c"]
    assert len(ticks) > 5  # the loop was free meanwhile


def test_cancelling_the_task_closes() -> None:
    bench = Bench([97], delay=30.0)

    async def read() -> None:
        async for _ in bench.generation:
            pass

    async def main() -> None:
        task = asyncio.create_task(read())
        while not bench.stepper.started.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.stepper.released == 1

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 5
    assert bench.generation.finish_reason == "cancelled"
    assert bench.generation.text == ""


def test_wait_for_is_a_timeout() -> None:
    bench = Bench([97], delay=30.0)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(bench.generation.__anext__(), 0.05)

    asyncio.run(main())
    assert bench.generation.finish_reason == "cancelled"


def test_aclosing() -> None:
    bench = Bench([97])

    async def main() -> None:
        async with contextlib.aclosing(bench.generation) as generation:
            async for _ in generation:
                break

    asyncio.run(main())
    assert bench.generation.finish_reason == "cancelled"
    assert bench.stepper.released == 1


def test_iteration_protocol() -> None:
    generation = Bench("ab").generation
    assert isinstance(iter(generation), Iterator)
    assert iter(generation) is generation
