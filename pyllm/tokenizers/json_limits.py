"""What in a `tokenizer.json` would have the library take all the memory there is, found before the library is asked.

It is written in Rust, where memory that cannot be had ends the process.
"""

from __future__ import annotations

import math
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any

from pyllm.errors import TokenizerError

#: How many times as long as the text its normalised form may become. Published vocabularies stay below 200.
MOST_GROWTH = 1 << 16


def check_growth(spec: Mapping[str, Any], source: str) -> None:
    """Raises `TokenizerError` where a few characters could become gigabytes on their way to pieces, or back."""
    steps = [*_steps(spec.get("normalizer")), *_steps(spec.get("pre_tokenizer"))]
    for what, way in (("normalisation", steps), ("decoder", list(_steps(spec.get("decoder"))))):
        growth = math.prod(_growth(step, source) for step in way)
        if growth > MOST_GROWTH:
            raise TokenizerError(
                f"{source}: its {what} could make a text {growth:.4g} times as long; {MOST_GROWTH:,} are enough"
            )


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a pipeline, those inside sequences too; the library says what is wrong with others."""
    if isinstance(step, dict):
        yield step
        for key in ("normalizers", "pretokenizers", "decoders"):
            inner = step.get(key)
            for each in inner if isinstance(inner, list) else ():
                yield from _steps(each)


def _growth(step: Mapping[str, Any], source: str) -> float:
    """How many bytes one byte can become at most. An expression may match nothing at all, everywhere."""
    kind, content = step.get("type"), step.get("content")
    if kind == "ByteLevel":
        return 2
    if kind == "Replace" and isinstance(content, str):
        pattern = step.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        written = len(content.encode("utf-8", "replace"))
        return max(written / len(literal.encode("utf-8", "replace")), 1) if literal else 1 + written
    if kind == "Precompiled":
        return _longest_of_table(step.get("precompiled_charsmap"), source)
    return 1


def _longest_of_table(encoded: Any, source: str) -> int:
    """The longest replacement, in bytes, of SentencePiece's table: a trie behind its size, then texts that end in NUL.

    Raises `TokenizerError` where the size is not that of a trie inside the table.
    """
    try:
        table = b64decode(encoded, validate=True)
    except (TypeError, ValueError):
        raise TokenizerError(f"{source}: damaged tokenizer.json: its precompiled_charsmap is no base64") from None
    size = int.from_bytes(table[:4], "little")
    if len(table) < 4 or size % 4 or not 0 < size <= len(table) - 4:
        raise TokenizerError(
            f"{source}: damaged tokenizer.json: a precompiled_charsmap of {len(table)} bytes with a trie of {size}"
        )
    return max(map(len, table[4 + size :].split(b"\0")), default=0) or 1
