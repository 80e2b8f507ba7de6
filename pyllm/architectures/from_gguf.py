"""GGUF: the keys and tensor names that llama.cpp's families have in common."""

from __future__ import annotations

from pyllm.architectures import rope
from pyllm.architectures.draft import Draft, Part, Places, fused
from pyllm.architectures.fields import Fields
from pyllm.errors import ModelFormatError
from pyllm.formats.checkpoint import Checkpoint

_LAYER = {
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "attention_post_norm": "post_attention_norm",
    "ffn_post_norm": "post_ffw_norm",
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "sinks": "attn_sinks",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "router": "ffn_gate_inp",
    "shared_router": "ffn_gate_inp_shexp",
    "shared_gate": "ffn_gate_shexp",
    "shared_up": "ffn_up_shexp",
    "shared_down": "ffn_down_shexp",
}
_BIAS = {
    "attention_norm_bias": "attn_norm",
    "ffn_norm_bias": "ffn_norm",
    "bq": "attn_q",
    "bk": "attn_k",
    "bv": "attn_v",
    "bo": "attn_output",
    "gate_bias": "ffn_gate",
    "up_bias": "ffn_up",
    "down_bias": "ffn_down",
    "router_bias": "ffn_gate_inp",
    "choice_bias": "exp_probs_b",
}

#: Slots to llama.cpp's names.
NAMES = {
    "embedding": "token_embd.weight",
    "position_embedding": "position_embd.weight",
    "final_norm": "output_norm.weight",
    "final_norm_bias": "output_norm.bias",
    "head": "output.weight",
    "head_bias": "output.bias",
    "rope_factors": "rope_freqs.weight",
    "rope_factors_long": "rope_factors_long.weight",
    **{slot: f"blk.{{layer}}.{name}.weight" for slot, name in _LAYER.items()},
    **{slot: f"blk.{{layer}}.{name}.bias" for slot, name in _BIAS.items()},
}

# Fields that change nothing in the arithmetic. Any other that a family does not read is refused, because it was written
# for a reason that is unknown here.
HARMLESS = frozenset(("vocab_size", "pooling_type", "rope.scaling.original_context_length", "rope.scaling.finetuned"))
# Fields that may be there as long as they say what is assumed anyway, unless a family reads them.
ASSUMED = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "use_parallel_residual": False,
    "tensor_data_layout": "Meta AI original pth",
}


def begin(checkpoint: Checkpoint, architecture: str) -> Draft:
    """A draft with all that the families have in common; tensors of the family are still to be named."""
    fields = Fields(checkpoint.path, checkpoint.metadata, f"{architecture}.")
    draft = Draft(checkpoint, fields, {slot: (Part(name),) for slot, name in NAMES.items()})
    dim, heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    head_dim = _head_dim(fields, dim, heads)
    draft.set(
        architecture=architecture,
        dim=dim,
        hidden_dim=fields.integer("feed_forward_length"),
        n_heads=heads,
        n_kv_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=_vocab_size(checkpoint),
        context_length=fields.integer("context_length"),
        rope_base=fields.number("rope.freq_base", 10000.0),
        rope_dims=fields.integer("rope.dimension_count", head_dim),
    )
    draft.begin_layers(fields.integer("block_count"))
    draft.may_have("head", "rope_factors")
    _place_fused(draft)
    _scaled_rope(draft)
    return draft


def finish(draft: Draft) -> Draft:
    """The same draft with what depends on the family's switches; fields that nobody read are refused."""
    fields = draft.fields
    eps = "layer_norm_rms_epsilon" if draft.config.get("norm", "rms") == "rms" else "layer_norm_epsilon"
    draft.set(norm_eps=fields.number(f"attention.{eps}"))
    for name in fields.unread():
        if name in HARMLESS:
            continue
        if name not in ASSUMED or fields.get(name) != ASSUMED[name]:
            raise fields.unsupported(name)
    return draft


def experts(draft: Draft, layers: list[bool] | None = None) -> None:
    """A mixture of experts in the layers that are marked, or in all, and its sizes."""
    fields = draft.fields
    fields.assume("expert_gating_func", 1)  # softmax
    draft.set(
        expert_scale=fields.number("expert_weights_scale", 1.0),
        n_experts=fields.integer("expert_count"),
        n_experts_used=fields.integer("expert_used_count"),
        expert_dim=fields.integer("expert_feed_forward_length", draft.config["hidden_dim"]),
        expert_renormalise=fields.flag("expert_weights_norm", draft.config.get("expert_renormalise", False)),
    )
    draft.experts(layers)


