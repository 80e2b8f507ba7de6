"""Tools that a model may call: Python functions, their descriptions, and a bounded loop that calls them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyllm.tool_formats import ToolCall
from pyllm.tool_schemas import describe, fitted_arguments

if TYPE_CHECKING:
    from typing import TypeAlias

    from pyllm.model import Model
    from pyllm.session import Session

    Tool: TypeAlias = Callable[..., Any]
    Message: TypeAlias = Mapping[str, Any]

__all__ = ["Conversation", "ToolCall", "answer", "describe", "run"]


@dataclass(frozen=True)
class Conversation:
    """How a loop of calls ended. `messages`: all of it, as given and as it went on. `text`: the last reply's.

    `finished`: False where the last reply was cut short, or still asked for calls when the rounds were used up.
    """

    messages: list[dict[str, Any]]
    text: str
    finished: bool


def run(
    model: Model | Session,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    *,
    max_rounds: int = 8,
    context_length: int | None = None,
    **options: Any,
) -> Conversation:
    """Let a model answer a conversation, calling `tools` for it until it asks for no more.

    `model`: a model, or a session to do it in; either way all rounds share one session, which does not read again what
    it holds. `max_rounds`: replies at most. `context_length`: of a model's new session. `options`: as for `chat`.

    A reply without calls ends it; so does one whose calls are malformed, as text. A call whose arguments do not fit the
    function is answered with the reason, so that the model can try again; what a function raises is not caught. Raises
    `TypeError` for tools that are no functions and for results that are neither text nor JSON; and as `chat` does.
    """
    from pyllm.tokenizers.chat import messages_of  # here: templates need jinja2, slow to import

    if max_rounds < 1:
        raise ValueError(f"max_rounds must be at least 1, not {max_rounds}")
    tools = list(map(_checked, tools))
    functions = {describe(tool)["function"]["name"]: tool for tool in tools}
    conversation = [dict(message) for message in messages_of(messages)]
    with model.session(context_length) if hasattr(model, "session") else nullcontext(model) as session:
        for _ in range(max_rounds):
            reply = session.chat(conversation, tools=tools, **options)
            conversation.append(reply.message)
            calls = reply.tool_calls
            if not calls:
                break
            conversation += [answer(call, functions[call.name]) for call in calls]
    finished = not calls and reply.finish_reason == "stop"
    return Conversation(conversation, str(reply.message["content"]), finished)


def answer(call: ToolCall, function: Tool) -> dict[str, Any]:
    """The message that tells the model what a call gave, for the next `chat`.

    Arguments become what the function's type hints say, such as members of an enum. Text stays as it is, other results
    become JSON; where the arguments do not fit the function, it says so.
    """
    try:
        inspect.signature(function).bind(**call.arguments)
        arguments = fitted_arguments(function, call.arguments)
    except (TypeError, ValueError) as error:
        content = f"error: {call.name}: {error}"
    else:
        content = _text(call.name, function(**arguments))
    return {"role": "tool", "name": call.name, "tool_call_id": call.id, "content": content}


def _text(name: str, result: Any) -> str:
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"tool {name} returned what is neither text nor JSON: {error}") from error


def _checked(tool: Tool) -> Tool:
    if not callable(tool) or inspect.iscoroutinefunction(tool):
        raise TypeError(f"run() calls plain functions, not {tool!r}: write the loop yourself, with chat()")
    return tool
