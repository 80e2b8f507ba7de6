"""`tokenizer.json` with byte pair merges, without the library: most of the files that language models come with.

What such a file asks for is done in C where all of it is understood; `read` gives None where anything is not, and the
library reads the file. Ids are the same either way.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Stretch
from pyllm.tokenizers.folder import FolderFacts
from pyllm.tokenizers.huggingface import (
    MOST_ADDED,
    NO_FACTS,
    Frame,
    JsonVocabulary,
    added_tokens,
    control_texts,
    json_traits,
    step_types,
)
from pyllm.tokenizers.patterns import Program
from pyllm.tokenizers.pretokenizers import GPT2, PUNCTUATION, MappedBytes, Pretokenizer, compiled
from pyllm.tokenizers.scored import in_one_buffer

if TYPE_CHECKING:
    from pyllm._core import NativeBPE

SPACE = "\u2581"


class _NotUnderstoodError(Exception):
    """The file asks for something that only the library does."""


@dataclass(frozen=True)
class _Prefix:
    """A space before a text. `every`: before each stretch, not the first alone; `always`: even if one is there."""

    every: bool
    always: bool


@dataclass(frozen=True)
class _Plan:
    """What the file asks for. `prefix`: only where pieces are text, in which U+2581 stands for a space."""

    how: Pretokenizer
    prefix: _Prefix | None = None


def read(spec: dict[str, Any], source: str, facts: FolderFacts = NO_FACTS) -> JsonMergesTokenizer | None:
    """The tokenizer, or None where the library is needed. `spec` is `completed` by the facts.

    Raises `TokenizerError` for damaged tables.
    """
    try:
        plan = _read_plan(spec)
        frame = _frame(spec.get("post_processor"))
        added = _checked_added(spec, source, normalises=plan.how.nfc or plan.how.raw)
    except (_NotUnderstoodError, LookupError, TypeError, ValueError, AttributeError, StopIteration, RecursionError):
        return None  # also what has not the shape it should: the library says what is wrong
    return JsonMergesTokenizer(spec, plan, added, frame, source, facts)


class JsonMergesTokenizer(JsonVocabulary):
    """A vocabulary of pieces and merges, most frequent first."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        plan: _Plan,
        added: Sequence[Mapping[str, Any]],
        frame: Frame,
        source: str,
        facts: FolderFacts,
    ) -> None:
        self._plan = plan
        self._model = spec["model"]
        pieces = {token: piece for piece, token in self._model["vocab"].items()}
        pieces |= {token["id"]: token["content"] for token in added}
        control = control_texts(added, spec)
        user_defined = {token["id"]: token["content"] for token in added if token["id"] not in control}
        every = plan.prefix is not None and plan.prefix.every
        traits = json_traits(
            source,
            facts,
            pieces,
            control,
            frame=frame,
            prefix=" " if plan.prefix else "",
            text_starts=frozenset(control) if every else frozenset(),
            user_defined=user_defined,
        )
        super().__init__(added, set(step_types(spec.get("decoder"))), pieces, traits)

    @property
    def how(self) -> Pretokenizer:
        """How a text becomes words."""
        return self._plan.how

    @property
    def prefixed(self) -> bool:
        """Whether a space is put before a text."""
        return self._plan.prefix is not None

    @property
    def merges(self) -> list[str]:
        """The merges as the file has them, two pieces with a space between, the most frequent first."""
        return _spaced(self._model["merges"])

    @cached_property
    def _merges(self) -> NativeBPE:
        from pyllm._core import NativeBPE, NativeWords  # here: decoding works without the extension

        raw, vocabulary = self._plan.how.raw, self._model["vocab"]
        mergeable = np.zeros(self.vocab_size, np.uint8)
        mergeable[list(vocabulary.values())] = 1
        mergeable[list(self.control_ids)] = 0  # so that no text can become one
        byte_ids = np.array([vocabulary[f"<0x{byte:02X}>"] for byte in range(256)], np.int32) if raw else None
        if byte_ids is not None:
            mergeable[byte_ids] = 0
        try:
            return NativeBPE(
                in_one_buffer([self._pieces.get(token, "") for token in range(self.vocab_size)]),
                mergeable,
                merges=in_one_buffer(self._merges_of_text()),
                byte_level=not raw,
                whole_words=self._plan.how.whole_words,
                byte_ids=byte_ids,
                words=None if raw else NativeWords(*compiled(self._plan.how)),
            )
        except ValueError as error:
            raise TokenizerError(f"{self._traits.source}: damaged tokenizer.json: {error}") from error

    def _merges_of_text(self) -> list[str]:
        """The merges, but those that would make control tokens."""
        merges = self.merges
        control = [text for token in self.control_ids if (text := self._pieces[token]) in self._model["vocab"]]
        refused = {f"{text[:cut]} {text[cut:]}" for text in control for cut in range(1, len(text))}
        return [merge for merge in merges if merge not in refused] if refused else merges

    def _encode_stretches(self, stretches: Sequence[Stretch], threads: int) -> Sequence[Sequence[int]]:
        return self._merges.encode_batch([self._to_pieces(stretch).encode() for stretch in stretches], threads)

    def _to_pieces(self, stretch: Stretch) -> str:
        """A stretch in the alphabet of the pieces."""
        text, prefix = stretch.text, self._plan.prefix
        if self._plan.how.nfc:
            text = unicodedata.normalize("NFC", text)
        if not self._plan.how.raw:
            return text
        text = text.replace(" ", SPACE)
        if prefix is None or not (prefix.every or stretch.at_start):
            return text
        return SPACE + text if prefix.always or not text.startswith(SPACE) else text


