"""A vocabulary as the metadata of a GGUF file: the inverse of `gguf`, for the kinds that models' folders come with.

What is written is read back and compared on texts that kinds differ in: a vocabulary that would give other ids is
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyllm.errors import PyllmError, UnsupportedModelError
from pyllm.logs import logger
from pyllm.tokenizers.base import Tokenizer
from pyllm.tokenizers.endings import is_ending
from pyllm.tokenizers.gguf import BYTE, CONTROL, NORMAL, PREFIX, SPACE, UNKNOWN, UNUSED, USER_DEFINED
from pyllm.tokenizers.json_merges import JsonMergesTokenizer
from pyllm.tokenizers.llama2c import BOS, EOS, FIRST_MERGED, Llama2cTokenizer
from pyllm.tokenizers.llama2c import UNKNOWN as LLAMA2C_UNKNOWN
from pyllm.tokenizers.pretokenizers import PRETOKENIZERS, MappedBytes, Pretokenizer
from pyllm.tokenizers.sentencepiece_model import SentencePieceTokenizer

log = logger(__name__)

Metadata = dict[str, Any]  # str, bool, int, float, and lists of one of str, bytes, int and float

#: Words, numbers, white space, scripts, marks and what is no text: whatever two vocabularies cut differently.
SAMPLES = (
    *("", " ", "a", " a", "  a", "a ", "Hello, world!", "I'm you'll WE'VE he'd", "don't DON'T", "\n", "\n\n a\r\n\tb"),
    *("0 12 345 6789 01234567890", "3.14e-5 x2y3", "x==y!=z<=>{}[]();//", "/usr/local", "a@b.c #tag $5 50%"),
    *(
        "Grüße, naïve café \u0065\u0301",
        "Привет мир",
        "你好，世界。",
        "こんにちは世界",
        "안녕하세요",
        "नमस्ते दुनिया",
        "สวัสดี",
    ),
    *("नमस्ते दुनिया", "สวัสดี", "مرحبا بالعالم", "שלום", "👩‍👩‍👧 🙂", "\u00a0\u2003\u3000x", "ﬁ Å ½", "\x00\x01\x7f"),
    *(
        "\ufffd\U0010ffff",
        "<s></s><unk>",
        "<|endoftext|><|im_start|>user\n",
        "[INST] x [/INST]",
        "    def f(x):\n        return",
    ),
)


@dataclass
class _Vocabulary:
    """What of a vocabulary depends on its kind."""

    kind: str
    pieces: list[str | bytes]
    types: list[int]
    scores: list[float] | None = None
    more: Metadata = field(default_factory=dict)


def vocabulary_metadata(
    tokenizer: Tokenizer, size: int, source: str, read_back: Callable[[Metadata], Tokenizer | None]
) -> Metadata:
    """The metadata that says this vocabulary, for a model with `size` rows of embeddings.

    `read_back` makes a tokenizer of metadata as a reader of the file would. Raises `UnsupportedModelError`, naming
    `source`, where GGUF cannot say the same.
    """
    if tokenizer.vocab_size > size:
        raise UnsupportedModelError(f"{source}: {tokenizer!r} has more tokens than the {size} that the model knows")
    found = _described(tokenizer, source)
    padding = range(len(found.pieces), size)
    found.pieces += [f"[PAD{i}]" for i in padding]
    found.types += [UNUSED] * len(padding)
    metadata: Metadata = {"model": found.kind, **found.more, "tokens": found.pieces, "token_type": found.types}
    if found.scores is not None:
        metadata["scores"] = found.scores + [-10000.0] * len(padding)
    metadata = {**_ids(tokenizer), **metadata}
    metadata |= {"add_bos_token": tokenizer.add_bos, "add_eos_token": tokenizer.add_eos}
    metadata = {PREFIX + key: value for key, value in metadata.items()}
    if tokenizer.chat_template:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    try:
        _refuse_difference(tokenizer, read_back(metadata))
    except PyllmError as error:
        raise UnsupportedModelError(f"{source}: its vocabulary cannot be written into a GGUF file: {error}") from None
    return metadata


def _ids(tokenizer: Tokenizer) -> Metadata:
    """The ids with a part in texts; of several that end one, as many as there are names for, beyond those whose texts
    tell.
    """
    told = {i for i, text in tokenizer.control_texts.items() if is_ending(text)}
    others = [i for i in sorted(tokenizer.eos_ids - told) if i != tokenizer.eos_id]
    eos = others.pop(0) if tokenizer.eos_id is None and others else tokenizer.eos_id
    names = {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos}
    names |= dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))
    return {name: token for name, token in names.items() if token is not None}


def _described(tokenizer: Tokenizer, source: str) -> _Vocabulary:
    if isinstance(tokenizer, Llama2cTokenizer):
        return _llama2c(tokenizer)
    if isinstance(tokenizer, JsonMergesTokenizer):
        if tokenizer.eats_spaces:
            log.warning("%s: GGUF cannot say that tokens swallow the spaces beside them", source)
        return _raw_merges(tokenizer) if tokenizer.how.raw else _byte_level(tokenizer, source)
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _sentencepiece(tokenizer, source)
    raise UnsupportedModelError(f"{source}: a vocabulary of this kind ({tokenizer!r}) cannot be written as GGUF yet")


def _refuse_difference(ours: Tokenizer, theirs: Tokenizer | None) -> None:
    """Whatever two tokenizers of one model may not differ in."""
    if theirs is None:
        raise UnsupportedModelError("it would be read as none")
    if not ours.stop_ids <= theirs.stop_ids <= ours.stop_ids | ours.eos_ids:
        raise UnsupportedModelError(f"it ends texts at {sorted(ours.stop_ids)}, not at {sorted(theirs.stop_ids)}")
    for name in ("bos_id", "add_bos", "add_eos", "control_ids", "chat_template"):
        one, other = getattr(ours, name), getattr(theirs, name)
        if one != other and not (name == "control_ids" and one <= other):
            raise UnsupportedModelError(f"{name} {one!r:.120} would be read as {other!r:.120}")
    for text, special in (*((text, False) for text in SAMPLES), *((text, True) for text in _whole(ours))):
        one, other = (t.encode(text, special=special) for t in (ours, theirs))
        if one != other:
            raise UnsupportedModelError(f"{text!r} is {one[:20]} and would be read as {other[:20]}")
        if ours.decode(one) != theirs.decode(one):
            raise UnsupportedModelError(f"{one[:20]} mean {ours.decode(one)!r}, not {theirs.decode(one)!r}")


def _whole(tokenizer: Tokenizer) -> list[str]:
    """Texts of tokens that stand for themselves. What follows one may differ: only GGUF's own rule can be written."""
    return [text for text in (*tokenizer.control_texts.values(), *tokenizer.user_defined_texts.values()) if text][:256]


