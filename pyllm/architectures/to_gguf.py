"""GGUF, written: a described model as the keys and tensor names that `from_gguf` reads.

What is written is read back before a byte of it reaches a file: a model that would come out as another one is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from pyllm import architectures
from pyllm.architectures import from_gguf, rope
from pyllm.architectures.binding import MATRICES, PER_EXPERT, SLOTS, Binding
from pyllm.architectures.fields import Fields
from pyllm.config import ModelConfig
from pyllm.errors import PyllmError, UnsupportedModelError
from pyllm.formats.checkpoint import Checkpoint, TensorSpec
from pyllm.formats.weight_types import F32

Value = int | float | bool | str

NAMES = {
    **from_gguf.NAMES,
    **{f"expert_{name}": f"blk.{{layer}}.ffn_{name}_exps.weight" for name in ("gate", "up", "down")},
    **{f"expert_{name}_bias": f"blk.{{layer}}.ffn_{name}_exps.bias" for name in ("gate", "up", "down")},
}
QKV = {
    "blk.{layer}.attn_qkv.weight": ("wq", "wk", "wv"),
    "blk.{layer}.attn_qkv.bias": ("bq", "bk", "bv"),
}
GATE_UP = {NAMES["up"]: ("gate", "up")}
ROTATED = frozenset(("wq", "wk", "bq", "bk"))


@dataclass(frozen=True)
class Target:
    """An architecture of llama.cpp's, and where it differs from what is usual.

    `fused`: tensors that hold the rows of several slots, one behind the other. `names`: slots under other names, of a
    model that has these slots. `fields`: what else its metadata says of a config.
    """

    architecture: str
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    names: Callable[[Collection[str]], Mapping[str, str]] = lambda slots: {}
    fields: Callable[[ModelConfig], Mapping[str, Value]] = lambda config: {}


def _multipliers(config: ModelConfig) -> Mapping[str, Value]:
    return {
        "embedding_scale": config.embedding_scale,
        "residual_scale": config.residual_scale,
        "attention.scale": config.attention_scale,
        "logit_scale": 1.0 / config.logit_scale,
    }


def _logit_scale(config: ModelConfig) -> Mapping[str, Value]:
    return {"logit_scale": config.logit_scale}


def _local_base(config: ModelConfig) -> Mapping[str, Value]:
    return {"rope.freq_base_swa": config.rope_local_base} if config.rope_local_base else {}


def _parallel(config: ModelConfig) -> Mapping[str, Value]:
    return {"use_parallel_residual": config.parallel}


def _mixed_layers(config: ModelConfig) -> Mapping[str, Value]:
    """Dense layers first, and how many experts the shared one stands for."""
    sparse = [i for i in range(config.n_layers) if config.layer(i).experts]
    step = sparse[1] - sparse[0] if len(sparse) > 1 else 1
    out = {"leading_dense_block_count": sparse[0] + 1 - step, "interleave_moe_layer_step": step}
    return out | {"expert_shared_count": config.shared_dim // config.expert_dim}


def _second_norm(slots: Collection[str]) -> Mapping[str, str]:
    """Falcon's attention has a norm of its own in models with two."""
    if "ffn_norm" not in slots:
        return {}
    names = {"attention_norm": "attn_norm_2.weight", "attention_norm_bias": "attn_norm_2.bias"}
    names |= {"ffn_norm": "attn_norm.weight", "ffn_norm_bias": "attn_norm.bias"}
    return {slot: f"blk.{{layer}}.{name}" for slot, name in names.items()}


def _post_attention(slots: Collection[str]) -> Mapping[str, str]:
    return {"ffn_norm": "blk.{layer}.post_attention_norm.weight"}


def _short_factors(slots: Collection[str]) -> Mapping[str, str]:
    return {"rope_factors": "rope_factors_short.weight"}


#: By the architecture of a described model: a llama2.c file's, or the model_type of a folder.
TARGETS = {
    "llama2c": Target("llama"),
    **dict.fromkeys(("llama", "mistral", "ministral", "mixtral"), Target("llama")),
    **{name: Target(name) for name in ("arcee", "gemma", "gemma2", "exaone4", "olmo2", "olmoe", "qwen2", "qwen3")},
    **{name: Target(name) for name in ("smollm3", "stablelm", "starcoder2")},
    "cohere": Target("command-r", fields=_logit_scale),
    "cohere2": Target("cohere2", fields=_logit_scale),
    "ernie4_5": Target("ernie4_5"),
    "ernie4_5_moe": Target("ernie4_5-moe", fields=_mixed_layers),
    "falcon": Target("falcon", fused=QKV, names=_second_norm),
    "gemma3_text": Target("gemma3", fields=_local_base),
    "glm": Target("chatglm", fused=GATE_UP),
    "glm4": Target("glm4", fused=GATE_UP),
    "gpt2": Target("gpt2", fused=QKV),
    "gpt_neox": Target("gptneox", fused=QKV, fields=_parallel),
    "gpt_oss": Target("gpt-oss", names=_post_attention),
    "granite": Target("granite", fields=_multipliers),
    "granitemoe": Target("granitemoe", fields=_multipliers),
    "phi": Target("phi2"),
    "phi3": Target("phi3", fused={**QKV, **GATE_UP}, names=_short_factors),
    "qwen2_moe": Target("qwen2moe"),
    "qwen3_moe": Target("qwen3moe"),
    "seed_oss": Target("seed_oss", names=_post_attention),
}


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: the slots it is made of, row behind row or expert behind expert.

    `turned`: their rows pair dimensions (i, i + n / 2) of a head, the file's (2i, 2i + 1): see `row_order`.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Binding, ...]
    turned: bool = False

    @property
    def is_matrix(self) -> bool:
        """Whether this is a matrix, or several; vectors are always stored in fp32."""
        return self.parts[0].slot in MATRICES


