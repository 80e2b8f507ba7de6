"""Merges in C: by scores against run.c's algorithm written out and SentencePiece, by ranks against `tokenizers`."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm._core import NativeBPE, NativeWords
from pyllm.tokenizers.llama2c import parse_tokenizer_bin
from pyllm.tokenizers.scored import in_one_buffer

FIRST = 259  # ids before it are unk, bos, eos and 256 bytes, as in tokenizer.bin
FIXED = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
BYTE_IDS = np.arange(3, FIRST, dtype=np.int32)


def build(pieces: list[bytes], scores: list[float], byte_ids: Any = BYTE_IDS, unknown_id: int = 0) -> NativeBPE:
    """A vocabulary of the fixed pieces and some more."""
    mergeable = np.zeros(FIRST + len(pieces), np.uint8)
    mergeable[FIRST:] = 1
    all_scores = np.concatenate([np.zeros(FIRST, np.float32), np.array(scores, np.float32)])
    strings = in_one_buffer([*FIXED, *pieces])
    return NativeBPE(strings, mergeable, scores=all_scores, byte_ids=byte_ids, unknown_id=unknown_id)


def run_c(pieces: list[bytes], scores: list[float], text: bytes) -> list[int]:
    """run.c's encode(), without BOS and dummy prefix: cut, look up, then merge the best pair until there is none."""
    ids: dict[bytes, int] = {}
    for number, piece in enumerate(pieces):
        ids.setdefault(piece, FIRST + number)
    tokens: list[tuple[int, bytes]] = []
    at = 0
    while at < len(text):
        end = at + 1
        while end < len(text) and end - at < 4 and text[end] & 0xC0 == 0x80:
            end += 1
        whole = text[at:end]
        tokens += [(ids[whole], whole)] if whole in ids else [(3 + byte, FIXED[3 + byte]) for byte in whole]
        at = end
    while True:
        best_score, best = np.float32(-1e10), -1
        for i in range(len(tokens) - 1):
            token = ids.get(tokens[i][1] + tokens[i + 1][1])
            if token is not None and np.float32(scores[token - FIRST]) > best_score:
                best_score, best = np.float32(scores[token - FIRST]), i
        if best < 0:
            return [token for token, _ in tokens]
        merged = tokens[best][1] + tokens[best + 1][1]
        tokens[best : best + 2] = [(ids[merged], merged)]


ALPHABET = ["a", "b", "c", " ", "é", "漢", "🦙"]


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[list[bytes], list[float]]:
    """Single characters (not all of them) and strings of up to six, with scores that often tie."""
    single = draw(st.lists(st.sampled_from(ALPHABET), unique=True))
    longer = draw(st.lists(st.text(alphabet=ALPHABET, min_size=2, max_size=6), max_size=25))
    pieces = [text.encode() for text in [*single, *longer]]
    score = st.sampled_from([0.0, -1.0, -2.0, -3.0, 5.0, -1e9, -1e10, -2e10])
    return pieces, draw(st.lists(score, min_size=len(pieces), max_size=len(pieces)))


@settings(max_examples=300, deadline=None)
@given(vocabularies(), st.text(alphabet=ALPHABET, max_size=40))
def test_equals_run_c(vocabulary: tuple[list[bytes], list[float]], text: str) -> None:
    pieces, scores = vocabulary
    assert build(pieces, scores).encode(text.encode()) == run_c(pieces, scores, text.encode())


@settings(max_examples=200, deadline=None)
@given(vocabularies(), st.binary(max_size=40))
def test_any_bytes_are_encoded(vocabulary: tuple[list[bytes], list[float]], data: bytes) -> None:
    """NUL, stray continuation bytes, cut characters: the bytes' own pieces."""
    pieces, scores = vocabulary
    assert build(pieces, scores).encode(data) == run_c(pieces, scores, data)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([b"\x80", b"\xe6\xbc", b"a\x80", b"\xffz", b"\x00", b"\x00\x00"]), unique=True))
