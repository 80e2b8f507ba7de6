"""`tokenizer.json` read without the library: the same ids and texts as with it, for the families' kinds of file."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

from pyllm.errors import TokenizerError
from pyllm.tokenizers import json_merges
from pyllm.tokenizers.huggingface import JsonTokenizer
from pyllm.tokenizers.pretokenizers import PRETOKENIZERS

CORPUS = ["the fox jumps over the dog", "don't SHOUT, 123456 times!\n\n", "f\u00fcr \u6f22\u5b57 \u0444 x\u00b2"] * 9
SPACE = "\u2581"


def byte_level(*steps: Any, normalizer: Any = None, **model: Any) -> Library:
    library = Library(models.BPE(**model))
    library.pre_tokenizer = pre_tokenizers.Sequence([*steps])
    if normalizer is not None:
        library.normalizer = normalizer
    library.decoder = decoders.ByteLevel()
    trained = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(CORPUS, trained)
    plain, eats_right, eats_left = ({"normalized": False, **more} for more in ({}, {"rstrip": True}, {"lstrip": True}))
    library.add_special_tokens([AddedToken("<|start|>", **plain), AddedToken("<|end|>", **eats_right)])
    library.add_tokens([AddedToken("<think>", **plain), AddedToken("<mask>", **eats_left)])
    return library


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


MAP = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def llama3() -> Library:
    library = byte_level(split(str(PRETOKENIZERS["llama3"].steps[0])), MAP, ignore_merges=True)
    start = library.token_to_id("<|start|>")
    template = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", start)])
    library.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return library


def pieces_of_text(normalizer: Any, pre_tokenizer: Any, decoder: Any) -> Library:
    """Like Llama 2, Mistral and Gemma: pieces of text with fallback to bytes."""
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [(SPACE, "t"), ("h", "e"), (f"{SPACE}t", "he"), (SPACE, SPACE), ("\n", "\n"), ("a", SPACE)]
    merges += [("<", "s"), ("<s", ">")]  # which make a control token
    pieces = [*fixed, SPACE, *"athe\n<s>xd", *(left + right for left, right in merges)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    library = Library(model)
    library.normalizer = normalizer
    library.pre_tokenizer = pre_tokenizer
    library.decoder = decoder
    library.add_special_tokens([AddedToken(text, normalized=False) for text in fixed[:3]])
    library.add_tokens([AddedToken("<turn>", normalized=False)])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return library


def steps(*more: Any) -> Any:
    return decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *more])


TO_SPACE = normalizers.Replace(" ", SPACE)
STRIP = decoders.Strip(" ", 1, 0)


def metaspace(scheme: str) -> Library:
    pre = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    return pieces_of_text(None, pre, steps(STRIP))


FILES: dict[str, Callable[[], Library]] = {
    "gpt-2": lambda: byte_level(GPT2),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), GPT2),
    "llama-3": llama3,
    "qwen": lambda: byte_level(split(str(PRETOKENIZERS["qwen2"].steps[0])), MAP, normalizer=normalizers.NFC()),
    "deepseek": lambda: byte_level(*(split(str(step)) for step in PRETOKENIZERS["deepseek-v3"].steps), MAP),
    "falcon": lambda: byte_level(
        pre_tokenizers.Punctuation("contiguous"), GPT2, pre_tokenizers.Digits(False), split("[0-9][0-9][0-9]")
    ),
    "llama-2": lambda: pieces_of_text(
        normalizers.Sequence([normalizers.Prepend(SPACE), TO_SPACE]), None, steps(STRIP)
    ),
    "gemma": lambda: pieces_of_text(TO_SPACE, pre_tokenizers.Split(" ", "merged_with_previous"), steps()),
    "metaspace first": lambda: metaspace("first"),
    "metaspace always": lambda: metaspace("always"),
    "metaspace never": lambda: metaspace("never"),
}  # fmt: skip


@cache
def both(name: str) -> tuple[json_merges.JsonMergesTokenizer, JsonTokenizer]:
    spec = json.loads(FILES[name]().to_str())
    ours = json_merges.read(spec, "tokenizer.json")
    assert ours is not None, "this kind of file should be understood"
    return ours, JsonTokenizer(spec, "tokenizer.json")


WORDS = ["<|start|>", "<|end|>", " <|end|> ", " <mask> ", "<s>", "</s>", "<turn>", "  ", " the", "don't", "123", SPACE]
TEXT = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=8).map("".join)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=120, deadline=None)
@given(text=TEXT)
def test_equals_the_library(name: str, text: str) -> None:
    ours, theirs = both(name)
    ids = ours.encode(text)
    try:
        expected = theirs.encode(text)
    except TokenizerError:  # where the library would make control tokens of text, ours makes text of it
        assert ours.control_ids.isdisjoint(ours.encode(text, bos=False))
    else:
        assert ids == expected
    assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_control_tokens_equal_the_library(name: str, text: str) -> None:
    ours, theirs = both(name)
    assert ours.encode(text, special=True) == theirs.encode(text, special=True)
    assert ours.encode_batch([text] * 5, special=True) == [ours.encode(text, special=True)] * 5


@pytest.mark.parametrize("name", FILES)
def test_says_the_same_of_itself(name: str) -> None:
    ours, theirs = both(name)
    for attribute in ("vocab_size", "bos_id", "eos_id", "add_bos", "eos_ids", "control_ids", "control_texts"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    ids = range(ours.vocab_size)
    assert [*map(ours.token_bytes, ids)] == [*map(theirs.token_bytes, ids)]
    assert [*map(ours.id_to_piece, ids)] == [*map(theirs.id_to_piece, ids)]


def change(name: str, *path: str, value: Any) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(FILES[name]().to_str())
    inner = spec
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return spec


@pytest.mark.parametrize(
    "spec",
    [
        change("gpt-2", "model", "dropout", value=0.5),
        change("gpt-2", "model", "unk_token", value="a"),
        change("gpt-2", "model", "end_of_word_suffix", value="</w>"),
        change("gpt-2", "model", "byte_fallback", value=True),
        change("gpt-2", "normalizer", value={"type": "Lowercase"}),
        change("gpt-2", "pre_tokenizer", value={"type": "Whitespace"}),
        change("gpt-2", "pre_tokenizer", value={"type": "ByteLevel", "add_prefix_space": True}),
        change("gpt-2", "post_processor", value={"type": "BertProcessing", "cls": ["a", 1], "sep": ["b", 2]}),
        change("gpt-2", "decoder", value=None),
        change("gpt-2", "model", "vocab", value={"a": 1 << 40}),
        change("gpt-2", "model", "vocab", value={"a": 1, "b": 1}),
        change("gpt-2", "model", "vocab", value={"a": "b"}),
        change("gpt-2", "model", "merges", value=["a b c"]),
        change("gpt-2", "model", "merges", value=[["a"]]),
        change("llama-2", "model", "ignore_merges", value=True),
        change("llama-2", "normalizer", value={"type": "Prepend", "prepend": "_"}),
        change("metaspace first", "pre_tokenizer", "split", value=True),
        change("metaspace first", "pre_tokenizer", "prepend_scheme", value="sometimes"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_left_to_the_library(spec: dict[str, Any]) -> None:
    assert json_merges.read(spec, "tokenizer.json") is None


def test_merges_of_pieces_that_are_not_there() -> None:
    spec = change("gpt-2", "model", "merges", value=[["a", "zzzz"]])
    tokenizer = json_merges.read(spec, "tokenizer.json")
    assert tokenizer is not None
    with pytest.raises(TokenizerError, match="merge 0"):
        tokenizer.encode("a")
