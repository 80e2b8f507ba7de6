"""Qwen2 and Qwen2.5 (and DeepSeek's distillations of them): Llama with biases of queries, keys and values.

Qwen1.5-MoE and Qwen2-MoE have experts, of which every token takes one, by its own gate.
"""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import LLAMA, QKV_BIASES, SHARED, Draft
from pyllm.formats.checkpoint import Checkpoint


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "qwen2"."""
    draft = from_gguf.begin(checkpoint, "qwen2")
    draft.needs(*LLAMA, *QKV_BIASES)
    return from_gguf.finish(draft)


def moe_gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "qwen2moe"."""
    draft = from_gguf.begin(checkpoint, "qwen2moe")
    draft.needs(*LLAMA, *SHARED, "shared_router")
    draft.may_have(*QKV_BIASES)
    from_gguf.experts(draft)
    draft.set(shared_dim=draft.fields.integer("expert_shared_feed_forward_length", draft.config["hidden_dim"]))
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "qwen2"."""
    draft = from_folder.begin(checkpoint)
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-6)
    from_folder.activation(draft)
    from_folder.rotation(draft)
    draft.needs(*LLAMA, *QKV_BIASES)
    first = draft.fields.integer("max_window_layers", 28, least=0)
    from_folder.qwen_window(draft, [layer >= first for layer in range(len(draft.layers))])
    return from_folder.finish(draft)


def moe_folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "qwen2_moe"."""
    draft = from_folder.begin(checkpoint)
    fields = draft.fields
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-6)
    from_folder.activation(draft)
    from_folder.rotation(draft)
    draft.needs(*LLAMA, *SHARED, "shared_router")
    from_folder.biases(draft, "qkv_bias", *QKV_BIASES, default=True)
    last = fields.integer("max_window_layers", 28, least=0)
    from_folder.qwen_window(draft, [layer % 2 == 0 and layer < last for layer in range(len(draft.layers))])
    from_folder.qwen_experts(draft, expert_dim=1408, n_experts=60, used=4)
    draft.set(shared_dim=fields.integer("shared_expert_intermediate_size", 5632))
    return from_folder.finish(draft)