@dataclass(frozen=True)
class Plan:
    """What the file will say of a model, without its vocabulary: metadata, and tensors in their order."""

    architecture: str
    metadata: Mapping[str, Value]
    tensors: Sequence[Planned]


def plan(checkpoint: Checkpoint, config: ModelConfig, bindings: Sequence[Binding]) -> Plan:
    """How a described model is written. Raises `UnsupportedModelError` for one that GGUF cannot say."""
    target = TARGETS.get(config.architecture)
    if target is None:
        raise UnsupportedModelError(f"{checkpoint.path}: {config.architecture!r} models cannot be written as GGUF yet")
    scaling, factors = _rope_fields(checkpoint, config, bindings)
    stored = [b for b in bindings if b.slot not in ("rope_factors", "rope_factors_long") or factors]
    tensors = _tensors(target, config, stored)
    metadata = {f"{target.architecture}.{key}": value for key, value in _metadata(target, config, scaling).items()}
    metadata = {"general.architecture": target.architecture, **metadata}
    back, found = _read_back(checkpoint, metadata, tensors)
    turned = back.rope_interleaved and not config.rope_interleaved
    _refuse_difference(checkpoint, target, config, back, turned)
    _refuse_other_slots(checkpoint, target, bindings, found)
    if turned:
        tensors = [replace(t, turned=t.parts[0].slot in ROTATED) for t in tensors]
    return Plan(target.architecture, metadata, tensors)


def row_order(config: ModelConfig, rows: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which rows of queries or keys (rows of heads) stand where, so that RoPE's pairs become neighbours."""
    head, half = np.arange(config.head_dim), config.rope_dims // 2
    head[: 2 * half] = head[: 2 * half].reshape(2, half).T.reshape(-1)
    starts = np.arange(0, rows, config.head_dim)
    return np.asarray((starts[:, None] + head).reshape(-1), np.int64)


# ---- metadata --------------------------------------------------------------------------------------------------------


def _metadata(target: Target, c: ModelConfig, scaling: Mapping[str, Value]) -> dict[str, Value]:
    eps = "layer_norm_rms_epsilon" if c.norm == "rms" else "layer_norm_epsilon"
    out: dict[str, Value] = {
        "context_length": c.context_length,
        "embedding_length": c.dim,
        "block_count": c.n_layers,
        "feed_forward_length": c.hidden_dim,
        "attention.head_count": c.n_heads,
        "attention.head_count_kv": c.n_kv_heads,
        f"attention.{eps}": c.norm_eps,
        "vocab_size": c.vocab_size,
    }
    if c.rope_dims:
        out |= {"rope.dimension_count": c.rope_dims, "rope.freq_base": c.rope_base}
    if c.head_dim * c.n_heads != c.dim:
        out |= {"attention.key_length": c.head_dim, "attention.value_length": c.head_dim}
    if c.n_experts:
        out |= {"expert_count": c.n_experts, "expert_used_count": c.n_experts_used}
        out |= {"expert_feed_forward_length": c.expert_dim}
    optional = {
        "expert_shared_feed_forward_length": c.shared_dim,
        "attention.sliding_window": max((layer.window for layer in c.layers), default=0),
        "attn_logit_softcapping": c.attention_softcap,
        "final_logit_softcapping": c.logit_softcap,
    }
    return out | {key: value for key, value in optional.items() if value} | dict(scaling) | dict(target.fields(c))


def _rope_fields(checkpoint: Checkpoint, c: ModelConfig, bindings: Sequence[Binding]) -> tuple[dict[str, Value], bool]:
    """What the metadata says of scaled RoPE; and whether its factors are tensors, too."""
    if c.rope_original:
        return {"rope.scaling.original_context_length": c.rope_original, "rope.scaling.attn_factor": c.rope_scale}, True
    config = Fields(checkpoint.path, checkpoint.metadata, label="config.json's ")
    parameters = config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    if (parameters.get("rope_type") or parameters.get("type")) == "yarn":
        return _yarn_fields(c, config, parameters), False
    factors = [np.frombuffer(b.tensor.inline, "<f4") for b in bindings if b.slot == "rope_factors" and b.tensor.inline]
    if factors and (factors[0] == factors[0][0]).all():
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(factors[0][0])}, False
    return {}, True


