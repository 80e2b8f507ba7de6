"""The Llama family in GGUF: Llama 1 to 3, Mistral, SmolLM and their kin, under the architecture name "llama".

GGUF stores the query and key rows of this family permuted, so that RoPE turns neighbouring pairs (2i, 2i + 1).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pyllm.architectures.binding import Binding, bind, slot_shape
from pyllm.architectures.metadata import Metadata, checked
from pyllm.config import ModelConfig
from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats.checkpoint import Checkpoint, TensorSpec
from pyllm.formats.weight_types import F32

NAMES = {
    "embedding": "token_embd.weight",
    "attention_norm": "blk.{layer}.attn_norm.weight",
    "wq": "blk.{layer}.attn_q.weight",
    "wk": "blk.{layer}.attn_k.weight",
    "wv": "blk.{layer}.attn_v.weight",
    "wo": "blk.{layer}.attn_output.weight",
    "ffn_norm": "blk.{layer}.ffn_norm.weight",
    "gate": "blk.{layer}.ffn_gate.weight",
    "up": "blk.{layer}.ffn_up.weight",
    "down": "blk.{layer}.ffn_down.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "rope_factors": "rope_freqs.weight",
}

# Fields that are read below, and fields that change nothing in the arithmetic. Any other `llama.*` field is refused,
# because it was written for a reason that is unknown here.
READ = frozenset(
    (
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scale_linear",
    )
)
HARMLESS = frozenset(("vocab_size", "rope.scaling.original_context_length", "rope.scaling.finetuned"))
# Fields that may be there as long as they say what is assumed anyway.
ASSUMED = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "use_parallel_residual": False,
    "tensor_data_layout": "Meta AI original pth",
}


def describe(checkpoint: Checkpoint) -> ModelConfig:
    """The config of a "llama" GGUF."""
    meta = Metadata(checkpoint, "llama.")
    _refuse_unknown_fields(meta)
    dim, heads = meta.integer("embedding_length"), meta.integer("attention.head_count")
    head_dim = _head_dim(meta, dim, heads)
    config = ModelConfig(
        architecture="llama",
        dim=dim,
        hidden_dim=meta.integer("feed_forward_length"),
        n_layers=meta.integer("block_count"),
        n_heads=heads,
        n_kv_heads=meta.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=_vocab_size(checkpoint),
        context_length=meta.integer("context_length"),
        norm_eps=meta.number("attention.layer_norm_rms_epsilon"),
        rope_base=meta.number("rope.freq_base", 10000.0),
        rope_dims=meta.integer("rope.dimension_count", head_dim),
        rope_interleaved=True,
    )
    return checked(config, checkpoint)


def bindings(checkpoint: Checkpoint, config: ModelConfig) -> list[Binding]:
    """Every tensor of the file in its slot, and the RoPE factors that linear scaling amounts to."""
    found = bind(checkpoint, config, NAMES)
    factor = _linear_scaling(Metadata(checkpoint, "llama."))
    if factor == 1.0:
        return found
    if NAMES["rope_factors"] in checkpoint.tensors:
        raise UnsupportedModelError(
            f"{checkpoint.path}: both {NAMES['rope_factors']} and llama.rope.scaling.factor = {factor} scale RoPE"
        )
    return [*found, _constant_factors(config, factor)]


def _refuse_unknown_fields(meta: Metadata) -> None:
    for key in meta.fields:
        name = key.removeprefix(meta.prefix)
        if name == key or name in READ or name in HARMLESS:
            continue
        if name not in ASSUMED or meta.get(name) != ASSUMED[name]:
            raise meta.unsupported(name)


def _head_dim(meta: Metadata, dim: int, heads: int) -> int:
    head_dim = meta.integer("attention.key_length", max(1, dim // heads))
    if meta.get("attention.key_length") is None and dim % heads:
        raise ModelFormatError(f"{meta.path}: llama.embedding_length {dim} is no multiple of the {heads} heads")
    if meta.integer("attention.value_length", head_dim) != head_dim:
        raise meta.unsupported("attention.value_length", f"differs from the key length {head_dim}")
    return head_dim


def _vocab_size(checkpoint: Checkpoint) -> int:
    """The rows of the embedding: the metadata's own number counts pieces, and tables are often padded."""
    name = NAMES["embedding"]
    if name not in checkpoint.tensors:
        raise ModelFormatError(f"{checkpoint.path}: tensor {name!r} is missing: a vocabulary without a model?")
    shape = checkpoint.tensors[name].shape
    return shape[-2] if len(shape) > 1 else 1


def _linear_scaling(meta: Metadata) -> float:
    """What RoPE's frequencies are divided by: 1 unless the file says linear scaling."""
    kind = meta.get("rope.scaling.type")
    if kind == "none":
        return 1.0
    if kind not in (None, "linear"):
        raise meta.unsupported("rope.scaling.type")
    old = 1.0 if meta.get("rope.scale_linear") is None else meta.number("rope.scale_linear")
    return meta.number("rope.scaling.factor", old)


def _constant_factors(config: ModelConfig, factor: float) -> Binding:
    rows, cols = slot_shape("rope_factors", config)
    inline = np.full(cols, factor, "<f4").tobytes()
    spec = TensorSpec("llama.rope.scaling.factor", F32, (cols,), 0, len(inline))
    return Binding("rope_factors", 0, replace(spec, inline=inline), rows, cols)
