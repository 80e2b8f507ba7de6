"""Chat templates: Jinja in a sandbox, with the names that Hugging Face's templates expect, and bounds on their work."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps
from time import thread_time
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup, escape

from pyllm.errors import TokenizerError
from pyllm.tokenizers import template_bounds as bounds
from pyllm.tokenizers.tagged import TaggedText, Tags

# Far above every real template and conversation: what needs more was made to do harm.
LONGEST_TEMPLATE = 1 << 20  # characters
MOST_STEPS = 1_000_000  # passes through loops and macros, in one rendering
MOST_SECONDS = 10.0  # of a processor, in one rendering
LONGEST_RANGE = 10_000

_STEPS = "steps left"  # in a template's variables; no template can write this name
_CHECKED = "not too large"  # nor this one
_TAGGED = f"{TaggedText.__module__}.{TaggedText.__qualname__}"  # in Jinja's messages about what is a string to users
_GROWING_METHODS = frozenset({"center", "expandtabs", "ljust", "rjust", "translate", "zfill"})


class ChatTemplate:
    """A compiled template. Any number of threads may render it at once.

    takes_parts: whether it goes through a message's content where that comes in parts; others take one text.
    """

    def __init__(self, source: str, tags: Tags) -> None:
        if len(source) > LONGEST_TEMPLATE:
            raise TokenizerError(f"a chat template of {len(source)} characters, more than {LONGEST_TEMPLATE}")
        self._tags = tags
        environment = _Environment(tags)
        try:
            self.takes_parts = _goes_through_content(environment.parse(source))
            self._template = environment.from_string(source)
        except Exception as error:  # foreign code: Jinja's errors, and Python's for what it compiles to
            raise TokenizerError(f"the chat template cannot be read: {error}") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text, with the stand-ins of the tags. Raises `TokenizerError` with the template's own message."""
        try:
            return str(self._template.render({**variables, _STEPS: [MOST_STEPS, thread_time() + MOST_SECONDS]}))
        except Exception as error:  # foreign code may fail in any way
            flaw = self._tags.show(str(error)).replace(_TAGGED, "str")
            raise TokenizerError(f"the chat template does not take this conversation: {flaw}") from error


