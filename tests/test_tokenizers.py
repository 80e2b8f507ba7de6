"""Vocabularies of all kinds: ids equal to the references', texts that come back, files that lie."""

from __future__ import annotations

import json
import random
import struct
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinygguf import tiny_vocabulary, write_gguf

from pyllm.errors import PyllmError, TokenizerError
from pyllm.tokenizers import Tokenizer
from pyllm.tokenizers.bytebpe import BYTE_OF
from pyllm.tokenizers.gguf import from_metadata
from pyllm.tokenizers.loading import parse
from pyllm.tokenizers.matcher import PieceMatcher
from pyllm.tokenizers.pretokenizers import PRETOKENIZERS

sys.path.insert(0, str(Path(__file__).resolve().parent / "fuzz"))

import fuzz_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# ---- vocabularies that need no file ---------------------------------------------------------------------------------


def byte_level_metadata(**changes: Any) -> dict[str, Any]:
    """A byte-level vocabulary: three control tokens, every byte, some merges, one user-defined token."""
    alphabet = {byte: character for character, byte in BYTE_OF.items()}
    merges = ["h e", "l l", "he ll", "hell o", "\u0120 w", "\u0120w o", "i m", "e n", "\u010a \u010a"]
    pieces = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(alphabet[byte] for byte in range(256))]
    pieces += [merge.replace(" ", "") for merge in merges] + ["<think>"]
    types = [CONTROL] * 3 + [NORMAL] * (len(pieces) - 4) + [USER_DEFINED]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def scored_metadata(**changes: Any) -> dict[str, Any]:
    """A SentencePiece-style vocabulary of 400 pieces, with one control and two user-defined tokens at its end."""
    metadata = tiny_vocabulary(400)
    metadata["tokenizer.ggml.tokens"][-3:] = ["<|turn|>", "<think>", "\u2581\u2581\u2581"]
    metadata["tokenizer.ggml.token_type"][-3:] = [CONTROL, USER_DEFINED, USER_DEFINED]
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def made(metadata: dict[str, Any]) -> Tokenizer:
    tokenizer = from_metadata(metadata, "test.gguf")
    assert tokenizer is not None
    return tokenizer


def tokenizer_bin(pieces: list[bytes], scores: list[float], longest: int | None = None) -> bytes:
    """A tokenizer.bin as llama2.c's export writes it."""
    longest = max(map(len, pieces)) if longest is None else longest
    body = b"".join(struct.pack("<fi", s, len(p)) + p for p, s in zip(pieces, scores, strict=True))
    return struct.pack("<I", longest) + body


def fixed_pieces() -> list[bytes]:
    return [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(f"<0x{byte:02X}>".encode() for byte in range(256))]


def small_bin(*more: str) -> bytes:
    pieces = [*fixed_pieces(), *(text.encode() for text in more)]
    return tokenizer_bin(pieces, [-float(i) for i in range(len(pieces))])


MADE: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: made(byte_level_metadata()),
    "scored": lambda: made(scored_metadata()),
    "scored without prefix": lambda: made(scored_metadata(add_space_prefix=False)),
    "llama2.c": lambda: parse(small_bin(" ", "a", "b", "ab", " a", "é"), "test.bin"),
}


@pytest.fixture(scope="module", params=MADE)
def small(request: pytest.FixtureRequest) -> Tokenizer:
    return MADE[request.param]()


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.load(smollm2)


@pytest.fixture(scope="module")
def llama2_bin(llama2_tokenizer_bin: Path) -> Tokenizer:
    return Tokenizer.load(llama2_tokenizer_bin)


@pytest.fixture(scope="module")
def llama2_model(llama2_tokenizer_model: Path) -> Tokenizer:
    return Tokenizer.load(llama2_tokenizer_model)