def window(draft: Draft, layers: list[bool]) -> None:
    """A sliding window, if the file has one, for the layers that are marked."""
    if draft.fields.has("attention.sliding_window"):
        draft.windows(draft.fields.integer("attention.sliding_window"), layers)


def fused_gate(draft: Draft) -> None:
    """Files whose ffn_up holds the gate's rows before its own."""
    hidden = draft.config["hidden_dim"]
    for slot, part in fused(NAMES["up"], {"gate": hidden, "up": hidden}).items():
        draft.place(slot, part)


def _head_dim(fields: Fields, dim: int, heads: int) -> int:
    head_dim = fields.integer("attention.key_length", max(1, dim // heads))
    if fields.get("attention.key_length") is None and dim % heads:
        raise ModelFormatError(
            f"{fields.path}: {fields.prefix}embedding_length {dim} is no multiple of the {heads} heads"
        )
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise fields.unsupported("attention.value_length", f"differs from the key length {head_dim}")
    return head_dim


def _vocab_size(checkpoint: Checkpoint) -> int:
    """The rows of the embedding: the metadata's own number counts pieces, and tables are often padded."""
    name = NAMES["embedding"]
    if name not in checkpoint.tensors:
        raise ModelFormatError(f"{checkpoint.path}: tensor {name!r} is missing: a vocabulary without a model?")
    shape = checkpoint.tensors[name].shape
    return shape[-2] if len(shape) > 1 else 1


def _place_fused(draft: Draft) -> None:
    """Every family's queries, keys and values may lie in one tensor; experts lie stacked, in old files one by one."""
    c, layer = draft.config, "blk.{layer}."
    q, kv = c["n_heads"] * c["head_dim"], c["n_kv_heads"] * c["head_dim"]
    names: Places = draft.names
    for end, slots in (("weight", ("wq", "wk", "wv")), ("bias", ("bq", "bk", "bv"))):
        parts = fused(f"{layer}attn_qkv.{end}", dict(zip(slots, (q, kv, kv), strict=True)))
        for slot, part in parts.items():
            names[slot] = (*names[slot], part)
    for name in ("gate", "up", "down"):
        stacked = Part(f"{layer}ffn_{name}_exps.weight", stacked=True)
        names[f"expert_{name}"] = (stacked, Part(f"{layer}ffn_{name}.{{expert}}.weight"))
        names[f"expert_{name}_bias"] = (Part(f"{layer}ffn_{name}_exps.bias", stacked=True),)


def _scaled_rope(draft: Draft) -> None:
    """Linear scaling and YaRN, as fields of the file say. Files with factors of their own hold them as tensors."""
    fields, c = draft.fields, draft.config
    kind = fields.get("rope.scaling.type")
    if kind == "none":
        fields.get("rope.scaling.factor")
        return
    old = fields.number("rope.scale_linear", 1.0)
    factor = fields.number("rope.scaling.factor", old)
    if kind == "yarn":
        draft.stretch(_yarn(draft, factor))
    elif kind == "longrope" and NAMES["rope_factors_long"] in draft.checkpoint.tensors:
        fields.get("rope.scaling.factor")  # the factors of both kinds are tensors
    elif kind not in (None, "linear"):
        raise fields.unsupported("rope.scaling.type")
    elif factor != 1.0:
        if NAMES["rope_factors"] in draft.checkpoint.tensors:
            raise fields.unsupported("rope.scaling.factor", f"= {factor} scales RoPE, and {NAMES['rope_factors']} too")
        draft.stretch(rope.linear(c["rope_dims"], factor))


def _yarn(draft: Draft, factor: float) -> rope.Stretch:
    fields, c = draft.fields, draft.config
    if c["rope_base"] <= 1.0:
        raise fields.bad("rope.freq_base", c["rope_base"], "more than 1")
    fields.assume("rope.scaling.yarn_ext_factor", 1.0)
    original = fields.integer("rope.scaling.original_context_length", c["context_length"])
    attention = fields.number("rope.scaling.yarn_attn_factor", fields.number("rope.scaling.attn_factor", 1.0))
    return rope.yarn(
        c["rope_base"],
        c["rope_dims"],
        factor,
        original,
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        truncate=c["architecture"] != "gpt-oss",  # whose ramp is not rounded; GGUF has no field for it
        scale=attention * rope.yarn_scale(factor),
    )
