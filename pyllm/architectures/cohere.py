"""Command R and R+, and Cohere's second generation: parallel blocks under one layer norm, scaled logits."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import CORE, GATED, QK_NORMS, QKV_BIASES, Draft
from pyllm.formats.checkpoint import Checkpoint

# What config.json of the second generation says of itself, and is always so.
ASSUMED = {
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "layer_switch": 4,
}
SLOTS = (*CORE, *GATED, "attention_norm")


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "command-r"."""
    draft = _begin_gguf(checkpoint, "command-r")
    if from_gguf.NAMES["q_norm"].format(layer=0) in checkpoint.tensors:
        draft.set(qk_norm="each")
        draft.needs(*QK_NORMS)
    return from_gguf.finish(draft)


def gguf2(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "cohere2"."""
    draft = _begin_gguf(checkpoint, "cohere2")
    draft.may_have(*QKV_BIASES)
    from_gguf.window(draft, draft.pattern(4))
    draft.ropes("none", [not local for local in draft.local()])
    return from_gguf.finish(draft)


def _begin_gguf(checkpoint: Checkpoint, architecture: str) -> Draft:
    draft = from_gguf.begin(checkpoint, architecture)
    draft.set(norm="layer", parallel=True, rope_interleaved=True, logit_scale=draft.fields.number("logit_scale"))
    draft.needs(*SLOTS)
    return draft


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "cohere"."""
    draft = _begin_folder(checkpoint, 500000.0)
    if draft.fields.flag("use_qk_norm"):
        draft.set(qk_norm="each")
        draft.needs(*QK_NORMS)
    return from_folder.finish(draft)


def folder2(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "cohere2"."""
    draft = _begin_folder(checkpoint, 10000.0)
    period = draft.fields.integer("sliding_window_pattern", 4)
    for name, usual in ASSUMED.items():
        draft.fields.assume(name, usual)
    from_folder.window(draft, from_folder.layer_types(draft, draft.pattern(period)), 4096)
    draft.ropes("none", [not local for local in draft.local()])
    return from_folder.finish(draft)


def _begin_folder(checkpoint: Checkpoint, theta: float) -> Draft:
    draft = from_folder.begin(checkpoint, tied=True)
    from_folder.norm(draft, "layer", "layer_norm_eps", 1e-5)
    from_folder.activation(draft)
    from_folder.rotation(draft, theta=theta)
    draft.set(parallel=True, rope_interleaved=True, logit_scale=draft.fields.number("logit_scale", 0.0625))
    draft.needs(*SLOTS)
    from_folder.biases(draft, "attention_bias", *QKV_BIASES, "bo")
    return draft
