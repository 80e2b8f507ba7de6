"""Words before merging: our matcher against the `tokenizers` library's regular expressions, for every name."""

from __future__ import annotations

import time
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from pyllm._core import NativeWords
from pyllm.tokenizers.bytebpe import BYTE_OF
from pyllm.tokenizers.patterns import Program, flat_ranges
from pyllm.tokenizers.pretokenizers import PRETOKENIZERS, MappedBytes, Pretokenizer, Threes, compiled

# One name for each way of cutting.
NAMES = list({how: name for name, how in reversed(PRETOKENIZERS.items()) if how.steps}.values())

# What the digits' steps do, as regular expressions. They take a time that grows with the square of a run's length.
AS_REGEX = {
    Threes(r"\d", "around"): r"\d{1,3}(?=(?:\d{3})*\b)",
    Threes(r"\d", "before"): r"(?=(\d{3})+(?!\d))",
    Threes(r"\p{N}", "after"): r"(?<=\p{N})(?=(?:\p{N}{3})*(?!\p{N}))",
}

ALPHABET = (
    "aAbBsSſtTreEvVmMlLdDzZkK  \t\n\r''’.,;:!?()[]{}<>+-*/=$#@^`|~_%&\"\\0123456789²½Ⅷ٣éÉñßǅʰªøаЯअि漢々〇字仮カー"
    "한ㄱㄅ🦙👍🏽\u200d\ufe0f\u00a0\u3000\u2028\x85、。！？…“‘Ａａ１\x00\x7f\u0301ⓐกကខ𝐀𐐀\U00020000\U0010ffff"
)


@cache
def ours(how: Pretokenizer) -> NativeWords:
    return NativeWords(*compiled(how))


@cache
def theirs(how: Pretokenizer) -> pre_tokenizers.PreTokenizer:
    """The library's own. Falcon's step in mapped bytes runs in the library behind the step that maps them."""
    steps: list[pre_tokenizers.PreTokenizer] = []
    for step in how.steps:
        if isinstance(step, MappedBytes):
            steps += [pre_tokenizers.ByteLevel(False, use_regex=False), pre_tokenizers.Digits(False)]
        else:
            pattern = AS_REGEX[step] if isinstance(step, Threes) else step
            steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    if not any(isinstance(step, MappedBytes) for step in how.steps):
        steps.append(pre_tokenizers.ByteLevel(False, use_regex=False))
    return pre_tokenizers.Sequence(steps)


