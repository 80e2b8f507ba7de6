"""The only module that touches cffi: thin handles over `csrc/pyllm_api.h`, and its errors as exceptions.

cffi releases the GIL for the length of every call, so other Python threads run while the C library computes. Handles
are not locked; `Session` holds the lock that one timeline needs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

import numpy as np

from pyllm._native import ffi, lib
from pyllm.config import ModelConfig
from pyllm.errors import (
    ClosedError,
    ContextLengthError,
    ModelFormatError,
    OutOfMemoryError,
    PyllmError,
    UnsupportedModelError,
)


class Interrupted(PyllmError):
    """The poll callback asked an evaluation to stop; the session is as it was before."""


EXCEPTIONS: dict[int, type[Exception]] = {
    lib.PL_INVALID: ValueError,
    lib.PL_FORMAT: ModelFormatError,
    lib.PL_UNSUPPORTED: UnsupportedModelError,
    lib.PL_MEMORY: OutOfMemoryError,
    lib.PL_CONTEXT: ContextLengthError,
    lib.PL_INTERRUPTED: Interrupted,
}

#: The most threads that a call may ask for.
MOST_THREADS: int = lib.PL_MOST_THREADS
#: The most positions a session may hold.
LONGEST_CONTEXT: int = lib.PL_LONGEST_CONTEXT
#: Positions whose keys and values lie in one page.
PAGE: int = lib.PL_PAGE

KV_TYPES = {"f16": lib.PL_TYPE_F16, "f32": lib.PL_TYPE_F32, "q8_0": lib.PL_TYPE_Q8_0}

SLOTS = {
    name[len("PL_SLOT_") :].lower(): getattr(lib, name)
    for name in dir(lib)
    if name.startswith("PL_SLOT_") and name != "PL_SLOT_COUNT"
}


def check(status: int, err: Any) -> None:
    """Raise what a failed call has to say."""
    if status != lib.PL_OK:
        raise EXCEPTIONS[status](ffi.string(err.message).decode("utf-8", "replace"))


def _error() -> Any:
    return ffi.new("pl_error *")


def _floats(array: np.ndarray) -> Any:
    return ffi.from_buffer("float[]", array)


# ---- the machine -----------------------------------------------------------------------------------------------------


def isa_names() -> list[str]:
    """Kernel levels this machine runs, best first."""
    names: list[str] = []
    while (name := lib.pl_isa_name(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return names


def isa_current() -> str:
    """The kernel level in use."""
    return ffi.string(lib.pl_isa_current()).decode()


def isa_select(name: str) -> None:
    """Use one kernel level from now on. Raises ValueError naming the levels there are."""
    err = _error()
    if lib.pl_isa_select(name.encode(), err) != lib.PL_OK:
        raise ValueError(f"kernel level {name!r} is not one this machine runs: {', '.join(isa_names())}")


def insist_on_threads(on: bool) -> None:
    """Whether every evaluation gets its threads even where the cores are busy with others. For tests."""
    lib.pl_insist_on_threads(on)


def read_bandwidth(data: np.ndarray, threads: int, repeats: int) -> float:
    """Bytes per second at which `threads` threads read `data`: the best of `repeats` passes."""
    return float(lib.pl_read_bandwidth(ffi.from_buffer(data), data.nbytes, threads, repeats))


def barrier_seconds(threads: int, crossings: int) -> float:
    """Seconds of one barrier among `threads` threads, over `crossings` in a row; 0 where only one was to be had."""
    return float(lib.pl_barrier_seconds(threads, crossings))


# ---- weight types and single kernels ---------------------------------------------------------------------------------


def weight_types() -> list[tuple[int, str, int, int]]:
    """The table of weight types: (id, name, elements per block, bytes per block)."""
    rows: list[tuple[int, str, int, int]] = []
    while (info := lib.pl_type_at(len(rows))) != ffi.NULL:
        rows.append((info.id, ffi.string(info.name).decode(), info.block_elements, info.block_bytes))
    return rows


def _source(type_id: int, rows: int, cols: int, data: Any, group: int) -> Any:
    """A pl_source over `data`. The caller keeps what this returns alive as long as C reads it."""
    buffer = ffi.from_buffer(data)
    source = ffi.new("pl_source *", (type_id, rows, cols, group, buffer, len(buffer)))
    return source, buffer


def dequantize(type_id: int, rows: int, cols: int, data: Any, group: int = 0) -> np.ndarray:
    """The values a stored tensor means, float32 (rows, cols)."""
    err, out = _error(), np.empty((rows, cols), np.float32)
    source, _buffer = _source(type_id, rows, cols, data, group)
    check(lib.pl_dequantize(source, _floats(out), err), err)
    return out


def quantize(
    to_type: int,
    type_id: int,
    rows: int,
    cols: int,
    data: Any,
    group: int = 0,
    *,
    first: int = 0,
    n: int | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Rows [first, first + n) of a stored tensor as weights of another type: uint8 (n, bytes of a row of it).

    Deterministic. Raises UnsupportedModelError for a type that cannot be made, ModelFormatError for weights that are
    not finite.
    """
    info, err = lib.pl_type_find(to_type), _error()
    n = rows - first if n is None else n
    row_bytes = cols // info.block_elements * info.block_bytes if info != ffi.NULL else 0
    out = np.empty((max(n, 0), row_bytes), np.uint8)
    source, _buffer = _source(type_id, rows, cols, data, group)
    check(lib.pl_quantize(source, first, n, to_type, threads, ffi.from_buffer(out), out.nbytes, err), err)
    return out


