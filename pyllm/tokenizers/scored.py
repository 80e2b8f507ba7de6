"""Vocabularies of pieces of text: llama2.c's, and those of GGUF files that SentencePiece made."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyllm.errors import TokenizerError
from pyllm.formats.gguf import StringArray
from pyllm.tokenizers.base import Stretch, Tokenizer

if TYPE_CHECKING:
    from pyllm._core import NativeBPE, Strings

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class ScoredPieces:
    """A vocabulary as bpe.c takes it: pieces, which of them merges can make, and the pieces of bytes.

    `scores` or `merges` say which pairs are merged first. `byte_ids` holds 256 ids, -1 where a byte has no piece;
    `unknown_id` then stands for it, if it is not -1.
    """

    pieces: Strings
    mergeable: npt.NDArray[np.uint8]
    byte_ids: npt.NDArray[np.int32]
    unknown_id: int
    scores: npt.NDArray[np.float32] | None = None
    merges: Strings | None = None


def byte_value(piece: str) -> int | None:
    """The byte that a piece such as `<0x0A>` stands for."""
    match = _BYTE_PIECE.fullmatch(piece)
    return int(match[1], 16) if match else None


class ScoredTokenizer(Tokenizer):
    """Merges in C, of code points. A text begins with `prefix`, which decoding takes away again."""

    @abstractmethod
    def _scored_pieces(self) -> ScoredPieces:
        """The vocabulary; asked for once, by the first encode."""

    def _to_pieces(self, text: str) -> str:
        """The text in the alphabet of the pieces."""
        return text

    @cached_property
    def _merges(self) -> NativeBPE:
        from pyllm._core import NativeBPE  # here: decoding works without the extension

        try:
            return NativeBPE(**vars(self._scored_pieces()))
        except ValueError as error:
            raise TokenizerError(f"{self._traits.source}: damaged vocabulary: {error}") from error

    def _encode_stretches(self, stretches: Sequence[Stretch], threads: int) -> Sequence[Sequence[int]]:
        prefix = self._traits.prefix
        texts = [prefix + stretch.text if stretch.at_start else stretch.text for stretch in stretches]
        merges = self._merges
        try:
            return merges.encode_batch([self._to_pieces(text).encode() for text in texts], threads)
        except ValueError as error:
            raise self._no_piece(error) from error

    def _encode_text(self, text: str) -> list[int]:
        merges = self._merges
        try:
            return merges.encode(self._to_pieces(self._traits.prefix + text).encode())
        except ValueError as error:
            raise self._no_piece(error) from error

    def _no_piece(self, error: ValueError) -> TokenizerError:
        """What to raise for a byte without a piece, where nothing stands for the unknown."""
        return TokenizerError(f"{self._traits.source}: {error}")


def in_one_buffer(strings: Sequence[str] | Sequence[bytes]) -> Strings:
    """Strings as C takes them. Those of a GGUF file lie so already."""
    from pyllm._core import Strings

    if isinstance(strings, StringArray):
        return Strings(*strings.buffer)
    if strings and isinstance(strings[0], str) and (found := _separated(strings)):
        return found
    encoded = [text.encode() if isinstance(text, str) else text for text in strings]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    ends = np.cumsum(lengths)
    return Strings(b"".join(encoded), ends - lengths, ends)


def _separated(texts: Sequence[Any]) -> Strings | None:
    """Texts in one buffer with a NUL between them: quick; None where one of them holds a NUL itself."""
    from pyllm._core import Strings

    data = "\0".join(texts).encode()
    between = np.flatnonzero(np.frombuffer(data, np.uint8) == 0)
    if len(between) != len(texts) - 1:
        return None
    return Strings(data, np.concatenate(([0], between + 1)), np.concatenate((between, [len(data)])))


def check_scores(scores: Any, n: int, source: str) -> npt.NDArray[np.float32]:
    """Scores as an array, one for each of n pieces and none NaN."""
    if not isinstance(scores, (np.ndarray, list)) or len(scores) != n:
        found = f"{len(scores)} scores" if isinstance(scores, (np.ndarray, list)) else "no list of scores"
        raise TokenizerError(f"{source}: {found} for a vocabulary of {n} pieces")
    try:
        values = np.asarray(scores, np.float32)
    except (TypeError, ValueError):
        raise TokenizerError(f"{source}: the scores of the vocabulary are not numbers") from None
    bad = np.flatnonzero(np.isnan(values))
    if values.ndim != 1 or len(bad):
        raise TokenizerError(f"{source}: the score of piece {bad[0] if len(bad) else 0} is not a number")
    return values
