"""Tiny Hugging Face folders as GGUF, as llama.cpp's converter makes them: metadata, names, permutations.

Names come from the golden data, where the `gguf` package gave them; what the converter does to weights is done here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tinyfolder
import tinygguf

Array = np.ndarray[Any, np.dtype[Any]]
Config = Mapping[str, Any]

# Families whose query and key rows the converter permutes, so that RoPE turns neighbouring pairs.
PERMUTED = ("llama", "smollm3", "granite", "granitemoe", "arcee")

#: GGUF's keys (without the architecture) and the fields of config.json that they come from.
KEYS = {
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "context_length": ("max_position_embeddings", "n_positions"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "norm_epsilon", "layer_norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts", "moe_num_experts"),
    "expert_used_count": ("num_experts_per_tok", "moe_k"),
    "attention.scale": ("attention_multiplier",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_shared_count": ("moe_num_shared_experts",),
    "interleave_moe_layer_step": ("moe_layer_interval",),
    "leading_dense_block_count": ("moe_layer_start_index",),
    "use_parallel_residual": ("use_parallel_residual",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
}


def write_gguf(
    path: Path, architecture: str, config: Config, table: Mapping[str, list[Any]], matrices: int = tinygguf.BF16
) -> Path:
    """The model of a table of golden data as a GGUF file, vectors in F32."""
    values = dict(converted(architecture, config, tinyfolder.expand(table)))
    factors = rope_tensors(config, head_dim(config))
    tensors: dict[str, tinygguf.Tensor] = {}
    for name, array in (values | factors).items():
        type_id = tinygguf.F32 if array.ndim == 1 or "rope" in name or "norm" in name else matrices
        tensors[name] = (type_id, array.shape, tinygguf.float_bytes(type_id, array))
    return tinygguf.write_gguf(path, metadata(architecture, config), tensors)


# ---- metadata --------------------------------------------------------------------------------------------------------


def metadata(architecture: str, config: Config) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, names in KEYS.items():
        value = next((config[name] for name in names if config.get(name) is not None), None)
        if value not in (None, 0) or value is False:
            out[key] = value
    heads, dim = out["attention.head_count"], head_dim(config)
    out["attention.head_count_kv"] = kv_heads(config)
    hidden = config.get("intermediate_size") or config.get("n_inner") or config.get("ffn_hidden_size")
    out["feed_forward_length"] = hidden or 4 * out["embedding_length"]
    if dim * heads != out["embedding_length"] or "head_dim" in config:
        out |= {"attention.key_length": dim, "attention.value_length": dim}
    if architecture == "gpt-oss":
        out["expert_feed_forward_length"] = config["intermediate_size"]
    if config.get("moe_num_shared_experts"):
        out["expert_shared_feed_forward_length"] = config["moe_num_shared_experts"] * config["moe_intermediate_size"]
    if architecture == "qwen3moe":
        out["expert_weights_norm"] = True
    rope = config.get("rope_parameters")
    if rope:
        out |= rope_metadata(rope.get("full_attention", rope), dim, config)
    return {"general.architecture": architecture, **{f"{architecture}.{key}": value for key, value in out.items()}}


def rope_metadata(rope: Config, dim: int, config: Config) -> dict[str, Any]:
    out = {"rope.freq_base": rope["rope_theta"]}
    out["rope.dimension_count"] = int(dim * rope.get("partial_rotary_factor", 1.0))
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    if rope["rope_type"] in ("linear", "yarn"):
        out |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] in ("yarn", "longrope"):
        out["rope.scaling.original_context_length"] = original
    for key in ("beta_fast", "beta_slow"):
        if rope.get(key) is not None:
            out[f"rope.scaling.yarn_{key}"] = rope[key]
    if rope["rope_type"] == "longrope":
        ratio = config["max_position_embeddings"] / original
        out["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(ratio) / math.log(original))
    return out


def head_dim(config: Config) -> int:
    heads = config.get("num_attention_heads") or config["n_head"]
    dim: int = config.get("head_dim") or (config.get("hidden_size") or config["n_embd"]) // heads
    return dim


def kv_heads(config: Config) -> int:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    names = ("num_kv_heads", "num_key_value_heads", "num_attention_heads", "n_head")
    return int(next(config[name] for name in names if config.get(name)))


def rope_tensors(config: Config, dim: int) -> dict[str, Array]:
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        kinds = ("short", "long")
        return {f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], np.float32) for kind in kinds}
    if rope.get("rope_type") != "llama3":
        return {}
    factors = []
    for i in range(dim // 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (2 * i / dim)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": np.array(factors, np.float32)}


# ---- weights ---------------------------------------------------------------------------------------------------------


def converted(
    architecture: str, config: Config, tensors: Mapping[str, tuple[tuple[int, ...], str | None]]
) -> Iterator[tuple[str, Array]]:
    """Every tensor of the file, under GGUF's name."""
    stacks: dict[str, list[Array]] = {}
    for name, (shape, renamed) in tensors.items():
        values = tinyfolder.weights(name, shape, tinyfolder.centre(config))
        expert = re.search(r"layers\.(\d+)\..*experts\.(\d+)\.(\w+)\.weight", name)
        if expert:
            kind = {"w1": "gate", "w3": "up", "w2": "down"}.get(expert[3], expert[3].removesuffix("_proj"))
            stacks.setdefault(f"blk.{expert[1]}.ffn_{kind}_exps.weight", []).append(values)
        elif architecture in SPECIAL and (found := dict(SPECIAL[architecture](name, renamed, values, config))):
            yield from found.items()
        else:
            assert renamed is not None, name
            yield renamed, permuted(name, values, config) if architecture in PERMUTED else values
    for name, matrices in stacks.items():
        yield name, np.stack(matrices)


