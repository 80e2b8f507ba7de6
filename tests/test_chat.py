"""Chat templates: the model's own text, and messages that cannot speak in control tokens."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizers import byte_level_metadata, scored_metadata

from pyllm.errors import PyllmError, TokenizerError
from pyllm.tokenizers import Tokenizer
from pyllm.tokenizers.chat import encode_chat, render_chat
from pyllm.tokenizers.gguf import from_metadata
from pyllm.tokenizers.tagged import TaggedText, Tags
from pyllm.tokenizers.template import ChatTemplate

START, END = "<|im_start|>", "<|im_end|>"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHATML

# The ways real templates treat the text of messages, one or two lines of each family.
TEMPLATES = {
    "chatml": CHATML,
    "trimmed": (
        "{%- for message in messages %}\n"
        "    {{- '<|im_start|>' ~ message.role ~ '\n' ~ message['content'] | trim ~ '<|im_end|>\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    "thinking": (
        "{%- set ns = namespace(last=-1) %}"
        "{%- for message in messages[::-1] %}"
        "{%- if message.content is string and not (message.content.startswith('<tool>') and "
        "message.content.endswith('</tool>')) %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{%- for message in messages %}"
        "{%- set content = message.content %}{% set reasoning = '' %}"
        "{%- if '</think>' in content %}"
        "{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{{- '<|im_start|>' + message.role + '\n' }}"
        "{%- if reasoning %}{{ '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}{% endif %}"
        "{{- content + '<|im_end|>\n' }}{% endfor %}{{ ns.last }}"
    ),
    "macro": (
        "{%- macro render(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
        "{{ part.text }}{% endfor %}{% endif %}{% endmacro %}"
        "{%- for message in messages %}{% set text = render(message.content) | trim %}"
        "{%- if text.startswith('/no') or text == '' %}{% continue %}{% endif %}"
        "{{- '<|im_start|>' + message.role + '\n' + text + '<|im_end|>' }}{% endfor %}"
    ),
    "system first": (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
        "{% for message in rest %}"
        "{% if loop.index0 == 0 and system %}"
        "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{{ '<|im_start|>' + '[INST] ' + content.strip() + ' [/INST]' if message.role == 'user' else ' ' "
        "+ content | upper + '<|im_end|>' }}{% endfor %}"
    ),
    "tools": (
        "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson(indent=2) }}\n"
        "{% for key, value in tool.function.parameters | items %}{{ '<' ~ key ~ '>' ~ value ~ '</' ~ key ~ '>' }}"
        "{% endfor %}{% endfor %}{{ '<|im_end|>' }}{% endif %}"
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{{ message.content or '' }}"
        "{% for call in message.tool_calls or [] %}"
        '{{ \'{"name": "\' + call.function.name + \'", "arguments": \' }}'
        "{{ call.function.arguments | tojson if call.function.arguments is mapping else call.function.arguments }}"
        "{{ '}' }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    ),
    "odd operations": (
        "{% for message in messages %}{% set c = message.content %}{{ '<|im_start|>' }}"
        "{{ c[:3] }}|{{ c[3:] }}|{{ c | length }}|{{ c | replace('</x>', '') }}|{{ [c, c] | join('-') }}|{{ c * 2 }}"
        "|{{ c | lower }}|{{ c.title() }}|{{ c.splitlines() | join('/') }}|{{ c.partition('|')[2] }}"
        "|{{ c.replace('a', 'b') }}|{{ '%s' % c }}|{{ c.count('<') }}|{{ c in ['a', 'b'] }}|{{ {'a': 1}[c] }}"
        "|{{ c | default('none') }}|{{ c | first }}|{{ c | int }}|{{ c.rsplit('|', 1)[0] }}|{{ c.find('|') }}"
        "|{{ [c] }}|{{ c.removeprefix('<') }}|{% set block %}<{{ c }}>{% endset %}{{ block.strip('<>') }}"
        "|{{ c | e }}|{{ c | title }}|{{ c | urlencode }}|{{ c | wordcount }}"
        "|{% for x in c %}{{ x }}.{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    ),
}


def tokenizer_with(template: str | None, make: Callable[..., dict[str, Any]] = byte_level_metadata) -> Tokenizer:
    metadata = make()
    if template is not None:
        metadata["tokenizer.chat_template"] = template
    tokenizer = from_metadata(metadata, "test.gguf")
    assert tokenizer is not None
    return tokenizer


def user(content: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def controls(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    return [token for token in ids if token in tokenizer.control_ids]


# ---- the reference -------------------------------------------------------------------------------------------------


def test_smollm2_equals_transformers(smollm2: Path, golden: Path) -> None:
    tokenizer = Tokenizer.load(smollm2)
    data = json.loads((golden / "smollm2_chat.json").read_text())
    assert tokenizer.chat_template == data["template"]
    assert len(data["cases"]) >= 14
    for case in data["cases"]:
        messages, opened = case["messages"], case["add_generation_prompt"]
        assert render_chat(tokenizer, messages, add_generation_prompt=opened) == case["text"]
        assert encode_chat(tokenizer, messages, add_generation_prompt=opened) == case["ids"]


# ---- the law -------------------------------------------------------------------------------------------------------


FAMILIES: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "templates.json").read_text())
CASES = [(template, conversation) for template in FAMILIES["templates"] for conversation in FAMILIES["conversations"]]


@pytest.mark.parametrize(("template", "name"), CASES)
def test_renders_what_transformers_renders(template: str, name: str) -> None:
    """Every printable character has its stand-in, and none shows."""
    metadata = byte_level_metadata(bos_token_id=0, eos_token_id=1)
    metadata["tokenizer.ggml.tokens"][:3] = ["<s>", "</s>", "".join(map(chr, range(32, 127))) + "\n"]
    metadata["tokenizer.chat_template"] = FAMILIES["templates"][template]
    tokenizer = from_metadata(metadata, "test.gguf")
    assert tokenizer is not None
    conversation, expected = FAMILIES["conversations"][name], FAMILIES["rendered"][template][name]
    if name == "parts" and template != "gemma":  # which reach templates that know of none as one text
        assert render_chat(tokenizer, **conversation) == render_chat(tokenizer, [user(" a b")])
    elif expected is None:
        with pytest.raises(TokenizerError, match="does not take this conversation"):
            render_chat(tokenizer, **conversation)
    else:
        opened = expected["opened"] if "opened" in expected else expected["text"] + expected["adds"]
        assert render_chat(tokenizer, add_generation_prompt=False, **conversation) == expected["text"]
        assert render_chat(tokenizer, **conversation) == opened


CONTROL_WORD = re.compile(r"<\|[a-zA-Z_]+\|>|\[/?[A-Z_]+\]|</?s>|<(?:start|end)_of_turn>")
NAMED_ROLES = {f"<|{role}|>" for role in ("system", "user", "assistant")}


def control_words(template: str) -> list[str]:
    """What looks like a control token in a template, and the roles that it may join to one."""
    return sorted({*CONTROL_WORD.findall(FAMILIES["templates"][template]), *NAMED_ROLES})


def spoken(value: Any, words: list[str], other: bool) -> Any:
    """A conversation in whose every text all control words stand, or others of the same shape that are none."""
    if isinstance(value, dict):
        kept = ("role", "type", "id", "name")
        return {k: v if k in kept else spoken(v, words, other) for k, v in value.items()}
    if isinstance(value, list):
        return [spoken(item, words, other) for item in value]
    said = "".join("\u2039" + word[1:] if other else word for word in words)
    return f"{value} {said}!" if isinstance(value, str) else value


@pytest.mark.parametrize("template", FAMILIES["templates"])
@pytest.mark.parametrize("name", [name for name in FAMILIES["conversations"] if name != "tools"])
def test_messages_speak_no_control_words(template: str, name: str) -> None:
    """Concatenated, trimmed, split, sliced, as JSON or by a macro: what is in messages, calls and documents is text."""
    words = control_words(template)
    assert words
    metadata = byte_level_metadata()
    pieces = metadata["tokenizer.ggml.tokens"]
    metadata["tokenizer.ggml.tokens"] = [*words, *pieces[3:]]
    metadata["tokenizer.ggml.token_type"] = [3] * len(words) + [1] * len(pieces[3:])
    metadata["tokenizer.chat_template"] = FAMILIES["templates"][template]
    tokenizer = from_metadata(metadata, "test.gguf")
    assert tokenizer is not None
    conversation = dict(FAMILIES["conversations"][name])
    variables = conversation.pop("variables", None)
    found = []
    for other in (True, False):
        try:
            ids = encode_chat(tokenizer, **spoken(conversation, words, other), variables=variables)
        except TokenizerError:
            found.append(None)
        else:
            found.append(controls(tokenizer, ids))
    assert found[0] == found[1]
    assert found[0] != []


def test_a_control_word_in_a_message_is_text() -> None:
    tokenizer = tokenizer_with(CHATML)
    ids = encode_chat(tokenizer, [user(f"a{END}b")], add_generation_prompt=False)
    assert ids == [
        1,
        *tokenizer.encode(f"user\na{END}b", bos=False),
        2,
        *tokenizer.encode("\n", bos=False),
    ]
    assert tokenizer.decode(ids) == f"user\na{END}b\n"


INJECTION = st.lists(
    st.sampled_from(
        [START, END, "<|", "|>", "im_end", "im_", "<|im_end", "end|>", "</x>", "</think>", "<think>", "|", "<"]
    )
    | st.sampled_from(["", " ", "\n", "a", "IM_END", "<|IM_END|>", "\ue000", "\ue001im_end|>", "/no"]),
    max_size=8,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([*TEMPLATES]), st.lists(INJECTION, min_size=3, max_size=3))
def test_control_tokens_do_not_depend_on_what_messages_say(name: str, texts: list[str]) -> None:
    """The template's own tests may drop or keep a turn; what is kept has its own control tokens and no others."""
    tokenizer = tokenizer_with(TEMPLATES[name])
    messages = [user(texts[0], "system"), user(texts[1]), user(texts[2], "assistant")]
    found = controls(tokenizer, encode_chat(tokenizer, messages, add_generation_prompt=False))
    expected = [1, 2, 1, 2] if name == "system first" else [1, 2] * 3
    if name == "system first":
        assert found == [1, 2]  # one question, one answer
    elif name == "macro":
        assert found == [1, 2] * sum(not (t.startswith("/no") or t == "") for t in map(str.strip, texts))
    else:
        assert found == expected


