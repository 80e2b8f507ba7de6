"""SentencePiece's ModelProto, read as far as it says whether a model is byte pair merges and nothing else."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # types of pieces; others are found in text by rules of their own
BY_MERGES = 2  # TrainerSpec.ModelType
LOWEST_SCORE = -1e10  # bpe.c, as run.c, merges only above it

Value = int | bytes


class ModelPieces(NamedTuple):
    """The pieces of a model, by id."""

    texts: list[bytes]
    scores: list[float]
    types: list[int]


def plain_merges(model: bytes) -> ModelPieces | None:
    """The pieces of a model that merges pairs by their scores, falls back to bytes, and changes nothing of a text but
    spaces; None for any other, and for damaged files, which are the library's to complain about.
    """
    pieces = ModelPieces([], [], [])
    trainer: dict[int, Value] = {}
    normalizer: dict[int, Value] = {}
    try:
        for number, value in _fields(model):
            if number == 1 and not _add_piece(pieces, value):
                return None
            if number in (2, 3):
                (trainer if number == 2 else normalizer).update(_fields(value))
        understood = _only_merges(trainer) and _only_spaces(normalizer) and _all_of_pieces(pieces)
    except (ValueError, IndexError, struct.error):
        return None
    return pieces if understood else None


def _add_piece(pieces: ModelPieces, value: Value) -> bool:
    """Takes a piece in; False where it is not one that merges alone can give."""
    found = dict(_fields(value))
    text, score, kind = found.get(1, b""), found.get(2, b"\0\0\0\0"), found.get(3, NORMAL)
    if not (isinstance(text, bytes) and isinstance(score, bytes) and kind in (NORMAL, UNKNOWN, CONTROL, BYTE)):
        return False
    number: float = struct.unpack("<f", score)[0]
    pieces.texts.append(text)
    pieces.scores.append(number)
    pieces.types.append(int(kind))
    return LOWEST_SCORE < number < math.inf


def _only_merges(trainer: Mapping[int, Value]) -> bool:
    """Merges, with byte fallback, and with white space before words."""
    return trainer.get(3) == BY_MERGES and trainer.get(35) == 1 and trainer.get(24, 0) == 0


def _only_spaces(normalizer: Mapping[int, Value]) -> bool:
    """No table of characters, no spaces removed, and each written as U+2581."""
    return normalizer.get(2, b"") == b"" and normalizer.get(4, 1) == 0 and normalizer.get(5, 1) == 1


def _all_of_pieces(pieces: ModelPieces) -> bool:
    """Whether pieces consist of characters that are pieces: C merges no others, which the library would."""
    normal = [text.decode() for text, kind in zip(pieces.texts, pieces.types, strict=True) if kind == NORMAL]
    return set("".join(normal)) <= {text for text in normal if len(text) == 1}


# ---- protobuf --------------------------------------------------------------------------------------------------------


def _fields(message: Value) -> Iterator[tuple[int, Value]]:
    """The fields of a message by number. Raises `ValueError` or `IndexError` where it is none."""
    if isinstance(message, int):
        raise ValueError("a number where a message should be")
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind] if kind in (1, 5) else -1, at)
        if not 0 <= size <= end - at:
            raise ValueError("a field beyond its message")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = shift = 0
    while shift < 70:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise ValueError("a number of more than ten bytes")
