"""Models of any config with random weights, bound straight to the engine: no file, no architecture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from bits import Array
from reference import FLOAT_TYPES, Matrix, Weights
from tinygguf import F32, float_bytes, random_weights

from pyllm import _core
from pyllm.config import ModelConfig


class Tensor(NamedTuple):
    """What one slot is bound to."""

    slot: str
    layer: int
    expert: int | None  # None for slots that are not per expert
    type_id: int
    rows: int
    cols: int
    data: bytes


class RandomModel(NamedTuple):
    """A config and a tensor for each of its slots."""

    config: ModelConfig
    tensors: list[Tensor]

    def native(self, *, planes: int = 2, kv_type: str = "f32", threads: int = 1) -> _core.NativeModel:
        """The engine's model."""
        model = _core.NativeModel(self.config, planes=planes, kv_type=kv_type, threads=threads)
        for t in self.tensors:
            model.bind(t.slot, t.layer, t.type_id, t.rows, t.cols, t.data, expert=t.expert or 0)
        model.finish()
        return model

    def weights(self) -> Weights:
        """The same weights for the reference, in float64."""
        weights: Weights = {}
        for t in self.tensors:
            key = (t.slot, t.layer) if t.expert is None else (t.slot, t.layer, t.expert)
            values = _core.dequantize(t.type_id, t.rows, t.cols, t.data).astype(np.float64)
            weights[key] = Matrix(values, t.type_id not in FLOAT_TYPES)
        return weights


def matrices(config: ModelConfig, layer: int) -> dict[str, tuple[int, int]]:
    """Slots and shapes of a layer's matrices that a model of this config must have; experts' once."""
    c = config
    dim, q, kv = c.dim, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    found = {"wq": (q, dim), "wk": (kv, dim), "wv": (kv, dim), "wo": (dim, q)}

    def add(prefix: str, width: int) -> None:
        found.update({f"{prefix}up": (width, dim), f"{prefix}down": (dim, width)})
        if c.gated:
            found[f"{prefix}gate"] = (width, dim)

    if c.layer(layer).experts:
        found["router"] = (c.n_experts, dim)
        add("expert_", c.expert_dim)
        if c.shared_dim:
            add("shared_", c.shared_dim)
    else:
        add("", c.hidden_dim)
    return found


def widths(config: ModelConfig) -> dict[str, int]:
    """The widths of vectors."""
    c = config
    q, kv, head = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.qk_norm == "head"
    found = {"bq": q, "bk": kv, "bv": kv, "sinks": c.n_heads, "head_bias": c.vocab_size}
    found |= {"q_norm": c.head_dim if head else q, "k_norm": c.head_dim if head else kv}
    found |= {
        "gate_bias": c.hidden_dim,
        "up_bias": c.hidden_dim,
        "router_bias": c.n_experts,
        "choice_bias": c.n_experts,
    }
    found |= {"expert_gate_bias": c.expert_dim, "expert_up_bias": c.expert_dim}
    return found | {"rope_factors": c.rope_dims // 2, "rope_factors_long": c.rope_dims // 2}


SINGLE = ("embedding_norm", "embedding_norm_bias", "final_norm", "final_norm_bias", "head_bias", "rope_factors")


class _Maker:
    def __init__(self, config: ModelConfig, seed: int, types: Iterable[int]) -> None:
        self.config, self.rng, self.types, self.count = config, np.random.default_rng(seed), list(types), 0
        self.tensors: list[Tensor] = []

    def vector(self, slot: str, layer: int, expert: int | None = None) -> None:
        n = widths(self.config).get(slot, self.config.dim)
        if slot.startswith("rope_factors"):
            x = np.linspace(1, 4 if slot == "rope_factors" else 20, n)
        else:
            x = self.rng.normal(1.0 if slot.endswith("norm") else 0.0, 0.2, n)
        data = float_bytes(F32, x.astype(np.float32))
        self.tensors.append(Tensor(slot, layer, expert, F32, 1, n, data))

    def matrix(self, slot: str, layer: int, shape: tuple[int, int], expert: int | None = None) -> None:
        rows, cols = shape
        type_id = self.types[self.count % len(self.types)] if cols % 32 == 0 else F32
        self.count += 1
        self.tensors.append(
            Tensor(slot, layer, expert, type_id, rows, cols, random_weights(self.rng, type_id, rows, cols))
        )


def random_model(
    config: ModelConfig, optional: str = "", *, types: Iterable[int] = (F32,), seed: int = 0
) -> RandomModel:
    """A model with all that its config needs, and the optional slots named, wherever it has room for them.

    `types`: weight types that matrices take in turn, where their width allows.
    """
    maker, names, c = _Maker(config, seed, types), optional.split(), config
    maker.matrix("embedding", 0, (c.vocab_size, c.dim))
    for slot, shape in {"position_embedding": (c.context_length, c.dim), "head": (c.vocab_size, c.dim)}.items():
        if slot in names:
            maker.matrix(slot, 0, shape)
    for slot in [name for name in names if name in SINGLE] + ["rope_factors_long"] * (c.rope_original > 0):
        maker.vector(slot, 0)
    for layer in range(c.n_layers):
        _layer(maker, layer, names)
    return RandomModel(config, maker.tensors)


def _layer(maker: _Maker, layer: int, names: list[str]) -> None:
    c = maker.config
    shapes = matrices(c, layer)
    every = range(c.n_experts)
    for slot, shape in shapes.items():
        for expert in every if slot.startswith("expert_") else [None]:
            maker.matrix(slot, layer, shape, expert)
    if "shared_router" in names and "shared_up" in shapes:
        maker.matrix("shared_router", layer, (1, c.dim))
    for slot in [*names, *(["q_norm", "k_norm"] if c.qk_norm != "none" else [])]:
        owner = slot.removesuffix("_bias")
        if slot in (*SINGLE, "position_embedding", "head", "shared_router"):
            continue
        if slot in ("router_bias", "choice_bias") and "router" not in shapes:
            continue
        if (
            owner in ("gate", "up", "down", *(f"expert_{part}" for part in ("gate", "up", "down")))
            and owner not in shapes
        ):
            continue
        for expert in every if slot.startswith("expert_") else [None]:
            maker.vector(slot, layer, expert)


def logits(model: _core.NativeModel, ids: list[int], *, states: bool = False) -> Array:
    """All tokens in one pass."""
    session = model.new_session(len(ids))
    try:
        return np.array(session.eval(ids, n_logits=len(ids), states=states))
    finally:
        session.close()
