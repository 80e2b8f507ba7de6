"""Conversations to token ids, through the model's own chat template.

Text from messages never becomes a control token, whatever it says and whatever the template does with it: see
`tagged.py`. Between control tokens, text is encoded exactly as any other text is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import Tokenizer, check_text
from pyllm.tokenizers.tagged import Tags, private_characters
from pyllm.tokenizers.template import ChatTemplate

#: Roles that templates may write into control tokens, as in `<|user|>`. Any other is text like a message's content.
ROLES = frozenset({"assistant", "developer", "function", "ipython", "model", "system", "tool", "user"})

Message = Mapping[str, Any]


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Token ids of a conversation.

    `messages`: mappings with "role" and "content" (text, or a list of `{"type": "text", "text": ...}`), and whatever
    else the template reads, as JSON-like data. `tools`: descriptions of functions for the template.
    `add_generation_prompt`: open the answer's turn. BOS is put before the text where the vocabulary wants one and the
    template has not written it. Raises `TokenizerError` where there is no chat template or it refuses the
    conversation, with its own message; `TypeError` and `ValueError` for what is no conversation.
    """
    text, tags = _render(tokenizer, messages, tools, add_generation_prompt)
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
    add_generation_prompt: bool = True,
) -> str:
    """The text of a conversation, for people: encoding it would let messages speak in control tokens."""
    text, tags = _render(tokenizer, messages, tools, add_generation_prompt)
    return tags.show(text)


def _render(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, opened: bool
) -> tuple[str, Tags]:
    source = tokenizer.chat_template
    if source is None:
        raise TokenizerError(
            "the model's file holds no chat template, and which one it was trained on cannot be guessed: write the "
            "prompt out yourself and use generate()"
        )
    conversation = [_checked(message, number) for number, message in enumerate(_listed(messages))]
    listed = list(tools) if tools else None
    foreign = {"messages": conversation, "tools": listed, "xml_tools": listed}  # as SmolLM 3's template names them
    characters = "".join(sorted(set("".join(tokenizer.control_texts.values()))))
    avoid = private_characters(source).union(*map(private_characters, _strings(foreign)))
    template, tags = _compile(source, characters, "".join(sorted(avoid)))
    hidden = tags.hide_all(foreign)
    for message, original in zip(hidden["messages"], conversation, strict=True):
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


def _listed(messages: Sequence[Message]) -> list[Message]:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise TypeError(f"messages must be a list of mappings, not {type(messages).__name__}")
    found = list(messages)
    if not found:
        raise ValueError("a conversation needs at least one message")
    return found


def _checked(message: object, number: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TypeError(f"message {number} must be a mapping with 'role', not {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ValueError(f"message {number} has the role {role!r}; it needs one such as 'user'")
    if "content" not in message:
        return dict(message)
    return {**message, "content": _content(message["content"], number)}


def _content(content: object, number: int) -> str | None:
    """Text as one string. None is for messages that consist of tool calls."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise TypeError(f"message {number}: content must be text or a list of parts, not {type(content).__name__}")
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
    for part, text in zip(content, texts, strict=True):
        if not isinstance(text, str) or part.get("type") != "text":
            raise ValueError(f"message {number}: a part of content must be {{'type': 'text', 'text': ...}}")
    return "".join(str(text) for text in texts)


def _strings(value: Any) -> Iterator[str]:
    """Every string in JSON-like data, checked to consist of characters."""
    if isinstance(value, str):
        check_text(value)
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
