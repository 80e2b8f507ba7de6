"""Qwen3 and Qwen3-MoE: Llama with a norm of each query and key head."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import LLAMA, QK_NORMS, QKV_BIASES, Draft
from pyllm.formats.checkpoint import Checkpoint


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "qwen3"."""
    draft = from_gguf.begin(checkpoint, "qwen3")
    draft.set(qk_norm="head")
    draft.needs(*LLAMA, *QK_NORMS)
    return from_gguf.finish(draft)


def moe_gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "qwen3moe"."""
    draft = from_gguf.begin(checkpoint, "qwen3moe")
    draft.set(qk_norm="head", expert_renormalise=True)
    draft.needs(*LLAMA, *QK_NORMS)
    from_gguf.experts(draft)
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "qwen3"."""
    draft = _begin(checkpoint)
    first = draft.fields.integer("max_window_layers", 28, least=0)
    from_folder.qwen_window(draft, [layer >= first for layer in range(len(draft.layers))])
    return from_folder.finish(draft)


def moe_folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "qwen3_moe"."""
    draft = _begin(checkpoint)
    draft.fields.get("max_window_layers")  # which this one never looks at
    from_folder.qwen_window(draft, [True] * len(draft.layers))
    from_folder.qwen_experts(draft, expert_dim=768, n_experts=128, used=8)
    return from_folder.finish(draft)


def _begin(checkpoint: Checkpoint) -> Draft:
    draft = from_folder.begin(checkpoint, head_dim=128)
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-6)
    from_folder.activation(draft)
    from_folder.rotation(draft)
    draft.set(qk_norm="head")
    draft.needs(*LLAMA, *QK_NORMS)
    from_folder.biases(draft, "attention_bias", *QKV_BIASES, "bo")
    return draft