@settings(max_examples=200, deadline=None)
@given(INJECTION, INJECTION, INJECTION)
def test_control_tokens_do_not_depend_on_tools(name: str, key: str, argument: str) -> None:
    """Names, keys and values of tools and calls are text from messages too: `'<' ~ key ~ '>'` joins them to a `<`."""
    tokenizer = tokenizer_with(TEMPLATES["tools"])
    tools = [{"type": "function", "function": {"name": name, "parameters": {key: argument, "|im_end|": "|im_start|"}}}]
    call = {"function": {"name": name, "arguments": {key: [argument, {"n": 1.5, "x": None, "y": True}]}}}
    messages = [user("hi"), user(None, "assistant", tool_calls=[call])]
    ids = encode_chat(tokenizer, messages, tools=tools, add_generation_prompt=False)
    assert controls(tokenizer, ids) == [1, 2] * 3


def test_strings_that_only_together_are_a_control_word() -> None:
    tokenizer = tokenizer_with("{% for m in messages %}{{ m.content }}{% endfor %}")
    messages = [user("<|im_"), user("end|>"), user("<|im_end|"), user(">")]
    assert controls(tokenizer, encode_chat(tokenizer, messages)) == []
    around = tokenizer_with("{{ '<|' ~ messages[0].content ~ '|>' }}")
    assert controls(around, encode_chat(around, [user("im_end")])) == []
    emptied = tokenizer_with("{{ messages[0].content | replace('x', '') }}{{ messages[0].content.replace('x', '') }}")
    assert controls(emptied, encode_chat(emptied, [user("<|im_xend|>")])) == []
    lowered = tokenizer_with("{{ messages[0].content | lower }}{{ messages[0].content.lower() }}")
    assert controls(lowered, encode_chat(lowered, [user("<|IM_END|>")])) == []


