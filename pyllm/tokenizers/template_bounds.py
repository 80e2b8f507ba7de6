"""How large things may become in a chat template, held against limits before an operation fills the memory.

What multiplies sizes is judged before it is done. What only adds, or makes a thing a few times as large, is judged by
its result. All of it is far above every real template and conversation: what needs more was made to do harm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

from jinja2 import TemplateError

LONGEST_TEXT = 1 << 26  # characters, rendered or in any string on the way
LONGEST_LIST = 1 << 20  # elements, those of lists in it too
LONGEST_NUMBER = 1 << 14  # bits
LARGEST_NUMBER = 1000  # for widths and powers

Sequence = (str, list, tuple)


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuses `left operator right` where the result would be too large."""
    if operator == "+" and isinstance(left, Sequence) and isinstance(right, Sequence):
        _check_length(operator, left, len(left) + len(right))
    elif operator == "*":
        _check_product(left, right)
    elif operator == "%" and isinstance(left, str):
        values = right if isinstance(right, tuple) else right.values() if isinstance(right, dict) else (right,)
        wide = re.search(r"%[^%a-zA-Z]*(\*|\d{4})", left) is not None
        _check_length(operator, left, LONGEST_TEXT + 1 if wide else len(left) + left.count("%") * _longest(values))
    elif operator == "**" and max(abs(left), abs(right)) > LARGEST_NUMBER:
        raise _too_large(operator, LONGEST_NUMBER)


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > LONGEST_NUMBER:
            raise _too_large("*", LONGEST_NUMBER)
    elif isinstance(left, Sequence) and isinstance(right, int):
        _check_length("*", left, len(left) * right)
    elif isinstance(right, Sequence) and isinstance(left, int):
        _check_length("*", right, len(right) * left)


def _check_length(what: str, kind: Any, length: int) -> None:
    limit = LONGEST_TEXT if isinstance(kind, str) else LONGEST_LIST
    if length > limit:
        raise _too_large(what, limit)


def _too_large(what: str, limit: int) -> TemplateError:
    return TemplateError(f"the result of {what} would be larger than {limit}")


def _longest(values: Iterable[Any]) -> int:
    """Characters of the longest of these, as text."""
    return max((len(value if isinstance(value, str) else str(checked(value))) for value in values), default=0)


def check_call(function: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Refuses a call of a string's method whose result would be too large; the arguments to call it with.

    Among the `options` are names of Jinja's own, which begin with "_".
    """
    method = getattr(function, "__wrapped__", function)  # Jinja puts its own around str.format
    text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(text, str):
        return args
    if name == "replace":
        check_replacement(text, *args[:2])
    elif name == "join" and args:
        args = (list(args[0]), *args[1:])  # which may be a generator, and be gone when it has been looked at
        check_joining(text, args[0])
    elif name == "format_map" and args and isinstance(args[0], dict):
        _check_format(text, list(args[0].values()))
    elif name == "format":
        _check_format(text, [*args, *(value for key, value in options.items() if not key.startswith("_"))])
    return args


def check_replacement(text: str, old: Any = "", new: Any = "") -> None:
    """Refuses `text.replace(old, new)` that would be too large."""
    old, new = str(old), str(new)
    times = max(text.count(old), str.count(text, old))  # of the text that it stands for, and of what stands for it
    _check_length("replace", text, len(text) + times * max(len(new) - len(old), 0))


def check_joining(separator: str, items: list[Any]) -> None:
    """Refuses `separator.join(items)` that would be too large."""
    total = sum(len(item) if isinstance(item, str) else len(str(checked(item))) for item in items)
    _check_length("join", separator, total + len(separator) * len(items))


def _check_format(text: str, values: list[Any]) -> None:
    fields = [spec for _, name, spec, _ in Formatter().parse(text) if name is not None]
    if any("{" in (spec or "") or re.search(r"\d{4}", spec or "") for spec in fields):
        raise _too_large("format", LONGEST_TEXT)
    _check_length("format", text, len(text) + len(fields) * (_longest(values) + LARGEST_NUMBER))


def check_indent(text: str, width: Any) -> None:
    """Refuses to indent all lines of `text` by `width` where that would be too large."""
    each = len(width) if isinstance(width, str) else small(width)
    _check_length("indent", text, len(text) + (text.count("\n") + 1) * each)


def checked(value: Any) -> Any:
    """The value, unless it is larger than anything may be, with all that is in it: lists can hold each other."""
    if isinstance(value, str):
        _check_length("a step", value, len(value))
    elif isinstance(value, (list, tuple, dict)):
        elements, waiting = 0, [value]
        while waiting:
            inside = waiting.pop()
            elements += len(inside)
            if elements > LONGEST_LIST:
                raise _too_large("a step", LONGEST_LIST)
            parts = [*inside, *inside.values()] if isinstance(inside, dict) else inside
            waiting.extend(part for part in parts if isinstance(part, (list, tuple, dict)))
    return value


def small(value: Any) -> Any:
    """The value; a number or a string must not be too large for a width."""
    size = value if isinstance(value, int) else len(value) if isinstance(value, str) else 0
    if size > LARGEST_NUMBER:
        raise TemplateError(f"{size} is larger than {LARGEST_NUMBER}, the limit here")
    return value
