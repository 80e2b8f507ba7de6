"""Law 1: threads, pieces, kernel levels, forks, rewinds, saved states, batches: the same bits as one plain pass.

On a random model whose matrices have every weight type among them, with contexts of several attention chunks and many
pages; and on stories260K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bits import Array, bits, kernel_level
from tinygguf import (
    BF16,
    F16,
    F32,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    Shape,
    llama_metadata,
    llama_tensors,
    random_weights,
    write_gguf,
)

import pyllm
from pyllm import _core, architectures, formats

#: head_dim 64, two heads to a key; K-quants need multiples of 256.
SHAPE = Shape(dim=256, hidden=256, layers=2, heads=4, kv_heads=2, vocab=300, context=1024)
#: More positions than two attention chunks of 256 have, and no whole number of pages of 64.
N = 550
IDS: list[int] = np.random.default_rng(0).integers(0, SHAPE.vocab, N).tolist()
STORY: list[int] = [1, *np.random.default_rng(1).integers(3, 512, 400).tolist()]

#: One type after another for the matrices in the file's order, so that every type stands somewhere.
CYCLE = (Q4_1, F32, Q8_0, Q6_K, F16, Q5_K, Q4_K, BF16, Q5_0, Q4_0, Q5_1)

PAGE = 64


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Several threads mean several threads here, also on a machine that others keep busy."""
    _core.insist_on_threads(True)
    yield
    _core.insist_on_threads(False)


def mixed_model(path: Path, shape: Shape, seed: int = 0) -> Path:
    """A model with a head of its own and all weight types; the norms stay F32."""
    tensors = llama_tensors(shape, tied=False)
    rng, at = np.random.default_rng(seed), 0
    for name, (_, dims, _) in tensors.items():
        if len(dims) == 2:
            type_id = CYCLE[at % len(CYCLE)]
            tensors[name] = (type_id, dims, random_weights(rng, type_id, dims[0], dims[1]))
            at += 1
    assert at > len(CYCLE)
    return write_gguf(path, llama_metadata(shape), tensors)


def load(path: Path, *, planes: int = 2, kv_type: str = "f16", threads: int = 1) -> _core.NativeModel:
    """A model without the Python layers above it."""
    checkpoint = formats.open_checkpoint(path)
    config = architectures.describe(checkpoint)
    model = _core.NativeModel(config, planes=planes, kv_type=kv_type, threads=threads)
    for b in architectures.bindings(checkpoint):
        with checkpoint.view(b.tensor) as data:
            model.bind(b.slot, b.layer, b.tensor.type_id, b.rows, b.cols, data, b.tensor.group)
    checkpoint.close()
    model.finish()
    return model


Way = Callable[[_core.NativeSession, Sequence[int]], Array]
"""Evaluates tokens in an empty session; the logits (n, vocab) after the last n of them, n at least 1."""


def whole(session: _core.NativeSession, ids: Sequence[int]) -> Array:
    """All tokens in one pass, with the logits of each."""
    return np.array(session.eval(ids, n_logits=len(ids)))


def in_chunks(size: int, session: _core.NativeSession, ids: Sequence[int]) -> Array:
    """`size` tokens at a time, with the logits of each."""
    return np.concatenate([whole(session, ids[i : i + size]) for i in range(0, len(ids), size)])


