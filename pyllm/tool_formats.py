"""How model families write tool calls: one table, and what reads a reply by one of its rows.

Which row is a model's is seen from its chat template, which writes earlier calls in the same way and often tells the
model how to. A reply is read with its control tokens in their places, since families mark calls by them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllm.tool_schemas import kinds_of

if TYPE_CHECKING:
    from pyllm.tokenizers import Tokenizer

_THINKS, _THOUGHT = "<think>", "</think>"  # no call stands between them


@dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for. `id`: nine letters and digits, the same for the same text."""

    name: str
    arguments: dict[str, Any]
    id: str


@dataclass(frozen=True)
class Reply:
    """A model's turn: its text without the calls, the calls, and why other parts that look like calls are none.

    `reasoning`: what it thought before, where its family marks that by control tokens. `apart`: whether `content` is
    something else than all of its text.
    """

    content: str
    calls: tuple[ToolCall, ...] = ()
    errors: tuple[str, ...] = ()
    reasoning: str = ""
    apart: bool = False


class Malformed(ValueError):
    """Why something that looks like a call is none."""


class Raw(NamedTuple):
    """A call as it was found. `texts`: the arguments are texts, and only the tool's schema knows their types."""

    name: Any
    arguments: Any
    id: Any = None
    texts: bool = False


@dataclass(frozen=True)
class Format:
    """A family's way. `needs`: what its templates contain. `begin`: how calls begin; `body` reads what follows.

    `end` must follow; a token that ends the turn is not part of a reply. `leading`: a reply is calls from its beginning
    on, or has none. `shown`, `thought`: where the text for the user stands, and that before it, if they are marked.
    `one_a_message`: the template takes no message with several calls. `in_system_message`: it takes the tools from the
    system message, as JSON text.
    """

    name: str
    needs: tuple[str, ...]
    begin: re.Pattern[str]
    body: Callable[[str, re.Match[str]], tuple[list[Raw], int]]
    end: re.Pattern[str] = re.compile(r"")
    leading: bool = False
    shown: re.Pattern[str] | None = None
    thought: re.Pattern[str] | None = None
    one_a_message: bool = False
    in_system_message: bool = False


# ---- what stands between a beginning and an end --------------------------------------------------------------------