def matmul_once(
    isa: str, type_id: int, rows: int, cols: int, data: Any, x: np.ndarray, planes: int = 2, group: int = 0
) -> np.ndarray:
    """One product y = x W^T through the kernels of one level; x (n, cols), y (n, rows), float32."""
    err, x = _error(), np.ascontiguousarray(x, np.float32)
    if x.ndim != 2 or x.shape[1] != cols:
        raise ValueError(f"x has shape {x.shape}; expected (n, {cols})")
    y = np.empty((len(x), rows), np.float32)
    source, _buffer = _source(type_id, rows, cols, data, group)
    check(lib.pl_matmul_once(isa.encode(), source, _floats(x), len(x), planes, _floats(y), err), err)
    return y


def vector_once(isa: str, kernel: str, a: np.ndarray, b: np.ndarray | None, parameter: float) -> np.ndarray:
    """One vector kernel of one level; a, b float32 (n), n a multiple of 16. Softmax returns (n + 2): sum, maximum."""
    err, out = _error(), np.empty(len(a) + 2, np.float32)
    a = np.ascontiguousarray(a, np.float32)
    b = b if b is None else np.ascontiguousarray(b, np.float32)
    buffers = _floats(a), ffi.NULL if b is None else _floats(b)
    check(lib.pl_vector_once(isa.encode(), kernel.encode(), *buffers, len(a), parameter, _floats(out), err), err)
    return out if kernel == "softmax" else out[: len(a)]


def log_probability(logits: np.ndarray, token: int) -> float:
    """The log-softmax of float32 `logits` (vocab,) at `token`."""
    if not 0 <= token < len(logits):
        raise ValueError(f"token id {token} is out of range: the vocabulary has ids 0 to {len(logits) - 1}")
    return float(lib.pl_log_probability(_floats(np.ascontiguousarray(logits, np.float32)), len(logits), token))


# ---- stopping --------------------------------------------------------------------------------------------------------


class _Poll:
    """What the C library's poll callback asks: the caller's question, and the exception it may have raised."""

    def __init__(self, question: Callable[[], bool]) -> None:
        self.question = question
        self.raised: BaseException | None = None