def rewound(session: _core.NativeSession, ids: Sequence[int]) -> Array:
    """Wrong turns are taken back: to positions inside a page, at a page's edge, to the beginning."""
    n = len(ids)
    session.eval(ids[::-1][:130], n_logits=0)
    session.truncate(0)
    done = 0
    for position in sorted({0, 1, 17, 63, 64, 65, 128, 255, 256, 257, n // 2, n - 1}):
        if position > done:
            session.eval(ids[done:position], n_logits=0)
        session.eval([ids[-1]] * min(70, n - position), n_logits=0)
        session.truncate(position)
        done = position
    return np.array(session.eval(ids[done:]))


def forked(session: _core.NativeSession, ids: Sequence[int]) -> Array:
    """Forks keep to the path while their source leaves it, taking turns with them."""
    cut = len(ids) // 2 + 5
    session.eval(ids[:cut], n_logits=0)
    first = session.fork()
    session.eval([5] * (len(ids) - cut), n_logits=0)
    second = first.fork()
    first.eval(ids[cut : cut + 3])
    session.truncate(cut)
    session.eval([6] * 3)  # where the fork has just written
    a = np.array(first.eval(ids[cut + 3 :]))
    session.close()
    first.close()
    b = np.array(second.eval(ids[cut:]))
    second.close()
    assert np.array_equal(bits(a), bits(b))
    return b


def restored(session: _core.NativeSession, ids: Sequence[int]) -> Array:
    """The state goes through bytes into a session that held something else."""
    cut = len(ids) // 2 + 5
    session.eval(ids[:cut], n_logits=0)
    state = session.state()
    session.eval([7] * 9, n_logits=0)
    session.load_state(state, cut)
    assert session.position == cut
    assert session.state() == state
    return np.array(session.eval(ids[cut:]))


WAYS: dict[str, Way] = {f"chunks-{size}": partial(in_chunks, size) for size in (1, 7, 64, 512)}
WAYS |= {"whole": whole, "rewound": rewound, "forked": forked, "restored": restored}


def run(model: _core.NativeModel, way: Way, ids: Sequence[int]) -> Array:
    session = model.new_session(len(ids) + 70)
    try:
        return way(session, ids)
    finally:
        session.close()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed_model(tmp_path_factory.mktemp("law1") / "mixed.gguf", SHAPE)


class Subject:
    """A model file, the tokens to evaluate, and the bits of one plain scalar pass on one thread."""

    def __init__(self, path: Path, ids: list[int], planes: int, kv_type: str) -> None:
        self.path, self.ids, self.planes, self.kv_type = path, ids, planes, kv_type
        with kernel_level("scalar"):
            model = self.load(1)
            self.expected = run(model, whole, ids)
            model.close()

    def load(self, threads: int) -> _core.NativeModel:
        return load(self.path, planes=self.planes, kv_type=self.kv_type, threads=threads)

    def agrees(self, logits: Array) -> bool:
        """Whether the rows are the last ones expected."""
        return np.array_equal(bits(logits), bits(self.expected[len(self.expected) - len(logits) :]))


@pytest.fixture(scope="module", params=["high-f16", "fast-f32", "high-q8_0", "stories"])
def subject(request: pytest.FixtureRequest, mixed: Path) -> Subject:
    if request.param == "stories":
        return Subject(request.getfixturevalue("stories260k"), STORY, 2, "f32")
    precision, kv_type = request.param.split("-")
    return Subject(mixed, IDS, {"high": 2, "fast": 1}[precision], kv_type)


# ---- one session -----------------------------------------------------------------------------------------------------


#: Threads share work in the same way whatever the level, so the slow one shows it once.
LEVELS = [(isa, threads) for isa in _core.isa_names() for threads in (1, 2, 3) if isa != "scalar" or threads == 2]


@pytest.mark.parametrize(("isa", "threads"), LEVELS)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_bits(subject: Subject, isa: str, way: str, threads: int) -> None:
    model = subject.load(threads)
    with kernel_level(isa):
        logits = run(model, WAYS[way], subject.ids)
    assert subject.agrees(logits)
    assert model.kv_pages == 0
    model.close()


def test_the_reference_says_something(subject: Subject) -> None:
    """All of it finite, and every position's logits different from the others'."""
    assert np.isfinite(subject.expected).all()
    assert len({row.tobytes() for row in subject.expected}) == len(subject.ids)


@pytest.mark.parametrize("isa", _core.isa_names())
def test_one_token_on_several_threads(tmp_path: Path, isa: str) -> None:
    """With enough weights for a single token's work to be shared out."""
    shape = Shape(dim=512, hidden=1280, layers=3, heads=8, kv_heads=4, vocab=700, context=256)
    path, ids = mixed_model(tmp_path / "larger.gguf", shape), IDS[:12]
    alone = load(path, threads=1)
    assert alone.token_bytes > 4e6  # below this the engine works alone
    expected = run(alone, whole, ids)
    for threads in (2, 3, 5):
        model = load(path, threads=threads)
        with kernel_level(isa):
            assert np.array_equal(bits(run(model, partial(in_chunks, 1), ids)), bits(expected)), threads
        model.close()
    alone.close()


# ---- several sessions in one pass ------------------------------------------------------------------------------------


def eval_together(
    model: _core.NativeModel, parts: Sequence[tuple[_core.NativeSession, Sequence[int]]], threads: int
) -> list[Array]:
    """One forward pass for several sessions; the logits (n, vocab) of all their tokens."""
    core: Any = _core
    ffi, lib = core.ffi, core.lib
    ids = [np.array(tokens, np.int32) for _, tokens in parts]
    out = [np.empty((len(tokens), model.vocab_size), np.float32) for tokens in ids]
    runs = ffi.new("pl_run[]", len(parts))
    for run, (session, _), tokens, logits in zip(runs, parts, ids, out, strict=True):
        run.session, run.n, run.n_logits = session.pointer, len(tokens), len(tokens)
        run.tokens, run.logits = ffi.from_buffer("int32_t[]", tokens), ffi.from_buffer("float[]", logits)
    err = ffi.new("pl_error *")
    _core.check(lib.pl_eval(model.pointer, runs, len(parts), threads, ffi.NULL, ffi.NULL, err), err)
    return out


@pytest.mark.parametrize("isa", _core.isa_names())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_batch_equals_each_alone(subject: Subject, isa: str, threads: int) -> None:
    """Three sessions at different places, with one token and with many each; one of them is another's fork."""
    model, ids = subject.load(threads), subject.ids
    sessions = [model.new_session(700) for _ in range(2)]
    plans = [[300, 1, 1, 20, 1], [1, 1, 90, 1, 5]]
    with kernel_level(isa):
        at = [0, 0]
        for sizes in zip(*plans, strict=True):
            parts = [(s, ids[a : a + n]) for s, a, n in zip(sessions, at, sizes, strict=True)]
            for logits, a, n in zip(eval_together(model, parts, threads), at, sizes, strict=True):
                assert np.array_equal(bits(logits), bits(subject.expected[a : a + n]))
            at = [a + n for a, n in zip(at, sizes, strict=True)]
        fork = sessions[0].fork()
        parts = [(fork, ids[at[0] : at[0] + 2]), (sessions[0], [3, 4]), (sessions[1], ids[at[1] : at[1] + 1])]
        forks, _, others = eval_together(model, parts, threads)
    assert np.array_equal(bits(forks), bits(subject.expected[at[0] : at[0] + 2]))
    assert np.array_equal(bits(others), bits(subject.expected[at[1] : at[1] + 1]))
    for session in (*sessions, fork):
        session.close()
    assert model.kv_pages == 0
    model.close()


def test_a_batch_is_all_or_nothing(mixed: Path) -> None:
    """One run that does not fit stops all of them before any has moved."""
    model = load(mixed)
    long, short = model.new_session(100), model.new_session(5)
    long.eval(IDS[:10])
    short.eval(IDS[:3])
    expected = run(model, whole, IDS[:13])
    for tokens, error in (([1, 2, 3], pyllm.ContextLengthError), ([SHAPE.vocab], ValueError), ([], ValueError)):
        with pytest.raises(error):
            eval_together(model, [(long, IDS[10:12]), (short, tokens)], 1)
        assert (long.position, short.position) == (10, 3)
    with pytest.raises(ValueError, match="twice"):
        eval_together(model, [(long, [1]), (long, [2])], 1)
    other = load(mixed)
    with pytest.raises(ValueError, match="another model"):
        eval_together(model, [(long, [1]), (other.new_session(9), [2])], 1)
    assert np.array_equal(bits(long.eval(IDS[10:13])[0]), bits(expected[12]))
    assert np.array_equal(bits(short.eval(IDS[3:5])[0]), bits(expected[4]))


# ---- pages -----------------------------------------------------------------------------------------------------------


def pages(positions: int) -> int:
    return -(-positions // PAGE)


@pytest.mark.parametrize("position", [1, 63, 64, 65, 128, 200])
def test_pages_are_counted(mixed: Path, position: int) -> None:
    model = load(mixed)
    session = model.new_session(400)
    assert model.kv_pages == 0
    session.eval(IDS[:position], n_logits=0)
    assert model.kv_pages == pages(position)
    session.eval(IDS[: 300 - position], n_logits=0)
    assert model.kv_pages == pages(300)
    session.truncate(position)
    assert model.kv_pages == pages(position)
    session.truncate(0)
    assert model.kv_pages == 0
    session.eval(IDS[:100])
    session.close()
    assert model.kv_pages == 0
    assert model.kv_page_bytes == 2 * SHAPE.layers * SHAPE.kv_heads * 64 * PAGE * 2  # keys and values in f16
    assert load(mixed, kv_type="f32").kv_page_bytes == 2 * model.kv_page_bytes
    assert load(mixed, kv_type="q8_0").kv_page_bytes == model.kv_page_bytes * 34 // 64  # 34 bytes for 32 halves


def test_a_fork_copies_what_it_writes_and_no_more(mixed: Path) -> None:
    """200 positions are three whole pages and a part of the fourth, which alone is ever written again."""
    model = load(mixed)
    session = model.new_session(400)
    session.eval(IDS[:200], n_logits=0)
    state = session.state()
    forks = [session.fork() for _ in range(5)]
    assert model.kv_pages == 4
    forks[0].eval([1])
    assert model.kv_pages == 5
    forks[0].eval([2])
    assert model.kv_pages == 5
    forks[1].truncate(64)
    assert model.kv_pages == 5
    forks[1].eval([3])  # a new page: the first is whole
    assert model.kv_pages == 6
    forks[2].truncate(10)
    forks[2].eval([4])  # the first page is written to, so copied
    assert model.kv_pages == 7
    assert session.state() == state == forks[3].state()
    session.close()
    assert model.kv_pages == 7
    assert forks[4].state() == state
    for fork, left in zip(forks, (6, 5, 4, 4, 0), strict=True):
        fork.close()
        assert model.kv_pages == left


def test_the_last_owner_writes_without_a_copy(mixed: Path) -> None:
    model = load(mixed)
    session = model.new_session(400)
    session.eval(IDS[:70], n_logits=0)
    fork = session.fork()
    session.close()
    fork.eval(IDS[70:72])
    assert model.kv_pages == 2
    fork.close()
    assert model.kv_pages == 0


def test_pages_outlive_the_model(mixed: Path) -> None:
    """Sessions hold the weights: closing the model first is safe, and evaluating is refused."""
    model = load(mixed)
    session = model.new_session(100)
    session.eval(IDS[:70], n_logits=0)
    fork, state = session.fork(), session.state()
    model.close()
    with pytest.raises(pyllm.PyllmError, match="closed"):
        session.eval([1])
    session.close()
    assert fork.state() == state
    fork.close()


@pytest.mark.parametrize(("kv_type", "head_bytes"), [("f32", 64 * 4), ("f16", 64 * 2), ("q8_0", 64 + 2 * 2)])
def test_a_state_is_in_the_type_of_the_pages(mixed: Path, kv_type: str, head_bytes: int) -> None:
    model = load(mixed, kv_type=kv_type)
    session = model.new_session(100)
    session.eval(IDS[:70], n_logits=0)
    assert len(session.state()) == 70 * 2 * SHAPE.layers * SHAPE.kv_heads * head_bytes


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_state_is_the_same_whatever_its_history(mixed: Path, kv_type: str) -> None:
    """Bytes of one position do not depend on pages, on forks, or on what came after."""
    model = load(mixed, kv_type=kv_type)
    one, other = model.new_session(300), model.new_session(200)
    one.eval(IDS[:150], n_logits=0)
    for token in IDS[:150]:
        other.eval([token], n_logits=0)
    assert one.state() == other.state()
    step = len(one.state()) // 150
    expected = one.state()[: 90 * step]
    one.truncate(90)
    assert one.state() == expected
    third = model.new_session(90)
    third.load_state(expected, 90)
    assert third.state() == expected
    assert model.kv_pages == pages(90) + pages(150) + pages(90)


def test_forks_at_a_position(mixed: Path) -> None:
    """A fork may begin anywhere before its source's end, with a context of its own; then it is like any session."""
    model = load(mixed)
    session, expected = model.new_session(400), run(model, whole, IDS[:200])
    session.eval(IDS[:200], n_logits=0)
    for position in (0, 1, 63, 64, 65, 199, 200):
        fork = session.fork(position, 300)
        assert (fork.position, fork.context_length) == (position, 300)
        assert model.kv_pages == 4
        if position < 200:
            assert np.array_equal(bits(fork.eval(IDS[position : position + 1])[0]), bits(expected[position]))
        fork.close()
    for position, length in ((201, 300), (-1, 300), (100, 99)):
        with pytest.raises(ValueError, match=f"fork at position {position}"):
            session.fork(position, length)
    assert np.array_equal(bits(session.eval(IDS[200:201])), bits(run(model, whole, IDS[:201])[200:]))


def test_equal_pages_can_be_held_once(mixed: Path) -> None:
    """Two sessions that read the same text apart: whole pages of the common part become one; nothing else changes."""
    model = load(mixed)
    one, other = model.new_session(400), model.new_session(400)
    one.eval(IDS[:200], n_logits=0)
    other.eval(IDS[:150], n_logits=0)
    other.eval(IDS[::-1][:30], n_logits=0)
    state = other.state()
    assert model.kv_pages == 4 + 3
    other.unite(one, 150)
    assert model.kv_pages == 4 + 1
    assert (other.state(), other.position) == (state, 180)
    one.close()
    assert model.kv_pages == 3
    assert other.state() == state
    with pytest.raises(ValueError, match="cannot share 181"):
        other.unite(other, 181)
    other.close()
    assert model.kv_pages == 0


def test_pages_have_a_limit(mixed: Path) -> None:
    """Nothing moves where a page more than the limit would be needed; whoever gives pages back makes room."""
    model = load(mixed)
    model.limit_kv(4)
    one, other = model.new_session(400), model.new_session(400)
    one.eval(IDS[:190], n_logits=0)
    with pytest.raises(pyllm.OutOfMemoryError, match="KV page"):
        other.eval(IDS[:80])
    assert (other.position, one.position) == (0, 190)
    assert model.kv_pages <= 4
    one.truncate(100)
    logits = np.array(other.eval(IDS[:80]))
    assert model.kv_pages == 4
    assert np.array_equal(bits(logits), bits(run(load(mixed), whole, IDS[:80])[79:]))
    with pytest.raises(pyllm.OutOfMemoryError):
        eval_together(model, [(one, IDS[100:130]), (other, [1])], 1)
    assert (other.position, one.position) == (80, 100)