# ---- the model and the added tokens ----------------------------------------------------------------------------------


def _understood(condition: object) -> None:
    if not condition:
        raise _NotUnderstoodError


def _read_plan(spec: Mapping[str, Any]) -> _Plan:
    model = spec["model"]
    _understood(isinstance(model, dict) and model.get("type") == "BPE" and not model.get("dropout"))
    _understood(not model.get("continuing_subword_prefix") and not model.get("end_of_word_suffix"))
    _check_tables(model)
    kinds = set(step_types(spec.get("decoder")))
    if kinds == {"ByteLevel"}:
        _understood(not model.get("byte_fallback") and model.get("unk_token") is None)
        plan = _Plan(Pretokenizer(tuple(_word_steps(spec.get("pre_tokenizer"))), nfc=_only_nfc(spec.get("normalizer"))))
    else:
        _understood(model.get("byte_fallback") is True and "ByteFallback" in kinds)
        _understood(all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256)))
        plan = _read_raw(spec)
    whole = bool(model.get("ignore_merges"))
    _understood(not (whole and plan.how.raw))  # what a word is there is not what C takes for one
    return replace(plan, how=replace(plan.how, whole_words=whole))


def _check_tables(model: Mapping[str, Any]) -> None:
    """Files of a quarter of a million pieces are no rarity: nothing here is done piece by piece in Python."""
    vocabulary, merges = model.get("vocab"), model.get("merges")
    _understood(isinstance(vocabulary, dict) and vocabulary and isinstance(merges, list))
    assert isinstance(vocabulary, dict)
    assert isinstance(merges, list)
    ids = vocabulary.values()
    _understood(set(map(type, ids)) == {int})
    _understood(min(ids) >= 0 and max(ids) < 2 * len(vocabulary) + MOST_ADDED)
    _understood(len(set(ids)) == len(vocabulary))
    pairs = [merge for merge in merges if type(merge) is list]
    texts = [merge for merge in merges if type(merge) is str]
    _understood(len(pairs) + len(texts) == len(merges))
    _understood(set(map(len, pairs)) <= {2} and "".join(_spaced(pairs)).count(" ") == len(pairs))
    _understood({text.count(" ") for text in texts} <= {1})


def _spaced(merges: list[Any]) -> list[str]:
    """Merges as "LEFT RIGHT", whether the file writes them so or as pairs."""
    return [merge if type(merge) is str else " ".join(merge) for merge in merges]


def _checked_added(spec: Mapping[str, Any], source: str, *, normalises: bool) -> list[dict[str, Any]]:
    added = added_tokens(spec, source)
    vocabulary = spec["model"]["vocab"]
    for token in added:
        token_id, content = token["id"], token["content"]
        _understood(token.get("single_word") is not True and content)
        _understood(not (normalises and token.get("normalized") is not False))
        _understood(0 <= token_id < 2 * len(vocabulary) + MOST_ADDED and vocabulary.get(content, token_id) == token_id)
    _understood(_are_numbered_on(added, vocabulary))
    eats = any(token.get("lstrip") is True or token.get("rstrip") is True for token in added)
    _understood(not (eats and any(token["content"] != token["content"].strip() for token in added)))
    _understood(len({token["id"] for token in added}) == len({token["content"] for token in added}) == len(added))
    return added


