"""Structured output: every text is one of the grammar's, and only the grammar's choice is taken from the model."""

from __future__ import annotations

import gc
import json
import pickle
import re
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jsonschema
import llguidance
import numpy as np
import pydantic
import pytest
from bits import Array
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinygguf import Q8_0, Shape, llama_metadata, llama_tensors, tiny_llama, tiny_vocabulary, write_gguf

import pyllm
from pyllm import Grammar, GrammarError, Sampler
from pyllm.grammar import MOST_COMPILED, GrammarDraw, _vocabularies, _Vocabulary, constrained

PROMPT = [5, 6, 7]
SHAPE = Shape(context=2048)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pyllm.Model]:
    """Random weights: it wants anything but JSON. Every byte is a token, and letters and pairs are others."""
    with pyllm.load(tiny_llama(tmp_path_factory.mktemp("grammar") / "tiny.gguf", Q8_0, SHAPE)) as model:
        yield model


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(smollm2) as model:
        yield model


class Animal(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=1, max_length=12)
    legs: int = pydantic.Field(ge=0, le=100)
    kind: Literal["mammal", "bird", "fish"]
    tame: bool


# ---- every output parses -------------------------------------------------------------------------------------------


exact = st.integers(-(2**53), 2**53)
names = st.text('abcXYZ_ é"\\', min_size=1, max_size=4)
leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.tuples(st.integers(-500, 500), st.integers(0, 10**6)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
    ),
    st.tuples(st.integers(0, 4), st.integers(0, 6)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": pair[0] + pair[1]}
    ),
    st.lists(st.none() | st.booleans() | exact | names, min_size=1, max_size=4).map(lambda v: {"enum": v}),
    names.map(lambda value: {"const": value}),
    st.sampled_from(["[a-z]{2,5}", "(é|日本|🦙){1,3}", r"\d{4}-\d{2}"]).map(
        lambda pattern: {"type": "string", "pattern": f"^{pattern}$"}
    ),
)


def arrays(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(items, st.integers(0, 2), st.integers(0, 2)).map(
        lambda t: {"type": "array", "items": t[0], "minItems": t[1], "maxItems": t[1] + t[2]}
    )


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(names, values, max_size=3).flatmap(
        lambda properties: (
            st.lists(st.sampled_from(sorted(properties)), unique=True).map(
                lambda required: {
                    "type": "object",
                    "properties": properties,
                    "required": required,
                    "additionalProperties": False,
                }
            )
            if properties
            else st.just({"type": "object", "additionalProperties": False})
        )
    )


schemas = st.recursive(leaves, lambda inner: st.one_of(arrays(inner), objects(inner)), max_leaves=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas, seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 1.0]))
def test_every_output_is_what_the_schema_describes(
    tiny: pyllm.Model, schema: dict[str, Any], seed: int, temperature: float
) -> None:
    """Everything in these schemas is bounded, so the text must end by itself."""
    sampler = Sampler(temperature=temperature, top_p=1.0)
    reply = tiny.generate(PROMPT, max_tokens=None, grammar=schema, sampler=sampler, seed=seed)
    value = json.loads(reply.text)
    assert reply.finish_reason == "stop"
    jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize(
    "schema",
    [{"const": 2**53 + 1}, {"enum": [0, {"a": [-(2**63)]}]}, {"not": {"const": 2**60}}, {"maximum": 10**400}],
)
def test_an_integer_that_is_no_double_is_refused(schema: dict[str, Any]) -> None:
    """llguidance would write another one: 9007199254740992 for 9007199254740993."""
    with pytest.raises(GrammarError, match=r"exact up to 2\*\*53 only|too large"):
        Grammar.json_schema(schema)


@pytest.mark.parametrize(
    ("low", "high"),
    [(2**53 + 1, 2**53 + 3), (2**63 - 2000, 2**63 - 1), (-(2**63) + 1, -(2**63) + 2000), (-5, 2**63 - 1)],
)
def test_bounds_beyond_what_doubles_hold(tiny: pyllm.Model, low: int, high: int) -> None:
    """Of 64 bits, say: nothing outside them is written."""
    number = {"type": "integer", "minimum": low, "maximum": high}
    schema = {"type": "object", "properties": {"const": number}, "required": ["const"], "additionalProperties": False}
    grammar = Grammar.json_schema(schema)
    for seed in range(8):
        reply = tiny.generate(PROMPT, max_tokens=None, grammar=grammar, seed=seed, sampler=Sampler(top_p=1.0))
        assert low <= json.loads(reply.text)["const"] <= high


