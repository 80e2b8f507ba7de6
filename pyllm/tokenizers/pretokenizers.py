"""How text is cut into words before byte-level merges, by the name a GGUF file gives (`tokenizer.ggml.pre`).

The patterns are those of the families' own tokenizer.json. Cutting differently gives ids that the model was not
trained on, so a name that is not here is an error, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = [rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"]
_SPACES = [r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"]
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_MARKS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


@dataclass(frozen=True)
class Pretokenizer:
    """`pattern`: the regular expression whose matches are the words; None for GPT-2's own.

    `digits`: every digit is cut off first. `nfc`: the text is brought to composed form first. `whole_words`: a word
    that is a piece is not merged together from its bytes. `add_bos`: texts begin with BOS where the file is silent.
    """

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False


_GPT2 = Pretokenizer()
_DIGITS = Pretokenizer(digits=True)
_LLAMA3 = Pretokenizer("|".join([_CONTRACTION, _WORD, r"\p{N}{1,3}", _MARKS, *_SPACES]), whole_words=True, add_bos=True)
_QWEN2 = Pretokenizer("|".join([_CONTRACTION, _WORD, r"\p{N}", _MARKS, *_SPACES]), nfc=True)
_O200K = Pretokenizer("|".join([*(f"{w}{_CONTRACTION}?" for w in _CASED), r"\p{N}{1,3}", _MARKS_SLASH, *_SPACES]))
_TEKKEN = Pretokenizer("|".join([*_CASED, r"\p{N}", _MARKS_SLASH, *_SPACES]), whole_words=True, add_bos=True)

PRETOKENIZERS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "gpt-4o": _O200K,
    "tekken": _TEKKEN,
}
