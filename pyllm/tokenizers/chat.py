"""Conversations to token ids, through the model's own chat template.

Text from messages never becomes a control token, whatever it says and whatever the template does with it: see
`tagged.py`. Between control tokens, text is encoded exactly as any other text is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Tokenizer, checked
from pyllm.tokenizers.tagged import Tags, private_characters
from pyllm.tokenizers.template import ChatTemplate

#: Roles that templates may write into control tokens, as in `<|user|>`. Any other is text like a message's content.
ROLES = frozenset({"assistant", "developer", "function", "ipython", "model", "system", "tool", "user"})

#: What a message's reasoning is called, by different templates.
REASONING = ("reasoning_content", "thinking", "reasoning")

Message = Mapping[str, Any]


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation.

    `messages`: mappings with "role" and "content" (text, or a list of `{"type": "text", "text": ...}`), and whatever
    else the template reads, as JSON-like data. `tools`: descriptions of functions for the template. `documents`: texts
    to answer from, for the few templates that take them. `add_generation_prompt`: open the answer's turn. `template`:
    the name of one of the vocabulary's templates; None takes "tool_use" for `tools`, if there is one, else the usual
    one. `variables`: whatever else the template knows, such as `{"enable_thinking": False}`; others do nothing.

    BOS is put before the text where the vocabulary wants one and the template has not written it. Raises
    `TokenizerError` where there is no chat template or it refuses the conversation, with its own message; `TypeError`
    and `ValueError` for what is no conversation.
    """
    source = choose_template(tokenizer, template, bool(tools))
    foreign = _foreign(messages, tools, documents, variables)
    text, tags = _render(tokenizer, source, foreign, add_generation_prompt)
    parts: list[str | int] = []
    for part in tokenizer.split_control(text):
        parts += [part] if isinstance(part, int) else tokenizer.split_user_defined(tags.show(part))
    ids = tokenizer.encode_parts(parts)
    return tokenizer.frame(ids, bos=tokenizer.add_bos and ids[:1] != [tokenizer.bos_id], eos=False)


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text of a conversation, for people: encoding it would let messages speak in control tokens."""
    source = choose_template(tokenizer, template, bool(tools))
    foreign = _foreign(messages, tools, documents, variables)
    text, tags = _render(tokenizer, source, foreign, add_generation_prompt)
    return tags.show(text)


def choose_template(tokenizer: Tokenizer, name: str | None, with_tools: bool) -> str:
    """The source of the template that `encode_chat` takes."""
    known = tokenizer.chat_templates
    if not known:
        raise TokenizerError(
            "the model's file holds no chat template, and which one it was trained on cannot be guessed: write the "
            "prompt out yourself and use generate()"
        )
    if name is None:
        name = "tool_use" if with_tools and "tool_use" in known else "default"
    if name not in known:
        raise TokenizerError(f"the model's files hold no chat template {name!r}, only {', '.join(sorted(known))}")
    return known[name]


def _foreign(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All that the template sees but does not come from the model's files."""
    conversation = [_checked(message, number) for number, message in enumerate(messages_of(messages))]
    listed = list(tools) if tools else None
    given = {"messages": conversation, "tools": listed, "xml_tools": listed}  # as SmolLM 3's template names them
    return {**(variables or {}), **given, "documents": list(documents) if documents else None}


def _render(tokenizer: Tokenizer, source: str, foreign: Mapping[str, Any], opened: bool) -> tuple[str, Tags]:
    characters = "".join(sorted(set("".join(tokenizer.control_texts.values()))))
    avoid = private_characters(source).union(*map(private_characters, _strings(foreign)))
    template, tags = _compile(source, characters, "".join(sorted(avoid)))
    if not template.takes_parts:
        foreign = {**foreign, "messages": [_in_one(message) for message in foreign["messages"]]}
    hidden = {name: tags.hide_all(value) for name, value in foreign.items()}
    for message, original in zip(hidden["messages"], foreign["messages"], strict=True):
        if original["role"] in ROLES:
            message["role"] = original["role"]
    return template.render({**_special_tokens(tokenizer), **hidden, "add_generation_prompt": opened}), tags


@lru_cache(maxsize=16)
def _compile(source: str, characters: str, avoid: str) -> tuple[ChatTemplate, Tags]:
    """A template is compiled once, unless messages hold the very characters that would stand in."""
    tags = Tags(characters, avoid)
    return ChatTemplate(source, tags), tags


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    return {name: tokenizer.special_text(token) for name, token in named.items() if token is not None}


# ---- what callers pass ---------------------------------------------------------------------------------------------


def messages_of(messages: Sequence[Message]) -> list[Message]:
    """Messages as a list. Raises `TypeError` for a single one or a text, `ValueError` where there are none."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise TypeError(f"messages must be a list of mappings, not {type(messages).__name__}")
    found = list(messages)
    if not found:
        raise ValueError("a conversation needs at least one message")
    return found


def _checked(message: object, number: int) -> dict[str, Any]:
    """A message as transformers gives it to templates: without what is None, and with reasoning under each name."""
    if not isinstance(message, Mapping):
        raise TypeError(f"message {number} must be a mapping with 'role', not {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ValueError(f"message {number} has the role {role!r}; it needs one such as 'user'")
    found = {key: value for key, value in message.items() if value is not None}
    if "content" in found:
        found["content"] = _content(found["content"], number)
    reasoning = next((found[key] for key in REASONING if key in found), None)
    return found if reasoning is None else {"thinking": reasoning, **found, "reasoning_content": reasoning}


def _content(content: object, number: int) -> str | list[Mapping[str, Any]]:
    """Text, or parts of which each is text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise TypeError(f"message {number}: content must be text or a list of parts, not {type(content).__name__}")
    for part in content:
        if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise ValueError(f"message {number}: a part of content must be {{'type': 'text', 'text': ...}}")
    return list(content)


def _in_one(message: Message) -> Message:
    """A message whose content is one text, for templates that know of no parts."""
    content = message.get("content")
    return {**message, "content": "".join(p["text"] for p in content)} if isinstance(content, list) else message


def _strings(value: Any) -> Iterator[str]:
    """Every string in JSON-like data, checked to consist of characters."""
    if isinstance(value, str):
        yield checked(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