wholes, parts = st.integers(-3, 3), st.sampled_from([0, 1e-10, 2**-20, 1 / 8, 0.5, 7 / 8, 1, 1.5, 2])
NUMBERS = [f"{sign}{n}{end}" for sign in ("", "-") for n in range(5) for end in ("", ".0", ".125", ".5", ".00000001")]


@settings(max_examples=60, deadline=None)
@given(
    lower=st.sampled_from(["minimum", "exclusiveMinimum"]),
    upper=st.sampled_from(["maximum", "exclusiveMaximum"]),
    whole=wholes,
    part=parts,
    sign=st.sampled_from([-1, 1]),
)
def test_bounds_of_numbers(lower: str, upper: str, whole: int, part: float, sign: int) -> None:
    """llguidance itself writes 0 for more than 0 and at most 0.5."""
    low, high = sorted([whole, whole + sign * part])
    schema = {"type": "number", lower: low, upper: high}
    try:
        accepted = derived(Grammar.json_schema(schema), NUMBERS)
    except GrammarError:  # nothing lies between
        accepted = []
    validator = jsonschema.Draft202012Validator(schema)
    assert [text for text in accepted if not validator.is_valid(json.loads(text))] == []
    inside = [text for text in NUMBERS if low + part / 1000 <= float(text) <= high - part / 1000]
    assert [text for text in inside if text not in accepted and not text.endswith("0") and part] == []


def derived(grammar: Grammar, texts: Sequence[str]) -> list[str]:
    """Those that are texts of the grammar."""
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(tokenizer, grammar._definition)
    found = []
    for text in texts:
        tokens = tokenizer.tokenize_str(text)
        if matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting():
            found.append(text)
        matcher.reset()
    return found


def test_white_space(tiny: pyllm.Model) -> None:
    """As json.dumps has it, or as the model likes it."""
    value = {"a": [1, {"b": None}, "c, d: e"], "f": {}}
    schema = {"const": value}
    assert tiny.generate(PROMPT, grammar=schema, max_tokens=None).text == json.dumps(value)
    loose = Grammar.json_schema(schema, whitespace=True)
    texts = [tiny.generate(PROMPT, grammar=loose, max_tokens=None, seed=seed).text for seed in range(3)]
    assert all(json.loads(text) == value for text in texts)
    assert len(set(texts)) == 3


@pytest.mark.parametrize(
    "pattern",
    [r"[0-9]{3}-[0-9]{4}", "(yes|no|maybe)", "(é|ü|日本|🦙){5}", r"a(bc)*d?", "x{40}", r"[^a-z\n]{1,9}!"],
)
def test_regular_expressions(tiny: pyllm.Model, pattern: str) -> None:
    """Characters of several bytes are put together from tokens that are one byte each."""
    grammar = Grammar.regex(pattern)
    for seed in range(5):
        reply = tiny.generate(PROMPT, max_tokens=None, grammar=grammar, sampler=Sampler(top_p=1.0), seed=seed)
        assert re.fullmatch(pattern, reply.text)
        assert reply.finish_reason == "stop"


def test_a_lark_grammar(tiny: pyllm.Model) -> None:
    grammar = Grammar.lark('start: sum ";"\nsum: NUMBER | "(" sum "+" sum ")"\nNUMBER: /[0-9]{1,3}/')
    texts = {tiny.generate(PROMPT, max_tokens=500, grammar=grammar, seed=seed).text for seed in range(8)}
    assert len(texts) > 3
    for text in texts:
        assert re.fullmatch(r"[0-9()+]+;", text)
        while "+" in text:  # balanced: the innermost sum becomes a number
            text, sums = re.subn(r"\([0-9]+\+[0-9]+\)", "1", text)
            assert sums
        assert re.fullmatch("[0-9]+;", text)


# ---- what else there is to a generation ----------------------------------------------------------------------------


def masked(model: pyllm.Model, grammar: Grammar, sampler: Sampler, seed: int, n: int) -> list[int]:
    """The definition: what is not allowed is -inf, at every step, and then the sampler draws."""
    assert model.tokenizer is not None
    size = model.config.vocab_size
    matcher = _Vocabulary(model.tokenizer, size, model.stop_ids).matcher(grammar)
    state, tokens = sampler.start(seed), list[int]()
    with model.session() as session:
        logits = session.eval(PROMPT)
        while len(tokens) < n:
            mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            allowed = np.unpackbits(mask, bitorder="little")[:size].astype(bool)
            token = state.draw(np.where(allowed, logits, np.float32("-inf")), [*PROMPT, *tokens])
            assert matcher.consume_token(token)
            if token in model.stop_ids:
                break
            tokens.append(token)
            logits = session.eval([token])
    return tokens


