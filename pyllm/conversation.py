"""A conversation as token ids, and the reply to it read back: through the model's chat template, tools included."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pyllm.errors import TokenizerError
from pyllm.tool_formats import Reply, format_of, read_reply, written
from pyllm.tool_schemas import tool_of

if TYPE_CHECKING:
    from typing import TypeAlias

    from pyllm.tokenizers import Tokenizer

    Message: TypeAlias = Mapping[str, Any]
    Tool: TypeAlias = Callable[..., Any] | Mapping[str, Any]
    #: Called with the ids before a reply and those of it.
    Reader: TypeAlias = Callable[[Sequence[int], Sequence[int]], Reply]

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
    template = choose_template(tokenizer, None, with_tools=True)
    if not _TAKES_TOOLS.search(template):
        raise TokenizerError("the model's chat template takes no tools: the model was not made to call any")
    row = format_of(template)
    usable = isinstance(messages, Sequence) and all(isinstance(message, Mapping) for message in messages)
    if row and row.one_a_message and usable:
        messages = [part for message in messages for part in _apart(message, messages)]
    if row and row.in_system_message and usable:
        ids = encode(_with_tools(messages, described))
    else:
        ids = encode(messages, tools=described)

    def read(before: Sequence[int], tokens: Sequence[int]) -> Reply:
        if row is None:
            raise TokenizerError(
                "the model's chat template writes tool calls in no way that is known here: read them from .text"
            )
        turn, text = ",".join(map(str, (*before, *tokens))), written(tokenizer, tokens)
        reply = read_reply(row, text, described, hashlib.sha256(turn.encode()).hexdigest())
        return reply if "tool_calls" in template else replace(reply, content=text.text)  # else the calls would be lost

    return ids, read


def _with_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation with the tools in its system message, which is made where there is none."""
    first, rest = dict[str, Any](role="system", content=""), list(messages)
    if rest and rest[0].get("role") == "system":
        first = dict(rest.pop(0))
    return [{**first, "tools": json.dumps([tool.get("function", tool) for tool in tools], ensure_ascii=False)}, *rest]


def _apart(message: Message, messages: Sequence[Message]) -> list[Message]:
    """A message with several calls as one for each, followed by its result; and results where they were, else."""
    several = {call.get("id") for other in messages for call in _calls(other) if len(_calls(other)) > 1}
    if message.get("role") == "tool" and message.get("tool_call_id") in several:
        return []
    if len(_calls(message)) < 2:
        return [message]
    parts: list[Message] = []
    for number, call in enumerate(_calls(message)):
        parts.append({**message, "content": "" if number else message.get("content"), "tool_calls": [call]})
        parts += [other for other in messages if other.get("tool_call_id") == call.get("id")]
    return parts


def _calls(message: Message) -> Sequence[Mapping[str, Any]]:
    return message.get("tool_calls") or ()


def shared_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
