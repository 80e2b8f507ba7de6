"""EXAONE 4: norms behind attention and feed-forward layer, norms of each query and key head, RoPE only in windows."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import CORE, GATED, POST_NORMS, QK_NORMS, Draft
from pyllm.formats.checkpoint import Checkpoint

SLOTS = (*CORE, *GATED, *POST_NORMS, *QK_NORMS)
PERIOD = 4


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "exaone4"."""
    draft = from_gguf.begin(checkpoint, "exaone4")
    draft.set(qk_norm="head")
    draft.needs(*SLOTS)
    if draft.fields.has("attention.sliding_window"):
        from_gguf.window(draft, draft.pattern(draft.fields.integer("attention.sliding_window_pattern", PERIOD)))
        draft.ropes("none", [not local for local in draft.local()])
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "exaone4"."""
    draft = from_folder.begin(checkpoint)
    fields = draft.fields
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-5)
    from_folder.activation(draft)
    from_folder.rotation(draft)
    draft.set(qk_norm="head")
    draft.needs(*SLOTS)
    draft.place("attention_post_norm", "model.layers.{layer}.post_attention_layernorm.weight")
    draft.place("ffn_post_norm", "model.layers.{layer}.post_feedforward_layernorm.weight")
    pattern = fields.get("sliding_window_pattern")
    if fields.has("sliding_window") or "sliding_window" not in fields.values:
        period = PERIOD if pattern == "LLLG" else fields.integer("sliding_window_pattern", PERIOD)
        from_folder.window(draft, from_folder.layer_types(draft, draft.pattern(period)), 4096)
        draft.ropes("none", [not local for local in draft.local()])
    fields.get("layer_types")  # which counts only with a window
    return from_folder.finish(draft)