SAMPLERS = [
    Sampler.greedy(),
    Sampler(temperature=0, repetition_penalty=1.3, logit_bias={40: 3.0}),
    Sampler(),
    Sampler(temperature=1.5, top_p=1.0),
    Sampler(top_k=5, min_p=0.1, presence_penalty=0.5),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=range(len(SAMPLERS)))
@pytest.mark.parametrize("which", ["tiny", "smol"])
def test_tokens_are_those_of_masked_logits(which: str, sampler: Sampler, request: pytest.FixtureRequest) -> None:
    """Whatever way is taken to them: asking about the favourite first, and listing only what is allowed."""
    model: pyllm.Model = request.getfixturevalue(which)
    for grammar in (
        Grammar.json_schema(Animal),
        Grammar.json_schema({"type": "array", "items": {"type": "string"}}, whitespace=True),
        Grammar.regex("([a-z]+ ){2,9}"),
    ):
        for seed in (1, 2):
            reply = model.generate(PROMPT, max_tokens=40, grammar=grammar, sampler=sampler, seed=seed)
            assert reply.tokens == masked(model, grammar, sampler, seed, 40)


def test_the_same_seed_the_same_text(smol: pyllm.Model) -> None:
    def text(seed: int) -> str:
        return smol.generate("A dog: ", grammar=Animal, seed=seed).text

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(6)}) > 1


def test_a_real_model_and_a_pydantic_class(smol: pyllm.Model) -> None:
    for seed in range(3):
        question = [{"role": "user", "content": "Tell me about the horse, as JSON."}]
        reply = smol.chat(question, grammar=Animal, seed=seed)
        animal = Animal.model_validate_json(reply.text)
        assert reply.finish_reason == "stop"
        assert animal.model_dump() == json.loads(reply.text)


def test_fields_that_a_class_does_not_have(smol: pyllm.Model) -> None:
    """A class closes its objects, those inside too, but not one that says that it is open."""

    class Inner(pydantic.BaseModel):
        x: int

    class Outer(pydantic.BaseModel):
        inner: Inner
        properties: dict[str, int]

    class Open(pydantic.BaseModel, extra="allow"):
        x: int

    closed = json.loads(Grammar.json_schema(Outer).source)
    assert closed["additionalProperties"] is False
    assert closed["$defs"]["Inner"]["additionalProperties"] is False
    assert closed["properties"]["properties"]["additionalProperties"] == {"type": "integer"}
    assert json.loads(Grammar.json_schema(Open).source)["additionalProperties"] is True


def test_log_probabilities_stay_the_models_own(smol: pyllm.Model) -> None:
    reply = smol.generate("The year ", grammar=Grammar.regex("[0-9]{4}"), logprobs=True, seed=1)
    chunks = [chunk for chunk in reply if chunk.token not in smol.stop_ids]
    assert smol.tokenizer is not None
    prompt = smol.tokenizer.encode("The year ")
    score = smol.score([*prompt, *(chunk.token for chunk in chunks)])
    assert tuple(chunk.logprob for chunk in chunks) == score.logprobs[len(prompt) - 1 :]


def test_stop_strings_and_limits_cut(tiny: pyllm.Model) -> None:
    grammar = Grammar.regex("(ab){50}")
    whole = tiny.generate(PROMPT, grammar=grammar, seed=1)
    assert (whole.text, whole.finish_reason) == ("ab" * 50, "stop")
    cut = tiny.generate(PROMPT, grammar=grammar, stop="ba", seed=1)
    assert (cut.text, cut.finish_reason) == ("a", "stop")
    short = tiny.generate(PROMPT, grammar=grammar, max_tokens=3, seed=1)
    assert ("ab" * 50).startswith(short.text)
    assert short.finish_reason == "length"


