"""What an application asks of a library inside it: threads, forks, pickles, Ctrl-C, silence, and no leak.

`PYLLM_SOAK=1` runs the memory tests at full length: 1,000 loads and 10,000 generations.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinygguf import Q8_0, Shape, tiny_llama

import pyllm
from pyllm import Sampler
from pyllm._native import ffi

SOAK = bool(os.environ.get("PYLLM_SOAK"))
LOADS, GENERATIONS = (1000, 10_000) if SOAK else (60, 300)
GROWTH_LIMIT = 3 << 20  # bytes; 60 tiny models that stay take 8 MB, and 300 of their sessions too
PROMPT_TOKENS = 8000
PROMPT_END = 0.5  # seconds within which everything must stop

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("embedded") / "tiny.gguf", Q8_0)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pyllm.Model]:
    """A model whose long prompts take seconds."""
    shape = Shape(dim=512, hidden=1024, layers=6, heads=8, kv_heads=4, vocab=300, context=8192)
    with pyllm.load(tiny_llama(tmp_path_factory.mktemp("slow") / "slow.gguf", Q8_0, shape), threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def long_prompt() -> list[int]:
    ids: list[int] = np.random.default_rng(0).integers(3, 300, PROMPT_TOKENS).tolist()
    return ids


def run_python(code: str, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=1800 if SOAK else 300)


def output_of(code: str, *arguments: object, stdin: bytes = b"") -> str:
    """What the code prints; nothing may come on stderr."""
    done = run_python(code, *arguments, stdin=stdin)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode().strip()


# ---- threads -------------------------------------------------------------------------------------------------------


def test_eight_threads_equal_eight_serial_runs(tiny_path: Path) -> None:
    with pyllm.load(tiny_path, threads=2) as model:

        def run(i: int) -> list[int]:
            sampler = Sampler(temperature=1.5, top_p=0.95, seed=i + 1)
            return model.generate(list(range(10 * i + 3, 13 * i + 20)), max_tokens=40, sampler=sampler).tokens

        serial = [run(i) for i in range(8)]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(5):
                assert list(pool.map(run, range(8))) == serial
        assert len({tuple(tokens) for tokens in serial}) == 8


def test_one_thread_equals_two(tiny_path: Path) -> None:
    with pyllm.load(tiny_path, threads=1) as one, pyllm.load(tiny_path, threads=2) as two:
        ids = list(range(3, 103))
        assert np.array_equal(one.logits(ids), two.logits(ids))


USES: list[Callable[[pyllm.Model], Any]] = [
    lambda model: model.generate([1, 2, 3], max_tokens=20).text,
    lambda model: model.score([1, 2, 3] * 30),
    lambda model: model.embed([[1, 2, 3] * 30]),
    lambda model: model.session().hidden_states([1, 2, 3] * 30),
]


@pytest.mark.parametrize("use", USES, ids=["generate", "score", "embed", "hidden"])
def test_closing_while_threads_work(tiny_path: Path, use: Callable[[pyllm.Model], Any]) -> None:
    """They end with `ClosedError`, and nothing else happens."""
    model = pyllm.load(tiny_path)
    ended: list[str] = []

    def work() -> None:
        try:
            while True:
                use(model)
        except pyllm.ClosedError:
            ended.append("closed")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    model.close()
    for thread in threads:
        thread.join(10)
    assert ended == ["closed"] * 4


def test_other_threads_run_meanwhile(slow: pyllm.Model, long_prompt: list[int]) -> None:
    """The interpreter is free while C computes."""
    gaps: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not stop.is_set():
            time.sleep(0.001)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    ticker = threading.Thread(target=tick)
    ticker.start()
    slow.generate(long_prompt[:400], max_tokens=1).text  # noqa: B018
    stop.set()
    ticker.join()
    assert max(gaps) < 0.2


# ---- processes -----------------------------------------------------------------------------------------------------

FORK = """
    import os, sys, pyllm
    model = pyllm.load(sys.argv[1], threads=2)
    def run():
        return model.generate([1, 2, 3], max_tokens=20, sampler=pyllm.Sampler(seed=5)).tokens
    before = run()
    session = model.session()
    session.eval([4, 5, 6])
    children = []
    for _ in range(2):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, repr((run(), session.eval([7]).tolist())).encode())
            os._exit(0)
        os.close(write)
        children.append((child, read))
    here = repr((run(), session.eval([7]).tolist()))
    for child, read in children:
        with open(read) as pipe:
            assert pipe.read() == here
        assert os.waitpid(child, 0)[1] == 0
    assert run() == before
    print("equal")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_generate_fork_generate(tiny_path: Path) -> None:
    assert output_of(FORK, tiny_path) == "equal"


