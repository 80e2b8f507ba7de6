"""llama2.c's `tokenizer.bin`: max_token_length, then score, length and bytes of each piece. It holds no count."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Stretch, Traits
from pyllm.tokenizers.scored import ScoredPieces, ScoredTokenizer, byte_value, check_scores, in_one_buffer

UNKNOWN, BOS, EOS, FIRST_BYTE = 0, 1, 2, 3  # fixed by run.c
FIRST_MERGED = FIRST_BYTE + 256

_HEAD = struct.Struct("<I")
_PIECE = struct.Struct("<fi")  # score, length

#: Bytes of one piece. Real ones have at most a few hundred.
LONGEST_PIECE = 1 << 16


def parse_tokenizer_bin(data: bytes, source: str) -> tuple[list[bytes], list[float]]:
    """Pieces and scores of a whole file. Raises `TokenizerError` at the first thing that does not fit."""
    if len(data) < _HEAD.size:
        raise TokenizerError(f"{source}: {len(data)} bytes are too few for a tokenizer.bin")
    longest: int = _HEAD.unpack_from(data)[0]
    if not 1 <= longest <= LONGEST_PIECE:
        raise TokenizerError(f"{source}: no tokenizer.bin: its longest piece would have {longest} bytes")
    pieces: list[bytes] = []
    scores: list[float] = []
    at = _HEAD.size
    while at < len(data):
        if at + _PIECE.size > len(data):
            raise TokenizerError(f"{source}: cut short after piece {len(pieces) - 1}; {len(data) - at} bytes are left")
        score, length = _PIECE.unpack_from(data, at)
        at += _PIECE.size
        if not 0 <= length <= longest or at + length > len(data):
            raise TokenizerError(
                f"{source}: piece {len(pieces)} claims {length} bytes; the longest may have {longest}, and "
                f"{len(data) - at} are left in the file"
            )
        pieces.append(data[at : at + length])
        scores.append(score)
        at += length
    return pieces, scores


class Llama2cTokenizer(ScoredTokenizer):
    """run.c's tokenizer: a space before every text, BOS on request, and code points without a piece as bytes.

    One thing differs: run.c drops the bytes of characters that have no piece when it prints; here they come out.
    """

    def __init__(self, data: bytes, source: str) -> None:
        self._pieces, scores = parse_tokenizer_bin(data, source)
        self._scores = check_scores(scores, len(scores), source)
        _check_layout(self._pieces, source)
        # The file decorates them with line ends, "\n<s>\n", for run.c to print.
        control = {i: self._pieces[i].strip(b"\n").decode("utf-8", "replace") for i in (BOS, EOS)}
        super().__init__(
            Traits(
                source,
                vocab_size=len(self._pieces),
                bos_id=BOS,
                eos_id=EOS,
                eos_ids=frozenset({EOS}),
                stop_ids=frozenset({BOS}),  # where run.c ends a text
                add_bos=True,
                prefix=" ",
                text_starts=frozenset({BOS}),
                control=control,
            )
        )

    @property
    def pieces(self) -> list[bytes]:
        """The pieces as they stand in the file."""
        return list(self._pieces)

    @property
    def scores(self) -> list[float]:
        """The score of each piece."""
        return [float(score) for score in self._scores]

    def _scored_pieces(self) -> ScoredPieces:
        mergeable = np.ones(self.vocab_size, np.uint8)
        mergeable[:FIRST_MERGED] = 0
        byte_ids = np.arange(FIRST_BYTE, FIRST_MERGED, dtype=np.int32)
        return ScoredPieces(in_one_buffer(self._pieces), mergeable, byte_ids, UNKNOWN, scores=self._scores)

    def _encode_stretches(self, stretches: Sequence[Stretch], threads: int) -> Sequence[Sequence[int]]:
        if any(stretch.at_start for stretch in stretches):
            self._need_space()
        return super()._encode_stretches(stretches, threads)

    def _encode_text(self, text: str) -> list[int]:
        self._need_space()
        return super()._encode_text(text)

    def _need_space(self) -> None:
        if not self._has_space:
            raise TokenizerError(
                f'{self._traits.source}: the vocabulary has no piece " ", with which llama2.c begins every text'
            )

    @cached_property
    def _has_space(self) -> bool:
        return b" " in self._pieces[FIRST_MERGED:]

    def _bytes_of(self, token: int) -> bytes:
        if FIRST_BYTE <= token < FIRST_MERGED:
            return bytes([token - FIRST_BYTE])
        return self._pieces[token]

    def _piece(self, token: int) -> str:
        return self._pieces[token].decode("utf-8", "replace")


def _check_layout(pieces: list[bytes], source: str) -> None:
    """run.c takes the meaning of the first 259 ids for granted; a file in which they mean something else is refused."""
    if len(pieces) < FIRST_MERGED:
        raise TokenizerError(f"{source}: {len(pieces)} pieces; a tokenizer.bin begins with {FIRST_MERGED} fixed ones")
    for byte in range(256):
        piece = pieces[FIRST_BYTE + byte].decode("utf-8", "replace")
        if byte_value(piece) != byte:
            raise TokenizerError(f"{source}: piece {FIRST_BYTE + byte} is {piece!r}, expected '<0x{byte:02X}>'")
