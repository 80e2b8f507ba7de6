"""`Grammar`: what a generated text may look like, and the sampler that keeps to it. Works through `llguidance`."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pyllm.errors import GrammarError, MissingLibraryError, TokenizerError

if TYPE_CHECKING:
    from typing import TypeGuard

    from pyllm.generation import Draw, Logits
    from pyllm.sampling import SamplerState
    from pyllm.tokenizers import Tokenizer

#: Compiled grammars that are kept for each tokenizer.
MOST_COMPILED = 64
#: What makes llguidance's grammar of each kind.
_MAKERS = {"json_schema": "grammar_from_json_schema", "regex": "grammar_from_regex", "lark": "grammar_from_lark"}
#: JSON as `json.dumps` writes it.
_TIGHT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Grammar:
    """Which texts may be generated, for `generate(grammar=...)`. Immutable: use one in any number of calls and threads.

    Made by `json_schema`, `regex` or `lark`, which raise `GrammarError` (a `ValueError`) with llguidance's message for
    what it does not understand, and `MissingLibraryError` (an `ImportError`) where it is not installed
    (`pip install "pyllm[structured]"`). It is compiled for a model when first used with it.

    A text that ends by itself (`finish_reason` "stop", without a stop string) is one of the grammar's, whole: while it
    is not complete the model cannot end it, and once nothing can follow it must. A text that `max_tokens`, the context
    or a stop string cuts is the beginning of one. Of a grammar whose texts begin with a space, that space is lost where
    a vocabulary puts one before each text and takes it away again (SentencePiece).
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str

    def __post_init__(self) -> None:
        if self.kind not in _MAKERS:
            raise GrammarError(f"kind must be one of {', '.join(_MAKERS)}, not {self.kind!r}")
        failed, messages = _llguidance().LLMatcher.validate_grammar_with_warnings(self._definition)
        if failed:
            raise GrammarError(f"{self.kind}: {messages[0].strip()}")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str | type, *, whitespace: bool = False) -> Grammar:
        """JSON that a schema describes.

        `schema`: a JSON Schema as a mapping or as JSON text, or a pydantic model class, whose own fields are then the
        only ones unless it allows others; a schema allows them unless it says not to. `whitespace`: allow any white
        space that JSON allows; False: one space after each comma and colon, as `json.dumps` writes. Keywords that
        llguidance does not know are an error, except where the schema says `"x-guidance": {"lenient": true}`. It keeps
        numbers as doubles: integers beyond 2**53 are an error in `const` and `enum`, and a bound between two doubles is
        the nearer one that it allows. An exclusive bound that is whole and less than 1 from the other one, in the same
        schema, moves by about a millionth of that distance.
        """
        if isinstance(schema, type):
            schema = _pydantic_schema(schema)
        try:
            found = json.loads(schema) if isinstance(schema, str) else schema
            options = {} if whitespace else _TIGHT
            if isinstance(found, Mapping):
                found = _as_doubles(found)
                found = {**found, "x-guidance": {**options, **found.get("x-guidance", {})}}
            return cls("json_schema", json.dumps(found))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, GrammarError):
                raise
            raise GrammarError(f"json_schema: the schema is no JSON: {error}") from error

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Texts that a regular expression matches as a whole, in the syntax of Rust's `regex`, without anchors."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, source: str) -> Grammar:
        """Texts that a grammar in Lark's notation derives from `start`, as llguidance understands it.

        `<|name|>` stands for that control token, which is allowed nowhere else.
        """
        return cls("lark", source)

    @cached_property
    def _definition(self) -> str:
        """The grammar as llguidance's matcher takes it."""
        matcher = _llguidance().LLMatcher
        try:
            return str(getattr(matcher, _MAKERS[self.kind])(self.source))
        except (TypeError, ValueError) as error:
            raise GrammarError(f"{self.kind}: {error}") from error


def grammar_of(given: Grammar | Mapping[str, Any] | type | None) -> Grammar | None:
    """What `grammar=` takes: a `Grammar`, or short for one of JSON a schema or a pydantic class."""
    if given is None or isinstance(given, Grammar):
        return given
    if isinstance(given, (Mapping, type)):
        return Grammar.json_schema(given)
    raise TypeError(
        "grammar must be a JSON Schema, a pydantic model class, or made by Grammar.json_schema, Grammar.regex or "
        f"Grammar.lark, not {type(given).__name__}"
    )


