"""`Generation`: text as it comes. The loop knows nothing of models and files, only of the protocols below."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pyllm.errors import ModelFormatError, SessionBusyError, TokenizerError
from pyllm.machine import peak_memory_bytes

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    import numpy.typing as npt

    from pyllm.tool_formats import Reply, ToolCall

    Logits: TypeAlias = npt.NDArray[np.float32]
    FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]

#: Ids before the generated text that the decoder is shown, so that it knows what the first piece follows: whether a
#: leading space stands at the start of a text, and the bytes of a character that the prompt left incomplete.
PRIMING = 8


class Stepper(Protocol):
    """A timeline of tokens that gives logits."""

    @property
    def position(self) -> int:
        """Tokens taken in so far."""
        ...

    def advance(self, tokens: Sequence[int], poll: Callable[[], bool]) -> Logits | None:
        """Evaluate what was accepted, then `tokens`; logits (vocab,) of the last, valid until the next call.

        `poll` is asked often; once it answers True the timeline goes back to where it was and None is returned.
        """
        ...

    def accept(self, token: int) -> None:
        """Take a drawn token in; it is evaluated by the next `advance`."""
        ...

    def release(self) -> None:
        """The generation is over."""
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

    `prompt_tokens` includes `cached_tokens`, those that were in the session already. `time_to_first_token` is in
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
    read_reply: Callable[[Sequence[int], Sequence[int]], Reply] | None = None  # from the ids before it and its own


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
        self._lock = threading.Lock()
        self._cancelled = False
        self._deadline: float | None = None
        self._finish_reason: FinishReason | None = None
        self._ids = [*plan.history, *plan.prompt]  # the text so far, prompt included, for the penalties
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._seconds = [0.0, 0.0]  # prefill (with the first token), decode
        self._position = -1  # where the stepper must be: anything else means that someone moved it
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
        """The next chunk, computed in a worker thread. Cancelling the task closes the generation."""
        import asyncio  # here: most programs never need it, and it is slow to import

        step = asyncio.ensure_future(asyncio.to_thread(self._step))
        try:
            chunk = await asyncio.shield(step)
        except asyncio.CancelledError:
            self.close()
            await asyncio.gather(step, return_exceptions=True)  # ends within a layer
            raise
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
        """The whole reply as a message to go on with: "role", "content" (without calls), and "tool_calls" if any."""
        reply = self._reply()
        message: dict[str, Any] = {"role": "assistant", "content": reply.content if reply else self.text}
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
            cached_tokens=len(self._plan.history),
            generated_tokens=generated,
            time_to_first_token=prefill,
            prefill_tokens_per_second=prompt / prefill if prefill and generated else 0.0,
            decode_tokens_per_second=(generated - 1) / decode if decode and generated > 1 else 0.0,
            peak_memory_bytes=peak_memory_bytes(),
        )

    # ---- ending ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End it here. From another thread this stops a running step within one layer. Harmless twice."""
        self._cancelled = True
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
        return read(self._ids[: len(self._ids) - len(tokens)], tokens) if read else None

    def _drain(self) -> None:
        while self._step() is not None:
            pass

    def _step(self) -> Chunk | None:
        """One token further; None at the end."""
        if not self._lock.acquire(blocking=False):
            raise SessionBusyError("another thread is iterating over this generation")
        try:
            return self._locked_step()
        except BaseException:  # KeyboardInterrupt too: whatever happened, nothing may stay half done
            self._finish("cancelled")
            raise
        finally:
            self._lock.release()
            if self._cancelled:  # close() came when the lock was held
                self._settle()

    def _settle(self) -> None:
        """Finish a cancelled generation, unless a step is running: that step does it at its end."""
        if self._lock.acquire(blocking=False):
            try:
                self._finish("cancelled")
            finally:
                self._lock.release()

    def _locked_step(self) -> Chunk | None:
        if self._stepper is None:
            return None
        if self._deadline is None and self._plan.timeout is not None:
            self._deadline = time.monotonic() + self._plan.timeout
        started, phase = time.perf_counter(), 1 if self._tokens else 0
        try:
            return self._draw_next(self._stepper)
        finally:
            self._seconds[phase] += time.perf_counter() - started

    def _draw_next(self, stepper: Stepper) -> Chunk | None:
        logits = None if self._poll() else self._advance(stepper)
        if logits is None:
            self._finish("cancelled")
            return None
        token = self._draw(logits)
        measure = self._plan.log_probability
        logprob = measure(logits, token) if measure else None
        if token in self._plan.stop_ids:
            held = self._flush()
            self._finish("stop")
            return Chunk(held, token, logprob) if held else None
        text = self._take(stepper, token)
        return Chunk(text, token, logprob)

    def _advance(self, stepper: Stepper) -> Logits | None:
        """The next logits; the first time those of the prompt. None where it was asked to stop."""
        if self._position not in (-1, stepper.position):
            raise SessionBusyError("the session was used for something else while this generation was under way")
        first = self._position == -1
        if first and self._plan.decoder:
            for token in self._ids[-PRIMING:]:
                self._piece(token)
        return stepper.advance(self._plan.prompt if first else (), self._poll)

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


class StopScanner:
    """Cuts a stream of text before the stop string that is complete first, however the stream is divided.

    Text that may be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take `text` in; returns the text that is certain to come before any stop string."""
        if self.stopped or not text:
            return ""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
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
