"""Writes `unicode_table.inc`: the kind of every code point, as the `tokenizers` library's regular expressions see it.

    python csrc/text/make_unicode.py > csrc/text/unicode_table.inc        (half a minute)

Word patterns must cut as the library does, whose Unicode version is its own: so the library itself is asked.
"""

from __future__ import annotations

import textwrap

from tokenizers import Regex, pre_tokenizers

# Bit i of a kind's properties is the i-th of these; where `N` stands without `Nd` it is a number of another kind.
PROPERTIES = ["Lu", "Ll", "Lt", "Lm", "Lo", "M", "Nd", "N", "P", "S", "Han", "s", "w"]
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
EVERYTHING = "".join(map(chr, CODE_POINTS))


def members(name: str) -> bytearray:
    """1 for each code point that has the property."""
    pattern = rf"\{name}+" if name in "sw" else rf"\p{{{name}}}+"
    found = bytearray(b"\1" * len(CODE_POINTS))
    for _, (start, end) in pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(EVERYTHING):
        found[start:end] = bytes(end - start)
    return found


def print_array(declaration: str, values: list[int]) -> None:
    """An array of C, in lines of 118 columns."""
    print(f"{declaration} = {{")
    numbers = ", ".join(f"0x{value:X}" for value in values)
    print(textwrap.fill(numbers, 118, initial_indent="    ", subsequent_indent="    "))
    print("};")


def main() -> None:
    """Writes the table to stdout."""
    bits: dict[tuple[int, ...], int] = {}
    runs: list[tuple[int, int]] = []
    for code_point, key in zip(CODE_POINTS, zip(*map(members, PROPERTIES), strict=True), strict=True):
        kind = bits.setdefault(key, len(bits))
        if not runs or runs[-1][1] != kind:
            runs.append((code_point, kind))
    print("/* Made by make_unicode.py; see unicode.h. */")
    print("/* clang-format off */")
    masks = [sum(has << bit for bit, has in enumerate(key)) for key in bits]
    print(f"#define PL_KINDS {len(bits)}")
    print("/* By kind: bit i is set where its characters have property i of " + " ".join(PROPERTIES) + ". */")
    print_array("static const uint16_t KIND_PROPERTIES[PL_KINDS]", masks)
    print("/* The first code point of each run of one kind << 5 | the kind. */")
    print(f"#define PL_RUNS {len(runs)}")
    print_array("static const uint32_t RUNS[PL_RUNS]", [c << 5 | k for c, k in runs])


if __name__ == "__main__":
    main()
