"""`Generation`: text as it comes. The loop knows nothing of models and files, only of the protocols below."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pyllm.errors import ModelFormatError, SessionBusyError, TokenizerError
from pyllm.latch import Latch
from pyllm.machine import peak_memory_bytes

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    import numpy.typing as npt

    from pyllm.ahead import Ahead
    from pyllm.tool_formats import Reply, ToolCall

    Logits: TypeAlias = npt.NDArray[np.float32]
    FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]

#: Ids before the generated text that the decoder is shown, so that it knows what the first piece follows: whether a
#: leading space stands at the start of a text, and the bytes of a character that the prompt left incomplete.
PRIMING = 8
#: Seconds that `close()` may hold a generation for, at most: it does not wait for a step.
CLOSING = 1.0


class Pool(Protocol):
    """Where steppers wait together."""

    def wait(self, items: Collection[Ready]) -> None:
        """Return once one of `items` is ready."""
        ...


class Ready(Protocol):
    """Something to wait for."""

    @property
    def ready(self) -> bool:
        """Whether it need not be waited for."""
        ...


class Stepper(Ready, Protocol):
    """A timeline of tokens that gives logits."""

    @property
    def position(self) -> int:
        """Tokens taken in so far."""
        ...

    @property
    def cached(self) -> int:
        """Tokens of the first question that were known, so that they were not evaluated."""
        ...

    @property
    def pool(self) -> Pool:
        """Where to wait for several steppers at once."""
        ...

    def ask(self, tokens: Sequence[int], poll: Callable[[], bool], ahead: Ahead | None = None) -> None:
        """Ask for what was accepted, then `tokens`, to be evaluated. Once for each `answer`.

        `poll` is asked often; once it answers True the timeline goes back to where it was. `ahead`: how it may go on by
        itself behind the last token; the logits are then worth nothing if it did.
        """
        ...

    def answer(self) -> Logits | None:
        """Wait for the logits (vocab,) of the last token, valid until the next `ask`. None where `poll` stopped it."""
        ...

    def accept(self, token: int) -> None:
        """Take a drawn token in; it is evaluated by the next `ask`."""
        ...

    def release(self) -> None:
        """The generation is over."""
        ...


class Together(Protocol):
    """What steps several generations at once."""

    def step(self, reader: Generation) -> Chunk | None:
        """The reader's next chunk; None at its end."""
        ...

    def tidy(self) -> None:
        """Let go of generations that were closed."""
        ...


class Decoder(Protocol):
    """Token ids to text, one by one."""

    def push(self, token: int, /) -> str:
        """The text that `token` completes: whole characters only, "" while one is incomplete."""
        ...

    def flush(self) -> str:
        """What is left at the end of the text."""
        ...


class Draw(Protocol):
    """A sampler at work."""

    @property
    def seed(self) -> int:
        """The number its random draws started from."""
        ...

    def draw(self, logits: Logits, history: Sequence[int] = ()) -> int:
        """A token id from logits (vocab,); `history` holds the ids of the text so far."""
        ...


@dataclass(frozen=True)
class Chunk:
    """One generated token. `text` may be empty: while a character is incomplete, or might begin a stop string.

    Where text was held back when the model ended its text, a last chunk brings it, with the ending token. `logprob` is
    the natural logarithm of the token's probability in the model's own distribution (before temperature and the like),
    None unless asked for.
    """

    text: str
    token: int
    logprob: float | None = None