def _poll_failed(_kind: Any, exception: BaseException, traceback: Any) -> int:
    # Reached for anything raised while the callback runs, Ctrl-C's KeyboardInterrupt above all: keep it, and stop.
    # cffi hands over the callback's own frame, where the handle is.
    frame = traceback.tb_frame if traceback else None
    if frame is not None and "context" in frame.f_locals:
        ffi.from_handle(frame.f_locals["context"]).raised = exception
    return 1


@ffi.def_extern(error=1, onerror=_poll_failed)
def pyllm_poll(context: Any) -> int:
    """Asked by the C library between layers, at most every 20 ms."""
    return int(ffi.from_handle(context).question())


# ---- models and sessions ---------------------------------------------------------------------------------------------


#: Fields whose values have names: "gelu_tanh" for PL_ACTIVATION_GELU_TANH.
CHOICES = {name: f"PL_{name.upper()}_" for name in ("norm", "qk_norm", "activation", "routing", "rope")}


def _fields(struct: str, config: object) -> dict[str, int | float]:
    """What a C struct wants of a config with the same names."""
    found = {name: getattr(config, name) for name, _ in ffi.typeof(struct).fields if hasattr(config, name)}
    return {
        name: getattr(lib, CHOICES[name] + value.upper()) if isinstance(value, str) else value
        for name, value in found.items()
    }


class Reserve(Protocol):
    """Something that holds pages which it can do without."""

    def make_room(self) -> bool:
        """Give some of them back; whether there were any."""
        ...


