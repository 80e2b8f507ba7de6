"""Python functions as the JSON Schemas by which chat templates describe tools, as `transformers` makes them."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_SCALARS: dict[type, str] = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_PLAIN: dict[Any, dict[str, Any]] = {kind: {"type": name} for kind, name in _SCALARS.items()}
_PLAIN |= {list: {"type": "array"}, tuple: {"type": "array"}, dict: {"type": "object"}, Any: {}}

#: Sections of a docstring in Google's style; what stands before the first is the description.
_SECTION = re.compile(r"^[ \t]*(Args|Returns|Raises):[ \t]*$", re.MULTILINE)
_ARGUMENT = re.compile(r"^([ \t]*)(\w+)(?:[ \t]*\([^()\n]*\))?:[ \t]*(.*)$")
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def describe(function: Callable[..., Any]) -> dict[str, Any]:
    """The description of a function for `chat(tools=...)`: what `transformers.utils.get_json_schema` gives for it.

    Its arguments need type hints and its docstring an `Args:` section in Google's style that describes each; a
    description may end with `(choices: ["a", "b"])`. Raises `ValueError` naming what is missing or has no schema.
    """
    name = getattr(function, "__name__", type(function).__name__)
    documentation = inspect.getdoc(function)
    if not documentation:
        raise ValueError(f"tool {name}: it has no docstring to tell the model what it does")
    sections = _sections(documentation.strip())
    described = _arguments(sections.get("Args", ""))
    hints, properties, required = _hints(function, name), {}, []
    for parameter in _parameters(function):
        if parameter.name not in hints:
            raise ValueError(f"tool {name}: argument {parameter.name!r} has no type hint")
        if parameter.name not in described:
            raise ValueError(f"tool {name}: the docstring does not describe the argument {parameter.name!r}")
        where = f"tool {name}: argument {parameter.name!r}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"{where} cannot be given by its name, as models give all of them")
        schema = _schema(hints[parameter.name], where)
        properties[parameter.name] = _with_description(schema, described[parameter.name], where)
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties} | ({"required": required} if required else {})
    result = {"name": name, "description": sections[""], "parameters": parameters} | _returned(hints, sections)
    return {"type": "function", "function": result}


def tool_of(given: Callable[..., Any] | Mapping[str, Any]) -> dict[str, Any]:
    """A tool as templates expect it: a function is described, and a bare description gets its frame."""
    if isinstance(given, Mapping):
        bare = "function" not in given and "name" in given
        return {"type": "function", "function": dict(given)} if bare else dict(given)
    if callable(given):
        return describe(given)
    raise TypeError(f"a tool is a function or its description as a mapping, not {type(given).__name__}")


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError) as error:
        raise ValueError(f"tool {name}: its type hints cannot be read: {error}") from error


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """All but the object that a method belongs to."""
    found = list(inspect.signature(function).parameters.values())
    if found and found[0].name in ("self", "cls") and found[0].annotation is inspect.Parameter.empty:
        del found[0]
    return found


def _returned(hints: Mapping[str, Any], sections: Mapping[str, str]) -> dict[str, Any]:
    """The description of what comes back, where it has a schema: the model does not write it."""
    if "return" not in hints:
        return {}
    try:
        schema = _schema(hints["return"], "")
    except ValueError:
        return {}
    return {"return": schema | ({"description": sections["Returns"]} if "Returns" in sections else {})}


# ---- what models write -----------------------------------------------------------------------------------------------


def kinds_of(schema: Any) -> set[str]:
    """The JSON types that a schema admits; none where it does not say."""
    if not isinstance(schema, Mapping):
        return set()
    found = {schema["type"]} if isinstance(schema.get("type"), str) else set(schema.get("type") or ())
    found |= {_SCALARS[type(value)] for value in schema.get("enum") or () if type(value) in _SCALARS}
    for part in (*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())):
        found |= kinds_of(part)
    return found | ({"null"} if schema.get("nullable") else set())


def fitted(value: Any, hint: Any) -> Any:
    """A JSON value as a type hint says: members of enums for their values. Raises `ValueError` where it does not fit;
    a hint that has no schema lets anything through.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for kind in arguments:
            with suppress(ValueError):
                return fitted(value, kind)
    elif origin is list and isinstance(value, list):
        return [fitted(item, arguments[0]) for item in value]
    elif origin is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(map(fitted, value, arguments))
    elif origin is dict and isinstance(value, dict):
        return {key: fitted(item, arguments[1]) for key, item in value.items()}
    elif isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    elif _is_one(value, hint, origin, arguments):
        return value
    raise ValueError(f"{json.dumps(value)[:60]} is no {inspect.formatannotation(hint)}")


