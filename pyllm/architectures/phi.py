"""Phi-1, 1.5 and 2: attention and feed-forward layer side by side under one norm, biases everywhere, partial RoPE."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import CORE, FFN_BIASES, PLAIN, QKV_BIASES, Draft
from pyllm.formats.checkpoint import Checkpoint

SLOTS = (
    *(*CORE, *PLAIN, *QKV_BIASES, "bo", *FFN_BIASES, "attention_norm"),
    *("attention_norm_bias", "final_norm_bias", "head", "head_bias"),
)
NAMES = {
    "wo": "self_attn.dense.weight",
    "bo": "self_attn.dense.bias",
    "up": "mlp.fc1.weight",
    "up_bias": "mlp.fc1.bias",
    "down": "mlp.fc2.weight",
    "down_bias": "mlp.fc2.bias",
}


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "phi2"."""
    draft = from_gguf.begin(checkpoint, "phi2")
    draft.set(norm="layer", parallel=True, activation="gelu_tanh", gated=False)
    draft.needs(*SLOTS)
    draft.fields.assume("use_parallel_residual", True)
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "phi"."""
    draft = from_folder.begin(checkpoint)
    from_folder.norm(draft, "layer", "layer_norm_eps", 1e-5)
    from_folder.activation(draft, default="gelu_new", gated=False)
    from_folder.rotation(draft, partial=0.5)
    draft.set(parallel=True)
    draft.needs(*SLOTS)
    draft.fields.assume("tie_word_embeddings", False)
    draft.fields.assume("qk_layernorm", False)
    for slot, name in NAMES.items():
        draft.place(slot, f"model.layers.{{layer}}.{name}")
    for kind in ("weight", "bias"):
        draft.place("final_norm" if kind == "weight" else "final_norm_bias", f"model.final_layernorm.{kind}")
    return from_folder.finish(draft)