def _yarn_fields(c: ModelConfig, config: Fields, parameters: Fields) -> dict[str, Value]:
    original = config.integer(
        "original_max_position_embeddings",
        parameters.integer("original_max_position_embeddings", c.context_length),
    )
    factor = parameters.number("factor", c.context_length / original)
    out: dict[str, Value] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": original,
    }
    for name in ("beta_fast", "beta_slow"):
        if parameters.has(name):
            out[f"rope.scaling.yarn_{name}"] = parameters.number(name)
    if not math.isclose(c.rope_scale, rope.yarn_scale(factor), rel_tol=1e-6):
        out["rope.scaling.attn_factor"] = c.rope_scale / rope.yarn_scale(factor)
    return out


# ---- tensors ---------------------------------------------------------------------------------------------------------


def _tensors(target: Target, config: ModelConfig, bindings: Sequence[Binding]) -> list[Planned]:
    places: dict[tuple[int, int], list[Binding]] = {}
    fused = {slot: (name, slots) for name, slots in target.fused.items() for slot in slots}
    usual = {**NAMES, **target.names({b.slot for b in bindings})}
    names: dict[tuple[int, int], str] = {}
    for b in bindings:
        name, slots = fused.get(b.slot) or (usual[b.slot], (b.slot,))
        key = (b.layer, SLOTS.index(slots[0]))
        places.setdefault(key, []).append(b)
        names[key] = name.format(layer=b.layer)
    return [_planned(config, names[key], places[key]) for key in sorted(places)]


def _planned(config: ModelConfig, name: str, parts: list[Binding]) -> Planned:
    first, rows = parts[0], sum(b.rows for b in parts)
    shape: tuple[int, ...]
    parts = sorted(parts, key=lambda b: (b.expert, SLOTS.index(b.slot)))
    if first.slot in PER_EXPERT:
        shape = (len(parts), first.rows, first.cols) if first.slot in MATRICES else (len(parts), first.cols)
    elif first.slot in MATRICES:
        shape = (rows, first.cols)
    elif config.qk_norm == "each" and first.slot in ("q_norm", "k_norm"):
        shape = (first.cols // config.head_dim, config.head_dim)
    else:
        shape = (sum(b.cols for b in parts),)
    return Planned(name, shape, tuple(parts))


# ---- read back -------------------------------------------------------------------------------------------------------


def _read_back(
    checkpoint: Checkpoint, metadata: Mapping[str, Value], tensors: Sequence[Planned]
) -> tuple[ModelConfig, list[Binding]]:
    """What a reader will make of the file."""
    specs = {}
    for t in tensors:
        inline = t.parts[0].tensor.inline if len(t.parts) == 1 else None
        specs[t.name] = TensorSpec(t.name, F32, t.shape, 0, 4 * math.prod(t.shape), inline=inline)
    single = {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in metadata.items()}
    written = Checkpoint(checkpoint.path, "gguf", single, specs, memoryview(b""))
    try:
        config = architectures.describe(written)
        return config, architectures.bindings(written)
    except PyllmError as error:
        raise UnsupportedModelError(f"{checkpoint.path}: as GGUF it could not be read again: {error}") from None


def _refuse_difference(
    checkpoint: Checkpoint, target: Target, config: ModelConfig, back: ModelConfig, turned: bool
) -> None:
    for item in fields(ModelConfig):
        ours, theirs = _meaning(config, item.name), _meaning(back, item.name)
        if item.name == "architecture" or (item.name == "rope_interleaved" and turned):
            continue
        if ours != theirs:
            raise UnsupportedModelError(
                f"{checkpoint.path}: GGUF's {target.architecture!r} has no place for {item.name} {ours!r:.120}; it "
                f"would be read as {theirs!r:.120}"
            )


def _meaning(c: ModelConfig, name: str) -> Any:
    """A field as it counts: in single precision, and with what 0 stands for."""
    value = getattr(c, name)
    if name == "attention_scale":
        value = value or c.head_dim**-0.5
    if name == "layers":
        return tuple(c.layer(i) for i in range(c.n_layers))
    return float(np.float32(value)) if isinstance(value, float) else value


def _refuse_other_slots(
    checkpoint: Checkpoint, target: Target, bindings: Sequence[Binding], found: Sequence[Binding]
) -> None:
    """The same slots, and the same numbers in those that no tensor holds."""
    ours, theirs = ({(b.slot, b.layer, b.expert): b for b in side} for side in (bindings, found))
    for key in ours.keys() ^ theirs.keys():
        raise UnsupportedModelError(f"{checkpoint.path}: GGUF's {target.architecture!r} has no place for {key[0]!r}")
    for key, b in theirs.items():
        one, other = (np.frombuffer(side.tensor.inline or b"", "<f4") for side in (b, ours[key]))
        if one.size and other.size and not np.allclose(one, other, rtol=1e-6, atol=0):
            raise UnsupportedModelError(
                f"{checkpoint.path}: GGUF's {target.architecture!r} cannot say how this model scales RoPE"
            )
