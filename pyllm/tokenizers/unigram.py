"""SentencePiece's unigram model from other files' fields: written as its library wants it, and read by that."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Stretch, Tokenizer, Traits
from pyllm.tokenizers.scored import byte_value

SPACE = "\u2581"  # how SentencePiece writes a space inside pieces
BYTE = 6  # the type of pieces of bytes
UNIGRAM = 1  # TrainerSpec.ModelType


class UnigramTokenizer(Tokenizer):
    """Pieces with log-probabilities, of which a text becomes the likeliest sequence. Encoding begins with `write`,
    which gives the vocabulary as a `tokenizer.model`.
    """

    def __init__(self, traits: Traits, pieces: Sequence[str], types: Sequence[int], write: Callable[[], bytes]) -> None:
        super().__init__(traits)
        self._pieces = pieces
        self._types = types
        self._write = write

    @cached_property
    def _library(self) -> Any:
        import sentencepiece  # here: half a second that users of other vocabularies need not wait

        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self._write())
        except (RuntimeError, OSError, ValueError) as error:
            raise TokenizerError(f"{self._traits.source}: damaged vocabulary: {error}") from error

    def _encode_stretches(self, stretches: Sequence[Stretch], threads: int) -> Sequence[Sequence[int]]:
        """The library begins every stretch with the prefix; so it must, for each follows a control token."""
        return encode_with(self._library, [stretch.text for stretch in stretches], threads)

    def _encode_text(self, text: str) -> list[int]:
        ids: list[int] = self._library.encode(text)
        return ids

    def _bytes_of(self, token: int) -> bytes:
        piece = self._pieces[token]
        byte = byte_value(piece) if self._types[token] == BYTE else None
        return piece.replace(SPACE, " ").encode() if byte is None else bytes([byte])

    def _piece(self, token: int) -> str:
        return self._pieces[token]


def encode_with(library: Any, texts: Sequence[str], threads: int) -> list[list[int]]:
    """Ids of texts. The library starts threads for any list of them, which takes longer than a short text does."""
    if threads == 1 or len(texts) == 1:
        return [library.encode(text) for text in texts]
    ids: list[list[int]] = library.encode(list(texts), num_threads=threads)
    return ids


# ---- SentencePiece's ModelProto --------------------------------------------------------------------------------------


def write_unigram(
    pieces: Iterable[bytes], scores: Sequence[float], types: Sequence[int], normalizer: bytes, ids: Mapping[str, int]
) -> bytes:
    """A unigram vocabulary as a `tokenizer.model`.

    `types`: SentencePiece's, which are GGUF's too. `normalizer`: a NormalizerSpec. `ids`: "unk", "bos", "eos", "pad",
    those that there are.
    """
    entries = map(_entry, pieces, scores, types)
    trainer = _number(3, UNIGRAM) + _number(35, BYTE in types)
    for number, name in enumerate(("unk", "bos", "eos", "pad"), 40):
        trainer += _number(number, ids.get(name, -1) & (1 << 64) - 1)
    return b"".join([*entries, _field(2, trainer), _field(3, normalizer)])


def normalizer_spec(character_map: bytes, add_prefix: bool, remove_extra_spaces: bool, escape: bool) -> bytes:
    """SentencePiece's NormalizerSpec: its precompiled table, and what becomes of spaces."""
    flags = _number(3, add_prefix) + _number(4, remove_extra_spaces) + _number(5, escape)
    return _field(1, b"custom") + _field(2, character_map) + flags


_TAIL = struct.Struct("<cfcB")


def _entry(piece: bytes, score: float, kind: int) -> bytes:
    """Text, score and type of a piece, in a quarter of a million of which most are short."""
    tail = _TAIL.pack(b"\x15", score, b"\x18", kind)
    if len(piece) < 119:
        return b"\n%c\n%c%b%b" % (len(piece) + 9, len(piece), piece, tail)
    return _field(1, _field(1, piece) + tail)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)
