"""One timeline: what `eval` returns, what it refuses, how it is interrupted, and how it is kept.

`NativeSession` is the C library's session as `_core` shows it; `pyllm.Session` is what users get.
"""

from __future__ import annotations

import ctypes
import gc
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bits import Array, bits
from tinygguf import Q4_1, Q8_0, Shape, tiny_llama

import pyllm
from pyllm import architectures, formats
from pyllm._core import Interrupted, NativeModel, NativeSession

VOCAB, CONTEXT = 300, 128
IDS: list[int] = np.random.default_rng(0).integers(0, VOCAB, CONTEXT).tolist()


def native_model(path: Path, threads: int = 1) -> NativeModel:
    checkpoint = formats.open_checkpoint(path)
    config = architectures.describe(checkpoint)
    model = NativeModel(config, planes=2, kv_type="f16", threads=threads)
    for b in architectures.bindings(checkpoint):
        with checkpoint.view(b.tensor) as data:
            model.bind(b.slot, b.layer, b.tensor.type_id, b.rows, b.cols, data, b.tensor.group)
    model.finish()
    checkpoint.close()
    return model


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(vocab=VOCAB, context=CONTEXT)
    return tiny_llama(tmp_path_factory.mktemp("sessions") / "tiny.gguf", Q4_1, shape)


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> NativeModel:
    return native_model(tiny_path)


@pytest.fixture
def session(model: NativeModel) -> Iterator[NativeSession]:
    session = model.new_session(CONTEXT)
    yield session
    session.close()


@pytest.fixture(scope="module")
def expected(model: NativeModel) -> Array:
    """The logits after each of IDS."""
    return np.array(model.new_session(CONTEXT).eval(IDS, n_logits=CONTEXT))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> NativeModel:
    """A model whose prompts take so long that it is asked many times whether to go on."""
    shape = Shape(dim=512, hidden=1024, layers=8, heads=8, kv_heads=4, vocab=300, context=2048)
    return native_model(tiny_llama(tmp_path_factory.mktemp("sessions") / "large.gguf", Q8_0, shape), threads=2)


# ---- what eval returns -----------------------------------------------------------------------------------------------


def test_logits_of_the_last_tokens(session: NativeSession, expected: Array) -> None:
    assert session.eval(IDS[:10], n_logits=4).shape == (4, VOCAB)
    session.truncate(0)
    assert np.array_equal(bits(session.eval(IDS[:10], n_logits=4)), bits(expected[6:10]))
    assert np.array_equal(bits(session.eval(IDS[10:13])), bits(expected[12:13]))
    assert session.eval(IDS[13:20], n_logits=0).shape == (0, VOCAB)
    assert np.array_equal(bits(session.eval(IDS[20:23], n_logits=3)), bits(expected[20:23]))
    assert session.position == 23


def test_the_view_cannot_be_written_to(session: NativeSession) -> None:
    view = session.eval(IDS[:3], n_logits=2)
    assert view.dtype == np.float32
    assert not view.flags.owndata
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        view.sort()


def test_the_view_is_the_sessions_own_buffer(session: NativeSession, expected: Array) -> None:
    """No copy: the next eval with as many logits writes to the same place."""
    first = session.eval(IDS[:1])
    second = session.eval(IDS[1:2])
    assert first.ctypes.data == second.ctypes.data
    assert np.array_equal(bits(first), bits(expected[1:2]))


def test_a_view_outlives_its_session(model: NativeModel, expected: Array) -> None:
    """Memory that Python still sees is not freed, not even where a larger buffer has taken its place."""
    session = model.new_session(CONTEXT)
    small = session.eval(IDS[:2])
    large = session.eval(IDS[2:40], n_logits=38)
    session.close()
    del session
    gc.collect()
    assert np.array_equal(bits(small), bits(expected[1:2]))
    assert np.array_equal(bits(large), bits(expected[2:40]))


def every_second(ids: list[int]) -> Array:
    """An array that is not contiguous, and of another type."""
    out: Array = np.repeat(np.array(ids, np.int64), 2)[::2]
    return out


