"""The transformer in float64 numpy, written from the formulas: what the engine's logits are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
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


#: By slot and layer, and by slot, layer and expert where there is one for each.
Weights = dict[tuple[Any, ...], Matrix]


def round_activations(x: Array, steps: float) -> Array:
    """Each block of 32 as whole multiples of its largest magnitude / `steps`."""
    blocks = x.reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / steps
    whole = np.rint(blocks / np.where(scale > 0, scale, 1.0))
    rounded: Array = (whole * scale).reshape(x.shape)
    return rounded


def in_halves(x: Array) -> Array:
    """Keys or values as f16 keeps them."""
    return x.astype(np.float16).astype(np.float64)


def in_eight_bits(x: Array) -> Array:
    """Keys or values (..., head_dim) as q8_0 keeps them: 32 of a head with one f16 scale, the last ones with zeros."""
    padded = np.zeros((*x.shape[:-1], -(-x.shape[-1] // BLOCK) * BLOCK))
    padded[..., : x.shape[-1]] = x
    blocks = padded.reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / STEPS[1]
    whole = np.rint(blocks / np.where(scale > 0, scale, 1.0))
    kept: Array = (whole * in_halves(scale)).reshape(padded.shape)[..., : x.shape[-1]]
    return kept


def read_weights(path: Path) -> tuple[ModelConfig, Weights]:
    """A model file's weights in float64, by slot and layer."""
    checkpoint = formats.open_checkpoint(path)
    try:
        config = architectures.describe(checkpoint)
        weights: Weights = {}
        for b in architectures.bindings(checkpoint):
            with checkpoint.view(b.tensor) as data:
                values = _core.dequantize(b.tensor.type_id, b.rows, b.cols, data, b.tensor.group)
            quantised = b.tensor.type_id not in FLOAT_TYPES and b.tensor.group % BLOCK == 0 == b.cols % BLOCK
            weights[b.slot, b.layer] = Matrix(values.astype(np.float64), quantised)
        return config, weights
    finally:
        checkpoint.close()


class Block:
    """One layer's weights, or (layer 0) those of the whole model, and how its vectors are normalised."""

    def __init__(self, config: ModelConfig, weights: Weights, layer: int = 0, planes: int | None = None) -> None:
        self.config, self.weights, self.layer, self.planes = config, weights, layer, planes

    def vector(self, slot: str, expert: int | None = None) -> Array | None:
        """A vector (n,), or None where the model has none."""
        found = self.weights.get((slot, self.layer) if expert is None else (slot, self.layer, expert))
        return None if found is None else found.values[0]

    def linear(self, slot: str, bias: str, x: Array, expert: int | None = None) -> Array:
        """W x + b."""
        y = self.weights[(slot, self.layer) if expert is None else (slot, self.layer, expert)].apply(x, self.planes)
        b = self.vector(bias, expert)
        return y if b is None else y + b

    def norm(self, slot: str, x: Array) -> Array:
        """The norm of a slot, or x where there is none."""
        weight, bias = self.vector(slot), self.vector(f"{slot}_bias")
        if weight is None:
            return x
        return self.normalise(x, weight) + (0.0 if bias is None else bias)

    def normalise(self, x: Array, weight: Array) -> Array:
        """RMS or layer norm of the last axis."""
        if self.config.norm == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        y: Array = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + self.config.norm_eps) * weight
        return y

    def heads(self, slot: str, bias: str, norm: str, x: Array) -> Array:
        """Queries or keys (n, heads, head_dim), normalised as the config says."""
        y, weight, n = self.linear(slot, bias, x), self.vector(norm), len(x)
        split = (n, -1, self.config.head_dim)
        if weight is None:
            return y.reshape(split)
        if self.config.qk_norm == "wide":
            return self.normalise(y, weight).reshape(split)
        each = weight if self.config.qk_norm == "head" else weight.reshape(-1, self.config.head_dim)
        return self.normalise(y.reshape(split), each)