def test_pieces_may_be_any_bytes(pieces: list[bytes]) -> None:
    scores = [-float(i) for i in range(len(pieces))]
    data = b"a\x80\x80\xe6\xbc\xffz\x00\x00\x00\xe6\xbc\xa2"
    assert build(pieces, scores).encode(data) == run_c(pieces, scores, data)


def test_leftmost_on_ties() -> None:
    pieces = [b"a", b"aa"]
    assert build(pieces, [0.0, 1.0]).encode(b"aaaaa") == [FIRST + 1, FIRST + 1, FIRST]


def test_scores_decide_not_lengths() -> None:
    pieces = [b"a", b"b", b"c", b"ab", b"bc"]
    assert build(pieces, [0, 0, 0, 1, 2]).encode(b"abc") == [FIRST, FIRST + 4]


@pytest.mark.parametrize("score", [float("nan"), float("-inf"), -1e10])
def test_pairs_at_or_below_the_threshold_never_merge(score: float) -> None:
    assert build([b"a", b"aa"], [0.0, score]).encode(b"aa") == [FIRST, FIRST]


def test_equal_pieces_give_the_lowest_id() -> None:
    assert build([b"a", b"a", b"aa", b"aa"], [0, 0, 1, 2]).encode(b"aa") == [FIRST + 2]


def test_bytes_without_pieces_become_unknown_or_fail() -> None:
    no_bytes = np.full(256, -1, np.int32)
    assert build([b"a"], [0], byte_ids=no_bytes).encode("aé".encode()) == [FIRST, 0, 0]
    with pytest.raises(ValueError, match="no piece for byte 0xC3"):
        build([b"a"], [0], byte_ids=no_bytes, unknown_id=-1).encode("aé".encode())


def test_what_is_no_vocabulary_is_refused() -> None:
    bad = BYTE_IDS.copy()
    bad[7] = 300
    with pytest.raises(ValueError, match=r"byte 7 is 300"):
        build([], [], byte_ids=bad)
    with pytest.raises(ValueError, match="unknown piece is 259"):
        build([], [], unknown_id=FIRST)
    with pytest.raises(ValueError, match="vocabulary of 0 pieces"):
        NativeBPE(in_one_buffer([]), np.zeros(0, np.uint8), scores=np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="1 pieces, but 1 marks or another number of scores"):
        NativeBPE(in_one_buffer(["a"]), np.ones(1, np.uint8), scores=np.zeros(0, np.float32))


# ---- by ranks ------------------------------------------------------------------------------------------------------