class GrammarDraw:
    """A sampler that can only draw what a grammar allows next. For one text."""

    def __init__(self, sampler: SamplerState, matcher: Any) -> None:
        self._sampler = sampler
        self._matcher = matcher  # llguidance's, where the text stands

    @property
    def seed(self) -> int:
        """The sampler's."""
        return self._sampler.seed

    def draw(self, logits: Logits, history: Sequence[int] = ()) -> int:
        """A token id from logits (vocab,)."""
        token = self._favourite(logits, history) if self._sampler.greedy else None
        if token is None:
            allowed = self._matcher.compute_bitmask()
            self._check()
            token = self._sampler.draw(logits, history, allowed)
        self._matcher.consume_token(token)
        self._check()
        return token

    def _favourite(self, logits: Logits, history: Sequence[int]) -> int | None:
        """The most probable token of all, if the grammar allows it: then it is also the most probable of those that it
        allows, and to ask about one token is far cheaper than about all.
        """
        if self._matcher.compute_ff_tokens():  # the next one is forced, and text that could be cut otherwise too is not
            return None
        token = self._sampler.draw(logits, history)
        return token if self._matcher.validate_tokens([token]) == 1 else None

    def _check(self) -> None:
        """Raise what llguidance has to say: for a grammar that became too complex to follow."""
        if self._matcher.is_error():
            raise GrammarError(f"the grammar cannot be followed further: {self._matcher.get_error().strip()}")


# ---- JSON schemas ----------------------------------------------------------------------------------------------------

#: Beyond this not every integer is a double.
_EXACT = 2**53
#: Keywords whose value has a schema for each name, which may look like a keyword.
_BY_NAME = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}
#: Which way a bound may move: inwards.
_INWARDS = {"minimum": math.inf, "exclusiveMinimum": math.inf, "maximum": -math.inf, "exclusiveMaximum": -math.inf}
#: Exclusive bounds, and what may stand opposite.
_OPPOSITE = {"exclusiveMinimum": ("maximum", "exclusiveMaximum"), "exclusiveMaximum": ("minimum", "exclusiveMinimum")}
#: By how many decimals less than its distance to the other one such a bound moves.
_DECIMALS = 6


def _as_doubles(schema: Any) -> Any:
    """A schema whose numbers survive being doubles, as llguidance keeps them; `GrammarError` for one that cannot."""
    if isinstance(schema, Mapping):
        return {key: _value_as_doubles(key, value) for key, value in _narrowed(schema).items()}
    return [_as_doubles(item) for item in schema] if isinstance(schema, (list, tuple)) else schema