def frequencies(config: ModelConfig, weights: Weights, rope: str, length: int) -> Array:
    """Radians per position of each pair of dimensions, in a sequence of `length`."""
    half = config.rope_dims // 2
    if rope == "local":
        return np.asarray(config.rope_local_base ** (-np.arange(half) / half))
    is_long = 0 < config.rope_original < length
    factors = weights.get(("rope_factors_long" if is_long else "rope_factors", 0))
    theta: Array = config.rope_base ** (-np.arange(half) / half) / (1.0 if factors is None else factors.values[0])
    return theta


def rotate(x: Array, config: ModelConfig, theta: Array, scale: float = 1.0) -> Array:
    """Rotary embedding of x (n, heads, head_dim), row i at position i."""
    half = config.rope_dims // 2
    angle = np.outer(np.arange(len(x)), theta)[:, None, :]
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    first, second = (slice(0, half), slice(half, 2 * half))
    if config.rope_interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    out: Array = x.copy()
    a, b = x[..., first], x[..., second]
    out[..., first] = a * cosine - b * sine
    out[..., second] = a * sine + b * cosine
    return out


def rotated_order(config: ModelConfig) -> list[int]:
    """The dimensions of a key as the engine has them: the first of each rotated pair, the second, those left alone."""
    dims = config.rope_dims if config.rope_interleaved else 0
    return [*range(0, dims, 2), *range(1, dims, 2), *range(dims, config.head_dim)]


