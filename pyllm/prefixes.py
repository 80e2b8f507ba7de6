"""`Prefixes`: keys and values of texts that were read before, for texts that begin alike."""

from __future__ import annotations

import functools
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np

from pyllm._core import PAGE
from pyllm.latch import Latch

if TYPE_CHECKING:
    import numpy.typing as npt

    from pyllm._core import NativeSession

    Ids = npt.NDArray[np.int32]

P = ParamSpec("P")
T = TypeVar("T")

#: Tokens that are worth a page of their own, and worth the copy of one.
WORTH_KEEPING = 16
#: Pages given back at once where memory is short.
FEW = 16
#: Seconds that a thread waits for the tree. Nobody holds it for long, but a signal handler may have interrupted the
#: very thread that does; to find nothing is always right.
TURN = 0.2


class Found(NamedTuple):
    """A fork that holds the first `n` tokens, for the caller alone."""

    session: NativeSession
    n: int


class _Node:
    """A stretch of text that all texts below have in common, `tokens` at positions [start, end), and a session that
    holds its keys and values together with those of all that stands before.
    """

    def __init__(self, start: int, tokens: Ids, session: NativeSession | None, parent: _Node | None) -> None:
        self.start = start
        self.tokens = tokens
        self.session = session
        self._parent = weakref.ref(parent) if parent else None  # a cycle would outlive the model
        self.children: dict[int, _Node] = {}  # by their first token

    @property
    def parent(self) -> _Node:
        """The node above: every one has one but the root, which nobody asks."""
        parent = self._parent() if self._parent else None
        assert parent is not None
        return parent

    @parent.setter
    def parent(self, parent: _Node) -> None:
        self._parent = weakref.ref(parent)

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + len(self.tokens)

    @property
    def pages(self) -> int:
        """Pages that it may hold for itself: those that its own positions lie in, the first one too."""
        return pages_of(self.end) - self.start // PAGE


def _in_turn(method: Callable[Concatenate[Prefixes, P], T]) -> Callable[Concatenate[Prefixes, P], T | None]:
    """A method that has the tree for itself; it does nothing, and gives None, where that is not to be had soon."""

    @functools.wraps(method)
    def taken(self: Prefixes, /, *arguments: P.args, **options: P.kwargs) -> T | None:
        latch = self._latch
        if not latch.take_within(TURN):
            return None
        try:
            return method(self, *arguments, **options)
        except BaseException:  # Ctrl-C in the midst of a change, say: better nothing than half of it
            self._start_afresh()
            raise
        finally:
            latch.drop()

    return taken