def permuted(name: str, values: Array, config: Config) -> Array:
    heads = {"q": config["num_attention_heads"], "k": kv_heads(config)}
    match = re.search(r"\.([qk])_proj\.", name)
    if match is None:
        return values
    halves = values.reshape(heads[match[1]], 2, -1, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


Special = Callable[[str, "str | None", Array, Config], Iterator[tuple[str, Array]]]


def gemma(name: str, renamed: str | None, values: Array, config: Config) -> Iterator[tuple[str, Array]]:
    if name.endswith("norm.weight") and renamed:
        yield renamed, values + np.float32(1.0)


def falcon(name: str, renamed: str | None, values: Array, config: Config) -> Iterator[tuple[str, Array]]:
    if "query_key_value" in name and renamed:
        kv = kv_heads(config)
        group = config["num_attention_heads"] // kv
        rows = values.reshape(kv, group + 2, -1, *values.shape[1:])
        parts = (rows[:, :group], rows[:, group], rows[:, group + 1])
        yield renamed, np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])


def gpt_neox(name: str, renamed: str | None, values: Array, config: Config) -> Iterator[tuple[str, Array]]:
    if "query_key_value" in name and renamed:
        rows = values.reshape(config["num_attention_heads"], 3, -1, *values.shape[1:])
        yield renamed, rows.swapaxes(0, 1).reshape(values.shape)


def gpt2(name: str, renamed: str | None, values: Array, config: Config) -> Iterator[tuple[str, Array]]:
    if renamed and re.search(r"(c_attn|c_proj|c_fc)\.weight", name):
        yield renamed, np.ascontiguousarray(values.T)


def granitemoe(name: str, renamed: str | None, values: Array, config: Config) -> Iterator[tuple[str, Array]]:
    match = re.search(r"layers\.(\d+)\.block_sparse_moe\.input_linear", name)
    if match:
        for kind, half in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
            yield f"blk.{match[1]}.ffn_{kind}_exps.weight", half


def gpt_oss(name: str, renamed: str | None, values: Array, config: Config) -> Iterator[tuple[str, Array]]:
    match = re.search(r"layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj(_bias)?$", name)
    if match:
        rows = values if match[3] else values.swapaxes(1, 2)
        end = "bias" if match[3] else "weight"
        parts = {"gate": rows[:, ::2], "up": rows[:, 1::2]} if match[2] == "gate_up" else {"down": rows}
        for kind, part in parts.items():
            yield f"blk.{match[1]}.ffn_{kind}_exps.{end}", np.ascontiguousarray(part)
    elif renamed and renamed.endswith("sinks"):
        yield f"{renamed}.weight", values


def ernie(name: str, renamed: str | None, values: Array, config: Config) -> Iterator[tuple[str, Array]]:
    match = re.search(r"layers\.(\d+)\.mlp\.moe_statics", name)
    if match:
        yield f"blk.{match[1]}.exp_probs_b.bias", values.reshape(-1)


SPECIAL: dict[str, Special] = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3"), gemma),
    "falcon": falcon,
    "gptneox": gpt_neox,
    "gpt2": gpt2,
    "granitemoe": granitemoe,
    "gpt-oss": gpt_oss,
    "ernie4_5-moe": ernie,
}
