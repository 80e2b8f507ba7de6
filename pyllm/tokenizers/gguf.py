"""The vocabulary in a GGUF file's metadata: which kind it is, and what all kinds have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Tokenizer, Traits
from pyllm.tokenizers.bytebpe import ByteLevelTokenizer
from pyllm.tokenizers.endings import is_ending
from pyllm.tokenizers.pretokenizers import PRETOKENIZERS
from pyllm.tokenizers.scored import ScoredPieces, ScoredTokenizer, byte_value, check_scores, in_one_buffer

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # the file's token types
SPACE = "\u2581"  # how SentencePiece writes a space inside pieces


def from_metadata(metadata: Mapping[str, Any], source: str) -> Tokenizer | None:
    """The tokenizer of a GGUF's metadata, None where there is none. Raises `TokenizerError`."""
    fields = Fields(metadata, source)
    kind = fields.text(PREFIX + "model")
    if kind is None or kind in ("none", "no_vocab"):
        return None
    if kind == "llama":
        return GgufPiecesTokenizer(fields)
    if kind == "gemma4" or (kind == "gpt2" and _is_raw(fields)):
        return GgufPiecesTokenizer(fields, ranked=True)
    if kind == "gpt2":
        return _byte_level(fields)
    if kind == "t5":
        return _unigram(fields)
    if kind == "bert":
        return _wordpiece(fields)
    raise TokenizerError(
        f"{source}: vocabulary of kind {kind!r}, which is not known here: give the model's tokenizer.json or "
        "tokenizer.model as tokenizer="
    )


@dataclass(frozen=True)
class Fields:
    """Metadata that was read from a file: nothing has the type it should before it was looked at."""

    metadata: Mapping[str, Any]
    source: str

    def text(self, key: str) -> str | None:
        """The string under a key, None where there is none."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(f"{key} is {value!r:.80}, expected a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value of the vocabulary."""
        value = self.metadata.get(PREFIX + key, default)
        if not isinstance(value, (bool, np.bool_)):
            raise self.error(f"{PREFIX}{key} is {value!r:.80}, expected true or false")
        return bool(value)

    def token(self, key: str) -> int | None:
        """The id under a key. The type's largest number stands for no token; anything else must be an id."""
        value = self.metadata.get(PREFIX + key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{PREFIX}{key} is {value!r:.80}, expected an id")
        if value in (-1, 0xFFFFFFFF):
            return None
        if not 0 <= value < len(self.pieces):
            raise self.error(f"{PREFIX}{key} is {value}, expected an id below {len(self.pieces)}")
        return value

    def data(self, key: str) -> bytes:
        """An array of bytes of the vocabulary, b"" where there is none."""
        value = self.metadata.get(PREFIX + key)
        if value is None:
            return b""
        if not isinstance(value, np.ndarray) or value.dtype.itemsize != 1:
            raise self.error(f"{PREFIX}{key} is no array of bytes")
        return value.tobytes()

    def strings(self, key: str) -> Sequence[str]:
        """A list of strings of the vocabulary, which must be there."""
        value = self.metadata.get(PREFIX + key)
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) == 0:
            raise self.error(f"{PREFIX}{key} is missing, or no list of strings")
        if not isinstance(value[0], str):
            raise self.error(f"{PREFIX}{key} holds {value[0]!r:.80}, expected strings")
        return value

    @cached_property
    def pieces(self) -> Sequence[str]:
        """The tokens, by id."""
        return self.strings("tokens")

    @cached_property
    def types(self) -> npt.NDArray[np.int64]:
        """The type of each token. Files without types tell control tokens by their ids alone."""
        value = self.metadata.get(PREFIX + "token_type")
        if value is None:
            return self._guess_types()
        if not isinstance(value, (list, np.ndarray)) or len(value) != len(self.pieces):
            raise self.error(f"{PREFIX}token_type is no list with a number for each of {len(self.pieces)} tokens")
        types = np.asarray(value)
        if types.ndim != 1 or types.dtype.kind not in "iu":
            raise self.error(f"{PREFIX}token_type does not consist of whole numbers")
        return types.astype(np.int64)

    def _guess_types(self) -> npt.NDArray[np.int64]:
        types = np.full(len(self.pieces), NORMAL, np.int64)
        for key in ("bos", "eos", "eot", "eom", "padding"):
            token = self.token(f"{key}_token_id")
            if token is not None:
                types[token] = CONTROL
        return types

    def ids(self, kind: int) -> list[int]:
        """The tokens of one type."""
        found: list[int] = np.flatnonzero(self.types == kind).tolist()
        return found

    def error(self, flaw: str) -> TokenizerError:
        """What to raise for a flaw."""
        return TokenizerError(f"{self.source}: damaged vocabulary: {flaw}")


def read_traits(fields: Fields, *, add_bos: bool, add_eos: bool = False, prefix: str = "", space: str = " ") -> Traits:
    """What every kind of vocabulary says of itself. `add_bos` and `add_eos` are what holds where the file is silent;
    `space` is how pieces write a space.
    """
    eos = fields.token("eos_token_id")
    # Unknown tokens are no text either; but no text names them, so nothing has to be kept from doing so.
    control = {i: fields.pieces[i] for i in fields.ids(CONTROL)} | dict.fromkeys(fields.ids(UNKNOWN), "")
    user_defined = {i: fields.pieces[i].replace(space, " ") for i in fields.ids(USER_DEFINED)}
    ends = {eos, fields.token("eot_token_id"), fields.token("eom_token_id")} - {None}
    ends |= {i for i, text in control.items() if is_ending(text)}
    return Traits(
        fields.source,
        vocab_size=len(fields.pieces),
        bos_id=fields.token("bos_token_id"),
        eos_id=eos,
        eos_ids=frozenset(i for i in ends if i is not None),
        add_bos=fields.flag("add_bos_token", add_bos) and fields.token("bos_token_id") is not None,
        add_eos=fields.flag("add_eos_token", add_eos) and eos is not None,
        prefix=prefix,
        text_starts=frozenset({*control, *user_defined}) if prefix else frozenset(),
        control=control,
        user_defined=user_defined,
        chat_templates=_chat_templates(fields),
    )