def test_roles_name_control_tokens_only_where_they_are_roles() -> None:
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.tokens"][:3] = ["<|user|>", "<|assistant|>", "<|end|>"]
    metadata["tokenizer.chat_template"] = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    )
    tokenizer = from_metadata(metadata, "test.gguf")
    assert tokenizer is not None
    ids = encode_chat(tokenizer, [user("<|user|>"), user("b", "assistant"), user("c", "end"), user("d", "|><|end")])
    assert controls(tokenizer, ids) == [0, 2, 1, 2, 2, 2]


def test_user_defined_tokens_in_messages_are_tokens() -> None:
    tokenizer = tokenizer_with(CHATML)
    think = tokenizer.encode("<think>")
    assert len(think) == 1
    assert think[0] in encode_chat(tokenizer, [user("<think>")])


# ---- what templates see --------------------------------------------------------------------------------------------


def rendered(source: str, tags: Tags, messages: list[dict[str, Any]], tools: Any = None) -> str:
    """The text, without stand-ins."""
    hidden = tags.hide_all({"messages": messages, "tools": tools})
    return tags.show(ChatTemplate(source, tags).render({"add_generation_prompt": True, **hidden}))


EVERYTHING = "".join(map(chr, range(32, 127))) + "\n\té"
CONTENT = INJECTION | st.text(alphabet="aB <>|/\n\té7", max_size=12) | st.sampled_from(["a", "b", "12", "ß", "İ x"])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*TEMPLATES]), st.lists(CONTENT, min_size=2, max_size=4))
def test_templates_see_messages_as_they_are(name: str, texts: list[str]) -> None:
    """With a stand-in for every character a template gives the same text as with none for any."""
    roles = ["system", "user", "assistant", "user"]
    messages = [user(text, role) for text, role in zip(texts, roles, strict=False)]
    tools = [{"type": "function", "function": {"name": texts[0], "parameters": {texts[1]: 'q"\\é'}}}]
    private = [c for c in "".join(texts) if "\ue000" <= c <= "\uf8ff"]
    source = TEMPLATES[name].replace("{{ {'a': 1}[c] }}|", "{{ {'a': 1}.get(c) }}|")
    plain = rendered(source, Tags("", private), messages, tools)
    assert rendered(source, Tags(EVERYTHING, private), messages, tools) == plain


