"""GLM-4 (glm) and GLM-4-0414 (glm4): RoPE in neighbouring pairs, gate and up fused, later norms on both sides."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import LLAMA, POST_NORMS, QKV_BIASES, Draft, fused
from pyllm.formats.checkpoint import Checkpoint


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "chatglm"."""
    draft = _begin_gguf(checkpoint, "chatglm")
    return from_gguf.finish(draft)


def gguf4(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "glm4"."""
    draft = _begin_gguf(checkpoint, "glm4")
    draft.needs(*POST_NORMS)
    return from_gguf.finish(draft)


def _begin_gguf(checkpoint: Checkpoint, architecture: str) -> Draft:
    draft = from_gguf.begin(checkpoint, architecture)
    draft.set(rope_interleaved=True)
    draft.needs(*LLAMA)
    draft.may_have(*QKV_BIASES)
    from_gguf.fused_gate(draft)
    return draft


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "glm"."""
    draft = _begin_folder(checkpoint)
    return from_folder.finish(draft)


def folder4(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "glm4"."""
    draft = _begin_folder(checkpoint)
    draft.needs(*POST_NORMS)
    draft.place("attention_post_norm", "model.layers.{layer}.post_self_attn_layernorm.weight")
    draft.place("ffn_post_norm", "model.layers.{layer}.post_mlp_layernorm.weight")
    return from_folder.finish(draft)


def _begin_folder(checkpoint: Checkpoint) -> Draft:
    draft = from_folder.begin(checkpoint, head_dim=128)
    from_folder.norm(draft, "rms", "rms_norm_eps", 1.5625e-07)
    from_folder.activation(draft)
    from_folder.rotation(draft, partial=0.5)
    draft.set(rope_interleaved=True)
    draft.needs(*LLAMA)
    from_folder.biases(draft, "attention_bias", *QKV_BIASES, default=True)
    hidden = draft.config["hidden_dim"]
    for slot, part in fused("model.layers.{layer}.mlp.gate_up_proj.weight", {"gate": hidden, "up": hidden}).items():
        draft.place(slot, part)
    return draft