class _Environment(ImmutableSandboxedEnvironment):
    """Hugging Face's set-up of Jinja, in which joined text keeps its tags."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, tags: Tags) -> None:
        extensions = [loopcontrols, _GenerationBlock]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=bounds.checked)
        self._tags = tags
        self.concat = self._join  # type: ignore[method-assign]  # what macros and `{% set %}` blocks are built with
        self.globals |= {"raise_exception": _raise, "strftime_now": _now, "range": _range}
        self.globals |= {"dict": _Dict(), "namespace": _Namespace}
        del self.globals["lipsum"]
        self.filters |= {_STEPS: _count_step, _CHECKED: bounds.checked, "join_text": self._join}
        self.filters |= {"join": self._join_filter, "replace": self._replace_filter, "tojson": self._to_json}
        for name in ("e", "escape", "float", "int", "title", "urlencode", "wordcount"):
            self.filters[name] = self._on_plain_text(self.filters[name])
        for name in ("batch", "center", "round", "slice"):
            self.filters[name] = _with_small_numbers(self.filters[name])
        self.filters |= {"indent": _indent_filter(self.filters["indent"]), "sum": _sum_filter(self.filters["sum"])}
        for name in ("format", "wordwrap", "pprint"):
            del self.filters[name]
        self.filters = {name: _with_checked_result(function) for name, function in self.filters.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = Parser(self, source, name, filename).parse()
        _Rewriter().visit(tree)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        growing = isinstance(obj, str) and attr in _GROWING_METHODS
        return not growing and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, obj: Any, *args: Any, **options: Any) -> Any:
        args = bounds.check_call(obj, args, options)
        return bounds.checked(super().call(context, obj, *args, **options))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        bounds.check_operation(operator, left, right)
        texts = operator == "+" and isinstance(left, str) and isinstance(right, str)
        if texts and (isinstance(left, Markup) or isinstance(right, Markup)):
            return Markup(self._as_html(left) + self._as_html(right))
        return super().call_binop(context, operator, left, right)

    def _as_html(self, text: str) -> str:
        """What is added to a text called `safe` is escaped, so Jinja has it: as it is, not as stand-ins are."""
        if isinstance(text, TaggedText):
            return self._tags.hide(str(escape(text.plain)))
        return str(escape(text))

    def _join(self, parts: Iterable[Any]) -> str:
        texts = [str(bounds.checked(part)) for part in parts]
        if sum(map(len, texts)) > bounds.LONGEST_TEXT:
            raise TemplateError(f"it makes more than {bounds.LONGEST_TEXT} characters")
        return self._tags.text("".join(texts))

    def _join_filter(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        items = list(value) if attribute is None else [self.getitem(item, attribute) for item in value]
        bounds.check_joining(str(d), items)
        return self._tags.text(str(d).join(str(item) for item in items))

    def _replace_filter(self, value: Any, old: str, new: str, count: int | None = None) -> str:
        text = value if isinstance(value, str) else str(value)
        if isinstance(old, TaggedText) and not isinstance(text, TaggedText):
            old = old.plain
        bounds.check_replacement(text, old, new)
        return self._tags.text(text.replace(old, new, -1 if count is None else count))

    def _on_plain_text(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that must see the characters themselves. What comes out counts as text from messages."""

        def call(value: Any, *args: Any, **options: Any) -> Any:
            if not isinstance(value, TaggedText):
                return function(value, *args, **options)
            result = function(value.plain, *args, **options)
            return self._tags.text(self._tags.hide(result)) if isinstance(result, str) else result

        return call

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As Hugging Face has it: no escapes for HTML. What comes out counts as text from messages."""
        plain = self._tags.show_all(bounds.checked(value))
        options = {"indent": bounds.small(indent), "separators": separators, "sort_keys": sort_keys}
        text = _json(plain, ensure_ascii=ensure_ascii, **options)
        return self._tags.text(self._tags.hide(text))


# ---- what templates call -------------------------------------------------------------------------------------------


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _range(*bounds: int) -> range:
    values = range(*bounds)
    if len(values) > LONGEST_RANGE:
        raise TemplateError(f"a range of {len(values)} numbers, more than {LONGEST_RANGE}")
    return values


class _Dict:
    """`dict` without the class itself, through which a template might reach others."""

    def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
        return dict(*args, **items)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """Jinja's, without names that mean something to Python, such as `__class__`."""

    def __init__(*args: Any, **attributes: Any) -> None:  # so that `self` is a name like others
        self, *rest = args
        for name in dict(*rest, **attributes):
            _check_name(name)
        Namespace.__init__(self, *rest, **attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise TemplateError(f"a namespace holds no {name!r}: names that begin with _ are Python's")


# ---- what a template does with content -----------------------------------------------------------------------------


def _goes_through_content(tree: nodes.Template) -> bool:
    """Whether there is a loop over what is called content, in which a text is read."""
    for loop in tree.find_all(nodes.For):
        over_content = any("content" in name for name in _names(loop.iter))
        if over_content and any("text" in _names(node) for node in loop.body):
            return True
    return False


def _names(tree: nodes.Node) -> set[str]:
    """The names, attributes and keys in a part of a template."""
    found = {node.name for node in tree.find_all(nodes.Name)} | {node.attr for node in tree.find_all(nodes.Getattr)}
    found |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    own = getattr(tree, "name", None) or getattr(tree, "attr", None)  # find_all looks below a node only
    return found | ({own} if isinstance(own, str) else set())


# ---- bounds --------------------------------------------------------------------------------------------------------


class _Rewriter(NodeTransformer):
    """Counts passes through loops and macros, looks at what is compared, and has `~` be the join that keeps tags."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, _step_statement(node.lineno))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        node.body.insert(0, _step_statement(node.lineno))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _checked_node(node.expr)
        for operand in node.ops:
            operand.expr = _checked_node(operand.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "join_text", [], [], None, None, lineno=node.lineno)


def _checked_node(node: nodes.Expr) -> nodes.Expr:
    """What stays as it is, if it is not too large; a constant is not."""
    if isinstance(node, nodes.Const):
        return node
    return nodes.Filter(node, _CHECKED, [], [], None, None, lineno=node.lineno)


def _step_statement(line: int) -> nodes.ExprStmt:
    step = nodes.Filter(nodes.Const("", lineno=line), _STEPS, [], [], None, None, lineno=line)
    return nodes.ExprStmt(step, lineno=line)


@pass_context
def _count_step(context: Context, value: str) -> str:
    left = context.parent[_STEPS]
    left[0] -= 1
    if left[0] < 0:
        raise TemplateError(f"it loops more than {MOST_STEPS} times")
    if thread_time() > left[1]:
        raise TemplateError(f"it takes more than {MOST_SECONDS} seconds")
    return value


def _json(value: Any, **options: Any) -> str:
    """As `json.dumps` has it, piece by piece where lines are indented, so that it can be given up."""
    if options["indent"] is None:
        return json.dumps(value, **options)
    pieces, length = [], 0
    for piece in json.JSONEncoder(**options).iterencode(value):
        pieces.append(piece)
        length += len(piece)
        if length > bounds.LONGEST_TEXT:
            raise TemplateError(f"it makes more than {bounds.LONGEST_TEXT} characters")
    return "".join(pieces)


def _with_small_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    first = 2 if hasattr(function, "jinja_pass_arg") else 1  # behind what is filtered

    @wraps(function)  # some ask for the context
    def call(*args: Any, **options: Any) -> Any:
        for value in (*args[first:], *options.values()):
            if isinstance(value, int):
                bounds.small(value)
        return function(*args, **options)

    return call


def _indent_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(text: Any, width: Any = 4, *args: Any, **options: Any) -> Any:
        bounds.check_indent(text, width)
        return function(text, width, *args, **options)

    return call


def _sum_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # which asks for the environment
    def call(environment: Any, values: Any, attribute: Any = None, start: Any = 0) -> Any:
        if not isinstance(start, (int, float)):
            raise TemplateError("only numbers are summed")
        return function(environment, values, attribute, start)

    return call


def _with_checked_result(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # some ask for the environment or the context
    def call(*args: Any, **options: Any) -> Any:
        return bounds.checked(function(*args, **options))

    return call


class _GenerationBlock(Extension):
    """`{% generation %}` marks the answer's text for training; here it only stands for what is in it."""

    tags = {"generation"}  # noqa: RUF012  (Jinja declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
