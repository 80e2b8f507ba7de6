"""Regular expressions for words, compiled for the matcher in `csrc/text/words.c`.

Only what the families' patterns need: sets of characters, `|`, groups, `?`, `*`, `+`, `{n,m}` of a set, `?` of a
group, look-ahead, groups that ignore case, and possessive `*+`, `++`, which give nothing back. What is written means
what it means to Oniguruma, which the `tokenizers` library uses. Anything else is a `ValueError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

# csrc/pyllm_api.h has these numbers.
MATCH, TAKE, KEEP, SPLIT, JUMP, AHEAD, NOT_AHEAD, REPEAT = range(8)

# In the order of csrc/text/make_unicode.py: the bits of a property mask.
_NAMES = ["Lu", "Ll", "Lt", "Lm", "Lo", "M", "Nd", "N", "P", "S", "Han", "s", "w"]
PROPERTY = {name: 1 << bit for bit, name in enumerate(_NAMES)}
PROPERTY["L"] = sum(PROPERTY[name] for name in ("Lu", "Ll", "Lt", "Lm", "Lo"))

_ESCAPES = {"r": "\r", "n": "\n", "t": "\t"}
_SAME_CASE = {"s": "sS\u017f", "k": "kK\u212a"}  # letters of three cases


@dataclass(frozen=True)
class CharSet:
    """Characters with a property of `has` and none of `lacks`, and those in `ranges`; or, negated, all others."""

    has: int = 0
    lacks: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    negated: bool = False

    def __or__(self, other: CharSet) -> CharSet:
        if self.negated or other.negated or (self.lacks and other.has) or (other.lacks and self.has):
            raise ValueError("such a union of sets is not known here")
        return CharSet(self.has | other.has, self.lacks | other.lacks, self.ranges + other.ranges)

    def __and__(self, other: CharSet) -> CharSet:
        r"""Only of the form `[...&&[^\p{..}]]`."""
        if not other.negated or other.ranges or other.lacks or self.ranges or self.negated:
            raise ValueError("such an intersection of sets is not known here")
        return replace(self, lacks=self.lacks | other.has)


END = (MATCH, 0, 0, 0, 0)


class WordPattern(NamedTuple):
    """What C is given: steps (kind, first instruction or set), the code and the sets of all, and the sets' ranges."""

    steps: list[tuple[int, int]]
    code: list[tuple[int, int, int, int, int]]
    sets: list[tuple[int, int, int, int, int]]
    ranges: list[tuple[int, int]]


@dataclass
class Program:
    """Instructions (op, set, least, most, target), the sets they name, and for each pattern where it begins."""

    code: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    sets: list[CharSet] = field(default_factory=list)

    def add(self, pattern: str) -> int:
        """Compiles a pattern; gives the number of its first instruction."""
        start = len(self.code)
        _Compiler(pattern, self).compile()
        return start

    def set_number(self, characters: CharSet) -> int:
        """The number of a set."""
        if characters not in self.sets:
            self.sets.append(characters)
        return self.sets.index(characters)

    def emit(self, op: int, *, set: int = 0, least: int = 0, most: int = 0) -> int:
        """Appends an instruction without target; gives its number."""
        self.code.append((op, set, least, most, 0))
        return len(self.code) - 1

    def land(self, number: int) -> None:
        """Makes the next instruction the target of an earlier one."""
        self.code[number] = (*self.code[number][:4], len(self.code))


