"""`Sampler`: how a token is chosen from logits."""

from __future__ import annotations

import math
import operator
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyllm._core import NativeSampler
from pyllm.errors import ModelFormatError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SEEDS = 1 << 64
#: What seed 0 stands for: run.c's generator would stay at 0 for ever, so 0 means this state instead.
STATE_OF_SEED_0 = 0x9E3779B97F4A7C15

_METADATA = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


#: The range of fp32, in which sampling is done: the largest number, and the smallest that keeps all its digits.
_LARGEST, _SMALLEST = float.fromhex("0x1.fffffep+127"), 2.0**-126


@dataclass(frozen=True)
class Sampler:
    """How the next token is drawn. Immutable options, applied in this order:

    1. `logit_bias`: {token id: number added to its logit}; `-math.inf` bans a token.
    2. `repetition_penalty`: the logit of every token that the text so far holds (prompt included) is divided by it if
       positive and multiplied by it otherwise; 1 is off. Then `frequency_penalty` times the number of its occurrences
       and `presence_penalty` are subtracted; 0 is off.
    3. `temperature`: logits are divided by it; 0 takes the most probable token (lowest id on ties) and draws nothing.
    4. `top_k`: only the k most probable tokens; 0 is off.
    5. `min_p`: only tokens at least this fraction as probable as the most probable one; 0 is off.
    6. `top_p`: only the smallest set of most probable tokens whose sum exceeds it; 0 and 1 are off.

    With only `temperature` and `top_p` set this is the sampler of llama2.c's run.c, token for token.
    `seed`: an int in [0, 2**64), or None for a fresh random one at each use. Every `generate` starts from the seed;
    calling the sampler on logits draws from a state of its own that starts at the seed too.
    Raises `ValueError` for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, lambda x: x >= 0, "a finite number of at least 0")
        _require("top_p", self.top_p, lambda x: 0 <= x <= 1, "in [0, 1]")
        _require("min_p", self.min_p, lambda x: 0 <= x <= 1, "in [0, 1]")
        _require("repetition_penalty", self.repetition_penalty, lambda x: x >= _SMALLEST, "a finite number above 0")
        _require("presence_penalty", self.presence_penalty, lambda x: True, "a finite number")
        _require("frequency_penalty", self.frequency_penalty, lambda x: True, "a finite number")
        if not 0 <= operator.index(self.top_k) < 1 << 31:
            raise ValueError(f"top_k must be in [0, 2**31), not {self.top_k}")
        if self.seed is not None:
            check_seed(self.seed)
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        object.__setattr__(self, "_running", _Running())

    @classmethod
    def greedy(cls) -> Sampler:
        """Always the most probable token."""
        return cls(temperature=0.0)

    def __call__(self, logits: npt.ArrayLike) -> int:
        """Draw a token id from logits, float32 (vocab,), and move this sampler's own state on.

        Penalties see no text here. Raises `ValueError` for NaN, or where every token is banned.
        """
        import numpy as np

        row = np.asarray(logits, dtype=np.float32, order="C")
        if row.ndim != 1 or row.size == 0:
            raise ValueError(f"logits must have the shape (vocab,), not {row.shape}")
        running: _Running = vars(self)["_running"]
        with running.lock:
            if running.state is None:
                running.state = self.start()
            return running.state.draw(row)

    def start(self, seed: int | None = None) -> SamplerState:
        """A new state at `seed`; None means the sampler's own seed, or a random one where it has none."""
        if seed is None:
            seed = self.seed
        return SamplerState(self, random_seed() if seed is None else check_seed(seed))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_running"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _running=_Running())


class SamplerState:
    """A sampler at work on one text: its options and where the random numbers are. For one thread at a time."""

    def __init__(self, sampler: Sampler, seed: int) -> None:
        self.seed = seed
        self.greedy = sampler.temperature == 0
        self._looks_back = (
            sampler.repetition_penalty != 1 or sampler.presence_penalty != 0 or sampler.frequency_penalty != 0
        )
        self.native = NativeSampler(
            seed or STATE_OF_SEED_0,
            temperature=sampler.temperature,
            top_k=sampler.top_k,
            top_p=sampler.top_p,
            min_p=sampler.min_p,
            repetition_penalty=sampler.repetition_penalty,
            presence_penalty=sampler.presence_penalty,
            frequency_penalty=sampler.frequency_penalty,
            logit_bias=sampler.logit_bias,
        )

    def draw(self, logits: npt.NDArray[np.float32], history: Sequence[int] = (), allowed: bytes | None = None) -> int:
        """A token id from logits (vocab,). `history`: the ids of the text so far, for the penalties.

        `allowed`: a bit for each id, from the lowest of the first byte on; others are not drawn.
        """
        return self.native.draw(logits, self.relevant(history), allowed)

    def relevant(self, history: Sequence[int]) -> Sequence[int]:
        """What a draw depends on of the ids so far: none of them where there are no penalties."""
        return history if self._looks_back else ()


class _Running:
    """The state behind `Sampler.__call__`, which threads may share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.state: SamplerState | None = None


def random_seed() -> int:
    """A seed from the operating system, nonzero and below 2**53, so that it survives JSON."""
    return 1 + int.from_bytes(os.urandom(8), "little") % ((1 << 53) - 1)


def check_seed(seed: int) -> int:
    """`seed` as an int. Raises `ValueError` where it is not in [0, 2**64)."""
    seed = operator.index(seed)
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed must be in [0, 2**64), not {seed}")
    return seed


def sampler_from_metadata(metadata: Mapping[str, Any]) -> Sampler:
    """The generation defaults that a GGUF file carries (`general.sampling.*`), else those of `Sampler`."""
    options = {name: metadata[key] for key, name in _METADATA.items() if key in metadata}
    try:
        return Sampler(**options)
    except (TypeError, ValueError) as error:
        raise ModelFormatError(f"general.sampling.*: {error}") from error


def _require(name: str, value: float, holds: Callable[[float], bool], wanted: str) -> None:
    if not (abs(value) <= _LARGEST and holds(value)):
        raise ValueError(f"{name} must be {wanted}, not {value}")


def _checked_bias(bias: Mapping[int, float]) -> dict[int, float]:
    checked = {operator.index(token): float(value) for token, value in bias.items()}
    for token, value in checked.items():
        if not (0 <= token < 1 << 31 and (abs(value) <= _LARGEST or value == -math.inf)):
            raise ValueError(f"logit_bias maps token ids to finite numbers or -inf, not {token} to {value}")
    return checked