def cases(golden: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((golden / name).read_text())["cases"]
    assert len(found) > 70
    return found


# ---- the references' ids -------------------------------------------------------------------------------------------


def test_smollm2_golden_ids(smollm2_tokenizer: Tokenizer, golden: Path) -> None:
    for case in cases(golden, "smollm2_tokens.json"):
        text, ids = case["text"], case["ids"]
        assert smollm2_tokenizer.encode(text) == ids, text
        assert smollm2_tokenizer.encode(text, special=True) == case.get("ids_special", ids), text
        assert smollm2_tokenizer.decode(ids) == case.get("decoded", text)


def test_smollm2_says_of_itself(smollm2_tokenizer: Tokenizer) -> None:
    t = smollm2_tokenizer
    assert (t.vocab_size, t.bos_id, t.add_bos, t.eos_id) == (49152, 1, False, 2)
    assert t.eos_ids == t.stop_ids == {0, 2}  # <|endoftext|>, <|im_end|>
    assert t.control_ids == frozenset(range(17))
    assert t.chat_template is not None
    assert "<|im_start|>" in t.chat_template
    assert t.encode("", bos=True, eos=True) == [1, 2]


def test_llama2_golden_ids(llama2_bin: Tokenizer, llama2_model: Tokenizer, golden: Path) -> None:
    for case in cases(golden, "llama2_tokens.json"):
        text, ids = case["text"], case["ids"]
        assert llama2_model.encode(text, bos=False) == ids, text
        assert llama2_model.decode(ids) == case.get("decoded", text)
        if "\u2581" not in text:  # which SentencePiece takes for a space, and run.c for three bytes
            assert llama2_bin.encode(text) == [1, *ids], text
            assert llama2_bin.decode(ids) == text


def test_llama2c_golden_ids(llama2_bin: Tokenizer, golden: Path) -> None:
    for case in json.loads((golden / "llama2_tokens.json").read_text())["llama2c"]:
        assert llama2_bin.encode(case["text"]) == case["ids"]


def test_gguf_scores_equal_sentencepiece(llama2_model: Tokenizer, llama2_tokenizer_bin: Path, golden: Path) -> None:
    """Llama 2's vocabulary as a GGUF holds it gives SentencePiece's ids, a literal U+2581 included."""
    from pyllm.tokenizers.llama2c import parse_tokenizer_bin

    scores = parse_tokenizer_bin(llama2_tokenizer_bin.read_bytes(), "")[1]
    size = llama2_model.vocab_size
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [llama2_model.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (size - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    tokenizer = made(metadata)
    for case in cases(golden, "llama2_tokens.json"):
        assert tokenizer.encode(case["text"]) == [1, *case["ids"]], case["text"]
        assert tokenizer.decode(case["ids"]) == case.get("decoded", case["text"])
    assert tokenizer.encode("a</s>b", special=True) == [1, 263, 2, 289]
    assert llama2_model.encode("a</s>b", special=True) == [1, 263, 2, 289]


# ---- what all kinds promise ----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
def test_texts_come_back(small: Tokenizer, text: str) -> None:
    text = text.replace("\u2581", "_")  # SentencePiece's own character for a space
    assert small.decode(small.encode(text)) == text
    assert small.decode(small.encode(text, bos=False)) == text
    assert small.control_ids.isdisjoint(small.encode(text, bos=False))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pieces_in_a_row_equal_the_whole(small: Tokenizer, data: st.DataObject) -> None:
    """Any ids, cut characters and stray bytes among them: pushes and flush give what decode gives."""
    ids = data.draw(st.lists(st.integers(0, small.vocab_size - 1), max_size=30))
    decoder = small.decoder()
    texts = [decoder.push(token) for token in ids]
    assert "".join(texts) + decoder.flush() == small.decode(ids)
    assert decoder.flush() == ""
    again = [decoder.push(token) for token in ids]  # as new after flush
    assert again == texts


def test_characters_come_out_whole(smollm2_tokenizer: Tokenizer) -> None:
    decoder = smollm2_tokenizer.decoder()
    texts = [decoder.push(token) for token in smollm2_tokenizer.encode("a \U0001f999 b")]
    assert "".join(texts) == "a \U0001f999 b"
    assert "" in texts
    assert not any("\ufffd" in text for text in texts)


def test_a_cut_character_is_replaced_at_the_end(small: Tokenizer) -> None:
    first = next(i for i in range(small.vocab_size) if small.token_bytes(i) == b"\xf0")
    decoder = small.decoder()
    assert decoder.push(first) == ""
    assert decoder.flush() == "\ufffd"
    assert small.decode([first]) == "\ufffd"


def test_control_tokens_are_text_unless_asked_for(small: Tokenizer) -> None:
    for token, text in small.control_texts.items():
        assert small.token_bytes(token) == b""
        assert token not in small.encode(f"a{text}b", bos=False)
        assert small.decode(small.encode(f"a{text}b")) == f"a{text}b"
        if text:
            assert token in small.encode(f"a{text}b", bos=False, special=True)
            assert small.decode(small.encode(f"a{text}b", special=True)).replace(" ", "") == "ab"


def test_user_defined_tokens_stand_in_text() -> None:
    for metadata in (byte_level_metadata(), scored_metadata(add_space_prefix=False)):
        tokenizer = made(metadata)
        token = metadata["tokenizer.ggml.tokens"].index("<think>")
        for special in (False, True):
            ids = tokenizer.encode("a<think>b", bos=False, special=special)
            assert ids == [*tokenizer.encode("a", bos=False), token, *tokenizer.encode("b", bos=False)]
        assert tokenizer.decode([token]) == "<think>"


def test_user_defined_spaces_are_found_as_spaces() -> None:
    tokenizer = made(scored_metadata())
    assert tokenizer.encode("a   b", bos=False)[1] == 399
    assert tokenizer.decode(tokenizer.encode("a   b")) == "a   b"


def test_bos_and_eos(small: Tokenizer) -> None:
    plain = small.encode("ab", bos=False)
    assert small.encode("ab", bos=True) == [small.bos_id, *plain]
    assert small.encode("ab") == ([small.bos_id, *plain] if small.add_bos else plain)
    assert small.encode("ab", bos=False, eos=True) == [*plain, small.eos_id]
    assert small.encode_batch(["ab", ""], bos=True) == [[small.bos_id, *plain], [small.bos_id]]


def test_what_a_vocabulary_lacks_is_an_error() -> None:
    metadata = byte_level_metadata()
    del metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
    tokenizer = made(metadata)
    assert tokenizer.bos_id is None
    with pytest.raises(TokenizerError, match="no BOS"):
        tokenizer.encode("a", bos=True)
    with pytest.raises(TokenizerError, match="no EOS"):
        tokenizer.encode("a", eos=True)
    assert tokenizer.eos_ids == {0, 2}  # by their names


def test_what_is_no_text_is_refused(small: Tokenizer) -> None:
    for wrong in (b"bytes", None, 7, ["a"]):
        with pytest.raises(TypeError, match="must be a str"):
            small.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="single"):
        small.encode_batch("abc")
    with pytest.raises(TokenizerError, match=r"character 2 .* U\+D83E"):
        small.encode("ab\ud83e")


def test_ids_out_of_range_are_named(small: Tokenizer) -> None:
    for wrong in (-1, small.vocab_size, 10_000_000):
        message = f"token id {wrong} is outside the vocabulary, 0 to {small.vocab_size - 1}"
        for call in (lambda i: small.decode([i]), small.id_to_piece, small.token_bytes, small.decoder().push):
            with pytest.raises(ValueError, match=message):
                call(wrong)
    with pytest.raises(TypeError):
        small.decode([1.5])  # type: ignore[list-item]
    assert small.decode(np.array(small.encode("ab"))) == "ab"


def test_threads_share_a_tokenizer() -> None:
    """Tables are built by the first use, which may come from several threads at once."""
    rng = random.Random(1)
    texts = ["".join(rng.choices("hello w\n<|im_end|>é🦙", k=50)) for _ in range(200)]
    for make in MADE.values():
        fresh, expected = make(), [make().encode(text) for text in texts]
        found: list[list[list[int]]] = []
        work = [
            threading.Thread(target=lambda fresh=fresh, found=found: found.append(fresh.encode_batch(texts)))
            for _ in range(4)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert found == [expected] * 4


def test_others_run_while_a_text_is_encoded() -> None:
    """Encoding holds no lock of Python's: another thread gets its share of the processor meanwhile."""
    tokenizer = made(byte_level_metadata())
    text = "hello wo im en 123 " * 150_000
    tokenizer.encode("a")  # makes the tables
    spent = [0.0]

    def encode() -> None:
        start = time.thread_time()
        tokenizer.encode(text)
        spent[0] = time.thread_time() - start

    thread = threading.Thread(target=encode)
    thread.start()
    start = time.thread_time()
    while thread.is_alive():
        pass
    assert time.thread_time() - start > spent[0] / 10 > 0


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text(alphabet="ab<", min_size=1, max_size=5), max_size=12, unique=True),
    st.text(alphabet="ab<c", max_size=40),
)
def test_whole_pieces_are_leftmost_then_longest(pieces: list[str], text: str) -> None:
    expected: list[str | int] = []
    plain, at = "", 0
    while at < len(text):
        found = max((p for p in pieces if text.startswith(p, at)), key=len, default="")
        plain += "" if found else text[at]
        if found:
            expected += [plain, pieces.index(found)] if plain else [pieces.index(found)]
            plain = ""
        at += len(found) or 1
    assert PieceMatcher(dict(enumerate(pieces))).split(text) == expected + ([plain] if plain else [])


def test_a_monstrous_control_token_is_refused() -> None:
    with pytest.raises(TokenizerError, match="more than 1024"):
        PieceMatcher({0: "x" * 2000})


# ---- llama2.c's files ----------------------------------------------------------------------------------------------


def test_tok512(tok512: Path) -> None:
    t = Tokenizer.load(tok512)
    assert (t.vocab_size, t.bos_id, t.eos_id, t.add_bos) == (512, 1, 2, True)
    assert t.stop_ids == {1}
    assert t.encode("") == [1]
    assert t.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert t.decode([1, 403, 407, 261, 378]) == "Once upon a time"
    assert t.id_to_piece(1) == "\n<s>\n"


def test_one_space_goes_after_bos_only(llama2_bin: Tokenizer) -> None:
    """run.c's rule; the beginning of a text without BOS is one too, as SentencePiece has it."""
    ids = llama2_bin.encode("I believe", bos=False)
    assert llama2_bin.decode([*ids, 1, *ids]) == "I believeI believe"
    assert llama2_bin.decode([*ids, *ids]) == "I believe I believe"
    assert llama2_bin.decode([*ids, 2, *ids]) == "I believe I believe"
    decoder = llama2_bin.decoder()
    assert [decoder.push(token) for token in [1, *ids, *ids]] == ["", "I", " believe", " I", " believe"]


def test_a_vocabulary_without_space_cannot_encode() -> None:
    t = parse(small_bin("a"), "test.bin")
    assert t.encode("") == [1]
    assert t.decode([259]) == "a"
    with pytest.raises(TokenizerError, match='no piece " "'):
        t.encode("a")


def test_every_truncation_of_a_tokenizer_bin(tok512: Path) -> None:
    """The format holds no count: cut between pieces a file is whole, cut anywhere else it is refused."""
    data = tok512.read_bytes()
    ends, at = [], 4
    while at < len(data):
        at += 8 + struct.unpack_from("<i", data, at + 4)[0]
        ends.append(at)
    whole = set(ends[258:])
    for n in range(len(data)):
        if n in whole:
            assert parse(data[:n], "cut.bin").vocab_size == ends.index(n) + 1
        else:
            with pytest.raises(TokenizerError):
                parse(data[:n], "cut.bin")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"ab", "too few"),
        (struct.pack("<I", 0), "longest piece would have 0 bytes"),
        (struct.pack("<I", 1 << 30), "longest piece would have"),
        (struct.pack("<Ifi", 8, 0.0, -5), "claims -5 bytes"),
        (struct.pack("<Ifi", 8, 0.0, 9) + b"123456789", "claims 9 bytes; the longest may have 8"),
        (struct.pack("<Ifi", 8, 0.0, 8) + b"1234567", "7 are left"),
        (small_bin(" ") + b"\0", "1 bytes are left"),
        (tokenizer_bin(fixed_pieces()[:-1], [0.0] * 258), "begins with 259 fixed ones"),
        (tokenizer_bin([*fixed_pieces()[:-1], b"x"], [0.0] * 259), "expected '<0xFF>'"),
        (tokenizer_bin([*fixed_pieces(), b"x"], [0.0] * 259 + [float("nan")]), "score of piece 259"),
        (b"<!DOCTYPE html><html><head><title>404</title></head></html>", "longest piece would have"),
    ],
)
def test_what_is_no_tokenizer_bin(data: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        parse(data, "bad.bin")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 200), st.binary(min_size=1, max_size=8), st.text(max_size=10))
def test_changed_bytes_are_refused_or_harmless(at: int, change: bytes, text: str) -> None:
    data = bytearray(small_bin(" ", "a", "ab", "b"))
    at = len(data) - 1 - at if at % 2 else at
    data[at : at + len(change)] = change
    try:
        ids = parse(bytes(data), "bad.bin").encode(text)
    except TokenizerError:
        return
    assert all(0 <= token < 263 for token in ids)