@pytest.mark.parametrize("kind", [list, tuple, np.array, every_second])
def test_tokens_of_any_kind(session: NativeSession, expected: Array, kind: Callable[[list[int]], Any]) -> None:
    assert np.array_equal(bits(session.eval(kind(IDS[:9]))), bits(expected[8:9]))


# ---- what eval refuses -----------------------------------------------------------------------------------------------


def refuses(session: NativeSession, error: type[Exception], match: str, *arguments: Any) -> None:
    """The call fails, and the session is as before."""
    before, state = session.position, session.state()
    with pytest.raises(error, match=match):
        session.eval(*arguments)
    assert (session.position, session.state()) == (before, state)


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("token", [-1, VOCAB, 10_000_000, -(2**31), 2**31 - 1])
def test_tokens_outside_the_vocabulary(session: NativeSession, expected: Array, start: int, token: int) -> None:
    if start:
        session.eval(IDS[:start])
    for at in (0, 1, 2):
        ids = IDS[start : start + 3]
        ids[at] = token
        refuses(session, ValueError, rf"token id {token} is out of range: .* 0 to {VOCAB - 1}", ids)
    assert np.array_equal(bits(session.eval(IDS[start : start + 3])), bits(expected[start + 2 : start + 3]))


def test_more_tokens_than_the_context_holds(model: NativeModel, expected: Array) -> None:
    session = model.new_session(20)
    refuses(session, pyllm.ContextLengthError, "21 tokens at position 0 exceed the context of 20", IDS[:21])
    session.eval(IDS[:15])
    refuses(session, pyllm.ContextLengthError, "6 tokens at position 15 exceed the context of 20", IDS[15:21])
    assert np.array_equal(bits(session.eval(IDS[15:20])), bits(expected[19:20]))
    refuses(session, pyllm.ContextLengthError, "1 tokens at position 20", IDS[20:21])
    session.truncate(19)
    assert np.array_equal(bits(session.eval(IDS[19:20])), bits(expected[19:20]))


def test_nothing_to_evaluate(session: NativeSession) -> None:
    refuses(session, ValueError, "no tokens", [])


@pytest.mark.parametrize("n_logits", [4, 100, -1])
def test_more_logits_than_tokens(session: NativeSession, n_logits: int) -> None:
    refuses(session, ValueError, f"{n_logits} logits of 3 tokens", IDS[:3], n_logits)


@pytest.mark.parametrize("length", [0, -1, -(2**40), (1 << 20) + 1, 2**62])
def test_contexts_out_of_range(model: NativeModel, length: int) -> None:
    with pytest.raises(ValueError, match="context length"):
        model.new_session(length)


@pytest.mark.parametrize("position", [-1, 6, 2**40, -(2**62)])
def test_truncate_out_of_range(session: NativeSession, expected: Array, position: int) -> None:
    session.eval(IDS[:5])
    with pytest.raises(ValueError, match=f"cannot truncate to position {position}: the session is at 5"):
        session.truncate(position)
    assert np.array_equal(bits(session.eval(IDS[5:6])), bits(expected[5:6]))


def test_closed_sessions_and_models(tiny_path: Path) -> None:
    model = native_model(tiny_path)
    session = model.new_session(9)
    session.eval(IDS[:3])
    session.close()
    session.close()
    uses: list[Callable[[], object]] = [
        lambda: session.eval([1]),
        lambda: session.position,
        lambda: session.truncate(0),
        session.fork,
        session.state,
        lambda: session.load_state(b"", 0),
    ]
    for use in uses:
        with pytest.raises(pyllm.ClosedError, match="session is closed"):
            use()
    assert not model.closed
    model.close()
    model.close()
    assert model.closed
    for use in (lambda: model.new_session(9), lambda: model.nbytes, lambda: model.kv_pages, model.finish):
        with pytest.raises(pyllm.ClosedError, match="model is closed"):
            use()


# ---- interrupting ----------------------------------------------------------------------------------------------------


def long_prompt() -> list[int]:
    ids: list[int] = np.random.default_rng(1).integers(0, 300, 2000).tolist()
    return ids


