"""How text is cut into words before byte-level merges, by the name a GGUF file gives (`tokenizer.ggml.pre`).

The names are those llama.cpp writes and reads. The patterns are those of the families' own tokenizer.json where it is
known, else llama.cpp's. Cutting differently gives ids that the model was not trained on, so a name that is not here is
an error, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pyllm.tokenizers.patterns import END, Program, WordPattern, flat_ranges, one_set

# ---- parts of patterns -----------------------------------------------------------------------------------------------

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_MARKS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LINES, _SPACES = r"\s*[\r\n]+", r"\s+(?!\S)|\s+"
_ASCII_MARKS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_SENTENCE_MARKS = ".,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c"

# Cased letters, spelt out by DeepSeek's first models.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_ASIAN_SCRIPTS = (
    "\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0ec0-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff"
)


def _any_of(*alternatives: str) -> str:
    return "|".join(alternatives)


def _cased(upper: str, lower: str, end: str = "") -> str:
    """Words of which only the beginning is in upper case, then words all in upper case."""
    return rf"[^\r\n\p{{L}}\p{{N}}]?[{upper}]*[{lower}]+{end}|[^\r\n\p{{L}}\p{{N}}]?[{upper}]+[{lower}]*{end}"


# ---- steps: each cuts at the matches of its pattern what the step before it left -------------------------------------

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = _any_of(_CONTRACTION, _WORD, r"\p{N}", _MARKS, _LINES, _SPACES)
_LLAMA3 = _any_of(_CONTRACTION, _WORD, r"\p{N}{1,3}", _MARKS, _LINES, _SPACES)
_O200K = _any_of(_cased(_UPPER, _LOWER, _CONTRACTION + "?"), r"\p{N}{1,3}", _MARKS_SLASH, _LINES, _SPACES)
_TEKKEN = _any_of(_cased(_UPPER, _LOWER), r"\p{N}", _MARKS_SLASH, _LINES, _SPACES)
_MARKED_WORD = rf"{_ASCII_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_DEEPSEEK3_WORDS = _any_of(_MARKED_WORD, r" ?[\p{P}\p{S}]+[\r\n]*", _LINES, _SPACES)
_DEEPSEEK3 = (r"\p{N}{1,3}", _HAN_KANA, _DEEPSEEK3_WORDS)
_ASCII_PUNCTUATION = r"[\p{P}$+<=>^`|~]"
_LONG_SPACES = _any_of(*(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)), r"\s{1,2}(?!\S)", r"\s")


@dataclass(frozen=True)
class Threes:
    """A step: runs of digits (of `digits`, a set) in groups of three, counted from the end.

    `cut`: "around" every group, but only where a word ends behind the run; "before" groups of three; or "after" every
    group, also the first, shorter one.
    """

    digits: str
    cut: Literal["around", "before", "after"]


@dataclass(frozen=True)
class MappedBytes:
    """A step: a pattern that is matched against bytes as GPT-2's alphabet writes them, in which some are digits."""

    pattern: str


@dataclass(frozen=True)
class Pretokenizer:
    """How a text becomes words, and what else goes with the name.

    `nfc`: the text is brought to composed form first. `whole_words`: a word that is a piece is not merged together
    from its bytes. `add_bos`: texts begin with BOS where the file is silent. `raw`: pieces are written as text in
    which U+2581 stands for a space, not in the alphabet of bytes.
    """

    steps: tuple[str | Threes | MappedBytes, ...]
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False
    raw: bool = False


_DIGITS_GPT2 = (r"\p{N}", _GPT2)

