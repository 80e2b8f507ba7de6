"""The other kinds of vocabulary in GGUF files: unigram, WordPiece, and SentencePiece's pieces with ranked merges."""

from __future__ import annotations

import io
import json
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygguf import write_gguf

from pyllm.errors import TokenizerError
from pyllm.tokenizers import Tokenizer
from pyllm.tokenizers.bytebpe import ByteLevelTokenizer
from pyllm.tokenizers.gguf import from_metadata
from pyllm.tokenizers.loading import parse
from pyllm.tokenizers.model_proto import plain_merges
from pyllm.tokenizers.patterns import CharSet
from pyllm.tokenizers.sentencepiece_model import SentencePieceTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent / "fuzz"))

import fuzz_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "Der Fuchs springt \u00fcber den Hund",
    "1 22 333 (\u6f22\u5b57)",
]
SENTENCES *= 20
TEXT = st.text(
    st.one_of(st.sampled_from("the quick \u00fc\u6f22 12(\n\u2581\uff21\u00a0"), st.characters(codec="utf-8")),
    max_size=40,
)


def made(metadata: dict[str, Any], source: str = "test.gguf") -> Tokenizer:
    prefixed = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    tokenizer = from_metadata(prefixed, source)
    assert tokenizer is not None
    return tokenizer


# ---- SentencePiece's own files ---------------------------------------------------------------------------------------


def model_file(**options: Any) -> bytes:
    """A small `tokenizer.model` that SentencePiece trains."""
    model = io.BytesIO()
    settings = {
        "vocab_size": 330, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "hard_vocab_limit": False, "minloglevel": 2,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, **{**settings, **options}
    )
    return model.getvalue()


@pytest.mark.parametrize("prefix", [True, False])
@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_merges_of_a_model_file_equal_sentencepiece(text: str, prefix: bool) -> None:
    """C merges here, the library is the reference."""
    data = MODEL_FILES[prefix]
    tokenizer = parse(data, "test.model")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer._merges is not None
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert tokenizer.encode(text, bos=False) == reference.encode(text)
    assert tokenizer.encode_batch([text, "the fox"], bos=False) == reference.encode([text, "the fox"])


MODEL_FILES = {prefix: model_file(add_dummy_prefix=prefix) for prefix in (True, False)}
OTHERS: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram"},
    "characters changed": {"normalization_rule_name": "nmt_nfkc"},
    "spaces removed": {"remove_extra_whitespaces": True},
    "no bytes": {"byte_fallback": False, "vocab_size": 90},
    "spaces behind words": {"treat_whitespace_as_suffix": True},
    "words of their own": {"user_defined_symbols": ["<fox>"]},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_merges_cannot_do_is_left_to_sentencepiece(name: str) -> None:
    data = model_file(**OTHERS[name])
    assert plain_merges(data) is None
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = parse(data, "test.model")
    for text in ("the  <fox> jumps", "\uff21 \u6f22\u5b57 \u00fc"):
        assert tokenizer.encode(text, bos=False) == reference.encode(text)


def test_damaged_model_files_merge_as_sentencepiece_does_or_not_at_all() -> None:
    merged = 0
    for data in fuzz_tokenizers.mutations(MODEL_FILES[True], 1500, seed=3):
        try:
            tokenizer = parse(data, "test.model")
        except TokenizerError:
            continue
        if isinstance(tokenizer, SentencePieceTokenizer) and tokenizer._merges:
            reference = sentencepiece.SentencePieceProcessor(model_proto=data)
            for text in ("the quick fox", "\u00fcber 22 (\u6f22)\n"):
                assert tokenizer.encode(text, bos=False) == reference.encode(text)
            merged += 1
    assert merged > 20


