"""How a `Generation` is driven: the options of the `generate` methods, and the steps in a session that they become."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from pyllm._core import log_probability
from pyllm.ahead import Ahead
from pyllm.errors import ClosedError, SessionBusyError, TokenizerError
from pyllm.generation import Generation, Plan
from pyllm.grammar import constrained, grammar_of
from pyllm.hooks import ProcessedDraw, processors_of
from pyllm.sampling import Sampler, SamplerState

if TYPE_CHECKING:
    from pyllm.conversation import Reader
    from pyllm.generation import Draw, Logits
    from pyllm.grammar import Grammar
    from pyllm.hooks import LogitsProcessor
    from pyllm.model import Model
    from pyllm.prefixes import Prefixes
    from pyllm.scheduler import Scheduler
    from pyllm.session import Session
    from pyllm.speculation import Speculation


@dataclass(frozen=True)
class Options:
    """What the `generate` methods take, apart from the prompt; `Model.generate` says what each means."""

    max_tokens: int | None
    sampler: Sampler | None
    stop: str | Sequence[str]
    seed: int | None
    logprobs: bool
    timeout: float | None
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None
    grammar: Grammar | Mapping[str, Any] | type | None = None
    speculation: bool | None = None
    read_reply: Reader | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and operator.index(self.max_tokens) < 0:
            raise ValueError(f"max_tokens must be at least 0, or None, not {self.max_tokens}")
        if self.timeout is not None and not self.timeout >= 0:
            raise ValueError(f"timeout must be a number of seconds of at least 0, or None, not {self.timeout}")
        if not all(isinstance(stop, str) and stop for stop in self.stops):
            raise ValueError("stop must be a non-empty string, or a sequence of them")
        processors_of(self.logits_processor)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class Steps:
    """What drives a `Generation`: a session, used alone by it from one step to the next."""

    def __init__(self, session: Session | None, pool: Scheduler, speculation: Speculation | None) -> None:
        self._session = session
        self._speculation = speculation
        self._prompt = True  # the tokens asked for are the prompt
        self._in_question = False  # between `ask` and `answer`
        self.pool = pool
        self.cached = 0

    @property
    def position(self) -> int:
        """Tokens the session has taken in."""
        return self._session.position if self._session else 0

    @property
    def ready(self) -> bool:
        """See `Session.ready`."""
        return self._session is None or self._session.ready

    def ask(self, tokens: Sequence[int], poll: Callable[[], bool], ahead: Ahead | None = None) -> None:
        """See `Session.ask`."""
        session = self._session
        guess: Sequence[int] = ()
        assert session is not None
        self._prompt = bool(tokens)
        if self._speculation and not tokens and not session.foreseen:
            guess = self._speculation.draft(session.ids, session.guessed_right, poll)
        session.ask(tokens, poll, guess, ahead if not guess else None)
        self._in_question = True

    def answer(self) -> Logits | None:
        """See `Session.answer`."""
        assert self._session is not None
        self._in_question = False
        logits, seat = self._session.answer(), self._session.seat
        if self._speculation and seat.seconds and not self._prompt:
            self._speculation.passed(seat.seconds, seat.alone)
        return logits

    def accept(self, token: int) -> None:
        """See `Session.accept`."""
        assert self._session is not None
        self._session.accept(token)

    def release(self) -> None:
        """Leave the session alone."""
        if self._session is not None and self._in_question:
            self._session.abandon()
        elif self._session is not None:
            self.pool.leave(self._session.seat)


class OwnSteps(Steps):
    """Steps in a session of their own: the first opens it, with what is known of the prompt; closed at the end.

    What was read and written goes to `prefixes`, for texts that begin alike.
    """

    def __init__(
        self,
        open_session: Callable[[Sequence[int]], Session],
        pool: Scheduler,
        prefixes: Prefixes,
        speculation: Speculation | None,
    ) -> None:
        super().__init__(None, pool, speculation)
        self._open = open_session
        self._prefixes = prefixes
        self._shared = False

    def ask(self, tokens: Sequence[int], poll: Callable[[], bool], ahead: Ahead | None = None) -> None:
        """Ask for what is not known of the tokens; the last one's logits never are."""
        if self._session is None:
            self._session = self._open(tokens)
            self.cached = self._session.position
            tokens = tokens[self.cached :]
        super().ask(tokens, poll, ahead)

    def answer(self) -> Logits | None:
        """See `Session.answer`. The prompt is shared as soon as it is read."""
        logits = super().answer()
        if logits is not None and self._session is not None and not self._shared:
            self._shared = True
            self._session.share(self._prefixes)
        return logits

    def release(self) -> None:
        """Share the text, and close the session."""
        super().release()
        if self._session is not None:
            self.pool.withdraw(self._session.seat)
            with suppress(ClosedError, SessionBusyError):  # or in the hands of a step that Ctrl-C ended
                self._session.share(self._prefixes)
            self._session.close()


def begin_generation(
    model: Model, steps: Steps, history: Sequence[int], prompt: Sequence[int], context_length: int, options: Options
) -> Generation:
    """A `Generation` on `model` that reads `prompt` behind `history`, which its session holds. Nothing moves yet."""
    tokenizer = model.tokenizer
    if options.stops and tokenizer is None:
        raise TokenizerError("stop strings need a tokenizer, and this model has none: give load() a tokenizer=")
    sampler = options.sampler or model.default_sampler
    model.check_tokens(sampler.logit_bias or ())
    draw = _hooked(model, sampler.start(options.seed), options)
    plan = Plan(
        prompt=prompt,
        history=history,
        context_length=context_length,
        decoder=tokenizer.decoder() if tokenizer else None,
        padding=tokenizer.vocab_size if tokenizer else None,
        stop_ids=model.stop_ids,
        stop=options.stops,
        max_tokens=options.max_tokens,
        timeout=options.timeout,
        log_probability=log_probability if options.logprobs else None,
        ahead=Ahead(draw, model.stop_ids) if _is_plain(draw) and not options.logprobs else None,
        read_reply=options.read_reply,
    )
    return Generation(steps, draw, plan)


def _is_plain(draw: Draw) -> TypeGuard[SamplerState]:
    """Whether nothing stands before it or takes its place, so that C may draw by itself."""
    return type(draw) is SamplerState


def _hooked(model: Model, sampler: SamplerState, options: Options) -> Draw:
    """A sampler at work behind what the caller put before it: processors first, so that a grammar has the last word."""
    grammar, processors = grammar_of(options.grammar), processors_of(options.logits_processor)
    draw: Draw = sampler
    if grammar:
        draw = constrained(sampler, grammar, model.tokenizer, model.config.vocab_size, model.stop_ids)
    return ProcessedDraw(draw, processors) if processors else draw