def test_polling_stops_and_changes_nothing(large: NativeModel) -> None:
    """Stopped at the first, second, ... question: position, state and all later results are as if never begun."""
    ids = long_prompt()
    session, other = large.new_session(2048), large.new_session(2048)
    for s in (session, other):
        s.eval(ids[:50])
    state = session.state()
    for times in (1, 2, 3):
        asked = 0

        def stop(times: int = times) -> bool:
            nonlocal asked
            asked += 1
            return asked >= times

        with pytest.raises(Interrupted):
            session.eval(ids[50:], poll=stop)
        assert asked == times
        assert (session.position, session.state()) == (50, state)
    assert np.array_equal(bits(session.eval(ids[50:70])), bits(other.eval(ids[50:70])))
    session.truncate(0)
    assert np.array_equal(bits(session.eval(ids[:50])), bits(other_after_reset(other, ids[:50])))


def other_after_reset(session: NativeSession, ids: list[int]) -> Array:
    session.truncate(0)
    return session.eval(ids)


def test_polling_comes_often_and_on_the_calling_thread(large: NativeModel) -> None:
    """Not within 20 ms of the last answer, then at the next layer; only the caller may touch Python."""
    times, threads = [time.perf_counter()], set()

    def stop_at_the_third() -> bool:
        times.append(time.perf_counter())
        threads.add(threading.get_ident())
        return len(times) > 3

    with pytest.raises(Interrupted):
        large.new_session(2048).eval(long_prompt(), poll=stop_at_the_third)
    gaps = np.diff([*times, time.perf_counter()])
    assert threads == {threading.get_ident()}
    assert gaps[:-1].min() >= 0.02 - 0.001
    assert gaps[-1] < sum(gaps[:-1])  # and then it ends within a layer, where these were three


def test_polling_changes_no_bits(large: NativeModel) -> None:
    ids = long_prompt()[:150]
    polled, plain = large.new_session(300), large.new_session(300)
    assert np.array_equal(bits(polled.eval(ids, poll=lambda: False)), bits(plain.eval(ids)))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, SystemExit])
def test_an_exception_in_poll_comes_out_of_eval(large: NativeModel, error: type[BaseException]) -> None:
    session = large.new_session(2048)

    def fail() -> bool:
        raise error("from poll")

    with pytest.raises(error, match="from poll"):
        session.eval(long_prompt(), poll=fail)
    assert session.position == 0
    assert session.state() == b""
    expected = large.new_session(2048).eval([1, 2, 3])
    assert np.array_equal(bits(session.eval([1, 2, 3])), bits(expected))


def test_pages_of_a_stopped_evaluation_come_back(large: NativeModel) -> None:
    before = large.kv_pages
    session = large.new_session(2048)
    session.eval([1, 2, 3])
    fork = session.fork()
    with pytest.raises(Interrupted):
        session.eval(long_prompt(), poll=lambda: True)
    session.truncate(session.position)
    assert large.kv_pages <= before + 2  # the fork's page, and the one that was copied for writing
    session.close()
    fork.close()
    assert large.kv_pages == before


def test_close_from_another_thread_stops_a_session(tmp_path: Path) -> None:
    """`Session.close()` during a long `eval`: it ends with an error within a fraction of its time."""
    shape = Shape(dim=512, hidden=1024, layers=8, heads=8, kv_heads=4, vocab=300, context=2048)
    with pyllm.load(tiny_llama(tmp_path / "large.gguf", Q8_0, shape)) as model:
        session = model.session()
        timer = threading.Timer(0.05, session.close)

        def work() -> None:
            for _ in range(100):
                session.eval(long_prompt())
                session.truncate(0)

        timer.start()
        started = time.monotonic()
        with pytest.raises(pyllm.ClosedError):
            work()
        timer.join()
        assert time.monotonic() - started < 5
        assert model._native.kv_pages == 0


# ---- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1, 63, 64, 65, CONTEXT])
def test_state_there_and_back(model: NativeModel, expected: Array, position: int) -> None:
    source, target = model.new_session(CONTEXT), model.new_session(CONTEXT + 1)
    if position:
        source.eval(IDS[:position])
    target.load_state(source.state(), position)
    assert target.position == position
    assert target.state() == source.state()
    following = IDS[position : position + 1] or [4]
    logits = target.eval(following)
    if position < CONTEXT:
        assert np.array_equal(bits(logits), bits(expected[position : position + 1]))