# ---- unigram ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[True, False], ids=["byte fallback", "unknown"])
def unigram(request: pytest.FixtureRequest) -> tuple[dict[str, Any], sentencepiece.SentencePieceProcessor]:
    """A vocabulary that SentencePiece trains, as llama.cpp writes it, and SentencePiece with it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=400 if request.param else 90,
        model_type="unigram", byte_fallback=request.param, hard_vocab_limit=False, pad_id=3, minloglevel=2,
    )  # fmt: skip
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(reference.vocab_size())
    kinds = [(reference.is_unknown, UNKNOWN), (reference.is_control, CONTROL), (reference.is_byte, BYTE)]
    types = [next((kind for is_kind, kind in kinds if is_kind(i)), NORMAL) for i in ids]
    metadata = {
        "model": "t5",
        "tokens": [reference.id_to_piece(i) for i in ids],
        "scores": np.array([reference.get_score(i) for i in ids], np.float32),
        "token_type": types,
        "precompiled_charsmap": np.frombuffer(character_map(model.getvalue()), np.int8),
        "unknown_token_id": reference.unk_id(),
        "bos_token_id": reference.bos_id(),
        "eos_token_id": reference.eos_id(),
        "padding_token_id": reference.pad_id(),
    }
    return metadata, reference


def character_map(model: bytes) -> bytes:
    """Field 2 of field 3 of a ModelProto: what the normaliser was compiled to."""
    return dict(fields(dict(fields(model))[3]))[2]


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of a protobuf's fields; numbers among them are given as they are written."""

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            value |= (message[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if message[at - 1] < 0x80:
                return value

    at = 0
    while at < len(message):
        key, start = varint(), at
        value = varint() if key & 7 in (0, 2) else 0
        start, at = (at, at + value) if key & 7 == 2 else (start, at if key & 7 == 0 else at + 4)
        yield key >> 3, message[start:at]


@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_unigram_equals_sentencepiece(
    unigram: tuple[dict[str, Any], sentencepiece.SentencePieceProcessor], text: str
) -> None:
    metadata, reference = unigram
    tokenizer = made(metadata)
    assert tokenizer.encode(text) == reference.encode(text)
    ids = tokenizer.encode(text)
    if reference.unk_id() not in ids:
        assert tokenizer.decode(ids) == reference.decode(ids)


def test_unigram_says_of_itself(unigram: tuple[dict[str, Any], sentencepiece.SentencePieceProcessor]) -> None:
    metadata, reference = unigram
    tokenizer = made(metadata)
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.eos_id) == (False, True, reference.eos_id())
    assert tokenizer.encode("</s>", special=True) == [reference.eos_id()]
    assert tokenizer.encode("the", eos=True) == [*reference.encode("the"), reference.eos_id()]
    assert tokenizer.encode_batch(["the", "fox"] * 9) == [reference.encode(text) for text in ["the", "fox"] * 9]


def test_a_real_table_is_within_the_limits_of_tokenizer_json(
    unigram: tuple[dict[str, Any], sentencepiece.SentencePieceProcessor],
) -> None:
    """SentencePiece's own, with more steps around it than published files have."""
    metadata, _ = unigram
    table = b64encode(metadata["precompiled_charsmap"].tobytes()).decode()
    steps: list[dict[str, Any]] = [{"type": "Precompiled", "precompiled_charsmap": table}]
    steps += [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}] * 4
    steps += [{"type": "Replace", "pattern": {"String": "``"}, "content": '"'}] * 20
    pieces = list(map(list, zip(metadata["tokens"], metadata["scores"].tolist(), strict=True)))
    spaces = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    spec = {"version": "1.0", "added_tokens": [], "normalizer": {"type": "Sequence", "normalizers": steps}}
    spec |= {"pre_tokenizer": spaces, "post_processor": None, "decoder": spaces}
    spec |= {"model": {"type": "Unigram", "unk_id": metadata["unknown_token_id"], "vocab": pieces}}
    data = json.dumps(spec)
    for text in ("the quick \ufdfa fox", "\uff34\uff28\uff25  ``dog``"):
        assert parse(data.encode(), "real.json").encode(text) == tokenizers.Tokenizer.from_str(data).encode(text).ids


FIVE_PIECES: dict[str, Any] = {
    "model": "t5", "tokens": ["<unk>", *"abcd"], "scores": [0.0] * 5, "token_type": [UNKNOWN, *[NORMAL] * 4]
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_type": [9] * 5}, "types outside"),
        ({"scores": [0.0] * 4}, "4 scores"),
        ({"precompiled_charsmap": "abc"}, "no array of bytes"),
        ({"unknown_token_id": 77}, "unknown_token_id"),
    ],
)
def test_damaged_unigram_fields(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        made(FIVE_PIECES | change)


@pytest.mark.parametrize("change", [{"tokens": ["a"] * 5}, {"precompiled_charsmap": np.full(9, 7, np.uint8)}])
def test_unigram_tables_that_the_library_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match="damaged vocabulary"):
        made(FIVE_PIECES | change).encode("a")


# ---- WordPiece -------------------------------------------------------------------------------------------------------

WORDPIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "fox",
    "##es",
    "##s",
    "j",
    "##ump",
    ",",
    "\u00fc",
    "u",
    "\u6f22",
]


def wordpiece_json(lowercase: bool) -> bytes:
    library = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({p: i for i, p in enumerate(WORDPIECES)}, unk_token="[UNK]")
    )
    library.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    library.decoder = tokenizers.decoders.WordPiece()
    library.add_special_tokens(WORDPIECES[:5])
    text: str = library.to_str()
    return text.encode()


def wordpiece_metadata(lowercase: bool) -> dict[str, Any]:
    written = [p if p[0] == "[" else p[2:] if p.startswith("##") else "\u2581" + p for p in WORDPIECES]
    return {
        "model": "bert",
        "tokens": written,
        "token_type": [CONTROL] * 5 + [NORMAL] * (len(written) - 5),
        "unknown_token_id": 1,
        "cls_token_id": 2,
        "seperator_token_id": 3,
        "normalizer.lowercase": lowercase,
    }