METHODS: dict[str, tuple[Any, ...]] = {
    "strip": (), "lstrip": ("<a",), "rstrip": ("a>",), "split": (), "rsplit": (None, 1), "splitlines": (True,),
    "partition": ("b",), "rpartition": ("b",), "removeprefix": ("ab",), "removesuffix": ("ab",), "lower": (),
    "upper": (), "title": (), "capitalize": (), "swapcase": (), "casefold": (), "startswith": (("ab", "<"),),
    "endswith": (">",), "find": ("b",), "rfind": ("b",), "count": ("a",), "isspace": (), "isalpha": (), "isupper": (),
    "__contains__": ("ab",), "__eq__": ("ab",), "__ne__": ("ab",), "__lt__": ("b",), "__hash__": (), "__repr__": (),
    "__len__": (), "__getitem__": (slice(1, 3),), "__add__": ("<b",), "__mul__": (2,), "join": (["a", "<"],),
    "replace": ("ab", "<>"), "encode": (),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab<> \nßé", max_size=12), split=st.integers(0, 12))
def test_tagged_text_answers_as_its_plain_text_would(method: str, text: str, split: int) -> None:
    """Text of which some characters are tagged and others are a template's own."""
    tags = Tags("ab<>é")
    tagged = tags.text(tags.hide(text[:split])) + text[split:]
    result = getattr(tagged, method)(*METHODS[method])
    expected = getattr(text, method)(*METHODS[method])
    if isinstance(expected, (list, tuple)):
        assert type(expected)(map(tags.show, result)) == expected
    else:
        assert (tags.show(result) if isinstance(result, str) else result) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab ", max_size=12), st.integers(0, 12), st.text(alphabet="ab ", min_size=1, max_size=3))
def test_parts_of_tagged_text_keep_their_origin(text: str, split: int, separator: str) -> None:
    """Every character that comes out is tagged if and only if it was tagged at its place."""
    tags = Tags("ab ")
    raw = tags.hide(text[:split]) + text[split:]
    tagged = TaggedText(raw, tags)
    for parts in (tagged.split(separator), tagged.rsplit(separator, 1), list(tagged.partition(separator))):
        at = 0
        for part in parts:
            assert str(part) == raw[at : at + len(part)]
            at += len(part) + (0 if len(parts) == 3 and tags.show(parts[1]) == separator else len(separator))
    assert "".join(tagged.split(" ")) == "".join(c for c, p in zip(raw, text, strict=True) if p != " ")
    assert "".join(tagged.split()) == "".join(tagged.split(" "))
    assert "".join(tagged.splitlines()) == raw
    assert str(tagged.strip()) in raw
    assert str(tagged.replace(separator, "\0")) == "\0".join(map(str, tagged.split(separator)))


def test_stand_ins_avoid_what_messages_hold() -> None:
    tokenizer = tokenizer_with(CHATML)
    text = "".join(map(chr, range(0xE000, 0xE100))) + END
    ids = encode_chat(tokenizer, [user(text)], add_generation_prompt=False)
    assert controls(tokenizer, ids) == [1, 2]
    assert tokenizer.decode(ids) == f"user\n{text}\n"


# ---- beginnings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "add_bos", "count"), [(CHATML, False, 0), (CHATML, True, 1), (WITH_BOS, True, 1), (WITH_BOS, False, 1)]
)
def test_one_bos_and_no_second(template: str, add_bos: bool, count: int) -> None:
    metadata = byte_level_metadata(bos_token_id=0, add_bos_token=add_bos)
    metadata["tokenizer.chat_template"] = template
    tokenizer = from_metadata(metadata, "test.gguf")
    assert tokenizer is not None
    ids = encode_chat(tokenizer, [user("hello")])
    assert ids.count(0) == count
    assert (ids[0] == 0) == (count == 1)


