"""Ctrl-C, or a handler of a time limit that raises, at any moment: what was in use then can be used again."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tinygguf import Q8_0, Shape, tiny_llama

from pyllm.latch import Latch

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 handles signals right behind any call")


def test_one_at_a_time() -> None:
    latch = Latch()
    assert latch.take()
    assert latch.held
    assert not latch.take()
    latch.drop()
    assert not latch.held
    assert latch.take()


STORM = """
    import random, signal, sys, time
    import pyllm

    class Late(Exception):
        pass

    def handler(*_):
        if armed:
            raise Late

    armed = False
    signal.signal(signal.SIGALRM, handler)
    sys.unraisablehook = lambda _: None  # what comes in a callback of a weak reference Python tells nobody
    greedy, rng = pyllm.Sampler.greedy(), random.Random(1)
    options = dict(threads=1, prefix_cache=1 << 18, speculation=False)
    model = pyllm.load(sys.argv[1], **options)
    prompts = [[3 + i, *range(5, 75), 7 + i] for i in range(4)]
    expected = [model.generate(prompt, max_tokens=6, sampler=greedy).tokens for prompt in prompts]
    session, late = model.session(), 0
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        batch = model.generate_batch(prompts, max_tokens=6, sampler=greedy)
        alone = model.generate(prompts[0], max_tokens=6, sampler=greedy)
        what = rng.choice(["batch", "alone", "session"])
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.00002, 0.003))
        try:
            armed = True
            if what == "batch":
                [generation.tokens for generation in batch]
            elif what == "alone":
                alone.tokens
            else:
                for _ in range(30):
                    session.truncate(min(session.position, 9))
                    session.eval([5, 6])
                    session.fork().close()
        except Late:
            late += 1
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        for generation, tokens in zip([*batch, alone], [*expected, expected[0]]):
            assert generation.tokens == tokens[: len(generation.tokens)]
            assert generation.finish_reason == "cancelled" or generation.tokens == tokens
        assert session.eval([5]).shape == (300,)
        assert model.generate(prompts[1], max_tokens=6, sampler=greedy).tokens == expected[1]
        assert not (model.scheduler._calls or model.scheduler._leading or model.prefixes._latch.held)
        if session.position > 100:
            session = model.session()
    print(late > 50)
"""


def test_time_limits_at_any_moment(tmp_path: Path) -> None:
    """A handler that raises, at any line: sessions, generations, batches and the prefix cache stay usable."""
    path = tiny_llama(tmp_path / "tiny.gguf", Q8_0, Shape(vocab=300, context=256))
    command = [sys.executable, "-c", textwrap.dedent(STORM), str(path), "2.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.stderr, done.stdout.strip()) == ("", "True")
