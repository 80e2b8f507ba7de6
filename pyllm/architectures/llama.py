"""Llama 1 to 3.3 and what is built like it: SmolLM 1 and 2, TinyLlama, DeepSeek's distillations of it.

GGUF stores the query and key rows of this family permuted, so that RoPE turns neighbouring pairs (2i, 2i + 1). Mistral
and Mixtral come under its name there.
"""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import LLAMA, QKV_BIASES, Draft
from pyllm.formats.checkpoint import Checkpoint


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "llama"."""
    draft = from_gguf.begin(checkpoint, "llama")
    draft.set(rope_interleaved=True)
    draft.needs(*LLAMA)
    draft.may_have(*QKV_BIASES, "bo", "gate_bias", "up_bias", "down_bias")
    from_gguf.window(draft, [True] * len(draft.layers))  # Mistral's
    if draft.fields.get("expert_count"):
        draft.set(expert_renormalise=True)
        from_gguf.experts(draft)
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "llama"."""
    draft = from_folder.begin(checkpoint)
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-6)
    from_folder.activation(draft)
    from_folder.rotation(draft)
    draft.needs(*LLAMA)
    from_folder.biases(draft, "attention_bias", *QKV_BIASES, "bo")
    from_folder.biases(draft, "mlp_bias", "gate_bias", "up_bias", "down_bias")
    return from_folder.finish(draft)