def _are_numbered_on(added: Sequence[Mapping[str, Any]], vocabulary: Mapping[str, int]) -> bool:
    """Whether tokens beyond the vocabulary have the ids that the library gives them, whatever their file says."""
    following = len(vocabulary)
    for token in added:
        if token["content"] not in vocabulary:
            if token["id"] != following:
                return False
            following += 1
    return True


def _frame(processor: Any) -> Frame:
    """The ids that the post-processor puts around a text."""
    if processor is None or processor.get("type") == "ByteLevel":
        return (), ()
    if processor.get("type") == "Sequence":
        found = [frame for step in processor["processors"] if (frame := _frame(step)) != ((), ())]
        _understood(len(found) <= 1)
        return found[0] if found else ((), ())
    _understood(processor.get("type") == "TemplateProcessing")
    names = [next(iter(item.values()))["id"] for item in processor["single"]]
    at = names.index("A")
    ids = [_one_id(processor["special_tokens"][name]) for name in names[:at] + names[at + 1 :]]
    return tuple(ids[:at]), tuple(ids[at:])


def _one_id(token: Mapping[str, Any]) -> int:
    ids = token["ids"]
    _understood(len(ids) == 1 and type(ids[0]) is int)
    return int(ids[0])


# ---- byte-level pipelines --------------------------------------------------------------------------------------------


def _only_nfc(normalizer: Any) -> bool:
    """Whether the normaliser is NFC; there may be none."""
    kinds = [step["type"] for step in _flat(normalizer, "normalizers")]
    _understood(kinds in ([], ["NFC"]))
    return bool(kinds)


def _flat(step: Any, key: str) -> Iterator[dict[str, Any]]:
    """The steps of a pipeline, those inside sequences too."""
    if step is None:
        return
    _understood(isinstance(step, dict) and isinstance(step.get("type"), str))
    if step["type"] == "Sequence":
        for inner in step.get(key) or []:
            yield from _flat(inner, key)
    else:
        yield step


def _word_steps(pre_tokenizer: Any) -> Iterator[str | MappedBytes]:
    """Steps as in `Pretokenizer`. What comes behind the mapping of bytes sees mapped bytes."""
    mapped = False
    for step in _flat(pre_tokenizer, "pretokenizers"):
        if step["type"] == "ByteLevel":
            _understood(not mapped and not step.get("add_prefix_space", True))
            mapped = True
            if step.get("use_regex", True):
                yield GPT2
        else:
            pattern = _pattern(step)
            _understood(not mapped or all(character < "\x80" for character in pattern))
            yield MappedBytes(pattern) if mapped else pattern
    _understood(mapped)


def _pattern(step: Mapping[str, Any]) -> str:
    """The pattern at whose matches a step cuts."""
    if step["type"] == "Digits":
        return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    if step["type"] == "Punctuation":
        _understood(step.get("behavior") == "Contiguous")
        return PUNCTUATION + "+"
    _understood(step["type"] == "Split" and step.get("behavior") == "Isolated" and step.get("invert") is False)
    pattern = step["pattern"].get("Regex")
    _understood(isinstance(pattern, str))
    try:
        Program().add(pattern)
    except (ValueError, KeyError, RecursionError):
        raise _NotUnderstoodError from None
    return str(pattern)


# ---- pipelines in which U+2581 stands for a space --------------------------------------------------------------------


def _read_raw(spec: Mapping[str, Any]) -> _Plan:
    how = Pretokenizer((), raw=True)
    normalizer = list(_flat(spec.get("normalizer"), "normalizers"))
    words = list(_flat(spec.get("pre_tokenizer"), "pretokenizers"))
    strips = "Strip" in set(step_types(spec.get("decoder")))
    if not normalizer:
        _understood(len(words) == 1)
        return _Plan(how, _metaspace(words[0]))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    _understood(normalizer[-1] == spaces and not any(_cuts(step) for step in words))
    if len(normalizer) == 1:
        return _Plan(how)
    _understood(normalizer[:-1] == [{"type": "Prepend", "prepend": SPACE}] and strips)
    return _Plan(how, _Prefix(every=True, always=True))


def _cuts(step: Mapping[str, Any]) -> bool:
    """Whether a step cuts text in which there are no spaces any more."""
    return not (step["type"] == "Split" and step.get("pattern") == {"String": " "})


def _metaspace(step: Mapping[str, Any]) -> _Prefix | None:
    _understood(step["type"] == "Metaspace" and step.get("replacement") == SPACE and step.get("split") is False)
    scheme = step.get("prepend_scheme")
    _understood(scheme in ("always", "first", "never"))
    return None if scheme == "never" else _Prefix(every=scheme == "always", always=False)