def test_scored_vocabularies_space_their_stretches() -> None:
    """Between control tokens a text is encoded as `encode(special=True)` encodes it."""
    template = "{{ bos_token }}{% for m in messages %}{{ '<|turn|>' + m.content }}{% endfor %}"
    tokenizer = tokenizer_with(template, scored_metadata)
    assert encode_chat(tokenizer, [user("ab"), user(" c")]) == tokenizer.encode(
        "<s><|turn|>ab<|turn|> c", bos=False, special=True
    )


def test_content_may_come_in_parts() -> None:
    tokenizer = tokenizer_with(CHATML)
    parts = [{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}]
    assert encode_chat(tokenizer, [user(parts)]) == encode_chat(tokenizer, [user("<|im_end|>")])


def test_generation_blocks_are_their_content() -> None:
    tokenizer = tokenizer_with("{% for m in messages %}{% generation %}{{ m.content }}!{% endgeneration %}{% endfor %}")
    assert render_chat(tokenizer, [user("a"), user("b")]) == "a!b!"


def test_a_conversation_chooses_among_named_templates() -> None:
    metadata = byte_level_metadata()
    usual, tools, rag = ("tokenizer.chat_template" + name for name in ("", ".tool_use", ".rag"))
    metadata |= {usual: "D", tools: "T", rag: "R{{ documents | tojson }}"}
    tokenizer = from_metadata(metadata, "test.gguf")
    assert tokenizer is not None
    assert render_chat(tokenizer, [user("a")]) == "D"
    assert render_chat(tokenizer, [user("a")], tools=[{"name": "f"}]) == "T"
    assert render_chat(tokenizer, [user("a")], template="rag", documents=[{"text": "x"}]) == 'R[{"text": "x"}]'
    with pytest.raises(TokenizerError, match=r"no chat template 'other', only default, rag, tool_use"):
        render_chat(tokenizer, [user("a")], template="other")


def test_variables_are_text_from_outside_too() -> None:
    tokenizer = tokenizer_with("{{ mood }}|{{ documents[0].text if flag is true }}|{{ messages | length }}")
    variables = {"mood": START, "flag": True, "messages": "x"}
    options: dict[str, Any] = {"documents": [{"text": END}], "variables": variables}
    assert render_chat(tokenizer, [user("a")], **options) == f"{START}|{END}|1"
    assert controls(tokenizer, encode_chat(tokenizer, [user("a")], **options)) == []


def test_dates_come_from_the_clock() -> None:
    tokenizer = tokenizer_with("{{ strftime_now('%Y') }}")
    assert render_chat(tokenizer, [user("a")]) == time.strftime("%Y")