_KINDS: dict[str, Pretokenizer] = {
    # llama.cpp's own, for files that name none better: no model's
    "default": Pretokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe gigachat a.x-4.0 mellum "
    "jais trillion granite-docling exaone4": Pretokenizer((_GPT2,)),
    "mpt olmo modern-bert": Pretokenizer((_GPT2,), nfc=True),
    "smollm starcoder refact codeshell exaone minerva-7b mellum2": Pretokenizer(_DIGITS_GPT2),
    "command-r": Pretokenizer(_DIGITS_GPT2, nfc=True),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": Pretokenizer(
        (_LLAMA3,), whole_words=True, add_bos=True
    ),
    "dbrx smaug-bpe chatglm-bpe": Pretokenizer((_LLAMA3,)),
    "glm4 glm5": Pretokenizer((_LLAMA3,), whole_words=True),
    "jais-2": Pretokenizer((_any_of(_CONTRACTION, _WORD, r"\p{N}{1,3}", _MARKS, _LINES, _LONG_SPACES),)),
    "minicpm5": Pretokenizer(
        (r"\p{N}{1,3}", _any_of(_CONTRACTION, _WORD, r"\p{N}+", _MARKS, _LINES, _SPACES)), whole_words=True
    ),
    "qwen2 deepseek-r1-qwen kormo f2llmv2": Pretokenizer((_QWEN2,), nfc=True),
    "stablelm2 megrez hunyuan solar-open grok-2": Pretokenizer((_QWEN2,)),
    "qwen35": Pretokenizer(
        (
            _any_of(
                _CONTRACTION,
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                r"\p{N}",
                r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
                _LINES,
                _SPACES,
            ),
        ),
        nfc=True,
    ),
    "ufakzeka": Pretokenizer((_any_of(_WORD, r"\p{N}", _MARKS, _LINES, _SPACES),)),
    "laguna": Pretokenizer((r"[^\n]+|[\n]+", _QWEN2)),
    "seed-coder": Pretokenizer((_any_of(_CONTRACTION, _WORD, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _LINES, _SPACES),)),
    "bailingmoe bailingmoe2 llada-moe": Pretokenizer(
        (
            _any_of(
                r"(?i:'s|'d|'m|'t|'ll|'ve|'re)",
                r"[^\r\n\p{L}\p{N}]?+\p{L}+",
                r"\p{N}",
                r" ?[^\s\p{L}\p{N}]++[\r\n]*",
                r"\s*[\r\n]",
                _SPACES,
            ),
        )
    ),
    "exaone-moe": Pretokenizer(
        (
            _any_of(
                _CONTRACTION,
                r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*+)++",
                r"\p{N}",
                r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
                r"\s*[\r\n]",
                _SPACES,
            ),
        )
    ),
    "deepseek-llm": Pretokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s++(?!\S)",
            _HAN_HANGUL,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": Pretokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL, r"\p{N}")),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": Pretokenizer(_DEEPSEEK3),
    "spark2_5": Pretokenizer(
        (
            r"\p{N}{1,3}",
            _HAN_KANA,
            _any_of(_MARKED_WORD, r" ?[\p{P}\p{S}]+", r"[\r\n]", _SPACES),
            r"\p{N}",
        )
    ),
    "youtu": Pretokenizer(
        (
            "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
            "\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _HAN_KANA,
            _any_of(_cased(_UPPER, _LOWER, _CONTRACTION + "?"), r"\p{N}", _MARKS_SLASH, _LINES, _SPACES),
        ),
        whole_words=True,
    ),
    "falcon": Pretokenizer((_ASCII_PUNCTUATION + "+", _GPT2, MappedBytes(r"\p{N}+"), "[0-9][0-9][0-9]")),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Pretokenizer((_O200K,)),
    "granite-embed-multi-97m": Pretokenizer((_O200K,), whole_words=True),
    "tiny_aya cohere2moe": Pretokenizer((Threes(r"\d", "around"), _O200K)),
    "tekken": Pretokenizer((_TEKKEN,), whole_words=True, add_bos=True),
    "kimi-k2": Pretokenizer(
        (
            _any_of(
                r"\p{Han}+",
                _cased(_UPPER + r"&&[^\p{Han}]", _LOWER + r"&&[^\p{Han}]", _CONTRACTION + "?"),
                r"\p{N}{1,3}",
                _MARKS,
                _LINES,
                _SPACES,
            ),
        )
    ),
    "superbpe": Pretokenizer((r"\p{N}+", Threes(r"\d", "before"))),
    "afmoe": Pretokenizer((Threes(r"\p{N}", "after"), f"[{_ASIAN_SCRIPTS}]+", _DEEPSEEK3_WORDS)),
    "poro-chat bloom gpt3-finnish": Pretokenizer((rf" ?[^(\s|{_SENTENCE_MARKS})]+",)),
    "viking": Pretokenizer((rf" ?[^(\s|{_SENTENCE_MARKS})]+", r"\p{N}")),
    "chameleon": Pretokenizer(
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    "gemma4 granite-embed-multi-311m sarvam-moe": Pretokenizer((), raw=True),
}

PRETOKENIZERS = {name: how for names, how in _KINDS.items() for name in names.split()}


# ---- compiled --------------------------------------------------------------------------------------------------------

# csrc/pyllm_api.h has these numbers.
_CUT, _CUT_BYTES = 0, 1
_CUT_THREES = {"around": 2, "before": 3, "after": 4}


@lru_cache(maxsize=4)
def compiled(how: Pretokenizer) -> WordPattern:
    """The steps as C takes them."""
    program = Program()
    steps: list[tuple[int, int]] = []
    for step in how.steps:
        if isinstance(step, Threes):
            steps.append((_CUT_THREES[step.cut], program.set_number(one_set(step.digits))))
        elif isinstance(step, MappedBytes):
            steps.append((_CUT_BYTES, program.add(step.pattern)))
        else:
            steps.append((_CUT, program.add(step)))
    return WordPattern(steps, program.code or [END], *flat_ranges(program.sets))
