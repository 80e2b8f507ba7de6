"""A Llama transformer in float64 numpy, written from the formulas: what the engine's logits are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyllm import _core, architectures, formats
from pyllm.config import ModelConfig

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = 32  # activations that share a scale
STEPS = {2: 32512.0, 1: 127.0}  # from 0 to the largest of them, for each number of planes
FLOAT_TYPES = (0, 1, 30)  # F32, F16, BF16: multiplied with fp32 activations


class Matrix(NamedTuple):
    """Weights (rows, cols), and whether the engine rounds the activations they are multiplied with."""

    values: Array
    quantised: bool

    def apply(self, x: Array, planes: int | None) -> Array:
        """x (n, cols) times the transposed weights; `planes` None: nothing is rounded."""
        x = round_activations(x, STEPS[planes]) if planes and self.quantised else x
        y: Array = x @ self.values.T
        return y


Weights = dict[tuple[str, int], Matrix]


def round_activations(x: Array, steps: float) -> Array:
    """Each block of 32 as whole multiples of its largest magnitude / `steps`."""
    blocks = x.reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / steps
    whole = np.rint(blocks / np.where(scale > 0, scale, 1.0))
    rounded: Array = (whole * scale).reshape(x.shape)
    return rounded


def read_weights(path: Path) -> tuple[ModelConfig, Weights]:
    """A model file's weights in float64, by slot and layer."""
    checkpoint = formats.open_checkpoint(path)
    try:
        config = architectures.describe(checkpoint)
        weights: Weights = {}
        for b in architectures.bindings(checkpoint, config):
            with checkpoint.view(b.tensor) as data:
                values = _core.dequantize(b.tensor.type_id, b.rows, b.cols, data, b.tensor.group)
            quantised = b.tensor.type_id not in FLOAT_TYPES and b.tensor.group % BLOCK == 0 == b.cols % BLOCK
            weights[b.slot, b.layer] = Matrix(values.astype(np.float64), quantised)
        return config, weights
    finally:
        checkpoint.close()


def rms_norm(x: Array, weight: Matrix, eps: float) -> Array:
    y: Array = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight.values[0]
    return y


def rotate(x: Array, config: ModelConfig, factors: Array) -> Array:
    """Rotary embedding of x (n, heads, head_dim), row i at position i."""
    half = config.rope_dims // 2
    frequencies = config.rope_base ** (-np.arange(half) / half) / factors
    angle = np.outer(np.arange(len(x)), frequencies)[:, None, :]
    first, second = (slice(0, half), slice(half, 2 * half))
    if config.rope_interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    out: Array = x.copy()
    a, b = x[..., first], x[..., second]
    out[..., first] = a * np.cos(angle) - b * np.sin(angle)
    out[..., second] = a * np.sin(angle) + b * np.cos(angle)
    return out


def attend(q: Array, k: Array, v: Array) -> Array:
    """Causal attention: q (n, heads, d), k and v (n, kv_heads, d); out (n, heads * d)."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[2])
    scores[:, ~np.tri(len(q), dtype=bool)] = -np.inf
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    out: Array = np.einsum("hij,jhd->ihd", p, v).reshape(len(q), -1)
    return out


class Trace(NamedTuple):
    """What `forward` saw on its way: the residual stream before, between and after layers; each layer's keys, values.

    Each hidden state is (n, dim), keys (rotated) and values (n, kv_heads, head_dim).
    """

    hidden: list[Array]
    keys: list[Array]
    values: list[Array]


def forward(
    config: ModelConfig,
    weights: Weights,
    tokens: list[int],
    *,
    planes: int | None = None,
    kv_half: bool = False,
    trace: Trace | None = None,
) -> Array:
    """Logits after each of `tokens`, (n, vocab) float64.

    `planes`: round activations as the engine does in that precision; the head's always in two. `kv_half`: keep keys
    and values in half precision. `trace`: filled in.
    """
    trace = trace or Trace([], [], [])
    hd, ones = config.head_dim, Matrix(np.ones((1, config.rope_dims // 2)), False)
    factors = weights.get(("rope_factors", 0), ones).values[0]
    x = weights["embedding", 0].values[tokens]
    for layer in range(config.n_layers):

        def at(slot: str, layer: int = layer) -> Matrix:
            return weights[slot, layer]

        trace.hidden.append(x)
        h = rms_norm(x, at("attention_norm"), config.norm_eps)
        q, k, v = (at(slot).apply(h, planes).reshape(len(x), -1, hd) for slot in ("wq", "wk", "wv"))
        q, k = rotate(q, config, factors), rotate(k, config, factors)
        if kv_half:
            k, v = k.astype(np.float16).astype(np.float64), v.astype(np.float16).astype(np.float64)
        trace.keys.append(k)
        trace.values.append(v)
        x = x + at("wo").apply(attend(q, k, v), planes)
        h = rms_norm(x, at("ffn_norm"), config.norm_eps)
        gate, up = at("gate").apply(h, planes), at("up").apply(h, planes)
        x = x + at("down").apply(gate / (1 + np.exp(-gate)) * up, planes)
    trace.hidden.append(x)
    head = weights.get(("head", 0), weights["embedding", 0])
    return head.apply(rms_norm(x, weights["final_norm", 0], config.norm_eps), 2 if planes else None)