# ---- GGUF's vocabularies -------------------------------------------------------------------------------------------


def test_a_gguf_without_vocabulary() -> None:
    assert from_metadata({}, "x") is None
    assert from_metadata({"tokenizer.ggml.model": "none"}, "x") is None


@pytest.mark.parametrize("pre", [name for name, how in PRETOKENIZERS.items() if not how.raw])
def test_pretokenizers_keep_every_character(pre: str) -> None:
    tokenizer = made(byte_level_metadata(pre=pre))
    for text in (
        "hello world's 123456 \r\n\t  x\u00e9\u4e2d HELLO'S a/b//c\n\n",
        "don't DON'T",
        "   ",
        "1 22 333 4444",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_unknown_pretokenizer_is_named_and_decoding_still_works() -> None:
    tokenizer = made(byte_level_metadata(pre="martian"))
    assert tokenizer.decode([3 + ord("a")]) == "a"
    with pytest.raises(TokenizerError, match="'martian'"):
        tokenizer.encode("a")
    metadata = byte_level_metadata()
    del metadata["tokenizer.ggml.pre"]
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.pre"):
        made(metadata).encode("a")


def test_llama3_begins_with_bos_where_the_file_is_silent() -> None:
    assert made(byte_level_metadata(pre="llama-bpe")).add_bos
    assert not made(byte_level_metadata(pre="llama-bpe", add_bos_token=False)).add_bos
    assert not made(byte_level_metadata()).add_bos
    assert made(scored_metadata()).add_bos


def test_a_gguf_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("tokenizers", "sentencepiece"):
        monkeypatch.setitem(sys.modules, library, None)
    tokenizer = made(byte_level_metadata())
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_a_gguf_file_loads(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "vocab.gguf", {"general.architecture": "llama", **byte_level_metadata()}, {})
    tokenizer = Tokenizer.load(path)
    assert tokenizer.encode("hello\n\n") == made(byte_level_metadata()).encode("hello\n\n")
    assert tokenizer.eos_ids == {0, 2}
    write_gguf(path, {"general.architecture": "llama"}, {})
    with pytest.raises(TokenizerError, match="holds no vocabulary"):
        Tokenizer.load(path)


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    (byte_level_metadata(model="rwkv"), "'rwkv'"),
    (byte_level_metadata(model=7), "expected a string"),
    (byte_level_metadata(tokens=[]), "tokens is missing"),
    (byte_level_metadata(tokens="abc"), "tokens is missing"),
    (byte_level_metadata(tokens=[1, 2]), "expected strings"),
    (byte_level_metadata(token_type=[1, 2, 3]), "token_type"),
    (byte_level_metadata(token_type="abc"), "token_type"),
    (byte_level_metadata(token_type=["a"] * 269), "whole numbers"),
    (byte_level_metadata(merges=7), "merges is missing"),
    (byte_level_metadata(bos_token_id=269), "bos_token_id is 269, expected an id below 269"),
    (byte_level_metadata(eos_token_id="2"), "eos_token_id"),
    (byte_level_metadata(eot_token_id=True), "eot_token_id"),
    (byte_level_metadata(add_bos_token="yes"), "expected true or false"),
    (scored_metadata(scores=[0.0] * 399), "399 scores for a vocabulary of 400"),
    (scored_metadata(scores=None), "no list of scores"),
    (scored_metadata(scores=["a"] * 400), "not numbers"),
    (scored_metadata(scores=[float("nan")] * 400), "piece 0"),
]