@settings(max_examples=100, deadline=None)
@given(TEXT, st.booleans())
def test_wordpiece_equals_the_library(text: str, lowercase: bool) -> None:
    data = wordpiece_json(lowercase)
    reference = tokenizers.Tokenizer.from_str(data.decode())
    reference.encode_special_tokens = True
    for tokenizer in (parse(data, "tokenizer.json"), made(wordpiece_metadata(lowercase))):
        assert tokenizer.encode(text, eos=tokenizer.add_eos) == reference.encode(text).ids
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == reference.decode(ids)


def test_wordpiece_json_of_older_versions_names_no_type() -> None:
    spec = json.loads(wordpiece_json(True))
    del spec["model"]["type"]
    there, here = parse(wordpiece_json(True), "bert.json"), parse(json.dumps(spec).encode(), "bert.json")
    assert here.encode("The foxes jump!") == there.encode("The foxes jump!") != []
    assert type(here) is type(there)


def test_wordpiece_refuses_to_generate() -> None:
    tokenizer = made(wordpiece_metadata(True))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos, tokenizer.add_eos) == (2, 3, True, True)
    assert tokenizer.encode("the FOXES, [SEP]") == [2, 5, 6, 7, 11, 1, 1, 1]
    assert tokenizer.encode("the [SEP]", special=True) == [2, 5, 3]
    assert tokenizer.decode([2, 5, 6, 7, 3]) == "the foxes"
    with pytest.raises(TokenizerError, match="do not generate"):
        tokenizer.decoder()


@pytest.mark.parametrize("key", ["unknown", "cls", "seperator"])
def test_wordpiece_without_its_control_tokens(key: str) -> None:
    with pytest.raises(TokenizerError, match=f"its {key} token"):
        made(wordpiece_metadata(True) | {f"{key}_token_id": 7})


# ---- ranked merges of SentencePiece's pieces -------------------------------------------------------------------------

RANKED = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
RANKED += ["\u2581", "t", "h", "e", "\n", "th", "the", "\u2581the", "\u2581\u2581", "\n\n", "<turn>"]
RANKED_MERGES = ["\u2581 \u2581", "t h", "th e", "\n \n", "\u2581 the"]


def ranked_metadata(**changes: Any) -> dict[str, Any]:
    types = [CONTROL] * 3 + [UNKNOWN] + [BYTE] * 256 + [NORMAL] * (len(RANKED) - 261) + [USER_DEFINED]
    ids = {"bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3}
    fields = {"model": "gemma4", "tokens": RANKED, "token_type": types, "merges": RANKED_MERGES, **ids}
    return fields | changes


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("the \n\u2581x\u00fc\u6f22\U0001f999"), max_size=30))
def test_ranked_pieces_equal_the_library(text: str) -> None:
    merges = [tuple(merge.split(" ", 1)) for merge in RANKED_MERGES]
    model = tokenizers.models.BPE(
        {p: i for i, p in enumerate(RANKED)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    library = tokenizers.Tokenizer(model)
    library.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    for changes in ({}, {"model": "gpt2", "pre": "gemma4"}, {"model": "gpt2", "pre": "sarvam-moe"}):
        tokenizer = made(ranked_metadata(**changes))
        assert tokenizer.encode(text) == [2, *library.encode(text).ids]
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\u2581", " ")


def test_ranked_pieces_say_of_themselves() -> None:
    tokenizer = made(ranked_metadata())
    assert tokenizer.encode("the<turn>the", bos=False) == [266, 270, 266]
    assert tokenizer.encode("<eos>", special=True) == [2, 1]
    with pytest.raises(TokenizerError, match="merge 0"):
        made(ranked_metadata(merges=["t x"])).encode("a")
    with pytest.raises(TokenizerError, match="'gemma4', which is not known here for such"):
        ByteLevelTokenizer(tokenizer._traits, RANKED, RANKED_MERGES, "gemma4").encode("a")


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [ranked_metadata(), wordpiece_metadata(True)], ids=["ranked", "wordpiece"])
def test_a_gguf_vocabulary_alone_loads(tmp_path: Path, metadata: dict[str, Any]) -> None:
    fields = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    path = write_gguf(tmp_path / "vocabulary.gguf", {"general.architecture": "llama", **fields}, {})
    assert Tokenizer.load(path).encode("the") == made(metadata).encode("the")


@pytest.mark.parametrize("kind", ["rwkv", "plamo2", "martian"])
def test_unknown_kinds_are_refused_by_name(kind: str) -> None:
    with pytest.raises(TokenizerError, match=f"'{kind}'.*tokenizer="):
        made({"model": kind, "tokens": ["a"]})


def test_sets_that_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="union"):
        CharSet(has=1) | CharSet(has=2, negated=True)
    with pytest.raises(ValueError, match="intersection"):
        CharSet(has=1) & CharSet(has=2)


def test_an_unknown_piece_of_wordpiece_json_is_no_control_token() -> None:
    spec = json.loads(wordpiece_json(True))
    spec["added_tokens"] = spec["added_tokens"][:2]
    assert parse(json.dumps(spec).encode(), "tokenizer.json").encode("zzz", bos=False) == [1]