def _narrowed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema with exclusive bounds that hold.

    llguidance writes a whole one that is less than 1 from the other: 0 for more than 0 and at most 0.5. Only bounds
    side by side are seen, not those of `allOf`.
    """
    moved = {}
    for keyword, opposite in _OPPOSITE.items():
        bound = schema.get(keyword)
        if not _is_number(bound) or bound != int(bound):
            continue
        gaps = [abs(other - bound) for other in map(schema.get, opposite) if _is_number(other)]
        if gaps and 0 < min(gaps) < 1:
            step = max(10.0 ** (math.floor(math.log10(min(gaps))) - _DECIMALS), math.ulp(bound))
            if step < min(gaps):
                moved[keyword] = bound + math.copysign(step, _INWARDS[keyword])
    return {**schema, **moved}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _value_as_doubles(keyword: str, value: Any) -> Any:
    """The value of one keyword."""
    if keyword in _BY_NAME and isinstance(value, Mapping):
        return {name: _as_doubles(inner) for name, inner in value.items()}
    if keyword in _INWARDS and isinstance(value, int) and abs(value) > _EXACT:
        return _moved(value, _INWARDS[keyword])
    if keyword in ("const", "enum"):
        _refuse_inexact(keyword, value)
        return value
    return _as_doubles(value)


def _moved(bound: int, inwards: float) -> int:
    """The double nearest to a bound that is not outside it."""
    near = float(bound)
    outside = near < bound if inwards > 0 else near > bound
    return int(math.nextafter(near, inwards) if outside else near)


def _refuse_inexact(keyword: str, value: Any) -> None:
    """Raise for an integer that would be written as another one."""
    if isinstance(value, int) and abs(value) > _EXACT:
        raise GrammarError(f"json_schema: {keyword} has {value}: integers are exact up to 2**53 only")
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        _refuse_inexact(keyword, item)


# ---- compiling -------------------------------------------------------------------------------------------------------


class _Vocabulary:
    """A tokenizer as llguidance wants it, and the grammars compiled for it."""

    def __init__(self, tokenizer: Tokenizer, size: int, ends: frozenset[int]) -> None:
        library = _llguidance()
        described = library.TokenizerWrapper(_Described(tokenizer, size, ends))
        self.tokenizer = library.LLTokenizer(described, eos_token=sorted(ends))
        self.matchers: dict[Grammar, Any] = {}

    def matcher(self, grammar: Grammar) -> Any:
        """A new matcher at the start of a text."""
        compiled = self.matchers.get(grammar)
        if compiled is None:
            library = _llguidance()
            limits = library.LLParserLimits(verbose_errors=False)  # a sentence will do
            compiled = library.LLMatcher(self.tokenizer, grammar._definition, log_level=0, limits=limits)
            if compiled.is_error():
                raise GrammarError(f"{grammar.kind}: {compiled.get_error().strip()}")
            while len(self.matchers) >= MOST_COMPILED:  # threads may race here: at worst something is compiled again
                self.matchers.pop(next(iter(self.matchers), grammar), None)
            self.matchers[grammar] = compiled
        return compiled.deep_copy()


class _Described:
    """What llguidance asks of a tokenizer: the bytes of each token, and how text becomes tokens."""

    def __init__(self, tokenizer: Tokenizer, size: int, ends: frozenset[int]) -> None:
        known = range(min(size, tokenizer.vocab_size))  # a tokenizer may have tokens that the model lacks, or lack some
        special = (tokenizer.control_ids | ends).intersection(known)
        self.special_token_ids = sorted(special)
        self.eos_token_id, self.bos_token_id = min(ends), tokenizer.bos_id
        self.tokens = [
            tokenizer.special_text(token).encode() if token in special else tokenizer.token_bytes(token)
            for token in known
        ]
        self.tokens += [b""] * (size - len(self.tokens))
        self._tokenizer = weakref.proxy(tokenizer)  # this is kept for as long as the tokenizer lives

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text in the middle of another: `_BEFORE` is no token, and stands where one would."""
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        ids: list[int] = self._tokenizer.encode_after(_BEFORE, text)
        if max(ids, default=0) >= len(self.tokens):
            ids = self._tokenizer.encode_parts([_BEFORE, text])[1:]
        return ids


_BEFORE = -1

#: By tokenizer, then by size of the vocabulary and the ids that end a text.
_vocabularies: weakref.WeakKeyDictionary[Tokenizer, dict[tuple[int, frozenset[int]], _Vocabulary]]
_vocabularies = weakref.WeakKeyDictionary()


def constrained(
    sampler: SamplerState, grammar: Grammar, tokenizer: Tokenizer | None, vocab_size: int, ends: frozenset[int]
) -> Draw:
    """`sampler` kept to `grammar`, for one text of a model with `vocab_size` logits whose texts end at `ends`."""
    if tokenizer is None:
        raise TokenizerError("a grammar needs a tokenizer, and this model has none: give load() a tokenizer=")
    ends = frozenset(end for end in ends if end < vocab_size)
    if not ends:
        raise TokenizerError("a grammar needs a token that ends a text, and this model's vocabulary names none")
    known = _vocabularies.setdefault(tokenizer, {})
    key = vocab_size, ends
    if key not in known:
        known[key] = _Vocabulary(tokenizer, vocab_size, ends)
    return GrammarDraw(sampler, known[key].matcher(grammar))


def _llguidance() -> Any:
    try:
        import llguidance  # here: an extra
    except ImportError as error:
        raise MissingLibraryError(
            f'a grammar needs the llguidance library ({error}): pip install "pyllm[structured]"'
        ) from error
    return llguidance


def _pydantic_schema(model: type) -> dict[str, Any]:
    """The schema of a pydantic model class, whose objects have no other fields than it, unless it allows them."""
    make = getattr(model, "model_json_schema", None)
    if make is None:
        raise TypeError(f"{model.__qualname__} is no pydantic model class: it has no model_json_schema()")
    from pydantic.json_schema import GenerateJsonSchema  # the caller has it

    def closed(kind: str) -> Callable[[Any, Any], dict[str, Any]]:
        return lambda self, schema: {"additionalProperties": False, **getattr(GenerateJsonSchema, kind)(self, schema)}

    kinds = ("model_schema", "dataclass_schema", "typed_dict_schema")
    schema: dict[str, Any] = make(schema_generator=type("Closed", (GenerateJsonSchema,), {k: closed(k) for k in kinds}))
    return schema