FORK_WHILE_BUSY = """
    import os, sys, threading, time, warnings, pyllm
    warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads is what is tested here
    model = pyllm.load(sys.argv[1], threads=2)
    def run():
        return model.generate([1, 2, 3], max_tokens=20, sampler=pyllm.Sampler(seed=5)).tokens
    expected = run()
    stop = threading.Event()
    def work():
        while not stop.is_set():
            run()
    worker = threading.Thread(target=work)
    worker.start()
    statuses = []
    for _ in range(10):
        time.sleep(0.01)
        child = os.fork()
        if child == 0:
            os._exit(0 if run() == expected else 3)
        statuses.append(os.waitpid(child, 0)[1])
    stop.set()
    worker.join()
    print(statuses)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_while_another_thread_generates(tiny_path: Path) -> None:
    assert output_of(FORK_WHILE_BUSY, tiny_path) == str([0] * 10)


def test_a_pickle_works_in_another_process(tiny_path: Path) -> None:
    code = """
        import pickle, sys, pyllm
        model = pickle.loads(sys.stdin.buffer.read())
        print(model.generate([1, 2, 3], max_tokens=20, sampler=pyllm.Sampler.greedy()).tokens)
    """
    with pyllm.load(tiny_path, threads=1) as model:
        expected = model.generate([1, 2, 3], max_tokens=20, sampler=Sampler.greedy()).tokens
        assert output_of(code, stdin=pickle.dumps(model)) == str(expected)


# ---- interrupting --------------------------------------------------------------------------------------------------


@contextmanager
def ctrl_c_after(seconds: float) -> Iterator[list[float]]:
    """Sends this process what Ctrl-C sends; gives the times at which it did."""
    sent: list[float] = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(seconds, send)
    timer.start()
    try:
        yield sent
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGINT, previous)


def test_ctrl_c_in_a_long_prompt(slow: pyllm.Model, long_prompt: list[int]) -> None:
    session = slow.session()
    session.eval(long_prompt[:10])
    for delay in (0.1, 0.35):
        with ctrl_c_after(delay) as sent, pytest.raises(KeyboardInterrupt):
            session.eval(long_prompt[10:])
        assert time.monotonic() - sent[0] < PROMPT_END
        assert session.tokens == long_prompt[:10]
    expected = slow.logits(long_prompt[:20])[-1]
    assert np.array_equal(session.eval(long_prompt[10:20]), expected)


def test_ctrl_c_in_a_generation(slow: pyllm.Model, long_prompt: list[int]) -> None:
    generation = slow.generate(long_prompt, sampler=Sampler.greedy())
    with ctrl_c_after(0.2) as sent, pytest.raises(KeyboardInterrupt):
        generation.text  # noqa: B018
    assert time.monotonic() - sent[0] < PROMPT_END
    assert generation.finish_reason == "cancelled"
    assert slow.generate([1, 2], max_tokens=3, sampler=Sampler.greedy()).finish_reason is None
    assert len(slow.generate([1, 2], max_tokens=3, sampler=Sampler.greedy()).tokens) <= 3


@pytest.mark.parametrize("use", ["logits", "score"])
def test_ctrl_c_elsewhere(slow: pyllm.Model, long_prompt: list[int], use: str) -> None:
    with ctrl_c_after(0.2) as sent, pytest.raises(KeyboardInterrupt):
        getattr(slow, use)(long_prompt)
    assert time.monotonic() - sent[0] < PROMPT_END


def test_a_timeout_in_a_long_prompt(slow: pyllm.Model, long_prompt: list[int]) -> None:
    started = time.monotonic()
    generation = slow.generate(long_prompt, timeout=0.2)
    assert generation.tokens == []
    assert 0.2 <= time.monotonic() - started < 0.2 + PROMPT_END
    assert generation.finish_reason == "cancelled"


@pytest.mark.parametrize("what", ["generation", "session"])
def test_close_in_a_long_prompt(slow: pyllm.Model, long_prompt: list[int], what: str) -> None:
    session = slow.session()
    generation = session.generate(long_prompt)
    errors: list[type[BaseException]] = []

    def read() -> None:
        try:
            generation.tokens  # noqa: B018
        except pyllm.ClosedError as error:
            errors.append(type(error))

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.2)
    started = time.monotonic()
    (generation if what == "generation" else session).close()
    reader.join(10)
    assert time.monotonic() - started < PROMPT_END
    assert generation.finish_reason == "cancelled"
    if what == "generation":
        assert session.position == 0
        assert session.eval([1]).shape == (300,)
    assert errors == []


# ---- silence -------------------------------------------------------------------------------------------------------

SHUTDOWN = {
    "everything closed": "",
    "nothing closed": "kept = model.session(); kept.eval([1, 2])",
    "a generation half read": "half = model.generate([1], sampler=pyllm.Sampler(seed=1)); next(half)",
    "a generation in a cycle": "half = model.generate([1]); next(half); cycle = [model, half]; cycle.append(cycle)",
    "a failed load": """