@dataclass(frozen=True)
class Stats:
    """Counts and rates of one generation so far. Only time spent inside pyllm counts, not the consumer's.

    `prompt_tokens` includes `cached_tokens`, those that were in the session already, or in the pages
    of another text that began alike. `time_to_first_token` is in
    seconds, from the first step to the first token; rates are in tokens per second; a rate without a measurement
    is 0. The first generated token belongs to prefill. `peak_memory_bytes` is the process' largest resident size.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    time_to_first_token: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Plan:
    """Everything that defines a generation. `prompt` is evaluated first; `history` is what the timeline held before.

    `decoder` is None where the model has no tokenizer: all texts are empty then. `padding` is the first id that the
    decoder does not know: models pad their vocabulary, and such a token adds no text. `max_tokens` None means as many
    as `context_length` admits. `timeout` is in seconds from the first step.
    """

    prompt: Sequence[int]
    history: Sequence[int]
    context_length: int
    decoder: Decoder | None
    padding: int | None = None
    stop_ids: Collection[int] = frozenset()
    stop: Sequence[str] = ()
    max_tokens: int | None = None
    timeout: float | None = None
    log_probability: Callable[[Logits, int], float] | None = None
    ahead: Ahead | None = None  # where the sampler may be left alone with the model for a moment
    read_reply: Callable[[Sequence[int], Sequence[int], int], Reply] | None = None  # see `conversation.Reader`


class Generation:
    """Text being generated: lazy, so nothing is computed before it is asked for.

    Iterate (`for` or `async for`) over `Chunk`s as they come, or read `text` and `tokens` as a whole. One thread at a
    time; `close()` may come from any. A generation that is dropped half-way frees what it holds.
    """

    def __init__(self, stepper: Stepper, sampler: Draw, plan: Plan) -> None:
        self._stepper: Stepper | None = stepper
        self._sampler = sampler
        self._plan = plan
        self._scanner = StopScanner(plan.stop)
        self._latch = Latch()
        self._wants_to_stop = _weakly(self)
        self._cancelled = False
        self._deadline: float | None = None
        self._finish_reason: FinishReason | None = None
        self._ids = [*plan.history, *plan.prompt]  # the text so far, prompt included, for the penalties
        self._drawn: deque[int] = deque()  # tokens that are to be taken next
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._seconds = [0.0, 0.0]  # prefill (with the first token), decode
        self._position = len(plan.history)  # where the stepper must be: else someone moved it
        self._first = True  # the prompt has not been asked for
        self._cached = 0
        self._asked, self._started = False, 0.0
        self._begun, self._stepping = False, 0  # the thread that began
        self._batch: Together | None = None
        if plan.max_tokens == 0:
            self._finish("length")

    # ---- reading -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        chunk = self._step()
        if chunk is None:
            raise StopIteration
        return chunk

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        """The next chunk, computed in a worker thread, together with those that other tasks of the loop wait for.

        Cancelling the task closes the generation.
        """
        from pyllm.awaiting import next_chunk  # here: most programs never need it, and asyncio is slow to import

        chunk = await next_chunk(self)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    @property
    def text(self) -> str:
        """The whole generated text, without the prompt; computes what is still to come."""
        if self._plan.decoder is None:
            raise TokenizerError("this model has no tokenizer: read .tokens, or give load() a tokenizer=")
        self._drain()
        return "".join(self._texts)

    @property
    def tokens(self) -> list[int]:
        """All generated ids, without the token that ended the text; computes what is still to come."""
        self._drain()
        return list(self._tokens)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended: "stop" (the model, or a stop string), "length" (`max_tokens`, or the context is full),
        "cancelled" (`close()`, a timeout, an exception); None while it goes on.
        """
        return self._finish_reason

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls of tools that the whole reply asks for, in order; computes what is still to come.

        Only where `chat` was given tools, and only of these. Their text is part of `text`.
        """
        reply = self._reply()
        return list(reply.calls) if reply else []

    @property
    def tool_errors(self) -> list[str]:
        """Why parts of the whole reply that look like calls of tools are none, a sentence each; they stay text."""
        reply = self._reply()
        return list(reply.errors) if reply else []

    @property
    def message(self) -> dict[str, Any]:
        """The whole reply as a message to go on with: "role", "content" (without calls), and "tool_calls" if any.

        Also "reasoning_content", where there are tools and the model's family marks its thoughts by control tokens.
        """
        reply = self._reply()
        content = reply.content if reply and reply.apart else self.text
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if reply and reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply and reply.calls:
            message["tool_calls"] = [
                {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
                for call in reply.calls
            ]
        return message

    @property
    def seed(self) -> int:
        """The seed really used, also where none was given."""
        return self._sampler.seed

    @property
    def stats(self) -> Stats:
        """Counts and rates so far; computes nothing."""
        prompt, generated = len(self._plan.prompt), len(self._tokens)
        prefill, decode = self._seconds
        return Stats(
            prompt_tokens=len(self._plan.history) + prompt,
            cached_tokens=len(self._plan.history) + self._cached,
            generated_tokens=generated,
            time_to_first_token=prefill,
            prefill_tokens_per_second=(prompt - self._cached) / prefill if prefill and generated else 0.0,
            decode_tokens_per_second=(generated - 1) / decode if decode and generated > 1 else 0.0,
            peak_memory_bytes=peak_memory_bytes(),
        )

    # ---- ending ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End it here. From another thread this stops a running step within one layer. Harmless twice."""
        self._cancelled = True
        if self._batch is not None:
            self._batch.tidy()
        self._settle()

    async def aclose(self) -> None:
        """`close()`, for `contextlib.aclosing`."""
        self.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def _reply(self) -> Reply | None:
        """The reply as it is read where there are tools."""
        tokens, read = self.tokens, self._plan.read_reply
        return read(self._ids[: len(self._ids) - len(tokens)], tokens, self._scanner.cut) if read else None

    def _drain(self) -> None:
        while self._step() is not None:
            pass

    def _step(self) -> Chunk | None:
        """One token further; None at the end."""
        if self._batch is not None:
            return self._batch.step(self)
        try:
            self.begin()
            return self.complete()
        except BaseException:
            if self._begun and self._stepping == threading.get_ident():  # Ctrl-C between the two
                self.abort()
            raise

    # A step has two halves, so that one thread can take it for several generations at once.

    def begin(self) -> None:
        """Ask for the next token. `complete` must follow; until then the generation is in use."""
        if not self._latch.take_within(CLOSING if self._cancelled else 0):
            raise SessionBusyError("another thread is iterating over this generation")
        try:
            self._stepping = threading.get_ident()
            self._started = time.perf_counter()
            self._asked = self._ask()
            self._begun = True
        except BaseException:
            self.abort()
            raise

    def join(self, batch: Together) -> None:
        """From now on `batch` takes the steps, for whoever reads this generation."""
        self._batch = batch

    @property
    def prompt(self) -> Sequence[int]:
        """The ids of the prompt."""
        return self._plan.prompt

    @property
    def unanswered(self) -> bool:
        """Whether the prompt is still to be read."""
        return not self._tokens

    @property
    def cancelled(self) -> bool:
        """Whether `close` was called."""
        return self._cancelled

    @property
    def begun(self) -> bool:
        """Whether `complete` must follow."""
        return self._begun

    @property
    def batch(self) -> Together | None:
        """What takes the steps, where this generation is not alone."""
        return self._batch

    @property
    def ready(self) -> bool:
        """Whether `complete` would not wait."""
        return not self._asked or self._stepper is None or self._stepper.ready

    @property
    def pool(self) -> Pool | None:
        """Where to wait for several generations at once; None at the end."""
        return self._stepper.pool if self._stepper else None

    def complete(self) -> Chunk | None:
        """What `begin` asked for, once it is there; None at the end."""
        try:
            chunk = self._answer()
        except BaseException:  # KeyboardInterrupt too: whatever happened, nothing may stay half done
            self.abort()
            raise
        self._begun = False
        self._latch.drop()
        self._settle_if_cancelled()
        return chunk

    def abort(self) -> None:
        """End a step that `complete` will not be called for."""
        try:
            self._finish("cancelled")
        finally:
            self._begun = False
            self._latch.drop()
            self._settle_if_cancelled()

    def _settle_if_cancelled(self) -> None:
        if self._cancelled:  # close() came in the midst of a step
            self._settle()

    def _settle(self) -> None:
        """Finish a cancelled generation, unless a step is running: that step does it at its end."""
        if self._latch.take():
            try:
                self._finish("cancelled")
            finally:
                self._latch.drop()

    def _ask(self) -> bool:
        """Whether there is an answer to come."""
        stepper, plan = self._stepper, self._plan
        if stepper is None:
            return False
        if self._deadline is None and plan.timeout is not None:
            self._deadline = time.monotonic() + plan.timeout
        if self._poll():
            self._finish("cancelled")
            return False
        if self._position != stepper.position:
            raise SessionBusyError("the session was used for something else while this generation was under way")
        if self._drawn:
            return False
        if self._first and plan.decoder:
            for token in self._ids[-PRIMING:]:
                self._piece(token)
        if self._first:
            stepper.ask(plan.prompt, self._wants_to_stop)
            self._cached, self._first = stepper.cached, False
        else:
            if plan.ahead:
                plan.ahead.allow(self._ids, None if plan.max_tokens is None else plan.max_tokens - len(self._tokens))
            stepper.ask((), self._wants_to_stop, plan.ahead)
        return True

    def _answer(self) -> Chunk | None:
        if self._stepper is None or not (self._asked or self._drawn):
            return None
        self._asked = False
        phase = 1 if self._tokens else 0
        try:
            return self._draw_next(self._stepper)
        finally:
            self._seconds[phase] += time.perf_counter() - self._started

    def _draw_next(self, stepper: Stepper) -> Chunk | None:
        measure, logprob = self._plan.log_probability, None
        if not self._drawn:
            logits = stepper.answer()
            if logits is None:
                self._finish("cancelled")
                return None
            ahead = self._plan.ahead.drawn if self._plan.ahead else ()
            self._drawn.extend(ahead or (self._draw(logits),))
            logprob = measure(logits, self._drawn[0]) if measure else None
        token = self._drawn.popleft()
        if token in self._plan.stop_ids:
            held = self._flush()
            self._finish("stop")
            return Chunk(held, token, logprob) if held else None
        text = self._take(stepper, token)
        return Chunk(text, token, logprob)

    def _poll(self) -> bool:
        return self._cancelled or (self._deadline is not None and time.monotonic() >= self._deadline)

    def _take(self, stepper: Stepper, token: int) -> str:
        """Make `token` part of the text; returns the text that became certain, all of it where this is the end."""
        stepper.accept(token)
        self._position = stepper.position
        self._tokens.append(token)
        self._ids.append(token)
        text = self._scanner.push(self._piece(token))
        self._texts.append(text)
        if self._scanner.stopped:
            self._finish("stop")
        elif len(self._tokens) == self._plan.max_tokens or len(self._ids) > self._plan.context_length:
            text += self._flush()
            self._finish("stop" if self._scanner.stopped else "length")
        return text

    def _draw(self, logits: Logits) -> int:
        try:
            return self._sampler.draw(logits, self._ids)
        except StopIteration as error:  # which would look like the end of the text
            raise RuntimeError("a logits_processor or a sampler raised StopIteration") from error
        except ValueError as error:
            if (logits != logits).any():  # NaN: nothing the caller asked for
                raise ModelFormatError(f"the model's weights give no numbers: {error}") from error
            raise

    def _piece(self, token: int) -> str:
        """The text that `token` completes."""
        decoder, padding = self._plan.decoder, self._plan.padding
        if decoder is None or (padding is not None and token >= padding):
            return ""
        return decoder.push(token)

    def _flush(self) -> str:
        """The text that was held back, now that nothing follows."""
        decoder = self._plan.decoder
        text = self._scanner.push(decoder.flush()) + self._scanner.flush() if decoder else ""
        self._texts.append(text)
        return text

    def _finish(self, reason: FinishReason) -> None:
        if self._finish_reason is None:
            self._finish_reason = reason
        stepper, self._stepper = self._stepper, None
        if stepper is not None:
            stepper.release()


def _weakly(generation: Generation) -> Callable[[], bool]:
    """Its `_poll`, which does not keep it alive: nobody wants the text of one that was dropped."""
    reference = weakref.ref(generation)

    def poll() -> bool:
        alive = reference()
        return alive is None or alive._poll()

    return poll


class StopScanner:
    """Cuts a stream of text before the stop string that is complete first, however the stream is divided.

    Text that may be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        self.cut = 0  # characters at the end that were not given out: the stop string, and what came with it

    def push(self, text: str) -> str:
        """Take `text` in; returns the text that is certain to come before any stop string."""
        if self.stopped or not text:
            return ""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end = min(found)[1]
            self.stopped, self._held, self.cut = True, "", len(text) - end
            return text[:end]
        keep = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