@pytest.mark.parametrize(("metadata", "message"), BAD_FIELDS, ids=[message for _, message in BAD_FIELDS])
def test_damaged_vocabularies_are_refused(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        from_metadata(metadata, "bad.gguf")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (byte_level_metadata(merges=["h e", "justone"]), "damaged vocabulary: merge 1 is not of two pieces"),
        (byte_level_metadata(merges=["h zzz"]), "damaged vocabulary"),
        (byte_level_metadata(merges=["<|im_start|> h"]), "damaged vocabulary"),
        (scored_metadata(tokens=["x"] * 400), "byte token 3 is 'x'"),
    ],
)
def test_damage_in_the_tables_is_found_by_the_first_encode(metadata: dict[str, Any], message: str) -> None:
    tokenizer = made(metadata)
    with pytest.raises(TokenizerError, match=message):
        tokenizer.encode("hello")


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-1, 7), max_size=4),
    st.lists(st.text(max_size=4), max_size=4),
    st.lists(st.floats(), max_size=4),
    st.just(np.arange(269)),
    st.just(np.zeros((2, 2))),
)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([byte_level_metadata, scored_metadata]),
    st.sampled_from(["model", "pre", "tokens", "token_type", "merges", "scores", "add_bos_token", "add_space_prefix"])
    | st.sampled_from(["bos_token_id", "eos_token_id", "unknown_token_id"]),
    VALUES,
    st.text(max_size=8),
)
def test_any_metadata_gives_a_tokenizer_or_an_error(
    make: Callable[..., dict[str, Any]], key: str, value: Any, text: str
) -> None:
    try:
        tokenizer = from_metadata(make(**{key: value}), "bad.gguf")
        if tokenizer is not None:
            tokenizer.decode(tokenizer.encode(text))
    except PyllmError:
        pass  # refused: what must not come is any other exception


