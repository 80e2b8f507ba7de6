"""Byte pair merges in the order of a list: GPT-2's way, in which pieces are bytes written as printable characters.

Merging is done in C (`csrc/text/bpe.c`), with tables that the first encode builds. Decoding needs only the alphabet
below.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Stretch, Tokenizer, Traits
from pyllm.tokenizers.pretokenizers import PRETOKENIZERS, Pretokenizer, compiled
from pyllm.tokenizers.scored import in_one_buffer

if TYPE_CHECKING:
    from pyllm._core import NativeBPE


def _byte_characters() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others are the characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_characters()


class ByteLevelTokenizer(Tokenizer):
    """A vocabulary of byte-level pieces and merges, most frequent first. `pre` names how text is cut into words."""

    def __init__(self, traits: Traits, pieces: Sequence[str], merges: Sequence[str], pre: str | None) -> None:
        super().__init__(traits)
        self._pieces = pieces
        self._merge_list = merges
        self._pre = pre

    @cached_property
    def _merges(self) -> NativeBPE:
        from pyllm._core import NativeBPE, NativeWords  # here: decoding works without the extension

        how = self._how
        mergeable = np.ones(len(self._pieces), np.uint8)
        mergeable[list(self.control_ids)] = 0  # so that no text can become one
        try:
            return NativeBPE(
                in_one_buffer(self._pieces),
                mergeable,
                merges=in_one_buffer(self._merge_list),
                byte_level=True,
                whole_words=how.whole_words,
                words=NativeWords(*compiled(how)),
            )
        except ValueError as error:
            raise TokenizerError(f"{self._traits.source}: damaged vocabulary: {error}") from error

    @cached_property
    def _how(self) -> Pretokenizer:
        if self._pre is None:
            raise TokenizerError(
                f"{self._traits.source}: the file does not say how text is cut into words (tokenizer.ggml.pre): give "
                "the model's tokenizer.json as tokenizer=, or convert the model again"
            )
        how = PRETOKENIZERS.get(self._pre)
        if how is None or how.raw:
            raise TokenizerError(
                f"{self._traits.source}: text is cut into words by {self._pre!r}, which is not known here for such a "
                f"vocabulary (known: {', '.join(sorted(PRETOKENIZERS))}): give the model's tokenizer.json as tokenizer="
            )
        return how

    def _encode_stretches(self, stretches: Sequence[Stretch], threads: int) -> Sequence[Sequence[int]]:
        texts = [stretch.text for stretch in stretches]
        if self._how.nfc:
            texts = [unicodedata.normalize("NFC", text) for text in texts]
        return self._merges.encode_batch([text.encode() for text in texts], threads)

    def _bytes_of(self, token: int) -> bytes:
        piece = self._pieces[token]
        if token in self._traits.user_defined:  # written as it stands in text
            return self._traits.user_defined[token].encode()
        try:
            return bytes([BYTE_OF[character] for character in piece])
        except KeyError:  # a piece outside the alphabet, which merges cannot make: the reference shows it as it is
            return piece.encode()

    def _piece(self, token: int) -> str:
        return self._pieces[token]