def test_a_session_goes_on_after_it(tiny: pyllm.Model) -> None:
    session = tiny.session()
    first = session.generate(PROMPT, grammar=Grammar.regex("[a-c]{4}"), seed=1)
    assert re.fullmatch("[a-c]{4}", first.text)
    second = session.generate([9], grammar=Grammar.regex("[x-z]{4}"), seed=1)
    assert re.fullmatch("[x-z]{4}", second.text)
    assert session.tokens == [*PROMPT, *first.tokens, 9, *second.tokens]


def test_a_processor_cannot_lift_what_the_grammar_bans(tiny: pyllm.Model) -> None:
    def wish(tokens: Sequence[int], logits: Array) -> None:
        logits[:] = 0
        logits[tiny.tokenizer.encode("q", bos=False)[-1]] = 100  # type: ignore[union-attr]

    assert tiny.generate(PROMPT, grammar=Grammar.regex("(qqq|ab)"), logits_processor=wish, seed=1).text == "qqq"
    assert tiny.generate(PROMPT, grammar=Grammar.regex("(rrr|ab)"), logits_processor=wish, seed=1).text != "qqq"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_nothing_is_left(tiny: pyllm.Model, temperature: float) -> None:
    banned = dict.fromkeys(range(300), -np.inf)
    sampler = Sampler(temperature=temperature, logit_bias=banned)
    generation = tiny.generate(PROMPT, grammar=Grammar.regex("ab"), sampler=sampler)
    with pytest.raises(ValueError, match="no token can be drawn"):
        next(generation)
    assert generation.finish_reason == "cancelled"


# ---- one grammar, many uses ----------------------------------------------------------------------------------------


