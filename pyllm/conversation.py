"""A conversation as token ids, and the reply to it read back: through the model's chat template, tools included."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from pyllm.errors import TokenizerError
from pyllm.tool_formats import Reply, begins_in_thought, format_of, read_reply, written
from pyllm.tool_schemas import tool_of

if TYPE_CHECKING:
    from typing import TypeAlias

    from pyllm.tokenizers import Tokenizer

    Message: TypeAlias = Mapping[str, Any]
    Tool: TypeAlias = Callable[..., Any] | Mapping[str, Any]
    #: Called with the ids before a reply, those of it, and how many characters at its end are not part of the text.
    Reader: TypeAlias = Callable[[Sequence[int], Sequence[int], int], Reply]

#: Ids at the end of a prompt that tell whether it opens a thought.
_OPENING = 8
#: How templates name what they take tools from.
_TAKES_TOOLS = re.compile(r"\b(?:xml_)?tools\b")


def encode_conversation(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None,
    *,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> tuple[list[int], Reader | None]:
    """The ids of a conversation with its answer's turn opened; and, where there are tools, what reads the answer.

    `documents` and `template_options`: for the template, see `encode_chat`'s `documents` and `variables`. Raises
    `TokenizerError` where there is no chat template, or it takes no tools and some are given.
    """
    from pyllm.tokenizers.chat import choose_template, encode_chat  # here: templates need jinja2, slow to import

    encode = partial(encode_chat, tokenizer, documents=documents, variables=template_options)
    described = [tool_of(tool) for tool in tools or ()]
    if not described:
        return encode(messages), None
    _refuse_equal_names(described)
    template = choose_template(tokenizer, None, with_tools=True)
    if not _TAKES_TOOLS.search(template):
        raise TokenizerError("the model's chat template takes no tools: the model was not made to call any")
    row = format_of(template)
    usable = isinstance(messages, Sequence) and all(isinstance(message, Mapping) for message in messages)
    if row and row.one_a_message and usable:
        messages = _apart(messages)
    if row and row.in_system_message and usable:
        ids = encode(_with_tools(messages, described))
    else:
        ids = encode(messages, tools=described)

    def read(before: Sequence[int], tokens: Sequence[int], cut: int) -> Reply:
        if row is None:
            raise TokenizerError(
                "the model's chat template writes tool calls in no way that is known here: read them from .text"
            )
        turn, text = ",".join(map(str, (*before, *tokens))), written(tokenizer, tokens).without(cut)
        thinking = begins_in_thought(written(tokenizer, before[-_OPENING:]).text)
        salt = hashlib.sha256(turn.encode()).hexdigest()
        reply = read_reply(row, text, described, salt, thinking=thinking)
        if "tool_calls" in template:
            return reply
        return replace(reply, content=text.text, apart=True)  # or else the calls would be lost

    return ids, read


def _refuse_equal_names(tools: Sequence[Mapping[str, Any]]) -> None:
    names = [str(tool.get("function", tool).get("name")) for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two tools are called {name!r}: a call could mean either")


def _with_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation with the tools in its system message, which is made where there is none."""
    first, rest = dict[str, Any](role="system", content=""), list(messages)
    if rest and rest[0].get("role") == "system":
        first = dict(rest.pop(0))
    return [{**first, "tools": json.dumps([tool.get("function", tool) for tool in tools], ensure_ascii=False)}, *rest]


def _apart(messages: Sequence[Message]) -> list[Message]:
    """The conversation with messages of several calls as one for each, followed by its result: the one with its id
    among those that follow the calls, or else the next.
    """
    parts: list[Message] = []
    at = 0
    while at < len(messages):
        message, at = messages[at], at + 1
        if len(_calls(message)) < 2:
            parts.append(message)
            continue
        results = list(takewhile(lambda other: other.get("role") == "tool", messages[at:]))
        at += len(results)
        for number, call in enumerate(_calls(message)):
            parts.append({**message, "content": "" if number else message.get("content"), "tool_calls": [call]})
            named = (i for i, other in enumerate(results) if call.get("id") and other.get("tool_call_id") == call["id"])
            unnamed = (i for i, other in enumerate(results) if not other.get("tool_call_id"))
            found = next(named, next(unnamed, None))
            parts += [] if found is None else [results.pop(found)]
        parts += results
    return parts


def _calls(message: Message) -> Sequence[Mapping[str, Any]]:
    return message.get("tool_calls") or ()


def shared_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
