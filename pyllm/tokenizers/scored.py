"""Vocabularies whose pieces carry scores: llama2.c's, and GGUF's "llama", which SentencePiece made."""

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
from pyllm.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from pyllm._core import NativeBPE

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class ScoredPieces:
    """A vocabulary as bpe.c takes it: pieces and scores, which of them merges can make, and the pieces of bytes.

    `byte_ids` holds 256 ids, -1 where a byte has no piece; `unknown_id` then stands for it, if it is not -1.
    """

    pieces: Sequence[bytes]
    scores: npt.NDArray[np.float32]
    mergeable: npt.NDArray[np.uint8]
    byte_ids: npt.NDArray[np.int32]
    unknown_id: int


def byte_value(piece: str) -> int | None:
    """The byte that a piece such as `<0x0A>` stands for."""
    match = _BYTE_PIECE.fullmatch(piece)
    return int(match[1], 16) if match else None


class ScoredTokenizer(Tokenizer):
    """Score-driven merges in C. A text begins with `prefix`, which decoding takes away again."""

    @abstractmethod
    def _scored_pieces(self) -> ScoredPieces:
        """The vocabulary; asked for once, by the first encode."""

    def _to_pieces(self, text: str) -> str:
        """The text in the alphabet of the pieces."""
        return text

    @cached_property
    def _merges(self) -> NativeBPE:
        from pyllm._core import NativeBPE  # here: decoding works without the extension

        v = self._scored_pieces()
        return NativeBPE(v.pieces, v.scores, v.mergeable, v.byte_ids, v.unknown_id)

    def _encode_stretch(self, text: str, at_start: bool) -> list[int]:
        text = self._traits.prefix + text if at_start else text
        try:
            return self._merges.encode(self._to_pieces(text).encode())
        except ValueError as error:  # a byte without a piece, where nothing stands for the unknown
            raise TokenizerError(f"{self._traits.source}: {error}") from error


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