def words_of_library(how: Pretokenizer, text: str) -> list[bytes]:
    return [bytes(BYTE_OF[character] for character in word) for word, _ in theirs(how).pre_tokenize_str(text)]


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Few different characters, so that they meet in every way."""
    alphabet = draw(st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=8))
    return draw(st.text(st.one_of(st.sampled_from(alphabet), st.sampled_from(ALPHABET)), max_size=40))


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=texts())
def test_words_equal_the_library(text: str) -> None:
    """Every way of cutting sees every text: to think of one takes longer than to cut it."""
    for name in NAMES:
        how = PRETOKENIZERS[name]
        assert ours(how).split(text.encode()) == words_of_library(how, text), name


def test_every_character_is_of_the_library_kind() -> None:
    """All of Unicode, each between letters, digits and spaces, so that its kind decides what is a word."""
    everything = "".join(chr(c) for c in range(0x30000) if not 0xD800 <= c < 0xE000)
    for name, pattern in (("qwen35", "{0}{0}a{0}1 {0}"), ("gpt-4o", "A{0}a"), ("deepseek-v3", "1{0}")):
        for start in range(0, len(everything), 50_000):
            text = " ".join(pattern.format(character) for character in everything[start : start + 50_000 : 7])
            how = PRETOKENIZERS[name]
            assert ours(how).split(text.encode()) == words_of_library(how, text)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpt-2", "it's 123  x", "it|'s| 123| | x"),
        ("smollm", "a 123", "a| |1|2|3"),
        ("llama-bpe", "a 12345's!\n\nB WE'LL x", "a| |123|45|'s|!\n\n|B| WE|'LL| x"),
        ("qwen2", "a 123'S!\n\nB", "a| |1|2|3|'S|!\n\n|B"),
        ("gpt-4o", "helloWorld's 1234//\n", "hello|World's| |123|4|//\n"),
        ("tekken", "helloWorld's 12", "hello|World|'s| |1|2"),
        ("default", "a=1234  b", "a|=|123|4| | b"),
        ("deepseek-v3", "x.y 1234中", "x|.y| |123|4|中"),
        ("deepseek-llm", "ab  \n\n  c  ", "ab|  |\n|\n| | c|  "),
        ("kimi-k2", "中文abc", "中文|abc"),
        ("tiny_aya", "1234567 1234x", "1|234|567| |123|4|x"),
        ("superbpe", "a1234567b", "a|1|234|567|b"),
        ("exaone-moe", "a b c 1", "a b c| |1"),
        ("bloom", "a b|c", "a| b|||c"),
    ],
)
def test_where_the_families_cut(name: str, text: str, words: str) -> None:
    found = ours(PRETOKENIZERS[name]).split(text.encode())
    assert b"|".join(found).decode() == words


def seconds_to_split(words: NativeWords, text: bytes) -> float:
    """Processor time."""
    start = time.thread_time()
    words.split(text)
    return time.thread_time() - start


def grows_with_the_text_alone(words: NativeWords, unit: str) -> bool:
    """Four times the text may take four times as long, and twice that for noise; one that backtracks takes sixteen."""
    short, long = (seconds_to_split(words, (unit * n + "x").encode()) for n in (25_000, 100_000))
    return long < 8 * short + 0.01


@pytest.mark.parametrize("name", NAMES)
def test_time_grows_with_the_text_alone(name: str) -> None:
    """The worst for backtracking are runs that a pattern almost matches."""
    words = ours(PRETOKENIZERS[name])
    for unit in ("a", "A", " ", "1", "\n", " \n", "'", "a ", "\u0301", "中", "!", "1,"):
        assert any(grows_with_the_text_alone(words, unit) for _ in range(3)), unit


def test_any_bytes_are_cut_into_something() -> None:
    for name in NAMES:
        words = ours(PRETOKENIZERS[name])
        for data in (b"\xff\x80a\xe4\xb8", b"\xf0\x9f", b" \xc3", b"\x80\x80 \x80", bytes(range(256))):
            assert b"".join(words.split(data)) == data


@pytest.mark.parametrize(
    "pattern", ["(a)+", "a)", "a(b", "[a", "a{x}", "^a", "a|(?=b", r"\q{", r"[^\S]", "(?:a){2}", "a$"]
)
def test_other_patterns_are_refused(pattern: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        Program().add(pattern)


@pytest.mark.parametrize(
    "pattern", [r"\s*[\r\n]+|\s{4}(?!\S)|\s", "a+b|a", "a+a*b|a", "a++b|a", "a(?=a*b)|a", "a*(?:ab|ac)|a+(?=a*b)|aa?"]
)
@given(text=st.text(alphabet="abc \n", max_size=30))
def test_what_failed_once_is_not_what_succeeds(pattern: str, text: str) -> None:
    """Patterns in which a run that led nowhere is met again, by another way or from another place."""
    program = Program()
    steps = [(0, program.add(pattern))]
    words = NativeWords(steps, program.code, *flat_ranges(program.sets))
    expected = [piece for piece, _ in pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)]
    assert words.split(text.encode()) == [piece.encode() for piece in expected]


def test_programs_that_could_run_away_are_refused() -> None:
    take, split, match = (1, 0, 1, -1, 0), 3, (0, 0, 0, 0, 0)
    sets = [(0, 0, 1, 0, 0)]
    for code in ([take], [(split, 0, 0, 0, 0), match], [(split, 0, 0, 0, 5), match], [(9, 0, 0, 0, 0), match], []):
        with pytest.raises(ValueError, match=r"instruction|program|step"):
            NativeWords([(0, 0)], code, sets, [])
    deep = Program()
    deep.add("(?=" * 9 + "a" + ")" * 9)
    with pytest.raises(ValueError, match="more than 8 groups"):
        NativeWords([(0, 0)], deep.code, *flat_ranges(deep.sets))
    with pytest.raises(ValueError, match="takes of set 1"):
        NativeWords([(0, 0)], [(1, 1, 1, 1, 0), match], sets, [])
    with pytest.raises(ValueError, match="step 0"):
        NativeWords([(0, 7)], [take, match], sets, [])
    with pytest.raises(ValueError, match="ranges beyond"):
        NativeWords([(0, 0)], [take, match], [(0, 0, 1, 0, 1)], [])


def test_flat_ranges() -> None:
    program = Program()
    program.add("[a-c][^xé]")
    rows, ranges = flat_ranges(program.sets)
    assert rows == [(0, 0, 0, 0, 1), (0, 0, 1, 1, 2)]
    assert ranges == [(97, 99), (120, 120), (233, 233)]