def _is_one(value: Any, hint: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether a value is of a plain type, or one of a `Literal`'s; or nothing is known of the hint."""
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    natural = _NATURAL.get(hint) if isinstance(hint, (type, type(None))) else None
    return type(value) in natural if natural else origin not in (list, tuple, dict, Union, types.UnionType)


def fitted_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a model gave for the arguments of a function, as its type hints want it. Raises `ValueError`."""
    hints, found = _hints(function, getattr(function, "__name__", "")), dict[str, Any]()
    for name, value in arguments.items():
        try:
            found[name] = fitted(value, hints.get(name, Any))
        except ValueError as error:
            raise ValueError(f"argument {name!r}: {error}") from None
    return found


#: What JSON has for plain types.
_NATURAL: dict[Any, tuple[type, ...]] = {kind: (kind,) for kind in (int, str, bool, type(None), list, dict)}
_NATURAL |= {float: (float, int), tuple: (list,), None: (type(None),)}


# ---- docstrings ------------------------------------------------------------------------------------------------------


def _sections(documentation: str) -> dict[str, str]:
    """The text of each section; under "" the description."""
    parts = _SECTION.split(documentation)
    found = {"": parts[0].strip()}
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        found.setdefault(title, text if title == "Args" else text.strip())
    return found


def _arguments(section: str) -> dict[str, str]:
    """What is said of each argument. Lines that are indented deeper than the names go on with a description."""
    found: dict[str, list[str]] = {}
    depth, lines = None, [line for line in section.split("\n") if line.strip()]
    for line in lines:
        match = _ARGUMENT.match(line)
        if match and (depth is None or len(match[1].expandtabs()) <= depth):
            depth = len(match[1].expandtabs())
            current = found[match[2]] = [match[3]]
        elif found:
            current.append(line)
    return {name: " ".join(text for part in parts if (text := part.strip())) for name, parts in found.items()}


def _with_description(schema: dict[str, Any], description: str, where: str) -> dict[str, Any]:
    choices = _CHOICES.search(description)
    if choices is None:
        return {**schema, "description": description}
    try:
        values = [value.strip() if isinstance(value, str) else value for value in json.loads(choices[1])]
    except ValueError as error:
        raise ValueError(f"{where}: its choices are no list in JSON, {choices[1]!r}: {error}") from None
    return {**schema, "enum": values, "description": description[: choices.start()].strip()}


# ---- type hints ------------------------------------------------------------------------------------------------------


def _schema(hint: Any, where: str) -> dict[str, Any]:
    """The schema of a type hint. Raises `ValueError` that begins with `where`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is None:
        if isinstance(hint, type) and issubclass(hint, Enum):
            return _enumeration([member.value for member in hint], where)
        if hint in _PLAIN:
            return dict(_PLAIN[hint])
    elif origin in (Union, types.UnionType):
        return _union([kind for kind in arguments if kind is not type(None)], type(None) in arguments, where)
    elif origin is Literal:
        return _enumeration(list(arguments), where)
    elif origin is list:
        return {"type": "array", "items": _schema(arguments[0], where)}
    elif origin is tuple and len(arguments) > 1 and ... not in arguments:
        return {"type": "array", "prefixItems": [_schema(kind, where) for kind in arguments]}
    elif origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], where)}
    raise ValueError(f"{where}: the type {hint!r} has no JSON schema; pass a description of the tool instead")


def _union(kinds: list[Any], nullable: bool, where: str) -> dict[str, Any]:
    schemas = [_schema(kind, where) for kind in kinds]
    if len(schemas) == 1:
        found = schemas[0]
    elif all(set(schema) == {"type"} and isinstance(schema["type"], str) for schema in schemas):
        names = sorted({schema["type"] for schema in schemas})
        found = {"type": names[0] if len(names) == 1 else names}
    else:
        found = {"anyOf": schemas}
    return found | ({"nullable": True} if nullable else {})


def _enumeration(values: list[Any], where: str) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise ValueError(f"{where}: {values} are not values that JSON has")
    kinds = list(dict.fromkeys(_SCALARS[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}