@st.composite
def merge_lists(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Merges of what earlier ones made, as training finds them, in any order of preference."""
    made, merges = list("abc"), []
    for _ in range(draw(st.integers(0, 14))):
        left, right = draw(st.sampled_from(made)), draw(st.sampled_from(made))
        merges.append((left, right))
        made.append(left + right)
    return draw(st.permutations(merges))


@settings(max_examples=200, deadline=None)
@given(merge_lists(), st.lists(st.text("abc", max_size=30), max_size=5), st.booleans())
def test_ranks_equal_the_library(merges: list[tuple[str, str]], texts: list[str], whole_words: bool) -> None:
    pieces = list(dict.fromkeys([*"abc", *(left + right for left, right in merges)]))
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, ignore_merges=whole_words)
    )
    ours = NativeBPE(
        in_one_buffer(pieces),
        np.ones(len(pieces), np.uint8),
        merges=in_one_buffer([f"{left} {right}" for left, right in merges]),
        byte_level=True,
        whole_words=whole_words,
        words=NativeWords([(0, 0)], [(2, 0, 1, -1, 0), (0, 0, 0, 0, 0)], [(0, 0, 1, 0, 0)], []),  # one word: anything
    )
    for threads in (1, 3):
        for _ in range(2):  # the second time it is remembered which words are pieces
            found = ours.encode_batch([text.encode() for text in texts], threads)
            assert found == [library.encode(text).ids for text in texts]


@pytest.mark.parametrize("merge", ["ab", "a", " b", "a ", "a x", "a\u0100 b", ""])
def test_merges_that_make_no_piece_are_refused(merge: str) -> None:
    strings = in_one_buffer(["a", "b", "ab"])
    with pytest.raises(ValueError, match="merge 1 is not of two pieces that make a piece"):
        NativeBPE(strings, np.ones(3, np.uint8), merges=in_one_buffer(["a b", merge]), byte_level=True)


def test_one_failing_text_of_many_says_why() -> None:
    no_bytes = np.full(256, -1, np.int32)
    bpe = build([b"a"], [0], byte_ids=no_bytes, unknown_id=-1)
    with pytest.raises(ValueError, match="no piece for byte 0x62"):
        bpe.encode_batch([b"a", b"", b"aab", b"c"] * 50, 2)
    assert bpe.encode_batch([], 2) == []


# ---- Llama 2's vocabulary ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama2(llama2_tokenizer_bin: Path) -> tuple[NativeBPE, list[bytes]]:
    pieces, scores = parse_tokenizer_bin(llama2_tokenizer_bin.read_bytes(), "llama2")
    return build(pieces[FIRST:], scores[FIRST:]), pieces


def test_llama2c_golden_ids(llama2: tuple[NativeBPE, list[bytes]], golden: Path) -> None:
    cases = json.loads((golden / "llama2_tokens.json").read_text())["llama2c"]
    assert len(cases) == 5
    for case in cases:
        text = " " + case["text"] if case["text"] else ""
        assert [1, *llama2[0].encode(text.encode())] == case["ids"]


def test_equals_sentencepiece(llama2: tuple[NativeBPE, list[bytes]], llama2_tokenizer_model: Path) -> None:
    import sentencepiece  # here: it is slow to import

    reference = sentencepiece.SentencePieceProcessor(model_file=str(llama2_tokenizer_model))
    bpe, pieces = llama2
    words = [piece.decode() for piece in pieces[FIRST:]]
    rng = random.Random(3)
    for _ in range(3000):
        parts = [rng.choice(words) if rng.random() < 0.5 else rng.choice("ab  \n01éü漢🦙~\t") for _ in range(20)]
        text = "".join(parts)
        assert bpe.encode(f" {text}".encode()) == reference.encode(text), text


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        pytest.param(lambda rng, words: "".join(rng.choices(words, k=250_000))[:1_000_000], 1.0, id="pieces"),
        pytest.param(lambda rng, words: "a" * 1_000_000, 5.0, id="one letter"),
        pytest.param(lambda rng, words: " " * 1_000_000, 5.0, id="spaces"),
        pytest.param(lambda rng, words: "".join(rng.choices("abe", k=1_000_000)), 5.0, id="one word"),
    ],
)
def test_a_megabyte_is_quick(
    llama2: tuple[NativeBPE, list[bytes]], make: Callable[[random.Random, list[str]], str], limit: float
) -> None:
    """Seconds of processor time, with room for slow machines; a quadratic algorithm would take hours."""
    bpe, pieces = llama2
    text = make(random.Random(5), [piece.decode() for piece in pieces[FIRST:]]).encode()
    start = time.thread_time()
    bpe.encode(text)
    assert time.thread_time() - start < limit


def test_threads_share_one_vocabulary(llama2: tuple[NativeBPE, list[bytes]]) -> None:
    bpe, pieces = llama2
    rng = random.Random(7)
    texts = [b"".join(rng.choices(pieces[FIRST:], k=2000)) for _ in range(16)]
    expected = [bpe.encode(text) for text in texts]
    found: dict[int, list[list[int]]] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: [bpe.encode(text) for text in texts]})) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(4)] == [expected] * 4