class NativeModel:
    """A `pl_model`. Frozen after `finish()`: any number of threads may use it at once."""

    def __init__(self, config: ModelConfig, *, planes: int, kv_type: str, threads: int) -> None:
        fields = _fields("pl_config", config) | {"planes": planes, "kv_type": KV_TYPES[kv_type]}
        native = ffi.new("pl_config *", fields)
        of_layers = [_fields("pl_layer_config", config.layer(i)) for i in range(config.n_layers)]
        layers = ffi.new("pl_layer_config[]", of_layers)
        err, out = _error(), ffi.new("pl_model **")
        check(lib.pl_model_new(native, layers, out, err), err)
        self._pointer = ffi.gc(out[0], lib.pl_model_release)
        self.reserves: WeakSet[Reserve] = WeakSet()  # asked where memory for keys and values is not to be had
        self.threads = threads
        self.vocab_size, self.dim, self.n_layers = config.vocab_size, config.dim, config.n_layers
        self.n_kv_heads, self.head_dim = config.n_kv_heads, config.head_dim

    @property
    def pointer(self) -> Any:
        """The C handle. Raises ClosedError after `close()`."""
        if self._pointer is None:
            raise ClosedError("the model is closed")
        return self._pointer

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._pointer is None

    def bind(
        self, slot: str, layer: int, type_id: int, rows: int, cols: int, data: Any, group: int = 0, expert: int = 0
    ) -> None:
        """Pack one tensor (rows, cols) into the model; `data` may go afterwards."""
        err = _error()
        source, _buffer = _source(type_id, rows, cols, data, group)
        check(lib.pl_model_bind(self.pointer, SLOTS[slot], layer, expert, source, self.threads, err), err)

    def finish(self) -> None:
        """Freeze the model. Raises ModelFormatError naming the first tensor that is missing."""
        err = _error()
        check(lib.pl_model_finish(self.pointer, err), err)

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights in memory."""
        return int(lib.pl_model_nbytes(self.pointer))

    @property
    def token_bytes(self) -> int:
        """Bytes of weights read to decode one token."""
        return int(lib.pl_model_token_bytes(self.pointer))

    @property
    def kv_pages(self) -> int:
        """KV pages alive in all sessions of this model."""
        return int(lib.pl_model_kv_pages(self.pointer))

    @property
    def kv_page_bytes(self) -> int:
        """Bytes of one KV page."""
        return int(lib.pl_model_kv_page_bytes(self.pointer))

    def limit_kv(self, pages: int) -> None:
        """From now on sessions may hold so many KV pages in all; more raise OutOfMemoryError."""
        lib.pl_model_limit_kv(self.pointer, pages)

    def eval(self, parts: Sequence[Part], poll: Callable[[], bool] | None = None) -> list[np.ndarray]:
        """One forward pass for several sessions; float32 (n_logits, vocab) for each.

        A result is a read-only view of its session's buffer, valid until that session's next pass. `poll` is asked
        between layers, at most every 20 ms; where it says True, Interrupted is raised. Whatever is raised, no session
        has moved.
        """
        err, runs = _error(), ffi.new("pl_run[]", len(parts))
        held = [part.session.fill(run, part) for run, part in zip(runs, parts, strict=True)]
        asked = _Poll(poll) if poll else None
        handle, callback = (ffi.new_handle(asked), lib.pyllm_poll) if asked else (ffi.NULL, ffi.NULL)

        def attempt() -> int:
            status: int = lib.pl_eval(self.pointer, runs, len(parts), self.threads, callback, handle, err)
            if asked and asked.raised is not None:
                raise asked.raised
            return status

        self.check_with_room(attempt, err)
        return [rows for rows, *_ in held]

    def check_with_room(self, attempt: Callable[[], int], err: Any) -> None:
        """Make a call that may need pages, again as long as some are freed for it; raise what it has to say."""
        status = attempt()
        while status == lib.PL_MEMORY and any(reserve.make_room() for reserve in tuple(self.reserves)):
            status = attempt()
        check(status, err)

    def draw(self, generations: Sequence[Any]) -> None:
        """A token for each of several prepared `NativeGeneration`s."""
        lib.pl_draw(self.pointer, ffi.new("pl_generation *[]", generations), len(generations), self.threads)

    def new_session(self, context_length: int) -> NativeSession:
        """An empty session for up to `context_length` positions."""
        err, out = _error(), ffi.new("pl_session **")
        check(lib.pl_session_new(self.pointer, context_length, out, err), err)
        return NativeSession(self, out[0], context_length)

    def close(self) -> None:
        """Drop this reference; calls under way and sessions alive keep the weights until they end. Harmless twice."""
        self._pointer = None  # not ffi.release(): another thread may be on its way into C with the same pointer


class NativeAdapter:
    """A `pl_adapter`: low-rank additions to some of a model's matrices. Frozen once a session has it."""

    def __init__(self, model: NativeModel) -> None:
        err, out = _error(), ffi.new("pl_adapter **")
        check(lib.pl_adapter_new(model.pointer, out, err), err)
        self.pointer = ffi.gc(out[0], lib.pl_adapter_release)

    def bind(self, slot: str, layer: int, a: np.ndarray, b: np.ndarray, expert: int = 0) -> None:
        """Add B A to a bound matrix (rows, cols): a (rank, cols) and b (rows, rank), float32.

        Rows are in the order of the model's own file. Raises ModelFormatError where the shapes do not fit.
        """
        err, a, b = _error(), np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
        (rank, cols), (rows, inner) = a.shape, b.shape
        low, _low = _source(lib.PL_TYPE_F32, rank, cols, a, 0)
        high, _high = _source(lib.PL_TYPE_F32, rows, inner, b, 0)
        check(lib.pl_adapter_bind(self.pointer, SLOTS[slot], layer, expert, low, high, err), err)


def _room(rows: int, width: int) -> tuple[np.ndarray, Any]:
    """A read-only float32 array (rows, width), and the buffer through which C fills it."""
    array = np.empty((rows, width), np.float32)
    buffer, view = _floats(array), array.view()
    view.flags.writeable = False
    return view, buffer


class Part(NamedTuple):
    """One session's share of a forward pass: its next tokens, and for how many of the last it wants answers.

    Answers are logits, or with `states` what the head would have made logits of. `hidden` (layers, n, dim) is filled
    with the residual stream after so many `layers`.
    """

    session: NativeSession
    tokens: Sequence[int] | np.ndarray
    n_logits: int
    states: bool = False
    layers: Sequence[int] = ()
    hidden: np.ndarray | None = None