class _Compiler:
    """One pass from left to right: what was read is emitted at once."""

    def __init__(self, pattern: str, program: Program) -> None:
        self._text = pattern
        self._at = 0
        self._program = program
        self._any_case = False

    def compile(self) -> None:
        self._alternatives()
        if self._at < len(self._text):
            raise self._error("a ) that closes nothing")
        self._program.emit(MATCH)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _error(self, flaw: str) -> ValueError:
        return ValueError(f"{flaw} at {self._at} of the pattern {self._text!r}")

    def _take(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _need(self, text: str) -> None:
        if not self._take(text):
            raise self._error(f"no {text}")

    def _next(self) -> str:
        if self._at == len(self._text):
            raise self._error("nothing more")
        self._at += 1
        return self._text[self._at - 1]

    # ---- alternatives and what they consist of ----------------------------------------------------------------------

    def _alternatives(self) -> None:
        """`A|B|C`: each alternative but the last jumps over those behind it. The split is put in afterwards."""
        jumps: list[int] = []
        while True:
            start = len(self._program.code)
            self._sequence()
            if not self._take("|"):
                break
            self._insert_split(start)
            jumps.append(self._program.emit(JUMP))
            self._program.land(start)
        for jump in jumps:
            self._program.land(jump)

    def _sequence(self) -> None:
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            if self._take("("):
                self._group()
            else:
                self._repeated(self._one_set())

    def _insert_split(self, start: int) -> None:
        """Puts a SPLIT before the instructions from `start` on, which move by one."""
        code = self._program.code
        code[start:] = [(*i[:4], i[4] + 1 if i[4] else 0) for i in code[start:]]
        code.insert(start, (SPLIT, 0, 0, 0, 0))

    # ---- groups -----------------------------------------------------------------------------------------------------

    def _group(self) -> None:
        if self._take("?=") or self._take("?!"):
            start = self._program.emit(AHEAD if self._text[self._at - 1] == "=" else NOT_AHEAD)
            self._alternatives()
            self._need(")")
            self._close(start)
            return
        before, self._any_case = self._any_case, self._take("?i:") or self._any_case
        if not self._any_case:
            self._take("?:")
        start = len(self._program.code)
        self._alternatives()
        self._need(")")
        self._any_case = before
        if self._take("*+") or self._take("++"):
            self._insert_repeat(start, least=int(self._text[self._at - 2] == "+"))
        elif self._take("?"):
            self._insert_split(start)
            self._program.land(start)
        elif self._at < len(self._text) and self._text[self._at] in "*+{":
            raise self._error("a group repeated otherwise than by ?, *+ or ++")

    def _insert_repeat(self, start: int, least: int) -> None:
        self._insert_split(start)
        self._program.code[start] = (REPEAT, 0, least, -1, 0)
        self._close(start)

    def _close(self, start: int) -> None:
        self._program.emit(MATCH)
        self._program.land(start)

    # ---- sets -------------------------------------------------------------------------------------------------------

    def _repeated(self, characters: CharSet) -> None:
        least, most = 1, 1
        if self._take("{"):
            least, most = self._bounds()
        elif self._at < len(self._text) and self._text[self._at] in "?*+":
            least, most = {"?": (0, 1), "*": (0, -1), "+": (1, -1)}[self._next()]
        op = KEEP if (least, most) == (1, 1) or self._take("+") else TAKE
        self._program.emit(op, set=self._program.set_number(characters), least=least, most=most)

    def _bounds(self) -> tuple[int, int]:
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at : end].partition(",")
        if end < 0 or not low.isdigit() or (high and not high.isdigit()):
            raise self._error("no {n} or {n,m}")
        self._at = end + 1
        return int(low), int(high) if high else -1 if comma else int(low)

    def _one_set(self) -> CharSet:
        character = self._next()
        if character == "[":
            return self._bracketed()
        if character == "\\":
            return self._escaped()
        if character in "^$.?*+{":
            raise self._error(f"{character}, which is not known here,")
        return self._literal(character)

    def _literal(self, character: str) -> CharSet:
        forms = character
        if self._any_case and character.isalpha():
            forms = _SAME_CASE.get(character.lower(), character.lower() + character.upper())
        return CharSet(ranges=tuple((ord(form), ord(form)) for form in forms))

    def _escaped(self) -> CharSet:
        character = self._next()
        if character == "p":
            self._need("{")
            end = self._text.index("}", self._at)
            name, self._at = self._text[self._at : end], end + 1
            return CharSet(has=PROPERTY[name])
        if character in "sSd":
            return CharSet(has=PROPERTY["Nd" if character == "d" else "s"], negated=character == "S")
        return self._literal(_ESCAPES.get(character, character))

    def _bracketed(self) -> CharSet:
        """Behind a `[`: members, ranges, other brackets, and `&&[^...]`."""
        negated = self._take("^")
        found = CharSet()
        while not self._take("]"):
            if self._take("&&"):
                self._need("[")
                found = found & self._bracketed()
            elif self._take("["):
                found = found | self._bracketed()
            else:
                found = found | self._member()
        return replace(found, negated=negated)

    def _member(self) -> CharSet:
        """A character, a range or a property."""
        first = self._escaped() if self._take("\\") else CharSet(ranges=((ord(c := self._next()), ord(c)),))
        ends_here = self._text[self._at : self._at + 2] == "-]" or not first.ranges
        if ends_here or not self._take("-"):
            return first
        last = self._escaped() if self._take("\\") else CharSet(ranges=((ord(c := self._next()), ord(c)),))
        return CharSet(ranges=((first.ranges[0][0], last.ranges[0][0]),))


def one_set(pattern: str) -> CharSet:
    """The set that a pattern of one set stands for."""
    program = Program()
    program.add(pattern)
    return program.sets[0]


def flat_ranges(sets: Sequence[CharSet]) -> tuple[list[tuple[int, int, int, int, int]], list[tuple[int, int]]]:
    """Sets as C takes them, (has, lacks, negated, first range, number of ranges), and the ranges of all."""
    rows: list[tuple[int, int, int, int, int]] = []
    ranges: list[tuple[int, int]] = []
    for one in sets:
        rows.append((one.has, one.lacks, int(one.negated), len(ranges), len(one.ranges)))
        ranges += one.ranges
    return rows, ranges