# ---- kinds -----------------------------------------------------------------------------------------------------------


def _llama2c(tokenizer: Llama2cTokenizer) -> _Vocabulary:
    """llama2.c's pieces as GGUF has them: spaces as U+2581, and a type for each."""
    pieces = [piece.replace(b" ", SPACE.encode()) for piece in tokenizer.pieces]
    pieces[:3] = [b"<unk>", b"<s>", b"</s>"]
    types = [NORMAL] * len(pieces)
    types[LLAMA2C_UNKNOWN], types[BOS], types[EOS] = UNKNOWN, CONTROL, CONTROL
    types[EOS + 1 : FIRST_MERGED] = [BYTE] * (FIRST_MERGED - EOS - 1)
    more = {"unknown_token_id": LLAMA2C_UNKNOWN, "eos_token_id": BOS}  # where run.c ends a text
    return _Vocabulary("llama", [*pieces], types, [*tokenizer.scores], more)


def _typed_pieces(tokenizer: Tokenizer, user_defined: Mapping[int, str]) -> tuple[list[str | bytes], list[int]]:
    """Pieces and their types, with names for holes in the ids."""
    pieces: list[str | bytes] = []
    types = []
    for token in range(tokenizer.vocab_size):
        piece = tokenizer.id_to_piece(token)
        pieces.append(piece or f"[UNUSED{token}]")
        if token in tokenizer.control_ids:
            types.append(CONTROL)
        elif token in user_defined:
            types.append(USER_DEFINED)
        else:
            types.append(NORMAL if piece else UNUSED)
    return pieces, types


def _byte_level(tokenizer: JsonMergesTokenizer, source: str) -> _Vocabulary:
    name = next((name for name, how in PRETOKENIZERS.items() if _cuts_alike(how, tokenizer.how)), None)
    if name is None:
        raise UnsupportedModelError(f"{source}: GGUF has no name for how its vocabulary cuts texts into words")
    pieces, types = _typed_pieces(tokenizer, tokenizer.user_defined_texts)
    return _Vocabulary("gpt2", pieces, types, more={"pre": name, "merges": tokenizer.merges})


def _cuts_alike(one: Pretokenizer, other: Pretokenizer) -> bool:
    ours, theirs = ([_of_text(step) for step in how.steps] for how in (one, other))
    return ours == theirs and (one.nfc, one.whole_words, one.raw) == (other.nfc, other.whole_words, other.raw)


def _of_text(step: Any) -> Any:
    """Where a pattern names ASCII alone it is the same whether it sees text or mapped bytes."""
    return step.pattern if isinstance(step, MappedBytes) and "\\" not in step.pattern else step


def _raw_merges(tokenizer: JsonMergesTokenizer) -> _Vocabulary:
    """Pieces in which U+2581 stands for a space: their scores are the ranks of the first merges that make them."""
    pieces, types = _typed_pieces(tokenizer, tokenizer.user_defined_texts)
    scores = dict.fromkeys(range(len(pieces)), -1e6)
    ids = {piece: token for token, piece in enumerate(pieces)}
    for rank, merge in reversed(list(enumerate(tokenizer.merges))):
        scores[ids[merge.replace(" ", "", 1)]] = float(-rank)
    for byte in range(256):
        types[ids[f"<0x{byte:02X}>"]] = BYTE
    more: Metadata = {"add_space_prefix": tokenizer.prefixed}
    unknown = [token for token, text in tokenizer.control_texts.items() if not text]
    if unknown:
        types[unknown[0]], more["unknown_token_id"] = UNKNOWN, unknown[0]
    return _Vocabulary("llama", pieces, types, [scores[i] for i in range(len(pieces))], more)


def _sentencepiece(tokenizer: SentencePieceTokenizer, source: str) -> _Vocabulary:
    library = tokenizer.library
    pieces, types = _typed_pieces(tokenizer, tokenizer.user_defined_texts)
    scores = [0.0] * len(pieces)
    for token in range(library.vocab_size()):
        scores[token] = library.get_score(token)
        if library.is_byte(token):
            types[token] = BYTE
        elif library.is_unused(token):
            types[token] = UNUSED
        elif token == library.unk_id():
            types[token] = UNKNOWN
    more: Metadata = {"add_space_prefix": library.normalize("a").startswith(SPACE)}
    if library.unk_id() >= 0:
        more["unknown_token_id"] = library.unk_id()
    return _Vocabulary("llama", pieces, types, scores, more)