def test_states_that_do_not_fit(session: NativeSession, model: NativeModel, expected: Array) -> None:
    """Refused with nothing changed, whether bytes and positions disagree or the context is too short."""
    session.eval(IDS[:30])
    state = session.state()
    step = len(state) // 30
    small = model.new_session(29)
    for target, data, position in (
        (session, state, 29),
        (session, state, 31),
        (session, state, -1),
        (session, state[:-1], 30),
        (session, state + b"\0", 30),
        (session, state[: 29 * step], 30),
        (session, b"", 30),
        (session, b"", 2**40),
        (small, state, 30),
    ):
        with pytest.raises(pyllm.ModelFormatError, match=f"state of {len(data)} bytes .* {position} positions"):
            target.load_state(data, position)
    assert small.position == 0
    assert (session.position, session.state()) == (30, state)
    assert np.array_equal(bits(session.eval(IDS[30:31])), bits(expected[30:31]))


def test_a_state_of_any_bytes_is_harmless(session: NativeSession, model: NativeModel) -> None:
    """Wrong keys and values give wrong logits, and nothing else: the checksum is the file's."""
    session.eval(IDS[:20])
    size = len(session.state())
    for data in (bytes(size), b"\xff" * size, np.random.default_rng(0).bytes(size)):
        session.load_state(data, 20)
        assert session.eval([3]).shape == (1, VOCAB)
    session.truncate(0)
    again = model.new_session(CONTEXT)
    assert np.array_equal(bits(session.eval(IDS[:40])), bits(again.eval(IDS[:40])))


def test_a_state_may_lie_anywhere_in_memory(session: NativeSession, model: NativeModel) -> None:
    session.eval(IDS[:5])
    state = session.state()
    for shift in (1, 2, 3):
        moved = (ctypes.c_char * (len(state) + shift)).from_buffer_copy(bytes(shift) + state)
        other = model.new_session(CONTEXT)
        other.load_state(memoryview(moved).cast("B")[shift:], 5)
        assert other.state() == state


def test_loading_a_state_leaves_forks_alone(session: NativeSession, model: NativeModel) -> None:
    session.eval(IDS[:70])
    early, state = model.new_session(CONTEXT), session.state()
    early.eval(IDS[70:90])
    fork = session.fork()
    fork.load_state(early.state(), 20)
    assert fork.state() == early.state()
    assert session.state() == state


# ---- Session ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def users(tiny_path: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(tiny_path) as model:
        yield model


def test_save_and_restore(users: pyllm.Model, tmp_path: Path, expected: Array) -> None:
    """At every kind of position; the restored session goes on with the same bits, and can be saved again."""
    for position in (0, 1, 64, 100):
        with users.session() as session:
            if position:
                session.eval(IDS[:position])
            session.save(tmp_path / "one")
        with users.restore(tmp_path / "one") as again:
            assert (again.tokens, again.position, again.context_length) == (IDS[:position], position, CONTEXT)
            again.save(tmp_path / "two")
            assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
            assert np.array_equal(bits(again.eval(IDS[position : position + 2])), bits(expected[position + 1]))
    assert users._native.kv_pages == 0


def test_a_saved_session_belongs_to_the_file_not_to_the_object(
    users: pyllm.Model, tiny_path: Path, tmp_path: Path, expected: Array
) -> None:
    """Another load of the same file, with other threads, takes it; another precision does not."""
    with users.session() as session:
        session.eval(IDS[:33])
        session.save(tmp_path / "s")
    with pyllm.load(tiny_path, threads=3) as other:
        assert np.array_equal(bits(other.restore(tmp_path / "s").eval(IDS[33:34])), bits(expected[33]))
    with pyllm.load(tiny_path, precision="fast") as other, pytest.raises(pyllm.ModelFormatError, match="belongs to"):
        other.restore(tmp_path / "s")


