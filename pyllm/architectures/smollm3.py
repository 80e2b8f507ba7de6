"""SmolLM3: Llama whose every fourth layer has no RoPE."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import LLAMA, QKV_BIASES, Draft
from pyllm.formats.checkpoint import Checkpoint

PERIOD = 4


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "smollm3"."""
    draft = from_gguf.begin(checkpoint, "smollm3")
    draft.set(rope_interleaved=True)
    draft.needs(*LLAMA)
    draft.ropes("none", [not rotates for rotates in draft.pattern(PERIOD)])
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "smollm3"."""
    draft = from_folder.begin(checkpoint, tied=True)
    fields = draft.fields
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-6)
    from_folder.activation(draft)
    from_folder.rotation(draft, theta=2000000.0)
    draft.needs(*LLAMA)
    from_folder.biases(draft, "attention_bias", *QKV_BIASES, "bo")
    from_folder.biases(draft, "mlp_bias", "gate_bias", "up_bias", "down_bias")
    rotates = draft.pattern(fields.integer("no_rope_layer_interval", PERIOD))
    if fields.has("no_rope_layers"):  # which says 1 where there is RoPE
        rotates = [bool(mark) for mark in fields.items("no_rope_layers", len(draft.layers))]
    draft.ropes("none", [not mark for mark in rotates])
    fields.get("max_window_layers")  # which this one never looks at
    windowed = fields.flag("use_sliding_window") and fields.has("sliding_window")
    from_folder.qwen_window(draft, [windowed and not mark for mark in rotates])
    return from_folder.finish(draft)
