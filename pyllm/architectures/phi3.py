"""Phi-3, 3.5 and 4 (mini, small without block-sparse attention, medium): Llama with fused matrices and LongRoPE."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf, rope
from pyllm.architectures.draft import LLAMA, Draft, fused
from pyllm.formats.checkpoint import Checkpoint


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "phi3"."""
    draft = from_gguf.begin(checkpoint, "phi3")
    fields, c = draft.fields, draft.config
    draft.needs(*LLAMA)
    from_gguf.fused_gate(draft)
    from_gguf.window(draft, [True] * len(draft.layers))
    names = ("rope_factors_short.weight", "rope_factors_long.weight")
    if any(name in checkpoint.tensors for name in names):
        draft.needs("rope_factors", "rope_factors_long")
        draft.place("rope_factors", names[0])
        original = fields.integer("rope.scaling.original_context_length", c["context_length"])
        scale = rope.longrope_scale(c["context_length"] / original, original)
        draft.set(rope_original=original, rope_scale=fields.number("rope.scaling.attn_factor", scale))
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "phi3"."""
    draft = from_folder.begin(checkpoint)
    c = draft.config
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-5)
    from_folder.activation(draft)
    from_folder.rotation(draft)
    draft.fields.get("original_max_position_embeddings")
    for name in ("full_attn_mod", "interpolate_factor"):
        draft.fields.assume(name, 1)
    from_folder.window(draft, [True] * len(draft.layers))
    draft.needs(*LLAMA)
    q, kv, hidden = c["n_heads"] * c["head_dim"], c["n_kv_heads"] * c["head_dim"], c["hidden_dim"]
    parts = fused("model.layers.{layer}.self_attn.qkv_proj.weight", {"wq": q, "wk": kv, "wv": kv})
    parts |= fused("model.layers.{layer}.mlp.gate_up_proj.weight", {"gate": hidden, "up": hidden})
    for slot, part in parts.items():
        draft.place(slot, part)
    return from_folder.finish(draft)