try:
    pyllm.load(__import__("os").devnull)
except pyllm.PyllmError:
    pass
""",
    "an event loop": """
import asyncio
async def read():
    async for chunk in model.generate([1], sampler=pyllm.Sampler(seed=1)):
        break
asyncio.run(read())
""",
    "a daemon thread at work": """
import threading, time
def work():
    while True:
        model.generate([1, 2, 3], max_tokens=50).text
threading.Thread(target=work, daemon=True).start()
time.sleep(0.05)
""",
    "a pool": """
import concurrent.futures
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda i: model.generate([1, i], max_tokens=5).text, range(3, 9)))
""",
}


@pytest.mark.parametrize("ending", SHUTDOWN, ids=str)
def test_nothing_is_printed(tiny_path: Path, ending: str) -> None:
    code = "import sys, pyllm\nmodel = pyllm.load(sys.argv[1])\nmodel.generate('the', max_tokens=5).text\n"
    done = run_python(code + SHUTDOWN[ending], tiny_path)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (0, b"", "")


# ---- memory --------------------------------------------------------------------------------------------------------

SOAK_CODE = """
    import sys, pyllm
    path, rounds = sys.argv[1], int(sys.argv[2])
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    {setup}
    def once(i):
        {once}
    for i in range(rounds // 5):
        once(i)
    before = resident()
    for i in range(rounds):
        once(i)
    print(resident() - before)
"""


def growth(path: Path, rounds: int, setup: str, once: str) -> int:
    return int(output_of(SOAK_CODE.format(setup=setup, once=once), path, rounds))


@linux_only
def test_loading_and_closing_leaves_nothing(tiny_path: Path) -> None:
    once = "model = pyllm.load(path, threads=1); model.generate([1], max_tokens=2).text; model.close()"
    assert growth(tiny_path, LOADS, "", once) < GROWTH_LIMIT


@linux_only
def test_loading_and_forgetting_leaves_nothing(tiny_path: Path) -> None:
    """Not closed, only dropped: there are no cycles that keep a model."""
    once = "pyllm.load(path, threads=1).session().eval([1])"
    assert growth(tiny_path, LOADS, "import gc; gc.disable()", once) < GROWTH_LIMIT


@linux_only
def test_generating_leaves_nothing(tiny_path: Path) -> None:
    setup = "model = pyllm.load(path)"
    once = "model.generate([1, 2, 3 + i % 200], max_tokens=8, logprobs=True, stop='zq').text"
    assert growth(tiny_path, GENERATIONS, setup, once) < GROWTH_LIMIT


@linux_only
def test_abandoning_leaves_nothing(tiny_path: Path) -> None:
    setup = "import gc; gc.disable(); model = pyllm.load(path)"
    assert growth(tiny_path, GENERATIONS, setup, "next(model.generate([1, 2, 3]), None)") < GROWTH_LIMIT


@linux_only
def test_failing_leaves_nothing(tiny_path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_path.read_bytes()[:-100])
    once = "\n        ".join(
        ["try:", "    pyllm.load(path)", "except pyllm.ModelFormatError:", "    return", "raise AssertionError"]
    )
    assert growth(cut, LOADS, "", once) < GROWTH_LIMIT


@linux_only
def test_weights_are_held_once(tmp_path: Path) -> None:
    """The file's pages are let go as they are packed: the peak is at most 1.2 times the file plus 60 MB."""
    shape = Shape(dim=1024, hidden=4096, layers=4, heads=8, kv_heads=8, vocab=300, context=64)
    path = tiny_llama(tmp_path / "large.gguf", Q8_0, shape)
    code = """
        import sys, pyllm
        from pyllm.machine import peak_memory_bytes
        before = peak_memory_bytes()
        model = pyllm.load(sys.argv[1])
        print(peak_memory_bytes() - before)
    """
    assert path.stat().st_size > 60 << 20
    assert int(output_of(code, path)) < 1.2 * path.stat().st_size + (30 << 20)


@linux_only
def test_keys_and_values_go_back(tmp_path: Path) -> None:
    """A closed session's pages go back to the system, though others of the same slab are in use; and new ones are zeros
    again: a session that gets them says what the first one said.
    """
    shape = Shape(dim=1024, hidden=256, layers=4, heads=8, kv_heads=8, vocab=300, context=1024)
    code = """
        import sys, pyllm
        model = pyllm.load(sys.argv[1])
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096
        text = [1 + i % 200 for i in range(640)]
        kept = [model.session() for _ in range(3)]
        for session in kept:
            session.eval(text[:5])
        first = kept[0].eval(text[:80]).tobytes()
        before = resident()
        with model.session() as long:
            long.eval(text)
            held = resident() - before
        left = resident() - before
        again = model.session()
        again.eval(text[:5])
        print(held, left, int(again.eval(text[:80]).tobytes() == first))
    """
    held, left, same = map(int, output_of(code, tiny_llama(tmp_path / "wide.gguf", Q8_0, shape)).split())
    assert held > 10 << 20, "ten pages of a megabyte"
    assert left < held - (8 << 20)
    assert same


# ---- at the wrong moment -------------------------------------------------------------------------------------------


def test_closing_under_many_threads(tiny_path: Path) -> None:
    """`close()` while threads are on their way into the library: each gets `ClosedError`, and memory stays whole."""
    code = """
        import sys, threading, time
        import pyllm

        end = time.monotonic() + 4
        while time.monotonic() < end:
            model = pyllm.load(sys.argv[1])

            def work(model=model):
                try:
                    while True:
                        model.generate([5], max_tokens=1).tokens
                except pyllm.ClosedError:
                    pass

            threads = [threading.Thread(target=work) for _ in range(6)]
            for thread in threads:
                thread.start()
            time.sleep(0.02)
            model.close()
            for thread in threads:
                thread.join()
        print("whole")
    """
    assert output_of(code, tiny_path) == "whole"


def test_a_signal_handler_may_generate(slow: pyllm.Model, long_prompt: list[int]) -> None:
    """A handler runs between the layers of the evaluation it interrupts; its own must not wait for that one."""
    alone = slow.generate([5], max_tokens=2, sampler=Sampler.greedy()).tokens
    seen: list[list[int]] = []
    interrupted = slow.generate(long_prompt, max_tokens=1)

    def handler(*_: object) -> None:
        seen.append(slow.generate([5], max_tokens=2, sampler=Sampler.greedy()).tokens)
        interrupted.close()  # it has served its purpose

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert interrupted.tokens == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen == [alone]
    assert interrupted.finish_reason == "cancelled"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_ends_a_load_comes_out(
    error: type[BaseException], tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not a complaint that the file's bytes are still in use: the traceback holds the frame that uses them."""

    def bind(*arguments: object, **_: object) -> None:
        buffer = ffi.from_buffer(arguments[6])
        raise error(f"with {len(buffer)} bytes in hand")

    monkeypatch.setattr("pyllm._core.NativeModel.bind", bind)
    with pytest.raises(error, match="in hand"):
        pyllm.load(tiny_path)


@linux_only
def test_no_threads_to_be_had(tmp_path: Path) -> None:
    """Where the system gives no more threads, work is done on those there are. libgomp would end the process."""
    if os.getuid() != 0:
        pytest.skip("only root can become a user whose processes are limited")
    shape = Shape(dim=256, hidden=512, layers=2, heads=4, kv_heads=2, vocab=300, context=512)
    path = tiny_llama(tmp_path / "wide.gguf", Q8_0, shape)
    code = """
        import os, resource, sys
        import pyllm

        prompt = list(range(3, 250))
        expected = pyllm.load(sys.argv[1], threads=1).session().eval(prompt).tobytes()
        with pyllm.load(sys.argv[1], threads=1) as one:
            one._native.threads = 4  # no thread was started for this process yet
            resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
            os.setresuid(65534, 65534, 65534)  # root may have as many as it likes
            print(one.session().eval(prompt).tobytes() == expected)
    """
    assert output_of(code, path) == "True"
