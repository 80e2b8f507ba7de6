"""`Decoder`: token ids to text as they come."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Container


class Decoder:
    """Turns ids into text one by one, holding back bytes that are not yet a whole UTF-8 character.

    What `push` returns, joined, and then `flush`, is what `Tokenizer.decode` gives for the same ids. Bytes that can
    be no character come out as U+FFFD, as `bytes.decode(errors="replace")` has it. One thread at a time.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], prefix: bytes, starts: Container[int]) -> None:
        """`prefix`: what encoding puts before a text, and decoding takes away once. A text begins with the first id
        that adds anything, and after each id in `starts`.
        """
        self._token_bytes = token_bytes
        self._prefix = prefix
        self._starts = starts
        self._at_start = True
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int, /) -> str:
        """The text that `token` completes; "" while a character is incomplete, and for control tokens.

        Raises `ValueError` for an id outside the vocabulary.
        """
        return self._characters.decode(self.take(token))

    def flush(self) -> str:
        """What was held back, at the end of the text; afterwards the decoder is as new."""
        self._at_start = True
        text = self._characters.decode(b"", final=True)
        self._characters.reset()
        return text

    def take(self, token: int) -> bytes:
        """The bytes that `token` adds to the text, whole characters or not. For use without `push`."""
        data = self._token_bytes(token)
        at_start = self._at_start
        self._at_start = token in self._starts or (at_start and not data)
        return data.removeprefix(self._prefix) if at_start else data