def _json(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at `at`, and where it ends."""
    try:
        return _DECODER.raw_decode(text, _skip(text, at))
    except RecursionError:
        raise Malformed("its JSON is nested too deeply") from None
    except ValueError as error:
        raise Malformed(f"it is no JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_no_constant)  # line ends in strings are well meant
_SPACE = re.compile(r"\s*")


def _skip(text: str, at: int, what: re.Pattern[str] = _SPACE) -> int:
    match = what.match(text, at)
    return match.end() if match else at


def _until(text: str, at: int, mark: str) -> tuple[str, int]:
    """The text up to a mark, and where that ends."""
    found = text.find(mark, at)
    if found < 0:
        raise Malformed(f"{mark} does not follow")
    return text[at:found], found + len(mark)


def _objects(value: Any) -> list[Raw]:
    """One object, or a list of them, with the keys that any family uses."""
    found = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, Mapping):
            raise Malformed(f"a call is an object, not {json.dumps(item)[:60]}")
        name, arguments = item.get("name", item.get("tool_name")), item.get("arguments", item.get("parameters"))
        found.append(Raw(name, arguments, item.get("id")))
    return found


def _described(text: str, begin: re.Match[str]) -> tuple[list[Raw], int]:
    """{"name": ..., "arguments": {...}}, or a list of such."""
    value, end = _json(text, begin.end())
    return _objects(value), end


def _whole_reply(text: str, begin: re.Match[str]) -> tuple[list[Raw], int]:
    """Such objects up to the end, with nothing but white space and semicolons between them."""
    found, at = list[Raw](), begin.end()
    while at < len(text):
        value, at = _json(text, at)
        found += _objects(value)
        at = _skip(text, at, _SEPARATORS)
    return found, at


_SEPARATORS = re.compile(r"[;\s]*")


def _mistral(text: str, begin: re.Match[str]) -> tuple[list[Raw], int]:
    """A list of objects; in later versions `name[CALL_ID]id[ARGS]{...}`, where the marks may be missing."""
    named = _MISTRAL_NAME.match(text, begin.end())
    if named is None:
        return _described(text, begin)
    arguments, end = _json(text, named.end())
    return [Raw(named["name"], arguments, named["id"])], end


_MISTRAL_NAME = re.compile(r"\s*(?P<name>[\w.-]+)(?:\[CALL_ID\](?P<id>\w+))?(?:\[ARGS\])?(?=\s*\{)")


def _arguments(text: str, begin: re.Match[str]) -> tuple[list[Raw], int]:
    """The arguments, as JSON, of the function that the beginning names."""
    arguments, end = _json(text, begin.end())
    return [Raw(begin["name"], arguments)], end


def _keys_and_values(text: str, begin: re.Match[str]) -> tuple[list[Raw], int]:
    """The name, then `<arg_key>` and `<arg_value>` in turn."""
    name = _named(text, begin.end(), _WORD)
    at, arguments = name.end(), dict[str, str]()
    while key := _KEY.match(text, at):
        arguments[key[1]], at = _until(text, key.end(), "</arg_value>")
    return [Raw(name[1], arguments, texts=True)], at


_WORD = re.compile(r"\s*([\w.-]+)")
_KEY = re.compile(r"\s*<arg_key>([^<]*)</arg_key>\s*<arg_value>")


def _elements(text: str, begin: re.Match[str]) -> tuple[list[Raw], int]:
    """`<function=name>`, with `<parameter=key>` for each argument, whose value stands on lines of its own."""
    name = _named(text, begin.end(), _FUNCTION)
    at, arguments = name.end(), dict[str, str]()
    while key := _PARAMETER.match(text, at):
        value, at = _until(text, key.end(), "</parameter>")
        arguments[key[1]] = value.removesuffix("\n")
    return [Raw(name[1], arguments, texts=True)], _named(text, at, _FUNCTION_END).end()


_FUNCTION, _FUNCTION_END = re.compile(r"\s*<function=([\w.-]+)>"), re.compile(r"\s*</function>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?")


def _named(text: str, at: int, pattern: re.Pattern[str]) -> re.Match[str]:
    match = pattern.match(text, at)
    if match is None:
        raise Malformed(f"{text[at : at + 20]!r} is not how a call of a function is written")
    return match


# ---- the table -----------------------------------------------------------------------------------------------------

_FENCE_END = re.compile(r"\s*```")
_TAG, _TAG_END = re.compile(r"<tool_call>"), re.compile(r"\s*</tool_call>")
_BAR_TAG, _BAR_TAG_END = re.compile(r"<\|tool_call\|>|functools(?=\[)"), re.compile(r"(?:\s*<\|/tool_call\|>)?")

#: From the most particular to the most general: a template's row is the first whose needs it meets.
FORMATS = (
    Format("glm-4.5", ("<tool_call>", "<arg_key>"), _TAG, _keys_and_values, _TAG_END),
    Format("qwen3-coder", ("<tool_call>", "<function="), _TAG, _elements, _TAG_END),
    Format("granite-3", ("<|tool_call|>",), _BAR_TAG, _described, _BAR_TAG_END),
    Format("phi-4-mini", ("<|tool|>", "message['tools']"), _BAR_TAG, _described, _BAR_TAG_END, in_system_message=True),
    Format(
        "command-r7b",
        ("<|START_ACTION|>",),
        re.compile(r"<\|START_ACTION\|>"),
        _described,
        re.compile(r"\s*<\|END_ACTION\|>"),
        shown=re.compile(r"<\|START_RESPONSE\|>(.*?)(?:<\|END_RESPONSE\|>|\Z)", re.DOTALL),
        thought=re.compile(r"<\|START_THINKING\|>(.*?)(?:<\|END_THINKING\|>|\Z)", re.DOTALL),
    ),
    Format("command-r", ('"tool_name"', "```json"), re.compile(r"Action:\s*```json"), _described, _FENCE_END),
    Format(
        "gpt-oss",
        ("<|channel|>", "<|call|>"),
        re.compile(
            r"(?:<\|start\|>assistant)?(?:<\|channel\|>commentary)? ?to=functions\.(?P<name>[\w.-]+)"
            r"(?:<\|channel\|>commentary)? ?(?:<\|constrain\|>)?(?:json)? ?<\|message\|>"
        ),
        _arguments,
        re.compile(r"(?:\s*<\|call\|>)?"),
        one_a_message=True,
        shown=re.compile(r"<\|channel\|>final<\|message\|>(.*?)(?:<\|end\|>|<\|return\|>|\Z)", re.DOTALL),
        thought=re.compile(r"<\|channel\|>analysis<\|message\|>(.*?)(?:<\|end\|>|\Z)", re.DOTALL),
    ),
    Format("apriel", ("<tool_calls>[",), re.compile(r"<tool_calls>"), _described, re.compile(r"\s*</tool_calls>")),
    Format("mistral", ("[TOOL_CALLS]",), re.compile(r"\[TOOL_CALLS\]"), _mistral),
    # Hermes, Qwen 2.5 and 3, SmolLM 3, EXAONE 4, Granite 4 and many others
    Format("hermes", ("<tool_call>", "</tool_call>"), _TAG, _described, _TAG_END),
    Format("granite-3.1", ("<tool_call>",), _TAG, _described),
    Format(
        "llama-3",
        ("<|start_header_id|>", '"parameters": '),
        re.compile(r"\s*(?:<\|python_tag\|>\s*)?(?=\{)"),
        _whole_reply,
        leading=True,
        one_a_message=True,
    ),
)


def format_of(template: str) -> Format | None:
    """The row whose way a chat template writes calls in; None where it is not in the table."""
    return next((row for row in FORMATS if all(part in template for part in row.needs)), None)


# ---- reading a reply -----------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """A text with its control tokens, and from where to where each of these stands."""

    text: str
    controls: Sequence[tuple[int, int]] = ()

    def plain(self, begin: int, end: int) -> str:
        """Part of the text, without control tokens."""
        parts, at = [], begin
        for first, last in self.controls:
            if begin <= first and last <= end:
                parts.append(self.text[at:first])
                at = last
        return "".join([*parts, self.text[at:end]])

    def without(self, n: int) -> Written:
        """All but the last n characters."""
        end = len(self.text) - n
        return Written(self.text[:end], [(first, last) for first, last in self.controls if last <= end])


def written(tokenizer: Tokenizer, tokens: Sequence[int]) -> Written:
    """What some tokens say, those that add no text included."""
    parts, controls, length, held = list[str](), list[tuple[int, int]](), 0, bytearray()
    for token in [*tokens, None]:
        control = "" if token is None else tokenizer.control_texts.get(token, "")
        if control or token is None:
            parts += [held.decode("utf-8", "replace"), control]
            held.clear()
            length += len(parts[-2]) + len(control)
            controls.append((length - len(control), length))
        elif token < tokenizer.vocab_size:  # not an id that pads the model's vocabulary
            held += tokenizer.token_bytes(token)
    return Written("".join(parts), controls)


def begins_in_thought(prompt: str) -> bool:
    """Whether a template opens a thought for the model to go on with."""
    return prompt.rstrip().endswith(_THINKS)


def read_reply(
    row: Format, reply: Written, tools: Sequence[Mapping[str, Any]], salt: str, *, thinking: bool = False
) -> Reply:
    """The calls of `tools` in a reply that is written in the way of `row`.

    `salt`: what tells this turn from others. `thinking`: it begins in the midst of a thought.
    """
    functions = {tool["name"]: tool for tool in (tool.get("function", tool) for tool in tools) if "name" in tool}
    text, content, calls, errors = reply.text, list[str](), list[ToolCall](), list[str]()
    kept, at = 0, _behind_thought(text, 0) if thinking or text.lstrip().startswith(_THINKS) else 0
    while begin := row.begin.match(text, at) if row.leading else row.begin.search(text, at):
        if text.rfind(_THINKS, at, begin.start()) > text.rfind(_THOUGHT, at, begin.start()):
            at = _behind_thought(text, begin.start())
            continue
        try:
            raws, end = _ended(row, text, begin)
            found = [_call(raw, functions, f"{salt} {len(calls) + i}") for i, raw in enumerate(raws)]
        except Malformed as error:
            errors.append(f"at character {begin.start()}: {error}")
            if row.leading:
                break
            at = begin.end()
            continue
        calls += found
        content.append(reply.plain(kept, begin.start()))
        kept = at = end
    content.append(reply.plain(kept, len(text)))
    shown = _marked(row.shown, reply)
    marked = bool(row.shown and (shown or (calls and not errors)))
    said = shown if marked else "".join(content)
    thought = _marked(row.thought, reply)
    return Reply(said.strip() if calls else said, tuple(calls), tuple(errors), thought, apart=bool(calls) or marked)


def _behind_thought(text: str, at: int) -> int:
    """Where the thought ends that `at` is in."""
    end = text.find(_THOUGHT, at)
    return len(text) if end < 0 else end + len(_THOUGHT)


def _marked(pattern: re.Pattern[str] | None, reply: Written) -> str:
    """What the first group of a pattern matches, all of it."""
    return "".join(reply.plain(*match.span(1)) for match in pattern.finditer(reply.text)) if pattern else ""


def _ended(row: Format, text: str, begin: re.Match[str]) -> tuple[list[Raw], int]:
    """What the body of a call says, and where the call ends."""
    raws, at = row.body(text, begin)
    end = row.end.match(text, at)
    if end is None:
        raise Malformed(f"something else stands where the call must end: {text[at : at + 20]!r}")
    return raws, end.end()


def _call(raw: Raw, functions: Mapping[str, Any], salt: str) -> ToolCall:
    """A call whose function exists and whose arguments are an object."""
    if not isinstance(raw.name, str):
        raise Malformed("it names no function")
    if raw.name not in functions:
        raise Malformed(f"there is no tool {raw.name!r}")
    arguments = {} if raw.arguments is None else raw.arguments
    if raw.texts:
        properties = (functions[raw.name].get("parameters") or {}).get("properties") or {}
        arguments = {key: _typed(text, properties.get(key)) for key, text in arguments.items()}
    elif isinstance(arguments, str):
        arguments = _json(arguments, 0)[0]
    if not isinstance(arguments, dict):
        raise Malformed(f"the arguments of {raw.name!r} are {json.dumps(arguments)[:60]}, which is no object")
    own = isinstance(raw.id, str) and re.fullmatch("[0-9A-Za-z]{9}", raw.id)
    return ToolCall(raw.name, arguments, raw.id if own else _id(salt))


def _typed(text: str, schema: Any) -> Any:
    """An argument that was written without quotes, as a type that the tool takes: text where it may be text."""
    kinds = kinds_of(schema)
    if "null" in kinds and text.strip() in ("null", "None"):
        return None
    if "string" in kinds:
        return text
    if "boolean" in kinds and text.strip() in ("True", "False"):  # as models write that have seen much Python
        return text.strip() == "True"
    try:
        value, end = _json(text, 0)
    except Malformed:
        return text
    return value if _skip(text, end) == len(text) else text


def _id(salt: str) -> str:
    return hashlib.sha256(salt.encode()).hexdigest()[:9]
