"""`Session`: one mutable timeline of tokens with its own KV cache."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar

import numpy as np

from pyllm._core import PAGE, Interrupted, NativeSession
from pyllm.ahead import Ahead
from pyllm.conversation import encode_conversation, shared_prefix
from pyllm.errors import ClosedError, ContextLengthError, SessionBusyError
from pyllm.generation import Generation
from pyllm.latch import Latch
from pyllm.sampling import Sampler
from pyllm.scheduler import CHUNK, Seat
from pyllm.session_file import identity_of, write_session
from pyllm.steps import Options, Steps, begin_generation

if TYPE_CHECKING:
    import numpy.typing as npt

    from pyllm.adapters import Adapter
    from pyllm.generation import Logits
    from pyllm.grammar import Grammar
    from pyllm.hooks import LogitsProcessor
    from pyllm.model import Model
    from pyllm.prefixes import Prefixes

P = ParamSpec("P")
T = TypeVar("T")

#: Positions whose logits are held at once where those of every position are wanted.
LOGIT_ROWS = 32


def _exclusive(method: Callable[Concatenate[Session, P], T]) -> Callable[Concatenate[Session, P], T]:
    """A method that has the session for itself, with nothing evaluated beyond its tokens."""

    @functools.wraps(method)
    def entered(self: Session, /, *arguments: P.args, **options: P.kwargs) -> T:
        self._enter()
        try:
            self._drop_guess()
            return method(self, *arguments, **options)
        finally:
            self._latch.drop()
            self._settle_if_closing()

    return entered


class Session:
    """One timeline: the tokens so far and their keys and values. Made by `Model.session()`.

    For one thread at a time: a second one that enters gets `SessionBusyError`; after `close()` every method raises
    `ClosedError`. Where a call fails or is interrupted (Ctrl-C), the session is as it was before the call.
    """

    def __init__(
        self,
        model: Model,
        native: NativeSession,
        context_length: int,
        tokens: Sequence[int] = (),
        adapters: Sequence[tuple[Adapter, float]] = (),
    ) -> None:
        self._model = model
        self._adapters = tuple(adapters)
        self._native = native
        self._context_length = context_length
        self._tokens = list(tokens)  # those past the native position were drawn, and are evaluated by the next call
        self._seat = Seat(native)
        self._asked, self._in_question = _Asked(), False
        self._guess = Guess()  # what was evaluated beyond `tokens`
        self._length = 0  # of the text that the last evaluation was for
        self._latch = Latch()
        self._closing = False
        self._closed = False

    # ---- reading -----------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> list[int]:
        """The ids taken in so far."""
        return list(self._tokens)

    @property
    def position(self) -> int:
        """The number of tokens taken in so far."""
        return len(self._tokens)

    @property
    def adapters(self) -> tuple[tuple[Adapter, float], ...]:
        """The adapters it is evaluated with, and their scales."""
        return self._adapters

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a saved session to be of use: the model's, and the adapters."""
        return identity_of(self._model, self._adapters)

    @property
    def context_length(self) -> int:
        """The largest number of tokens this session can evaluate."""
        return self._context_length

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Session cannot be pickled: save() it, and restore() it from its model")

    def __repr__(self) -> str:
        return f"<pyllm.Session at {self.position} of {self._context_length}{', closed' if self._closed else ''}>"

    # ---- moving ------------------------------------------------------------------------------------------------------

    def eval(self, tokens: Sequence[int]) -> Logits:
        """Take `tokens` in; returns the logits after the last one.

        float32 (vocab,), a read-only view that is valid until the next call on this session. With no tokens these are
        the logits after the last token taken in before. Raises `ValueError` for an id outside the vocabulary and
        `ContextLengthError` where the tokens do not fit; nothing is computed then.
        """
        self.ask(self._model.check_tokens(tokens), lambda: False)
        try:
            logits = self.answer()
        except BaseException:  # Ctrl-C between the two
            if self._in_question:
                self.abandon()
            raise
        if logits is None:
            raise ClosedError("the session or its model was closed during eval()")
        return logits

    @_exclusive
    def hidden_states(self, tokens: Sequence[int], layers: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        """Take `tokens` in, as `eval` does; returns the residual stream at them: float32 (len(layers), n, dim), a copy.

        `layers`: after how many layers, 0 (the embeddings) to `config.n_layers`; negative numbers count from the end;
        None means all. The final norm is not applied, not even after the last layer. `eval([])` gives the logits.
        Raises as `eval` does, and `ValueError` for a layer that there is not.
        """
        ids, depths = self._model.check_tokens(tokens), _depths(layers, self._model.config.n_layers)
        self.check_room(len(ids))
        if not ids:
            raise ValueError("there are no tokens to evaluate")
        taken = len(self._tokens)
        evaluated = self._expect(taken + len(ids))
        try:
            self._tokens += ids
            return self._hidden_from(evaluated, depths)[:, taken - evaluated :]
        except BaseException as error:  # KeyboardInterrupt too: a session is never half-way
            self._native.truncate(evaluated)
            del self._tokens[taken:]
            if isinstance(error, Interrupted):
                raise ClosedError("the session or its model was closed during hidden_states()") from None
            raise

    @_exclusive
    def keys(self, layer: int) -> npt.NDArray[np.float32]:
        """The keys of one layer, 0 to `config.n_layers` - 1: float32 (n_kv_heads, n, head_dim).

        A copy, since they are kept in pages and perhaps in another type: what they mean there, exactly. `n` is
        `position`, less the tokens that were only drawn: the last one of a generation has no keys yet. They are
        rotated; dimensions i and i + rope_dims / 2 belong together. Raises `ValueError` for a layer that there is not.
        """
        return self._native.kv(operator.index(layer))[0]

    @_exclusive
    def values(self, layer: int) -> npt.NDArray[np.float32]:
        """The values of one layer: float32 (n_kv_heads, n, head_dim), and what is raised: see `keys`."""
        return self._native.kv(operator.index(layer))[1]

    @_exclusive
    def truncate(self, position: int) -> None:
        """Forget every token from `position` on. Raises `ValueError` outside [0, self.position]."""
        if not 0 <= operator.index(position) <= len(self._tokens):
            raise ValueError(f"position {position} is outside [0, {len(self._tokens)}]")
        if position < self._native.position:
            self._native.truncate(position)
        del self._tokens[position:]

    @_exclusive
    def fork(self) -> Session:
        """A second session that stands where this one does. Memory is shared until one of them changes it."""
        return Session(self._model, self._native.fork(), self._context_length, self._tokens, self._adapters)

    def generate(
        self,
        prompt: str | Sequence[int] = "",
        *,
        max_tokens: int | None = 256,
        sampler: Sampler | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        logprobs: bool = False,
        timeout: float | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: Grammar | Mapping[str, Any] | type | None = None,
        speculation: bool | None = None,
    ) -> Generation:
        """Go on from where the session stands, after `prompt`, and take the generated tokens in too.

        Options as for `Model.generate`. A text prompt gets a beginning-of-text token only where the session is empty;
        elsewhere it is tokenized as the middle of a text.
        The session must be left alone while the generation is under way; to do something else with it, just stop
        iterating. Raises as `Model.generate`; the prompt must fit behind what is there.
        """
        options = Options(max_tokens, sampler, stop, seed, logprobs, timeout, logits_processor, grammar, speculation)
        ids = self._model.encode_prompt(prompt, after=self._tokens[-1] if self._tokens else None)
        self.check_room(len(ids))
        steps = Steps(self, self._model.scheduler, self._model.speculate(speculation))
        return begin_generation(self._model, steps, self.tokens, ids, self._context_length, options)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Callable[..., Any] | Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
        max_tokens: int | None = 256,
        sampler: Sampler | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        logprobs: bool = False,
        timeout: float | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: Grammar | Mapping[str, Any] | type | None = None,
        speculation: bool | None = None,
    ) -> Generation:
        """Answer a conversation, the whole of which is given, in this session; see `Model.chat`.

        The session goes back, at once, to where its tokens and the conversation's part; what they begin with in common
        is not read again. Raises as `Model.chat`, and leaves the session as it was then.
        """
        ids, reader = encode_conversation(
            self._model.need_tokenizer(), messages, tools, documents=documents, template_options=template_options
        )
        options = Options(
            max_tokens, sampler, stop, seed, logprobs, timeout, logits_processor, grammar, speculation, reader
        )
        if len(ids) > self._context_length:
            raise ContextLengthError(
                f"the conversation's {len(ids)} tokens exceed the context of {self._context_length} tokens"
            )
        shared = shared_prefix(self._tokens, ids)
        steps = Steps(self, self._model.scheduler, self._model.speculate(speculation))
        found = begin_generation(self._model, steps, ids[:shared], ids[shared:], self._context_length, options)
        self.truncate(shared)  # now that nothing can be wrong any more
        return found

    # ---- keeping -----------------------------------------------------------------------------------------------------

    @_exclusive
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to a file, for `Model.restore`. The file appears whole or not at all. Raises `OSError`."""
        self._expect(len(self._tokens))  # what a restored session will take its keys and values for
        header = {
            "model": self.identity,
            "context_length": self._context_length,
            "tokens": len(self._tokens),
            "evaluated": self._native.position,
        }
        write_session(Path(path), header, self._tokens, self._native.state())

    def close(self) -> None:
        """Free the KV memory. From another thread this stops a running evaluation within one layer. Harmless twice."""
        self._closing = True
        self._settle()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- for the rest of pyllm ---------------------------------------------------------------------------------------

    def ask(
        self,
        tokens: Sequence[int],
        poll: Callable[[], bool],
        guess: Sequence[int] = (),
        ahead: Ahead | None = None,
    ) -> None:
        """Ask the scheduler for the logits after what was accepted and then `tokens`; `answer` gives them.

        `poll` is asked often, by any thread; once it says True the session goes back to where it was. `guess`: tokens
        that may come next; where they do, their logits are known already. `ahead`: how it may go on by itself;
        `answer` then gives nothing to draw from. The session is in use until `answer`.
        """
        self._enter()
        try:
            self._begin(tokens, lambda: self._was_closed() or poll(), guess, ahead)
            self._in_question = True
        except BaseException:
            self._latch.drop()
            self._settle_if_closing()
            raise

    @property
    def ready(self) -> bool:
        """Whether `answer` would not wait."""
        return self._seat.ready

    def answer(self) -> Logits | None:
        """float32 (vocab,), valid until the next `ask`; None where `poll` stopped it."""
        try:
            return self._finish()
        finally:
            self._in_question = False
            self._latch.drop()
            self._settle_if_closing()

    def abandon(self) -> None:
        """Take back an `ask` that was not answered."""
        try:
            self._model.scheduler.withdraw(self._seat)
            self._go_back(self._asked)
        finally:
            self._in_question = False
            self._latch.drop()
            self._settle_if_closing()

    def share(self, prefixes: Prefixes) -> None:
        """Let texts that begin alike have what was evaluated so far; the session goes on with it, too."""
        if self._length > 0:  # something was
            self._keep(prefixes)

    @property
    def ids(self) -> Sequence[int]:
        """The tokens themselves, not a copy as `tokens`."""
        return self._tokens

    @property
    def foreseen(self) -> bool:
        """Whether the logits of the next `ask` without tokens are known, since a guess was right."""
        return self._guess.logits_after(self._tokens) is not None

    @property
    def guessed_right(self) -> int:
        """How many tokens of the last guess have come."""
        return self._guess.right(self._tokens)

    @property
    def seat(self) -> Seat:
        """The session's place in the scheduler."""
        return self._seat

    @property
    def native(self) -> NativeSession:
        """What holds the keys and values."""
        return self._native

    def accept(self, token: int) -> None:
        """Take a drawn token in, to be evaluated by the next call."""
        self._enter()
        try:
            self._tokens.append(token)
        finally:
            self._latch.drop()
            self._settle_if_closing()

    def sweep(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """Take `tokens` in; yields the logits after every one, `LOGIT_ROWS` (n, vocab) at a time."""
        self.check_room(len(tokens))
        self._catch_up(len(tokens))
        for start in range(0, len(tokens), LOGIT_ROWS):
            yield self._rows_after(tokens[start : start + LOGIT_ROWS])

    @_exclusive
    def load(self, tokens: list[int], state: bytes, evaluated: int) -> None:
        """Take over the keys and values of the first `evaluated` tokens, as saved."""
        self._native.load_state(state, evaluated)
        self._tokens = tokens

    def check_room(self, n: int) -> None:
        """Raise `ContextLengthError` where `n` more tokens do not fit."""
        if len(self._tokens) + n > self._context_length:
            raise ContextLengthError(
                f"{n} tokens after {len(self._tokens)} exceed the context of {self._context_length} tokens"
            )

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Take the session for the calling thread. Raises where it is another's, or where it or its model is closed."""
        if not self._latch.take():
            raise SessionBusyError("another thread is using this session; give each thread its own, or fork() it")
        try:
            if self._closing or self._closed:
                raise ClosedError("this session was closed")
            self._model.check_open()
        except BaseException:
            self._latch.drop()
            self._settle_if_closing()
            raise

    def _settle_if_closing(self) -> None:
        if self._closing:  # close() came when the session was in use
            self._settle()

    def _settle(self) -> None:
        """Close for good, unless a call is running: that call does it at its end."""
        if self._latch.take():
            try:
                self._closed = True
                self._model.scheduler.leave(self._seat)
                self._native.close()
            finally:
                self._latch.drop()

    def _begin(self, ids: Sequence[int], poll: Callable[[], bool], guess: Sequence[int], ahead: Ahead | None) -> None:
        self.check_room(len(ids))
        known = None if ids else self._guess.logits_after(self._tokens)
        if known is not None:
            self._asked = _Asked(len(self._tokens), self._native.position)
            self._seat.seconds = 0.0
            self._seat.settle(known)
            return
        self._drop_guess()
        taken = len(self._tokens)
        evaluated = self._expect(taken + len(ids))
        if evaluated == taken + len(ids):  # nothing to do but to look again: the last one gives the same bits again
            if evaluated == 0:
                raise ValueError("there are no tokens to evaluate")
            evaluated -= 1
            self._native.truncate(evaluated)
            self._expect(taken + len(ids))
        room = max(self._longest_alike(taken + len(ids)) - taken - len(ids), 0)
        if self._model.kv_memory is not None:  # no guess takes a page that a text may need
            room = min(room, -(taken + len(ids)) % PAGE)
        guess = guess[:room]
        if ahead:
            ahead.restrict(room + 1)  # of which the last is only drawn
        self._asked = _Asked(taken, evaluated, guess)
        text, scheduler = self._tokens, self._model.scheduler
        try:
            text.extend(ids)
            new = [*text[evaluated:], *guess]
            self._seat.ask(evaluated, new, 1 + len(guess), poll, lambda: text[:evaluated], ahead)
            scheduler.add(self._seat)
        except BaseException:  # Ctrl-C
            scheduler.withdraw(self._seat)
            self._go_back(self._asked)
            raise

    def _expect(self, length: int) -> int:
        """How many positions hold for a text of `length` tokens: none where RoPE's factors are others at that length,
        so that all is to be evaluated again.
        """
        self._length = length
        if self._model.config.rope_original > 0:
            self._native.expect(length)
        return self._native.position

    def _longest_alike(self, length: int) -> int:
        """The longest text that this session can hold with RoPE's factors as for one of `length` tokens."""
        original = self._model.config.rope_original
        return min(self._context_length, original) if length <= original else self._context_length

    def _finish(self) -> Logits | None:
        """All or nothing: where it failed, was stopped or interrupted, the session is as it was."""
        asked, seat = self._asked, self._seat
        try:
            self._model.scheduler.wait((seat,))
            error, seat.error = seat.error, None  # its traceback leads back to the seat
            if error is not None:
                raise error
        except BaseException:  # KeyboardInterrupt too
            self._model.scheduler.withdraw(seat)
            self._go_back(asked)
            raise
        if seat.rows is None:
            self._go_back(asked)
            if self._model.closed and not self._closing:
                raise ClosedError("the model was closed meanwhile")
            return None
        if asked.guess:
            self._guess = Guess(len(self._tokens), asked.guess, seat.rows)
        elif seat.ahead and (drawn := seat.ahead.drawn):
            self._guess = Guess(len(self._tokens), drawn)
        logits: Logits = seat.rows[0]
        return logits

    def _go_back(self, asked: _Asked) -> None:
        self._native.truncate(min(asked.evaluated, self._native.position))
        del self._tokens[asked.taken :]

    def _drop_guess(self) -> None:
        """Forget what was evaluated beyond the tokens that came."""
        if self._guess.tokens:
            self._native.truncate(min(self._guess.start + self._guess.right(self._tokens), self._native.position))
            self._guess = Guess()

    @_exclusive
    def _keep(self, prefixes: Prefixes) -> None:
        prefixes.keep(self._tokens[: self._native.position], self._native, self._length)

    @_exclusive
    def _catch_up(self, n: int) -> None:
        """Evaluate what was only taken in, for a text that will be n tokens longer."""
        for at in range(self._expect(len(self._tokens) + n), len(self._tokens), CHUNK):
            self._eval_rows(self._tokens[at : at + CHUNK], 0)

    @_exclusive
    def _rows_after(self, tokens: Sequence[int]) -> Logits:
        """Take `tokens` in; the logits after each, (n, vocab)."""
        rows = self._eval_rows(tokens, len(tokens))
        self._tokens += tokens
        return rows

    def _was_closed(self) -> bool:
        """Whether someone closed the session or its model."""
        return self._closing or self._model.closed

    def _eval_rows(self, tokens: Sequence[int], n_logits: int) -> Logits:
        """Logits of the last tokens, (n_logits, vocab), in one pass."""
        try:
            return self._native.eval(tokens, n_logits, self._was_closed)
        except Interrupted:
            raise ClosedError("the session or its model was closed meanwhile") from None

    def _hidden_from(self, start: int, depths: Sequence[int]) -> npt.NDArray[np.float32]:
        """Evaluate the tokens from `start` on; the residual stream at each, (depths, n, dim)."""
        blocks = [
            self._native.eval_hidden(self._tokens[at : at + CHUNK], depths, self._was_closed)
            for at in range(start, len(self._tokens), CHUNK)
        ]
        return np.concatenate(blocks, axis=1)


@dataclass(frozen=True)
class _Asked:
    """What `ask` was called for: where the session stood, in tokens taken and evaluated, and what was guessed."""

    taken: int = 0
    evaluated: int = 0
    guess: Sequence[int] = ()


@dataclass(frozen=True)
class Guess:
    """Tokens evaluated before anyone knows that they come: from position `start` on. rows (1 + n, vocab)."""

    start: int = 0
    tokens: Sequence[int] = ()
    rows: Logits | None = None

    def right(self, tokens: Sequence[int]) -> int:
        """How many of them came, where `tokens` is the whole text."""
        n = 0
        while n < len(self.tokens) and self.start + n < len(tokens) and tokens[self.start + n] == self.tokens[n]:
            n += 1
        return n

    def logits_after(self, tokens: Sequence[int]) -> Logits | None:
        """The logits after `tokens`, the whole text, if they are among the rows."""
        n = len(tokens) - self.start
        if self.rows is None or not 0 < n <= len(self.tokens) or self.right(tokens) < n:
            return None
        logits: Logits = self.rows[n : n + 1]
        return logits


def _depths(layers: Sequence[int] | None, n_layers: int) -> list[int]:
    """Numbers of layers in [0, n_layers], of which negative ones count from the end; None means all."""
    if layers is None:
        return list(range(n_layers + 1))
    depths = [operator.index(layer) for layer in layers]
    for depth in depths:
        if not -n_layers - 1 <= depth <= n_layers:
            raise ValueError(f"layer {depth} is out of range: the model has 0 (the embeddings) to {n_layers}")
    return [depth % (n_layers + 1) for depth in depths]


def open_session(model: Model, tokens: Sequence[int], *, context_length: int, prefixes: Prefixes) -> Session:
    """A new session that holds as much as is known of `tokens`; never the last one, since its logits are wanted."""
    model.check_open()
    found = prefixes.find(tokens[:-1], context_length, len(tokens))
    if found is None:
        return model.session(context_length)
    return Session(model, found.session, context_length, tokens[: found.n], model.adapters)