def test_every_cut_and_every_flipped_byte_is_noticed(users: pyllm.Model, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with users.session() as session:
        session.eval(IDS[:3])
        session.save(path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    sizes = {*range(80), *rng.integers(0, len(data), 100).tolist()}
    for size in sizes:
        path.write_bytes(data[:size])
        with pytest.raises(pyllm.ModelFormatError, match=str(path)):
            users.restore(path)
    for at in {*range(80), *rng.integers(0, len(data), 100).tolist(), len(data) - 1}:
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(pyllm.ModelFormatError, match=str(path)):
            users.restore(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(pyllm.ModelFormatError, match="checksum"):
        users.restore(path)
    path.write_bytes(data)
    assert users.restore(path).tokens == IDS[:3]
    assert users._native.kv_pages <= 1  # what failed holds nothing


@pytest.mark.parametrize("header", ["[" * 60_000, '{"model": 1, "context_length": 0, "tokens": 0, "evaluated": 0}'])
def test_a_crafted_header(users: pyllm.Model, tmp_path: Path, header: str) -> None:
    body = header.encode()
    path = tmp_path / "crafted"
    path.write_bytes(struct.pack("<8sII", b"PLSESS\x00\x02", len(body), zlib.crc32(body)) + body)
    with pytest.raises(pyllm.ModelFormatError, match="header"):
        users.restore(path)


def test_other_files_are_no_sessions(users: pyllm.Model, tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("<!DOCTYPE html>" * 100)
    for path in (tmp_path / "empty", tmp_path / "text", tiny_path):
        with pytest.raises(pyllm.ModelFormatError, match="not a pyllm session"):
            users.restore(path)
    with pytest.raises(FileNotFoundError):
        users.restore(tmp_path / "none")


def test_a_failed_save_leaves_the_old_file(users: pyllm.Model, tmp_path: Path) -> None:
    session = users.session()
    session.eval(IDS[:3])
    session.save(tmp_path / "s")
    before = (tmp_path / "s").read_bytes()
    session.close()
    with pytest.raises(pyllm.ClosedError):
        session.save(tmp_path / "s")
    with users.session() as other, pytest.raises(OSError, match="folder"):
        other.save(tmp_path / "no folder" / "s")
    assert (tmp_path / "s").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_an_interrupted_eval_leaves_the_session_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """Ctrl-C before or after the second of three chunks takes the first one back, too."""
    evaluate, calls = NativeModel.eval, 0

    def interrupt_second(self: NativeModel, *arguments: Any, **options: Any) -> list[Array]:
        nonlocal calls
        calls += 1
        if calls == 2 and not done:
            raise KeyboardInterrupt
        logits = evaluate(self, *arguments, **options)
        if calls == 2:
            raise KeyboardInterrupt
        return logits

    with pyllm.load(tiny_llama(tmp_path / "m.gguf", Q8_0, Shape(context=2048))) as model, model.session() as session:
        expected = model.logits(IDS[:9])
        session.eval(IDS[:5])
        monkeypatch.setattr(NativeModel, "eval", interrupt_second)
        with pytest.raises(KeyboardInterrupt):
            session.eval(long_prompt()[:1400])
        assert calls == 2
        assert (session.tokens, session.position, session._native.position) == (IDS[:5], 5, 5)
        assert model._native.kv_pages == 1
        assert np.array_equal(bits(session.eval(IDS[5:9])), bits(expected[8]))


def test_contexts_may_be_shorter_than_the_models(users: pyllm.Model) -> None:
    with users.session(context_length=10) as session:
        session.eval(IDS[:10])
        with pytest.raises(pyllm.ContextLengthError, match=r"1 tokens after 10 exceed the context of 10"):
            session.eval([1])
        assert (session.position, session.context_length) == (10, 10)
    with pytest.raises(pyllm.ContextLengthError, match=f"{CONTEXT + 1}.*{CONTEXT}"):
        users.session(context_length=CONTEXT + 1)


def test_closing_twice_and_in_any_order(users: pyllm.Model) -> None:
    session = users.session()
    session.eval(IDS[:70])
    fork = session.fork()
    assert users._native.kv_pages == 2
    session.close()
    session.close()
    assert users._native.kv_pages == 2
    fork.close()
    assert users._native.kv_pages == 0


def test_sessions_that_are_dropped_are_freed(users: pyllm.Model) -> None:
    """Without `close()`, and without waiting for the garbage collector."""
    gc.disable()
    try:
        for _ in range(5):
            users.session().eval(IDS[:100])
            users.session().fork()
        assert users._native.kv_pages == 0
    finally:
        gc.enable()
