"""Text that remembers where it came from: the way by which words of a message never become control tokens.

Every character that control tokens are made of is replaced, in text from messages, by a stand-in that occurs nowhere
else. Whatever a chat template then does with that text, joining it, cutting it, putting its own text around it, a
control token found in the result is made of the template's own characters alone. `TaggedText` answers the template's
questions (`'</think>' in content`) as if no character had been replaced.
"""

# ruff: noqa: D102  (methods of str mean what they mean there)
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, SupportsIndex

from pyllm.errors import TokenizerError

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_PRIVATE_PATTERN = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")


def private_characters(text: str) -> set[str]:
    """The characters of a text that could be mistaken for stand-ins."""
    return set(_PRIVATE_PATTERN.findall(text))


class Tags:
    """Stand-ins for some characters: private-use ones that are not among those to `avoid`."""

    def __init__(self, characters: Iterable[str], avoid: Iterable[str] = ()) -> None:
        wanted, taken = sorted(set(characters)), {*avoid, *characters}
        free = (c for c in map(chr, chain(*_PRIVATE_USE)) if c not in taken)
        pairs = list(zip(wanted, free, strict=False))
        if len(pairs) < len(wanted):
            raise TokenizerError("no private-use character is left to mark the text of messages with")
        self._hide = {ord(character): stand_in for character, stand_in in pairs}
        self._show = {ord(stand_in): character for character, stand_in in pairs}
        self._stand_ins = re.compile(f"[{''.join(stand_in for _, stand_in in pairs)}]") if pairs else None

    def hide(self, text: str) -> str:
        """The text with stand-ins."""
        return str.translate(text, self._hide)

    def show(self, text: str) -> str:
        """The text with the characters that the stand-ins stand for."""
        return str.translate(text, self._show)

    def text(self, raw: str) -> str:
        """`TaggedText` of text that has stand-ins, and a plain `str` of text that has none."""
        return TaggedText(raw, self) if self._stand_ins and self._stand_ins.search(raw) else raw

    def hide_all(self, value: Any) -> Any:
        """JSON-like data with all its strings hidden. Raises `TypeError` for anything else."""
        return _map_strings(value, lambda text: self.text(self.hide(text)))

    def show_all(self, value: Any) -> Any:
        """JSON-like data with all its strings as they were; what is no such data stays as it is."""
        return _map_strings(value, self.show, strict=False)


def _map_strings(value: Any, function: Callable[[str], str], strict: bool = True) -> Any:
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {_map_strings(k, function, strict): _map_strings(v, function, strict) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_strings(item, function, strict) for item in value]
    if strict and not (value is None or isinstance(value, (bool, int, float))):
        raise TypeError(f"messages and tools hold text, numbers, lists and mappings, not {type(value).__name__}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, TaggedText):
        return value.plain
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


class TaggedText(str):
    """A string with stand-ins. Questions are answered for the text they stand for; parts and sums keep them."""

    _tags: Tags

    def __new__(cls, raw: str, tags: Tags) -> TaggedText:
        self = super().__new__(cls, raw)
        self._tags = tags
        return self

    @property
    def plain(self) -> str:
        """The text without stand-ins."""
        return self._tags.show(self)

    def __repr__(self) -> str:
        return self._tags.hide(repr(self.plain))

    # ---- sums -------------------------------------------------------------------------------------------------------

    def __add__(self, other: str) -> str:
        return self._tags.text(str.__add__(self, other))

    def __radd__(self, other: str) -> str:
        return self._tags.text(str.__add__(other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        return self._tags.text(str.__mul__(self, times))

    __rmul__ = __mul__

    def join(self, parts: Iterable[str], /) -> str:
        return self._tags.text(str.join(self, parts))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:  # between all characters: no part of the text stays together
            return self._tags.text(self._tags.hide(self.plain.replace("", _plain(new), count)))
        return self._tags.text(str.join(new, self.split(old, count)))

    # ---- parts ------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        return self._tags.text(str.__getitem__(self, key))

    def __iter__(self) -> Iterator[str]:
        return (self._tags.text(character) for character in str.__iter__(self))

    def _cut(self, parts: Iterable[str], gap: int = 0) -> list[str]:
        """Our own characters for parts of the plain text that follow each other at a distance of `gap`."""
        cut, at = [], 0
        for part in parts:
            cut.append(self[at : at + len(part)])
            at += len(part) + gap
        return cut

    def strip(self, characters: str | None = None, /) -> str:
        left = len(self) - len(self.plain.lstrip(_plain(characters)))
        return self[left : max(left, len(self.plain.rstrip(_plain(characters))))]

    def lstrip(self, characters: str | None = None, /) -> str:
        return self[len(self) - len(self.plain.lstrip(_plain(characters))) :]

    def rstrip(self, characters: str | None = None, /) -> str:
        return self[: len(self.plain.rstrip(_plain(characters)))]

    def removeprefix(self, prefix: str, /) -> str:
        return self[len(self) - len(self.plain.removeprefix(_plain(prefix))) :]

    def removesuffix(self, suffix: str, /) -> str:
        return self[: len(self.plain.removesuffix(_plain(suffix)))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        parts = self.plain.split(_plain(sep), maxsplit)
        return self._cut_words(parts) if sep is None else self._cut(parts, len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        parts = self.plain.rsplit(_plain(sep), maxsplit)
        return self._cut_words(parts) if sep is None else self._cut(parts, len(sep))

    def _cut_words(self, words: Iterable[str]) -> list[str]:
        """Words with white space between them: no word begins in it, so each is the next one that is found."""
        plain, cut, at = self.plain, [], 0
        for word in words:
            at = plain.index(word, at)
            cut.append(self[at : at + len(word)])
            at += len(word)
        return cut

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._cut(self.plain.splitlines(True))
        bare = self.plain.splitlines()
        return lines if keepends else [line[: len(text)] for line, text in zip(lines, bare, strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, tail = self._cut(self.plain.partition(_plain(sep)))
        return head, middle, tail

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, tail = self._cut(self.plain.rpartition(_plain(sep)))
        return head, middle, tail


# ---- methods that follow a pattern ---------------------------------------------------------------------------------

_QUESTIONS = "__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __hash__ __contains__ startswith endswith find rfind index "
_QUESTIONS += "rindex count isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable "
_QUESTIONS += "isspace istitle isupper encode"
_CASES = "lower upper title capitalize swapcase casefold"


def _question(name: str) -> Callable[..., Any]:
    method = getattr(str, name)

    def ask(self: TaggedText, *args: Any) -> Any:
        return method(self.plain, *map(_plain, args))

    return ask


def _case(name: str) -> Callable[[TaggedText], str]:
    method = getattr(str, name)

    def change(self: TaggedText) -> str:
        """Character by character where the length stays; else all of it counts as text from messages."""
        changed, tags = method(self.plain), self._tags
        if len(changed) != len(self):
            return tags.text(tags.hide(changed))
        pairs = zip(str.__iter__(self), self.plain, changed, strict=True)
        return tags.text("".join(new if own == shown else tags.hide(new) for own, shown, new in pairs))

    return change


for _name in _QUESTIONS.split():
    setattr(TaggedText, _name, _question(_name))
for _name in _CASES.split():
    setattr(TaggedText, _name, _case(_name))