def test_json_is_as_hugging_face_has_it() -> None:
    tokenizer = tokenizer_with("{{ messages[0].content | tojson }}|{{ tools | tojson(indent=1, ensure_ascii=true) }}")
    text = render_chat(tokenizer, [user('<a & "é">')], tools=[{"b": "é", "a": [1, None]}])
    assert text == '"<a & \\"é\\">"|' + json.dumps([{"b": "é", "a": [1, None]}], indent=1)


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_no_template_is_an_error_and_not_a_guess(llama2_tokenizer_bin: Path) -> None:
    for tokenizer in (tokenizer_with(None), Tokenizer.load(llama2_tokenizer_bin)):
        with pytest.raises(TokenizerError, match="holds no chat template"):
            encode_chat(tokenizer, [user("hi")])


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        ("hi", TypeError, "list of mappings"),
        ({"role": "user"}, TypeError, "list of mappings"),
        (7, TypeError, "list of mappings"),
        ([], ValueError, "at least one message"),
        (["hi"], TypeError, "message 0 must be a mapping"),
        ([{"content": "hi"}], ValueError, "message 0 has the role None"),
        ([{"role": 3, "content": "hi"}], ValueError, "message 0 has the role 3"),
        ([user("a"), user(5)], TypeError, "message 1: content must be text"),
        ([user([{"type": "image"}])], ValueError, "message 0: a part of content"),
        ([user("a", extra={1, 2})], TypeError, "not set"),
        ([user("a\ud800")], TokenizerError, "lone surrogate"),
    ],
)
def test_what_is_no_conversation(messages: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode_chat(tokenizer_with(CHATML), messages)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "cannot be read"),
        ("{{ messages[0].content + 1 }}", "does not take this conversation"),
        ("{{ missing.attribute }}", "undefined"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ raise_exception('no role ' + messages[0].role + messages[0].content) }}", "no role userhi$"),
        ("{{ messages[0].content.items() }}", "'str object' has no attribute 'items'"),
        ("{% set n = namespace(__class__='x') %}", "holds no '__class__'"),
        ("{% set n = namespace() %}{% set n.__class__ = 'x' %}", "holds no '__class__'"),
        ("{{ dict.mro() }}", "no attribute 'mro'"),
        ("{{ messages | tojson(indent=10**9) }}", "larger than 1000"),
        ("{{ messages | tojson(default=1) }}", "unexpected keyword"),
        ("x" * (1 << 20) + "x", "more than 1048576"),
    ],
)
def test_templates_fail_with_their_own_message(template: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        encode_chat(tokenizer_with(template), [user("hi")])


#: A list in itself, twice, and so on: 2^99 lists.
NESTED = "{% set n = namespace(a=[]) %}{% for i in range(99) %}{% set n.a = [n.a, n.a] %}{% endfor %}"
STEPS = 20_000  # passes allowed in the tests of hostile templates


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", f"more than {STEPS} times"),
        ("{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}", "recursion"),
        (
            "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(50) }}",
            f"more than {STEPS} times",
        ),
        ("{{ range(10**9) }}", "a range of"),
        ("{{ 'a' * 10**9 }}", "would be larger"),
        ("{{ 10**9 * [1] }}", "would be larger"),
        ("{{ 10**1000000 }}", "would be larger"),
        ("{{ '%1000000000d' % 1 }}", "would be larger"),
        ("{{ 'a'.ljust(10**9) }}", "unsafe"),
        ("{{ 'a' | center(10**9) }}", "larger than 1000"),
        ("{{ 'a' | format }}", "No filter"),
        (
            "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
            "would be larger",
        ),
        ("{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "characters"),
        ("{% set n = namespace(a=9) %}{% for i in range(9) %}{% set n.a = n.a ** 9 %}{% endfor %}", "would be larger"),
        ("{% set n = namespace(a=9) %}{% for i in range(99) %}{% set n.a = n.a * n.a %}{% endfor %}", "be larger"),
        ("{{ ('a' * 100000).replace('a', 'b' * 100000) }}", "result of replace would be larger"),
        ("{{ ('a' * 100000) | replace('a', 'b' * 100000) }}", "result of replace would be larger"),
        ("{{ ('a' * 100000).join('b' * 100000) }}", "result of join would be larger"),
        ("{{ (['b'] * 100000) | join('a' * 100000) }}", "would be larger"),
        ("{{ ('a' * 10000000) ~ ''.join(['a' * 10000000] * 9) }}", "result of join would be larger"),
        ("{{ ('%s' * 1000) % (('a' * 100000,) * 1000) }}", "result of % would be larger"),
        ("{{ '{:>1000000000}'.format(1) }}", "result of format would be larger"),
        ("{{ '{:>{}}'.format(1, 1000000000) }}", "result of format would be larger"),
        ("{{ ('{0}' * 1000).format('a' * 100000) }}", "result of format would be larger"),
        ("{{ ('{a}' * 1000).format_map({'a': 'a' * 100000}) }}", "result of format would be larger"),
        ("{{ 'a'.translate({97: 'b' * 1000}) }}", "unsafe"),
        ("{{ ('\n' * 1000000) | indent(999) }}", "result of indent would be larger"),
        ("{{ [1] | slice(100000000) | list }}", "larger than 1000"),
        ("{{ 1.5 | round(1000000000, 'ceil') }}", "larger than 1000"),
        ("{{ ([[1] * 1000] * 1000) | sum(start=[]) }}", "only numbers"),
        ("{{ 'a b' | wordwrap(1, wrapstring='c' * 1000000) }}", "No filter"),
        ("{{ [[1] * 9999] * 9999 }}", "would be larger"),
        (NESTED + "{{ n.a }}", "would be larger"),
        (NESTED + "{{ n.a | tojson }}", "would be larger"),
        (NESTED + NESTED.replace("n.a", "m.a").replace("set n", "set m") + "{{ n.a == m.a }}", "would be larger"),
        ("{{ ([1] * 1000000) | tojson(indent=1000) }}", "characters"),
        (
            "{% set n = namespace(s='a,a') %}{% for i in range(99) %}{% set n.s = n.s.split(',') | join('a,a,a') %}"
            "{% endfor %}",
            "would be larger",
        ),
        ("{% set n = namespace(s='\"') %}{% for i in range(99) %}{% set n.s = n.s | tojson %}{% endfor %}", "larger"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be read"),
    ],
)
def test_hostile_templates_end_soon(template: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyllm.tokenizers.template.MOST_STEPS", STEPS)
    start = time.thread_time()
    with pytest.raises(TokenizerError, match=message):
        encode_chat(tokenizer_with(template), [user("hi")])
    assert time.thread_time() - start < 10


def test_templates_have_seconds_of_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long each of the steps takes that they may take."""
    monkeypatch.setattr("pyllm.tokenizers.template.MOST_SECONDS", 0.2)
    slow = "{% set s = 'ab' * 1000000 %}{% for i in range(9999) %}{% if s.upper() == s %}{% endif %}{% endfor %}"
    start = time.thread_time()
    with pytest.raises(TokenizerError, match=r"it takes more than 0\.2 seconds"):
        encode_chat(tokenizer_with(slow), [user("hi")])
    assert time.thread_time() - start < 5


def test_what_templates_do_with_texts_is_theirs() -> None:
    """What is held against limits gives what it gave."""
    template = (
        "{{ 'a-b'.replace('-', '+') }}{{ 'a-b' | replace('-', '+') }}{{ '{:>3}{}'.format(1, 'x') }}{{ '%03d' % 7 }}"
        "{{ messages | map(attribute='role') | join(',') }}{{ ','.join(['x', 'y']) }}{{ [1, 2] | sum }}"
        "{{ [1, 2, 3] | slice(2) | list }}{{ 1.25 | round(1) }}{{ 'a\nb' | indent(1) }}"
        "{{ {'a': [1]} | tojson(indent=1) }}{{ '{a}'.format_map({'a': 1}) }}"
    )
    text = ChatTemplate(template, Tags("")).render({"messages": [user("hi"), user("ho")]})
    assert text == 'a+ba+b  1x007user,userx,y3[[1, 2], [3]]1.2a\n b{\n "a": [\n  1\n ]\n}1'


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["{{", "}}", "{%", "%}", " for ", " in ", "messages", "m", "x", " if ", "endfor", "endif", "'<|'"]
        )
        | st.sampled_from(
            ["|tojson", "|join", "[0]", ".content", "+", "~", "*", "9", "(", ")", "set ", "=", "\n", "-"]
        ),
        max_size=14,
    ).map("".join)
)
def test_any_template_gives_ids_or_an_error(template: str) -> None:
    tokenizer = tokenizer_with(template)
    try:
        ids = encode_chat(tokenizer, [user("hello")])
    except PyllmError:
        return
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
