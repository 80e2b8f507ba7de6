"""`PieceMatcher`: finds tokens that stand in text as a whole, such as `<|im_end|>`."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping

from pyllm.errors import TokenizerError

#: Characters. Real whole pieces have a few dozen; a hostile file must not make every look-up a long one.
LONGEST_PIECE = 1024


class PieceMatcher:
    """Cuts texts at whole pieces: the leftmost one, and of those that start there the longest.

    `pieces` maps ids to texts; empty texts are never found, and of ids with one text the lowest is.
    """

    def __init__(self, pieces: Mapping[int, str]) -> None:
        ids = {pieces[token]: token for token in sorted(pieces, reverse=True) if pieces[token]}
        self._texts = sorted(ids)
        self._ids = [ids[text] for text in self._texts]
        self._shorter = _longest_proper_prefixes(self._texts)
        self._longest = max(map(len, self._texts), default=0)
        if self._longest > LONGEST_PIECE:
            raise TokenizerError(f"a control token of {self._longest} characters, more than {LONGEST_PIECE}")
        heads = sorted({re.escape(text[:2]) for text in self._texts}, reverse=True)
        self._heads = re.compile("|".join(heads)) if heads else None

    def split(self, text: str) -> list[str | int]:
        """The text as ids of whole pieces and the non-empty stretches between them."""
        parts: list[str | int] = []
        done = at = 0
        while self._heads and (head := self._heads.search(text, at)):
            at = head.start()
            index = self._longest_at(text, at)
            if index < 0:
                at += 1
                continue
            if at > done:
                parts.append(text[done:at])
            parts.append(self._ids[index])
            done = at = at + len(self._texts[index])
        if done < len(text):
            parts.append(text[done:])
        return parts

    def _longest_at(self, text: str, at: int) -> int:
        """Index of the longest piece that starts at `at`, or -1.

        The last piece not above the text is that piece or begins with it: what lies between a string and its
        extension in sorted order begins with the string too.
        """
        window = text[at : at + self._longest]
        index = bisect_right(self._texts, window) - 1
        while index >= 0 and not window.startswith(self._texts[index]):
            index = self._shorter[index]
        return index


def _longest_proper_prefixes(texts: list[str]) -> list[int]:
    """For each of the sorted texts the index of the longest other one that it begins with, or -1."""
    shorter: list[int] = []
    chain: list[int] = []  # each begins with the one before it
    for index, text in enumerate(texts):
        while chain and not text.startswith(texts[chain[-1]]):
            chain.pop()
        shorter.append(chain[-1] if chain else -1)
        chain.append(index)
    return shorter
