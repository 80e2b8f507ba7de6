"""Byte-level BPE, GGUF's "gpt2": merges of bytes that are written as printable characters.

Encoding is done by the `tokenizers` library, the reference implementation; it is imported and built by the first
encode. Decoding needs only the table of characters below.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Tokenizer, Traits
from pyllm.tokenizers.library import library_errors
from pyllm.tokenizers.pretokenizers import PRETOKENIZERS, Pretokenizer

if TYPE_CHECKING:
    import tokenizers


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
        self._merges = merges
        self._pre = pre

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        how = self._pretokenizer()
        with library_errors(self._traits.source, "vocabulary"):
            return build_library(self._mergeable(), self._pairs(), how)

    def _pretokenizer(self) -> Pretokenizer:
        if self._pre is None:
            raise TokenizerError(
                f"{self._traits.source}: the file does not say how text is cut into words (tokenizer.ggml.pre): give "
                "the model's tokenizer.json as tokenizer=, or convert the model again"
            )
        if self._pre not in PRETOKENIZERS:
            raise TokenizerError(
                f"{self._traits.source}: text is cut into words by {self._pre!r}, which is not known here (known: "
                f"{', '.join(sorted(PRETOKENIZERS))}): give the model's tokenizer.json as tokenizer="
            )
        return PRETOKENIZERS[self._pre]

    def _mergeable(self) -> dict[str, int]:
        """Pieces that merges may make. Control tokens are left out, so no text can become one."""
        vocabulary = {piece: token for token, piece in enumerate(self._pieces)}
        for token in self.control_ids:
            vocabulary.pop(self._pieces[token], None)
        return vocabulary

    def _pairs(self) -> list[tuple[str, str]]:
        pairs: list[tuple[str, str]] = []
        for number, merge in enumerate(self._merges):
            left, space, right = merge.partition(" ")
            if not (left and space and right):
                raise TokenizerError(f"{self._traits.source}: merge {number} is {merge!r}, expected two pieces")
            pairs.append((left, right))
        return pairs

    def _encode_stretch(self, text: str, at_start: bool) -> list[int]:
        library = self._library
        with library_errors(self._traits.source, "vocabulary"):
            ids: list[int] = library.encode(text, add_special_tokens=False).ids
        return ids

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


def build_library(vocabulary: dict[str, int], merges: list[tuple[str, str]], how: Pretokenizer) -> tokenizers.Tokenizer:
    """The library's tokenizer for a vocabulary without whole pieces."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    library = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=how.whole_words))
    steps: list[pre_tokenizers.PreTokenizer] = []
    if how.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if how.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(how.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=how.pattern is None))
    library.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if how.nfc:
        library.normalizer = normalizers.NFC()
    return library
