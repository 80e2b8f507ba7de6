"""A model while it is being described: the switches of its config, and where each slot's tensor lies in the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pyllm.architectures.fields import Fields, checked
from pyllm.architectures.rope import Stretch
from pyllm.config import LayerConfig, ModelConfig
from pyllm.errors import ModelFormatError
from pyllm.formats.checkpoint import Checkpoint


@dataclass(frozen=True)
class Runs:
    """Some of a tensor's `of` rows: `count` of them from `start`, and, with `every`, again every so many rows."""

    of: int
    start: int
    count: int
    every: int = 0


@dataclass(frozen=True)
class Part:
    """Where a slot's values lie: in a tensor, whole or in part.

    `name` has "{layer}" and "{expert}" where there is one for each. `pieces`: the values are those of so many tensors,
    one behind the other, whose names have "{piece}". `stacked`: the tensor holds the matrices of all
    experts, one behind the other. `transposed`: it holds (cols, rows). `plus` is added to every value, `every_plus`
    names a tensor whose first row is added to every row. `scales` names the tensor of scales that belongs to one of
    blocks (MXFP4 in Hugging Face folders).
    """

    name: str
    runs: Runs | None = None
    stacked: bool = False
    transposed: bool = False
    plus: float = 0.0
    every_plus: str = ""
    scales: str = ""
    pieces: int = 1


Places = dict[str, tuple[Part, ...]]

# ---- groups of slots that come together ------------------------------------------------------------------------------

CORE = ("embedding", "wq", "wk", "wv", "wo", "final_norm")
NORMS = ("attention_norm", "ffn_norm")
GATED = ("gate", "up", "down")
PLAIN = ("up", "down")
POST_NORMS = ("attention_post_norm", "ffn_post_norm")
QK_NORMS = ("q_norm", "k_norm")
QKV_BIASES = ("bq", "bk", "bv")
FFN_BIASES = ("up_bias", "down_bias")
NORM_BIASES = ("attention_norm_bias", "ffn_norm_bias", "final_norm_bias")
EXPERTS = ("router", "expert_gate", "expert_up", "expert_down")
SHARED = ("shared_gate", "shared_up", "shared_down")
LLAMA = (*CORE, *NORMS, *GATED)


@dataclass(frozen=True)
class Description:
    """A described model: its config, and the parts of the file that go into it.

    `places`: for every slot the parts to look for, the first that exists counts. Those in `optional` may be absent.
    `constants`: slots whose values no tensor holds. `ignored`: names of tensors that change nothing.
    """

    config: ModelConfig
    places: Mapping[str, tuple[Part, ...]]
    optional: frozenset[str]
    constants: Mapping[str, np.ndarray[Any, Any]]
    ignored: frozenset[str]


@dataclass
class Draft:
    """What a family's function works on. `names` is the table of usual places; a family takes slots from it."""

    checkpoint: Checkpoint
    fields: Fields
    names: Places
    config: dict[str, Any] = field(default_factory=dict)
    needed: set[str] = field(default_factory=set)
    optional: set[str] = field(default_factory=set)
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)
    layers: list[LayerConfig] = field(default_factory=list)

    def set(self, **switches: Any) -> None:
        """Give fields of `ModelConfig` a value."""
        self.config.update(switches)

    def needs(self, *slots: str) -> None:
        """These slots must be in the file, in every layer that has a use for them."""
        self.needed.update(slots)

    def may_have(self, *slots: str) -> None:
        """These slots may be in the file: in all layers, or in none."""
        self.optional.update(slots)

    def place(self, slot: str, *parts: Part | str) -> None:
        """Look for a slot somewhere else than usual."""
        self.names[slot] = tuple(part if isinstance(part, Part) else Part(part) for part in parts)

    def ignore(self, *names: str) -> None:
        """Tensors with these names ("{layer}" stands for each layer) change nothing in the arithmetic."""
        for name in names:
            layers = range(len(self.layers)) if "{layer}" in name else range(1)
            self.ignored.update(name.format(layer=layer) for layer in layers)

    # ---- layers ------------------------------------------------------------------------------------------------------

    def begin_layers(self, count: int) -> None:
        """Every layer has tensors of its own: a file with fewer has lost some, or its number is wrong."""
        if count > len(self.checkpoint.tensors):
            raise ModelFormatError(
                f"{self.checkpoint.path}: {count} layers, but only {len(self.checkpoint.tensors)} tensors in the file"
            )
        self.set(n_layers=count)
        self.layers = [LayerConfig()] * count

    def windows(self, window: int, layers: Iterable[bool]) -> None:
        """A sliding window for the layers that are marked."""
        marked = zip(self.layers, layers, strict=True)
        self.layers = [replace(layer, window=window) if local else layer for layer, local in marked]

    def ropes(self, kind: str, layers: Iterable[bool]) -> None:
        """Another rotation than the main one for the layers that are marked: "local" or "none"."""
        marked = zip(self.layers, layers, strict=True)
        self.layers = [replace(layer, rope=kind) if other else layer for layer, other in marked]

    def experts(self, layers: Iterable[bool] | None = None) -> None:
        """The layers that are marked, or all, have experts instead of a feed-forward layer."""
        marks = list(layers) if layers is not None else [True] * len(self.layers)
        self.layers = [replace(layer, experts=mark) for layer, mark in zip(self.layers, marks, strict=True)]
        self.needs(*EXPERTS)
        if all(marks):
            self.needed.difference_update(GATED)

    def local(self) -> Sequence[bool]:
        """Which layers have a window."""
        return [layer.window > 0 for layer in self.layers]

    def pattern(self, period: int) -> list[bool]:
        """All layers but the last of every `period`."""
        return [(i + 1) % period != 0 for i in range(len(self.layers))]

    # ---- RoPE --------------------------------------------------------------------------------------------------------

    def stretch(self, stretch: Stretch) -> None:
        """Scaled RoPE of the main kind. Raises `ModelFormatError` where fields lead to impossible factors."""
        self.set(rope_scale=stretch.scale, rope_original=stretch.original)
        for slot, values in (("rope_factors", stretch.factors), ("rope_factors_long", stretch.long)):
            if values is not None:
                if not (np.isfinite(values).all() and (values > 0).all()):
                    raise ModelFormatError(f"{self.checkpoint.path}: the fields of scaled RoPE lead to {values.max()}")
                self.constants[slot] = values

    def described(self) -> Description:
        """The result, with a config whose fields fit together."""
        plain = all(layer == LayerConfig() for layer in self.layers)
        config = ModelConfig(**self.config, layers=() if plain else tuple(self.layers))
        wanted = self.needed | self.optional
        return Description(
            checked(config, self.checkpoint),
            {slot: self.names[slot] for slot in wanted},
            frozenset(self.optional - self.needed),
            self.constants,
            frozenset(self.ignored),
        )


def fused(name: str, sizes: Mapping[str, int]) -> dict[str, Part]:
    """Slots whose rows lie one behind the other in one tensor."""
    parts, start, of = {}, 0, sum(sizes.values())
    for slot, count in sizes.items():
        parts[slot] = Part(name, Runs(of, start, count))
        start += count
    return parts