class NativeSession:
    """A `pl_session`: one timeline, one thread at a time."""

    def __init__(self, model: NativeModel, pointer: Any, context_length: int) -> None:
        self._model = model
        self.context_length = context_length
        self._pointer = ffi.gc(pointer, lib.pl_session_free)
        self._hold_rows(1)

    def _hold_rows(self, rows: int) -> None:
        """A buffer for `rows` rows of logits, and the read-only view of it that callers get."""
        self._rows, self._run_logits = _room(rows, self._model.vocab_size)

    @property
    def pointer(self) -> Any:
        """The C handle. Raises ClosedError after `close()`."""
        if self._pointer is None:
            raise ClosedError("the session is closed")
        return self._pointer

    def eval(
        self,
        tokens: Sequence[int] | np.ndarray,
        n_logits: int = 1,
        poll: Callable[[], bool] | None = None,
        *,
        states: bool = False,
    ) -> np.ndarray:
        """One forward pass over all `tokens`; float32 (n_logits, vocab) for the last ones.

        With `states`, float32 (n_logits, dim) instead: what the head would have made logits of. The result is a
        read-only view of the session's buffer, valid until its next `eval`; states have an array of their own.
        `poll` is asked between layers, at most every 20 ms; where it says True, Interrupted is raised and the session
        has not moved.
        """
        return self._model.eval([Part(self, tokens, n_logits, states)], poll)[0]

    def eval_hidden(
        self, tokens: Sequence[int] | np.ndarray, layers: Sequence[int], poll: Callable[[], bool] | None = None
    ) -> np.ndarray:
        """One forward pass over all `tokens`; the residual stream after so many layers, float32 (layers, n, dim)."""
        out = np.empty((len(layers), len(tokens), self._model.dim), np.float32)
        self._model.eval([Part(self, tokens, 0, layers=layers, hidden=out)], poll)
        return out

    def fill(self, run: Any, part: Part) -> tuple[np.ndarray, list[Any]]:
        """Describe this session's part in a pl_run: (where its answers will be, and what must live as long as it)."""
        ids = ffi.from_buffer("int32_t[]", np.ascontiguousarray(part.tokens, np.int32))
        run.session = pointer = self.pointer
        run.tokens, run.n, run.n_logits = ids, len(ids), part.n_logits
        held = [ids, pointer]
        if part.states:
            rows, run.states = _room(part.n_logits, self._model.dim)
        else:
            if part.n_logits > len(self._rows):
                self._hold_rows(part.n_logits)
            rows, run.logits = self._rows, self._run_logits
        if part.hidden is not None:
            held += [layers := ffi.new("int32_t[]", part.layers), out := _floats(part.hidden)]
            run.hidden_layers, run.n_hidden, run.hidden = layers, len(part.layers), out
        return rows[: part.n_logits], held

    @property
    def first_row(self) -> Any:
        """Where the first row of logits is: a float[vocab]."""
        return self._run_logits[0 : self._model.vocab_size]

    def generate(self, generation: Any) -> None:
        """Go on by itself, as a `NativeGeneration` that was prepared for it says."""
        lib.pl_generate(self.pointer, generation, self._model.threads)

    def kv(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Copies of one layer's keys and values, each float32 (KV heads, position, head_dim)."""
        err, shape = _error(), (self._model.n_kv_heads, self.position, self._model.head_dim)
        keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        check(lib.pl_session_kv_read(self.pointer, layer, _floats(keys), _floats(values), err), err)
        return keys, values

    def rows(self, n: int) -> np.ndarray:
        """What the last pass gave: the logits of the last n tokens, float32 (n, vocab), read-only."""
        return self._rows[:n]

    @property
    def position(self) -> int:
        """Tokens evaluated so far."""
        return int(lib.pl_session_position(self.pointer))

    def expect(self, length: int) -> None:
        """Say how long the sequence will be. The session is empty afterwards where that changes RoPE's factors."""
        lib.pl_session_expect(self.pointer, length)

    def adapt(self, adapters: Sequence[tuple[NativeAdapter, float]]) -> None:
        """Evaluate with these adapters and their scales from now on. For an empty session; forks take them over."""
        err = _error()
        pointers = ffi.new("pl_adapter *[]", [adapter.pointer for adapter, _ in adapters])
        scales = ffi.new("float[]", [scale for _, scale in adapters])
        check(lib.pl_session_adapt(self.pointer, pointers, scales, len(adapters), err), err)

    def truncate(self, position: int) -> None:
        """Go back to `position`, giving pages behind it back."""
        err = _error()
        check(lib.pl_session_truncate(self.pointer, position, err), err)

    def fork(self, position: int | None = None, context_length: int | None = None) -> NativeSession:
        """A second session over the first `position` positions, that shares this one's pages until either writes.

        None: all of them; a context as long as this one's.
        """
        err, out = _error(), ffi.new("pl_session **")
        position = self.position if position is None else position
        context_length = self.context_length if context_length is None else context_length
        check(lib.pl_session_fork(self.pointer, position, context_length, out, err), err)
        return NativeSession(self._model, out[0], context_length)

    def unite(self, other: NativeSession, position: int) -> None:
        """Hold the pages of the first `position` tokens, the same in both, once: `other`'s take the place of mine."""
        err = _error()
        check(lib.pl_session_unite(self.pointer, other.pointer, position, err), err)

    def state(self) -> bytes:
        """Keys and values of all positions, as bytes."""
        err, data = _error(), bytearray(lib.pl_session_state_bytes(self.pointer))
        check(lib.pl_session_state_read(self.pointer, ffi.from_buffer(data), len(data), err), err)
        return bytes(data)

    def load_state(self, data: Any, position: int) -> None:
        """Take over what `state()` gave for `position` positions."""
        err, buffer = _error(), ffi.from_buffer(data)
        write = partial(lib.pl_session_state_write, self.pointer, buffer, len(buffer), position, err)
        self._model.check_with_room(write, err)

    def close(self) -> None:
        """Free the session, once the forward pass it may be in has ended. Harmless twice."""
        self._pointer = None


# ---- sampling and merging --------------------------------------------------------------------------------------------


class NativeSampler:
    """A `pl_sampler`: the options, and where the random numbers are. For one text, in one thread at a time."""

    def __init__(
        self,
        rng_state: int,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        logit_bias: Mapping[int, float] | None,
    ) -> None:
        penalties = (repetition_penalty, presence_penalty, frequency_penalty)
        self._bias_ids = np.array(list(logit_bias or ()), np.int32)
        self._bias = np.array(list((logit_bias or {}).values()), np.float32)
        self._kept = [ffi.from_buffer("int32_t[]", self._bias_ids), _floats(self._bias)]
        sampling = (temperature, top_p, min_p, top_k, *penalties)
        self._native = ffi.new("pl_sampler *", (sampling, *self._kept, len(self._bias), ffi.NULL, rng_state))
        self._token, self._error = ffi.new("int32_t *"), _error()
        self._work = ffi.new("float[]", 0)

    @property
    def rng_state(self) -> int:
        """Where the generator is."""
        return int(self._native.rng)

    def pointer(self, vocab: int) -> Any:
        """The C struct, with scratch for so many logits."""
        if len(self._work) < 2 * vocab + 16:
            self._native.work = self._work = ffi.new("float[]", 2 * vocab + 16)
        return self._native

    def draw(self, logits: np.ndarray, history: Sequence[int], allowed: bytes | None = None) -> int:
        """One token id for float32 `logits` (vocab,).

        `history`: ids that the penalties look at. `allowed`: a bit for each id, from the lowest of the first byte on.
        """
        if allowed is not None and 8 * len(allowed) < len(logits):
            raise ValueError(f"{8 * len(allowed)} bits do not say which of {len(logits)} tokens are allowed")
        logits, past = np.ascontiguousarray(logits, np.float32), np.ascontiguousarray(history, np.int32)
        status = lib.pl_sample(
            self.pointer(len(logits)),
            _floats(logits),
            len(logits),
            ffi.from_buffer("int32_t[]", past),
            len(past),
            ffi.NULL if allowed is None else ffi.from_buffer("uint8_t[]", allowed),
            self._token,
            self._error,
        )
        check(status, self._error)
        return int(self._token[0])


class NativeGeneration:
    """A `pl_generation`: what a session goes on with by itself. What was drawn is kept in C, so that an exception that
    comes between any two lines loses nothing.
    """

    def __init__(self, sampler: NativeSampler, stop_ids: Collection[int]) -> None:
        self._sampler = sampler
        self._stop_ids = ffi.new("int32_t[]", list(stop_ids))
        self._native = ffi.new("pl_generation *", {"stop_ids": self._stop_ids, "n_stop": len(self._stop_ids)})

    def prepare(self, session: NativeSession, history: Sequence[int], most: int, seconds: float) -> Any:
        """The C struct for up to `most` tokens, and about so many seconds, from the logits of the session's last pass.

        That asked for one row. `history`: ids that the penalties look at.
        """
        native = self._native
        self._text = np.empty(len(history) + most, np.int32)
        self._text[: len(history)] = history
        native.text, native.n_text, native.most = ffi.from_buffer("int32_t[]", self._text), len(history), most
        native.seconds, native.logits = seconds, session.first_row
        native.sampler = self._sampler.pointer(len(session.first_row))
        return native

    @property
    def drawn(self) -> list[int]:
        """The tokens. All were evaluated but the last; that one too where no other could be drawn."""
        start: int = self._native.n_text
        tokens: list[int] = self._text[start : start + self._native.drawn].tolist() if self._native.drawn else []
        return tokens

    def forget(self) -> None:
        """Let nothing be drawn."""
        self._native.drawn = 0


_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


class NativeWords:
    """A `pl_words`: patterns that cut text into words. Threads may share one."""

    def __init__(
        self,
        steps: Sequence[Sequence[int]],
        code: Sequence[Sequence[int]],
        sets: Sequence[Sequence[int]],
        ranges: Sequence[Sequence[int]],
    ) -> None:
        flat = ffi.new("uint32_t[]", [bound for pair in ranges for bound in pair])
        arrays = (ffi.new("pl_word_step[]", steps), ffi.new("pl_word_code[]", code), ffi.new("pl_word_set[]", sets))
        pattern = ffi.new("pl_word_pattern *", (*arrays, flat, len(steps), len(code), len(sets), len(ranges)))
        err, out = _error(), ffi.new("pl_words **")
        check(lib.pl_words_new(pattern, out, err), err)
        self.pointer = ffi.gc(out[0], lib.pl_words_free)

    def split(self, data: bytes) -> list[bytes]:
        """The words of UTF-8 text."""
        ends, count, err = np.empty(len(data), np.int64), ffi.new("int64_t *"), _error()
        status = lib.pl_words_ends(
            self.pointer, ffi.from_buffer("uint8_t[]", data), len(data), ffi.from_buffer("int64_t[]", ends), count, err
        )
        check(status, err)
        bounds = [0, *ends[: count[0]].tolist()]
        return [data[start:end] for start, end in pairwise(bounds)]


class Strings(NamedTuple):
    """Byte strings inside one buffer: string i is data[starts[i] : ends[i]]."""

    data: bytes
    starts: np.ndarray  # int64 (n)
    ends: np.ndarray  # int64 (n)


class NativeBPE:
    """A `pl_bpe`: byte pair merges, by scores or, without `scores`, in the order of `merges`. Threads may share one."""

    def __init__(
        self,
        pieces: Strings,
        mergeable: np.ndarray,
        *,
        scores: np.ndarray | None = None,
        merges: Strings | None = None,
        byte_level: bool = False,
        whole_words: bool = False,
        byte_ids: np.ndarray | None = None,
        unknown_id: int = -1,
        words: NativeWords | None = None,
    ) -> None:
        n = len(pieces.starts)
        if not n == len(pieces.ends) == len(mergeable) == (n if scores is None else len(scores)):
            raise ValueError(f"{n} pieces, but {len(mergeable)} marks or another number of scores")
        fields, _kept = self._vocabulary(pieces, merges, mergeable, scores, byte_ids)
        fields.byte_level, fields.whole_words, fields.unknown_id = byte_level, whole_words, unknown_id
        err, out = _error(), ffi.new("pl_bpe **")
        check(lib.pl_bpe_new(fields, words.pointer if words else ffi.NULL, out, err), err)
        self._pointer = ffi.gc(out[0], lib.pl_bpe_free)
        self._words = words  # which the vocabulary refers to

    @staticmethod
    def _vocabulary(
        pieces: Strings,
        merges: Strings | None,
        mergeable: np.ndarray,
        scores: np.ndarray | None,
        byte_ids: np.ndarray | None,
    ) -> tuple[Any, list[Any]]:
        """The struct, and what must stay as long as it is used."""
        fields, kept = ffi.new("pl_vocabulary *"), []

        def array(ctype: str, values: Any, dtype: Any) -> Any:
            kept.append(ffi.from_buffer(ctype, np.ascontiguousarray(values, dtype)))
            return kept[-1]

        for into, strings in ((fields.pieces, pieces), (fields.merges, merges)):
            if strings is not None:
                kept.append(ffi.from_buffer("uint8_t[]", strings.data))
                into.bytes, into.n = kept[-1], len(strings.starts)
                into.starts = array("int64_t[]", strings.starts, np.int64)
                into.ends = array("int64_t[]", strings.ends, np.int64)
        fields.mergeable = array("uint8_t[]", mergeable, np.uint8)
        fields.scores = ffi.NULL if scores is None else array("float[]", scores, np.float32)
        fields.byte_ids = array("int32_t[]", np.full(256, -1) if byte_ids is None else byte_ids, np.int32)
        return fields, kept

    def encode(self, data: bytes) -> list[int]:
        """Token ids of UTF-8 text, or of any bytes. Most texts are short, and what is made here costs the most."""
        ids, numbers, err = _new_uncleared("int32_t[]", len(data)), ffi.new("int64_t[2]", (len(data), 0)), _error()
        status = lib.pl_bpe_encode(self._pointer, data, numbers, 1, 1, ids, numbers + 1, err)
        if status:
            check(status, err)
        found: list[int] = ffi.unpack(ids, numbers[1])
        return found

    def encode_batch(self, texts: Sequence[bytes], threads: int) -> list[list[int]]:
        """`encode` for each of several texts, on that many threads."""
        if len(texts) == 1:
            return [self.encode(texts[0])]
        data = b"".join(texts)
        lengths = np.array([len(text) for text in texts], np.int64)
        ends = np.cumsum(lengths)
        ids, counts, err = np.empty(len(data), np.int32), np.empty(len(texts), np.int64), _error()
        status = lib.pl_bpe_encode(
            self._pointer,
            ffi.from_buffer("uint8_t[]", data),
            ffi.from_buffer("int64_t[]", ends),
            len(texts),
            threads,
            ffi.from_buffer("int32_t[]", ids),
            ffi.from_buffer("int64_t[]", counts),
            err,
        )
        check(status, err)
        spans = zip((ends - lengths).tolist(), counts.tolist(), strict=True)
        return [ids[start : start + n].tolist() for start, n in spans]