def sees(config: ModelConfig, window: int, n: int) -> Array:
    """(n, n) booleans: whether position i sees position j."""
    behind = np.subtract.outer(np.arange(n), np.arange(n))
    if not config.causal:
        return np.abs(behind) <= (window // 2 if window else n)
    return (behind >= 0) & (behind < (window or n))


def attend(config: ModelConfig, window: int, q: Array, k: Array, v: Array, sinks: Array | None) -> Array:
    """Attention: q (n, heads, d), k and v (n, kv_heads, d); out (n, heads * d)."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.transpose(1, 0, 2) for x in (q, k.repeat(group, axis=1), v.repeat(group, axis=1)))  # heads first
    scores = q @ k.transpose(0, 2, 1) * (config.attention_scale or q.shape[2] ** -0.5)
    scores = capped(scores, config.attention_softcap)
    scores[:, ~sees(config, window, scores.shape[1])] = -np.inf
    sink = np.full(scores.shape[0], -np.inf) if sinks is None else sinks
    scores = np.concatenate([scores, np.broadcast_to(sink[:, None, None], (*scores.shape[:2], 1))], axis=2)
    p = softmax(scores)[..., :-1]
    out: Array = p @ v
    return out.transpose(1, 0, 2).reshape(out.shape[1], -1)


class Trace(NamedTuple):
    """What `forward` saw on its way: the residual stream before, between and after layers; each layer's keys, values.

    Each hidden state is (n, dim), keys (rotated) and values (n, kv_heads, head_dim).
    """

    hidden: list[Array]
    keys: list[Array]
    values: list[Array]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    p: Array = e / e.sum(axis=-1, keepdims=True)
    return p


def capped(x: Array, cap: float) -> Array:
    return np.asarray(cap * np.tanh(x / cap)) if cap else x


def sigmoid(x: Array) -> Array:
    y: Array = 1 / (1 + np.exp(-x))
    return y


_erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * (1 + _erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
}


def activate(config: ModelConfig, gate: Array | None, up: Array) -> Array:
    """What the last matrix of a feed-forward layer reads."""
    if gate is None:
        return ACTIVATIONS[config.activation](up)
    if config.activation != "silu_clamped":
        return ACTIVATIONS[config.activation](gate) * up
    limit = config.activation_limit
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate * sigmoid(1.702 * gate) * (up + 1)


def feed_forward(block: Block, prefix: str, h: Array, expert: int | None = None) -> Array:
    """down activation(gate h, up h) of the dense layer, an expert, or the shared one."""
    name = f"{prefix}_{{}}" if prefix else "{}"
    gate, up, down = (name.format(part) for part in ("gate", "up", "down"))
    gated = block.linear(gate, f"{gate}_bias", h, expert) if block.config.gated else None
    inner = activate(block.config, gated, block.linear(up, f"{up}_bias", h, expert))
    return block.linear(down, f"{down}_bias", inner, expert)


def route(block: Block, h: Array) -> tuple[Array, Array]:
    """The experts of each token and their weights, both (n, used)."""
    c = block.config
    logits = block.linear("router", "router_bias", h)
    scores = {"softmax": softmax, "sigmoid": sigmoid, "softmax_chosen": lambda x: x}[c.routing](logits)
    bias = block.vector("choice_bias")
    chosen = np.argsort(-(scores if bias is None else scores + bias), axis=1, kind="stable")[:, : c.n_experts_used]
    w = np.take_along_axis(scores, chosen, axis=1)
    if c.routing == "softmax_chosen":
        w = softmax(w)
    elif c.expert_renormalise:
        w = w / w.sum(axis=1, keepdims=True)
    return chosen, w * c.expert_scale


def experts(block: Block, h: Array) -> Array:
    """A mixture of experts, each for all the tokens that chose it."""
    chosen, weight = route(block, h)
    y = np.zeros_like(h)
    for expert in np.unique(chosen):
        tokens, places = np.nonzero(chosen == expert)
        y[tokens] += weight[tokens, places, None] * feed_forward(block, "expert", h[tokens], int(expert))
    if block.config.shared_dim:
        shared = feed_forward(block, "shared", h)
        if ("shared_router", block.layer) in block.weights:
            shared = shared * sigmoid(block.linear("shared_router", "", h))
        y = y + shared
    return y


def join(block: Block, slot: str, x: Array, y: Array) -> Array:
    """The residual stream x with what a block made of it."""
    scale = block.config.residual_scale
    return block.norm(slot, x + scale * y) if block.config.norm_after_sum else x + scale * block.norm(slot, y)


def forward(
    config: ModelConfig,
    weights: Weights,
    tokens: list[int],
    *,
    planes: int | None = None,
    kept: Callable[[Array], Array] | None = None,
    states: bool = False,
    trace: Trace | None = None,
) -> Array:
    """Logits after each of `tokens`, (n, vocab) float64; or, with `states`, (n, dim), what the head reads.

    `planes`: round activations as the engine does in that precision; the head's always in two. `kept`: what
    becomes of keys and values (n, heads, head_dim) when they are kept. `trace`: filled in.
    """
    trace = trace or Trace([], [], [])
    whole, n = Block(config, weights), len(tokens)
    x = weights["embedding", 0].values[tokens] * config.embedding_scale
    if ("position_embedding", 0) in weights:
        x = x + weights["position_embedding", 0].values[:n]
    x = whole.norm("embedding_norm", x)

    for layer in range(config.n_layers):
        block, of_layer = Block(config, weights, layer, planes), config.layer(layer)
        trace.hidden.append(x)
        h = block.norm("attention_norm", x)
        q, k = block.heads("wq", "bq", "q_norm", h), block.heads("wk", "bk", "k_norm", h)
        v = block.linear("wv", "bv", h).reshape(n, -1, config.head_dim)
        if of_layer.rope != "none":
            theta = frequencies(config, weights, of_layer.rope, n)
            scale = config.rope_scale if of_layer.rope == "main" else 1.0
            q, k = rotate(q, config, theta, scale), rotate(k, config, theta, scale)
        if kept:
            order = rotated_order(config)
            k[..., order], v = kept(k[..., order]), kept(v)
        trace.keys.append(k)
        trace.values.append(v)
        y = block.linear("wo", "bo", attend(config, of_layer.window, q, k, v, block.vector("sinks")))
        if config.parallel:
            h = block.norm("ffn_norm", x) if ("ffn_norm", layer) in weights else h
        else:
            x, y = join(block, "attention_post_norm", x, y), np.zeros_like(x)
            h = block.norm("ffn_norm", x)
        y = y + (experts(block, h) if of_layer.experts else feed_forward(block, "", h))
        x = join(block, "ffn_post_norm", x, y)
    trace.hidden.append(x)
    x = whole.norm("final_norm", x)
    if states:
        return x
    logits = weights.get(("head", 0), weights["embedding", 0]).apply(x, 2 if planes else None)
    bias = whole.vector("head_bias")
    return capped((logits if bias is None else logits + bias) * config.logit_scale, config.logit_softcap)