class Prefixes:
    """A radix tree over token sequences, within `budget` bytes of KV pages; what was not used for longest goes first,
    page by page from its end.

    Pages are shared with the sessions that are at work on the same text, so a text in the tree costs no second copy.
    Any thread may use it. `rope_original`: beyond this length a text has other keys and values; 0: none has.
    """

    def __init__(self, budget: int, page_bytes: int, rope_original: int = 0) -> None:
        self._most_pages = max(budget, 0) // max(page_bytes, 1)
        self._rope_original = rope_original
        self._start_afresh()
        _all.add(self)

    def _start_afresh(self) -> None:
        self._latch = Latch()
        self._root = _Node(0, np.empty(0, np.int32), None, None)
        self._leaves: OrderedDict[_Node, None] = OrderedDict()  # the one not used for longest first
        self.pages = 0  # at most so many are held for the tree alone

    @property
    def open(self) -> bool:
        """Whether anything is ever kept."""
        return self._most_pages > 0

    # ---- using it ----------------------------------------------------------------------------------------------------

    @_in_turn
    def find(self, tokens: Sequence[int], context_length: int, length: int) -> Found | None:
        """The longest beginning of `tokens` that is known, as a session of its own. None where there is none.

        `length`: of the whole text, on which keys and values may depend.
        """
        node, n = self._descend(self._path(tokens, length))
        if node.session is None or n < WORTH_KEEPING:
            return None
        self._touch(node)
        return Found(node.session.fork(n, context_length), n)

    def known(self, tokens: Sequence[int], length: int) -> int:
        """How many tokens `find` would find."""
        n = self._depth(self._path(tokens, length)) or 0
        return n if n >= WORTH_KEEPING else 0

    @_in_turn
    def keep(self, tokens: Sequence[int], session: NativeSession, length: int) -> None:
        """Remember the keys and values of `tokens`, which `session` holds at least; it may go on or be closed."""
        if self._most_pages > 0:
            self._keep(self._path(tokens, length), session)

    def worth_beginning(self, tokens: Sequence[int], being_read: Sequence[Sequence[int]]) -> bool:
        """Whether to read `tokens` now, rather than when one of `being_read` will have left more of them here."""
        path = self._path(tokens[:-1], len(tokens))
        shared = max((common_length(path, self._path(other, len(other))) for other in being_read), default=0)
        return shared < WORTH_KEEPING or shared - self.known(tokens[:-1], len(tokens)) < WORTH_KEEPING

    def make_room(self) -> bool:
        """Give a quarter of the pages back, and a few at least; whether there were any."""
        before = self.pages
        self._shrink_by(max(before // 4, FEW))
        return self.pages < before

    def close(self) -> None:
        """Give all pages back, and keep nothing more."""
        self._most_pages = 0  # what comes to an end later leaves nothing here
        while self.make_room():
            pass

    # ---- inside ------------------------------------------------------------------------------------------------------

    @_in_turn
    def _depth(self, path: Ids) -> int:
        return self._descend(path)[1]

    @_in_turn
    def _shrink_by(self, pages: int) -> None:
        self._shrink(max(self.pages - pages, 0))

    def _path(self, tokens: Sequence[int], length: int) -> Ids:
        """The tokens, in a part of the tree of its own where RoPE's factors are those of long texts."""
        path = np.array(tokens, np.int32)
        if 0 < self._rope_original < length:
            path[:1] = ~path[:1]
        return path

    def _descend(self, tokens: Ids) -> tuple[_Node, int]:
        """The node in which `tokens` leave the tree, and how many of them are in it."""
        node, n = self._root, 0
        while n < len(tokens) and n == node.end:
            child = node.children.get(int(tokens[n]))
            if child is None:
                break
            node, n = child, n + common_length(child.tokens, tokens[n:])
        return node, n

    def _touch(self, node: _Node) -> None:
        """Something below is used: its leaf is the last to go."""
        while node.children:
            node = next(reversed(node.children.values()))
        if node in self._leaves:
            self._leaves.move_to_end(node)

    def _keep(self, tokens: Ids, session: NativeSession) -> None:
        node, n = self._descend(tokens)
        if len(tokens) - n < WORTH_KEEPING:
            if n:
                self._touch(node)
            return
        if n < node.end:
            node = self._split(node, n)
        if node.children or node is self._root:
            self._add(node, tokens, session)
        else:
            self._extend(node, tokens, session)
        self._shrink(self._most_pages)

    def _split(self, node: _Node, at: int) -> _Node:
        """Cut a node in two; returns the upper one, which ends at `at`."""
        assert node.session is not None
        upper = _Node(node.start, node.tokens[: at - node.start], node.session.fork(at), node.parent)
        self.pages -= node.pages
        node.parent.children[int(upper.tokens[0])] = upper
        node.parent, node.start, node.tokens = upper, at, node.tokens[at - node.start :]
        upper.children[int(node.tokens[0])] = node
        self.pages += upper.pages + node.pages
        return upper

    def _add(self, parent: _Node, tokens: Ids, session: NativeSession) -> None:
        node = _Node(parent.end, tokens[parent.end :].copy(), self._fork(session, len(tokens), parent), parent)
        parent.children[int(node.tokens[0])] = node
        self._leaves.pop(parent, None)
        self._leaves[node] = None
        self.pages += node.pages

    def _extend(self, leaf: _Node, tokens: Ids, session: NativeSession) -> None:
        fork = self._fork(session, len(tokens), leaf)
        self.pages -= leaf.pages
        leaf.session = fork
        leaf.tokens = tokens[leaf.start :].copy()
        self.pages += leaf.pages
        self._touch(leaf)

    def _fork(self, session: NativeSession, n: int, known: _Node) -> NativeSession:
        """A fork for the tree, with the pages that the tree has already in place of the session's own."""
        fork = session.fork(n)
        if known.session is not None:
            fork.unite(known.session, known.end)
        return fork

    def _shrink(self, most: int) -> None:
        while self.pages > most and self._leaves:
            leaf = next(iter(self._leaves))
            end = (pages_of(leaf.end) - (self.pages - most)) * PAGE
            if end - leaf.start >= WORTH_KEEPING:
                self._cut(leaf, end)
            else:
                self._remove(leaf)

    def _cut(self, leaf: _Node, end: int) -> None:
        assert leaf.session is not None
        self.pages -= leaf.pages
        leaf.tokens = leaf.tokens[: end - leaf.start].copy()
        leaf.session.truncate(end)
        self.pages += leaf.pages

    def _remove(self, leaf: _Node) -> None:
        del self._leaves[leaf]
        self.pages -= leaf.pages
        parent = leaf.parent
        del parent.children[int(leaf.tokens[0])]
        if parent is not self._root and not parent.children:
            self._leaves[parent] = None
            self._leaves.move_to_end(parent, last=False)  # used as long ago as what stood below it


def common_length(a: Ids, b: Ids) -> int:
    """How many tokens two sequences begin with in common."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def pages_of(positions: int) -> int:
    """Pages that so many positions lie in."""
    return -(-positions // PAGE)


_all: weakref.WeakSet[Prefixes] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for prefixes in _all:
        if prefixes._latch.held:  # by a thread that does not exist here, in the midst of a change
            prefixes._start_afresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