def test_one_grammar_in_several_threads_and_models(tiny: pyllm.Model, smol: pyllm.Model) -> None:
    grammar = Grammar.json_schema(Animal)
    jobs = [(model, seed) for model in (tiny, smol) for seed in range(4)]

    def text(job: tuple[pyllm.Model, int]) -> str:
        return job[0].generate("An animal: ", grammar=grammar, seed=job[1], max_tokens=150).text

    alone = [text(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(text, jobs)) == alone
    for found in alone:
        Animal.model_validate_json(found)


def test_several_at_once_step_by_step(tiny: pyllm.Model) -> None:
    grammar = Grammar.regex("[a-f]{20}")
    alone = [tiny.generate(PROMPT, grammar=grammar, seed=seed).text for seed in range(3)]
    together = [tiny.generate(PROMPT, grammar=grammar, seed=seed) for seed in range(3)]
    for _ in range(25):
        for generation in together:
            next(generation, None)
    assert [generation.text for generation in together] == alone


def test_a_batch(tiny: pyllm.Model) -> None:
    grammar, prompts = Grammar.json_schema(Animal), [PROMPT, [9], "An animal: ", "b"]
    together = tiny.generate_batch(prompts, max_tokens=None, grammar=grammar, seed=3)
    alone = [tiny.generate(prompt, max_tokens=None, grammar=grammar, seed=3) for prompt in prompts]
    assert [generation.tokens for generation in together] == [generation.tokens for generation in alone]
    for generation in together:
        Animal.model_validate_json(generation.text)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_do_not_show(smol: pyllm.Model, temperature: float) -> None:
    """Copying is where drafts are accepted."""
    record = '{"name": "Rex", "legs": 4, "kind": "mammal", "tame": true}'
    question = f"Copy this record three times.\n{record}\n{record}\n{record}\n"
    grammar = Grammar.json_schema(
        {"type": "array", "minItems": 3, "items": json.loads(Grammar.json_schema(Animal).source)}
    )
    texts = {
        smol.generate(
            question, max_tokens=80, grammar=grammar, sampler=Sampler(temperature), seed=1, speculation=speculation
        ).text
        for speculation in (True, False)
    }
    assert len(texts) == 1
    assert texts.pop().startswith('[{"name": "')


def test_it_is_compiled_once(tiny: pyllm.Model) -> None:
    assert tiny.tokenizer is not None
    compiled = []
    for seed in range(3):
        tiny.generate(PROMPT, grammar=Grammar.regex("once{7}"), seed=seed).tokens  # noqa: B018
        [vocabulary] = _vocabularies[tiny.tokenizer].values()
        compiled.append(vocabulary.matchers[Grammar.regex("once{7}")])
    assert compiled[0] is compiled[1] is compiled[2]


def test_few_are_kept(tiny: pyllm.Model) -> None:
    assert tiny.tokenizer is not None
    for n in range(MOST_COMPILED + 5):
        assert tiny.generate(PROMPT, grammar=Grammar.regex(f"a{{{n + 1}}}"), max_tokens=1, seed=1).text[:1] == "a"
    [vocabulary] = _vocabularies[tiny.tokenizer].values()
    assert len(vocabulary.matchers) == MOST_COMPILED


def test_it_is_a_value(tiny: pyllm.Model) -> None:
    a, b = Grammar.json_schema({"type": "null"}), Grammar.json_schema('{"type": "null"}')
    assert a == b
    assert hash(a) == hash(b)
    assert a != Grammar.json_schema({"type": "null"}, whitespace=True)
    again = pickle.loads(pickle.dumps(a))
    assert again == a
    assert tiny.generate(PROMPT, grammar=again).text == "null"


def test_a_tokenizer_is_not_kept_alive(tmp_path: Path) -> None:
    model = pyllm.load(tiny_llama(tmp_path / "gone.gguf", Q8_0, Shape()))
    model.generate(PROMPT, grammar=Grammar.regex("a"), max_tokens=2).tokens  # noqa: B018
    gone = weakref.ref(model.tokenizer)
    model.close()
    del model
    gc.collect()
    assert gone() is None


# ---- vocabularies --------------------------------------------------------------------------------------------------


def with_vocabulary(path: Path, change: Callable[[dict[str, Any]], None], vocab: int = 300) -> pyllm.Model:
    shape = Shape(vocab=vocab)
    metadata = llama_metadata(shape) | tiny_vocabulary(300)
    change(metadata)
    return pyllm.load(write_gguf(path, metadata, llama_tensors(shape, Q8_0)))


def test_a_padded_vocabulary(tmp_path: Path) -> None:
    """Ids past the tokenizer's are no text, and no grammar allows them."""
    with with_vocabulary(tmp_path / "padded.gguf", lambda metadata: None, vocab=357) as model:
        assert model.tokenizer is not None
        assert (model.config.vocab_size, model.tokenizer.vocab_size) == (357, 300)
        for seed in range(10):
            reply = model.generate(PROMPT, grammar=Grammar.regex(".{3,30}"), sampler=Sampler(top_p=1.0), seed=seed)
            assert max(reply.tokens) < 300
            assert re.fullmatch(".{3,30}", reply.text)


def test_tokens_that_the_model_does_not_have(tmp_path: Path) -> None:
    """A tokenizer may know more ids than the model: none of them is drawn, not even where its text is forced."""

    def add(metadata: dict[str, Any]) -> None:
        metadata["tokenizer.ggml.tokens"][299] = "forced"
        metadata["tokenizer.ggml.token_type"][299] = 4  # user-defined: text becomes it wherever it stands

    with with_vocabulary(tmp_path / "more.gguf", add) as model:
        assert model.tokenizer is not None
        assert model.tokenizer.encode("forced", bos=False)[-1] == 299
        for size, wanted in ((300, True), (299, False), (295, False)):
            grammar, ends = Grammar.regex("a forced move"), model.stop_ids | {10_000}
            draw = constrained(Sampler.greedy().start(), grammar, model.tokenizer, size, ends)
            ids, logits = list[int](), np.zeros(size, np.float32)
            while not ids or ids[-1] not in model.stop_ids:
                ids.append(draw.draw(logits))
            assert (299 in ids) == wanted
            assert b"".join(map(model.tokenizer.token_bytes, ids)) == b"a forced move"


def test_control_tokens_are_no_text(tmp_path: Path) -> None:
    """`.` allows the characters `<s>` but not the token; only a Lark grammar that names it does."""
    control = {0, 1, 2}

    def prefer_control(tokens: Sequence[int], logits: Array) -> None:
        logits[list(control)] = 100

    with with_vocabulary(tmp_path / "control.gguf", lambda metadata: None) as model:
        reply = model.generate(PROMPT, grammar=Grammar.regex(".{3,30}"), logits_processor=prefer_control, seed=1)
        assert not control & set(reply.tokens)
        assert len(reply.text) >= 3


def test_the_first_word_of_a_text(tiny: pyllm.Model) -> None:
    """SentencePiece's space before the first word is no part of the text, so no grammar needs to know of it."""
    for seed in range(5):
        reply = tiny.generate("", grammar=Grammar.json_schema(Animal), max_tokens=None, seed=seed)
        Animal.model_validate_json(reply.text)


def test_models_that_cannot(tmp_path: Path, stories260k: Path) -> None:
    with pyllm.load(stories260k) as model, pytest.raises(pyllm.TokenizerError, match="needs a tokenizer"):
        model.generate([1], grammar=Grammar.regex("a"))

    def endless(metadata: dict[str, Any]) -> None:
        del metadata["tokenizer.ggml.eos_token_id"]
        metadata["tokenizer.ggml.tokens"][2] = "<two>"

    with with_vocabulary(tmp_path / "endless.gguf", endless) as model:
        assert not model.stop_ids
        with pytest.raises(pyllm.TokenizerError, match="ends a text"):
            model.generate(PROMPT, grammar=Grammar.regex("a"))


def test_a_llama2c_model(stories260k: Path, tok512: Path) -> None:
    """Texts end on BOS there."""
    with pyllm.load(stories260k, tokenizer=tok512) as model:
        reply = model.generate("Once", grammar=Grammar.regex("( and| or| they){3}"), seed=1)
        assert re.fullmatch("( and| or| they){3}", reply.text)
        assert reply.finish_reason == "stop"


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grammar.json_schema({"type": "strin"}), "json_schema: .*strin"),
        (lambda: Grammar.json_schema({"type": "object", "dependentRequired": {"a": ["b"]}}), "dependentRequired"),
        (lambda: Grammar.json_schema({"minimum": {1}}), "no JSON"),
        (lambda: Grammar.json_schema('{"type":'), "no JSON"),
        (lambda: Grammar.json_schema({"$ref": "#/nowhere"}), "json_schema: .*nowhere"),
        (lambda: Grammar.regex("(a"), r"(?s)regex: .*unclosed group"),
        (lambda: Grammar.regex(3), "regex"),  # type: ignore[arg-type]
        (lambda: Grammar.lark("start: foo"), 'lark: .*"foo"'),
        (lambda: Grammar("lark", "?"), "lark"),
    ],
)
def test_bad_grammars(make: Callable[[], Grammar], message: str) -> None:
    with pytest.raises(GrammarError, match=message) as caught:
        make()
    assert isinstance(caught.value, ValueError)


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def test_deep_schemas_end_in_an_error_and_nothing_worse() -> None:
    Grammar.json_schema(deep(50))
    for levels in (200, 100_000):
        with pytest.raises(GrammarError):
            Grammar.json_schema(deep(levels))
    with pytest.raises(GrammarError):
        Grammar.regex("(" * 5000 + "a" + ")" * 5000)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_too_complex_to_follow(tiny: pyllm.Model, temperature: float) -> None:
    """What llguidance gives up at is an error, not a text that breaks the rules."""
    assert tiny.tokenizer is not None
    grammar = Grammar.regex("[ab]*a[ab]{30}c")
    limits = llguidance.LLParserLimits(max_lexer_states=60)
    vocabulary = _Vocabulary(tiny.tokenizer, 300, tiny.stop_ids)
    matcher = llguidance.LLMatcher(vocabulary.tokenizer, grammar._definition, log_level=0, limits=limits)
    draw = GrammarDraw(Sampler(temperature=temperature).start(1), matcher)
    rows = np.random.default_rng(1).normal(size=(100, 300)).astype(np.float32)
    with pytest.raises(GrammarError, match=r"cannot be followed further: .*too many states"):  # noqa: PT012
        for row in rows:
            draw.draw(row)


def test_a_kind_that_there_is_not() -> None:
    with pytest.raises(GrammarError, match="kind must be one of json_schema, regex, lark, not 'ebnf'"):
        Grammar("ebnf", "a")  # type: ignore[arg-type]


@pytest.mark.parametrize("grammar", ["[a-z]+", 3, ["a"], int])
def test_what_is_no_grammar(tiny: pyllm.Model, grammar: Any) -> None:
    with pytest.raises(TypeError, match=r"grammar must be|no pydantic model"):
        tiny.generate(PROMPT, grammar=grammar)


def test_the_library_is_an_extra() -> None:
    """Without it everything else works, and the error names the extra."""
    code = """
import sys
sys.modules["llguidance"] = None
import pyllm, pyllm.model
try:
    pyllm.Grammar.regex("a")
except pyllm.MissingLibraryError as error:
    assert isinstance(error, ImportError) and isinstance(error, pyllm.PyllmError)
    assert 'pip install "pyllm[structured]"' in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (
        "llguidance"
        not in subprocess.run(
            [sys.executable, "-c", "import sys, pyllm.model; print([m for m in sys.modules if 'llguid' in m])"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