# ---- tokenizer.model and tokenizer.json ----------------------------------------------------------------------------


def test_damaged_tokenizer_models_are_refused(llama2_tokenizer_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = llama2_tokenizer_model.read_bytes()
    rng = random.Random(2)
    for n in [3, 10, 100, *rng.sample(range(len(data)), 20)]:
        with pytest.raises(TokenizerError):
            parse(data[:n], "cut.model")
    assert capfd.readouterr() == ("", "")


def test_tokenizer_model_says_of_itself(llama2_model: Tokenizer) -> None:
    t = llama2_model
    assert (t.vocab_size, t.bos_id, t.eos_id, t.add_bos) == (32000, 1, 2, True)
    assert t.eos_ids == t.stop_ids == {2}
    assert t.control_ids == {0, 1, 2}
    assert t.decode([1, 15043, 3186]) == "Hello world"


def byte_level_json() -> dict[str, Any]:
    """The vocabulary of `byte_level_metadata` as Hugging Face writes it."""
    metadata = byte_level_metadata()
    pieces = metadata["tokenizer.ggml.tokens"]
    added = [{"id": i, "content": pieces[i], "special": i < 3} for i in (0, 1, 2, len(pieces) - 1)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    split = [{"type": "Digits", "individual_digits": True}]
    split += [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]
    return {
        "version": "1.0",
        "added_tokens": [{**token, **flags} for token in added],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {piece: i for i, piece in enumerate(pieces[:-1])},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }


def write_json(folder: Path, spec: dict[str, Any], **config: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(spec))
    return path


def test_tokenizer_json_equals_the_gguf_of_the_same_vocabulary(tmp_path: Path) -> None:
    path = write_json(
        tmp_path, byte_level_json(), bos_token="<|im_start|>", eos_token={"content": "<|im_end|>"}, chat_template="T"
    )
    there, here = made(byte_level_metadata()), Tokenizer.load(path)
    assert Tokenizer.load(tmp_path).vocab_size == here.vocab_size == there.vocab_size
    assert (here.bos_id, here.eos_id, here.eos_ids, here.add_bos) == (1, 2, {0, 2}, False)
    assert here.control_ids == there.control_ids
    assert here.chat_template == "T"
    for text in ("hello wo 12\n\n", "a<|im_end|>b", "<think>x", "é🦙", ""):
        for special in (False, True):
            ids = here.encode(text, special=special)
            assert ids == there.encode(text, special=special)
            assert here.decode(ids) == there.decode(ids)


def test_tokenizer_json_beginnings_follow_the_file(tmp_path: Path) -> None:
    """A space before the first stretch only, bytes as a fallback, BOS by the post-processor, spaces eaten."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a"]
    spec = byte_level_json() | {
        "added_tokens": [
            {"id": i, "content": pieces[i], "special": True, "rstrip": i == 2, "lstrip": False, "normalized": False}
            | {"single_word": False}
            for i in range(3)
        ],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": ["\u2581 a"],
            "unk_token": "<unk>",
            "byte_fallback": True,
        },
    }
    tokenizer = Tokenizer.load(write_json(tmp_path, spec))
    assert tokenizer.add_bos
    assert tokenizer.encode("ab") == [1, 262, 261]
    assert tokenizer.encode("a</s>  ab", special=True) == [1, 262, 2, 260, 261]
    assert tokenizer.encode("é", bos=False) == [259, 3 + 0xC3, 3 + 0xA9]
    for text in ("ab", "é a", "b  ", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "damaged"),
        (b"{}", "holds no model"),
        (b'{"model": 1, "decoder": {"type": "ByteLevel"}}', "damaged"),
        (b'{"a":' * 5000, "damaged"),
        (json.dumps({**byte_level_json(), "decoder": None}).encode(), "decoder"),
        (json.dumps({**byte_level_json(), "added_tokens": [1]}).encode(), "damaged"),
        (
            json.dumps({**byte_level_json(), "model": {"type": "BPE", "vocab": {"a": 2**31}, "merges": []}}).encode(),
            "'a' is token 2147483648, far behind the vocabulary's end",
        ),
        (
            json.dumps({**byte_level_json(), "model": {"type": "BPE", "continuing_subword_prefix": "##"}}).encode(),
            "continuing_subword_prefix",
        ),
    ],
)
def test_damaged_tokenizer_jsons_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        parse(data, "bad.json")


def replacing(pattern: dict[str, str], content: str, times: int = 1, inside: str = "normalizers") -> dict[str, Any]:
    """The same replacement again and again."""
    return {"type": "Sequence", inside: [{"type": "Replace", "pattern": pattern, "content": content}] * times}


def charsmap(*parts: bytes) -> dict[str, str]:
    return {"type": "Precompiled", "precompiled_charsmap": b64encode(b"".join(parts)).decode()}


@pytest.mark.parametrize(
    ("where", "step", "message"),
    [
        ("normalizer", replacing({"String": "a"}, "aa", 30), r"normalisation could make a text 2\.147e\+09 times"),
        ("normalizer", replacing({"Regex": "x*"}, "x", 40), "normalisation could make a text"),
        ("normalizer", replacing({"String": ""}, "a" * 100_000), "normalisation could make a text"),
        ("normalizer", charsmap(bytes([4, 0, 0, 0, 0, 0, 0, 0]), b"a" * 100_000), "normalisation could make a text"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 40}, "normalisation could"),
        ("decoder", replacing({"String": "a"}, "aa", 30, "decoders"), "decoder could make a text"),
        ("normalizer", charsmap(b"\xff\xff\xff\x7f"), "4 bytes with a trie of 2147483647"),
        ("normalizer", charsmap(b"\x06\0\0\0", bytes(20)), "24 bytes with a trie of 6"),
        ("normalizer", charsmap(), "0 bytes with a trie of 0"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "no base64"}, "is no base64"),
        ("normalizer", {"type": "Precompiled"}, "is no base64"),
    ],
)
def test_files_that_would_take_all_memory_are_refused(where: str, step: dict[str, Any], message: str) -> None:
    """The library ends the process where it cannot have the memory that they make it ask for."""
    spec = {**byte_level_json(), where: step}
    if where == "decoder":
        step["decoders"].append(byte_level_json()["decoder"])
    with pytest.raises(TokenizerError, match=message):
        parse(json.dumps(spec).encode(), "bad.json")


def test_merges_are_not_dropped_at_random() -> None:
    """What a file says of training is nothing to those who read texts."""
    spec = byte_level_json()
    spec["model"]["dropout"] = 0.5
    expected = parse(json.dumps(byte_level_json()).encode(), "plain.json").encode("hello hello hello")
    for _ in range(20):
        assert parse(json.dumps(spec).encode(), "dropout.json").encode("hello hello hello") == expected


@pytest.mark.parametrize("name", fuzz_tokenizers.seeds())
def test_damaged_files_give_a_tokenizer_or_an_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The fuzz target, over some hundred damaged copies of each kind of file."""
    data = fuzz_tokenizers.seeds()[name]
    assert fuzz_tokenizers.exercise(data) == "tokenizer"
    outcomes = [fuzz_tokenizers.exercise(damaged) for damaged in fuzz_tokenizers.mutations(data, 600, seed=1)]
    assert 0 < outcomes.count("tokenizer") < 600
    assert capfd.readouterr() == ("", "")


def test_paths_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "missing")
    with pytest.raises(TokenizerError, match="a folder without"):
        Tokenizer.load(tmp_path)
    with pytest.raises(TokenizerError, match="not a regular file"):
        Tokenizer.load("/dev/null")
    big = tmp_path / "weights.bin"
    with open(big, "wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(TokenizerError, match="larger than any vocabulary"):
        Tokenizer.load(big)
