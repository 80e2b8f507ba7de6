"""Mistral, Ministral and Mixtral in Hugging Face folders: Llama with a sliding window, and with experts.

GGUF files of them call themselves "llama".
"""

from __future__ import annotations

from pyllm.architectures import from_folder
from pyllm.architectures.draft import LLAMA, Draft, Part
from pyllm.formats.checkpoint import Checkpoint


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "ministral" or "mistral"."""
    draft = from_folder.begin(checkpoint)
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-6)
    from_folder.activation(draft)
    from_folder.rotation(draft)
    draft.needs(*LLAMA)
    from_folder.window(draft, from_folder.layer_types(draft, [True] * len(draft.layers)), 4096)
    return from_folder.finish(draft)


def mixtral_folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "mixtral"."""
    draft = from_folder.begin(checkpoint)
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-5)
    from_folder.activation(draft)
    from_folder.rotation(draft, theta=1000000.0)
    draft.needs(*LLAMA)
    from_folder.window(draft, [True] * len(draft.layers))
    expert = draft.config["hidden_dim"]
    draft.set(
        n_experts=draft.fields.integer("num_local_experts", 8),
        n_experts_used=draft.fields.integer("num_experts_per_tok", 2),
        expert_dim=expert,
        expert_renormalise=True,
    )
    draft.experts()
    block = "model.layers.{layer}.block_sparse_moe."
    draft.place("router", block + "gate.weight", "model.layers.{layer}.mlp.gate.weight")
    from_folder.fused_experts(draft, "model.layers.{layer}.mlp.experts.")
    for slot, name in (("expert_gate", "w1"), ("expert_up", "w3"), ("expert_down", "w2")):
        draft.place(slot, Part(f"{block}experts.{{expert}}.{name}.weight"), *draft.names[slot])
    return from_folder.finish(draft)