def _chat_templates(fields: Fields) -> dict[str, str]:
    """By name; the usual one has none in the file, and is "default" here."""
    key = "tokenizer.chat_template"
    names = [name[len(key) + 1 :] for name in fields.metadata if name.startswith(key + ".")]
    found = {"default": fields.text(key), **{name: fields.text(f"{key}.{name}") for name in names}}
    return {name: text for name, text in found.items() if text is not None}


def _is_raw(fields: Fields) -> bool:
    known = PRETOKENIZERS.get(fields.text(PREFIX + "pre") or "")
    return known is not None and known.raw


def _byte_level(fields: Fields) -> ByteLevelTokenizer:
    name = fields.text(PREFIX + "pre")
    known = PRETOKENIZERS.get(name or "")
    traits = read_traits(fields, add_bos=known.add_bos if known else False)
    return ByteLevelTokenizer(traits, fields.pieces, fields.strings("merges"), name)


def _unigram(fields: Fields) -> Tokenizer:
    from pyllm.tokenizers.unigram import UnigramTokenizer, normalizer_spec, write_unigram

    scores = check_scores(fields.metadata.get(PREFIX + "scores"), len(fields.pieces), fields.source).tolist()
    types = fields.types.tolist()
    if not all(NORMAL <= kind <= BYTE for kind in types):
        raise fields.error(f"{PREFIX}token_type has types outside {NORMAL} to {BYTE}")
    add_prefix = fields.flag("add_space_prefix", True)
    remove, escape = fields.flag("remove_extra_whitespaces", True), fields.flag("escape_whitespaces", True)
    normalizer = normalizer_spec(fields.data("precompiled_charsmap"), add_prefix, remove, escape)
    keys = {"unk": "unknown", "bos": "bos", "eos": "eos", "pad": "padding"}
    found = {name: fields.token(f"{key}_token_id") for name, key in keys.items()}
    ids = {name: token for name, token in found.items() if token is not None}

    def write() -> bytes:
        return write_unigram((piece.encode() for piece in fields.pieces), scores, types, normalizer, ids)

    traits = read_traits(fields, add_bos=False, add_eos=True, prefix=" " if add_prefix else "", space=SPACE)
    return UnigramTokenizer(traits, fields.pieces, types, write)


def _wordpiece(fields: Fields) -> Tokenizer:
    """BERT's pieces: written as a tokenizer.json, and read by Hugging Face's library."""
    from pyllm.tokenizers.wordpiece import WordPieceTokenizer, tokenizer_json, vocabulary_of_gguf

    control = {token: fields.pieces[token] for token in fields.ids(CONTROL)}
    named = {}
    for name, key, usual in (("first", "cls", 101), ("last", "seperator", 102), ("unknown", "unknown", 100)):
        token = fields.token(f"{key}_token_id")
        named[name] = control.get(usual if token is None else token)
        if named[name] is None:
            raise fields.error(f"its {key} token is missing, or no control token")
    lowercase = fields.flag("normalizer.lowercase", True)
    settings = {**named, "lowercase": lowercase, "strip_accents": fields.flag("normalizer.strip_accents", lowercase)}
    vocabulary = vocabulary_of_gguf(fields.pieces, control)
    return WordPieceTokenizer(tokenizer_json(vocabulary, control, {**settings, "split_chinese": True}), fields.source)


class GgufPiecesTokenizer(ScoredTokenizer):
    """SentencePiece's pieces, in which U+2581 stands for a space: GGUF's "llama" with their scores, or with merges."""

    def __init__(self, fields: Fields, *, ranked: bool = False) -> None:
        """`ranked`: pairs are merged in the order of the file's merges, and no text begins with a space of ours."""
        self._fields = fields
        size = len(fields.pieces)
        self._scores = None if ranked else check_scores(fields.metadata.get(PREFIX + "scores"), size, fields.source)
        self._merge_list = fields.strings("merges") if ranked else None
        prefix = " " if fields.flag("add_space_prefix", not ranked) else ""
        super().__init__(read_traits(fields, add_bos=True, prefix=prefix, space=SPACE))

    def _scored_pieces(self) -> ScoredPieces:
        types = self._fields.types
        mergeable = ((types == NORMAL) | (types == USER_DEFINED)).astype(np.uint8)
        byte_ids = np.full(256, -1, np.int32)
        for token in self._fields.ids(BYTE):
            byte = byte_value(self._fields.pieces[token])
            if byte is None:
                raise self._fields.error(f"byte token {token} is {self._fields.pieces[token]!r}, expected '<0xHH>'")
            byte_ids[byte] = token
        unknown = self._fields.token("unknown_token_id")
        merges = None if self._merge_list is None else in_one_buffer(self._merge_list)
        pieces, unknown_id = in_one_buffer(self._fields.pieces), -1 if unknown is None else unknown
        return ScoredPieces(pieces, mergeable, byte_ids, unknown_id, scores=self._scores, merges=merges)

    def _to_pieces(self, text: str) -> str:
        return text.replace(" ", SPACE)

    def _bytes_of(self, token: int) -> bytes:
        piece = self._fields.pieces[token]
        byte = byte_value(piece) if self._fields.types[token] == BYTE else None
        return piece.replace(SPACE, " ").encode() if byte is None else bytes([byte])

    def _piece(self, token: int) -> str:
        return self._fields.pieces[token]
