"""Gemma 1, 2 and 3 (text): norms that multiply with 1 + w, a scaled embedding, later windows and norms on both sides.

GGUF files hold 1 + w.
"""

from __future__ import annotations

import math

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import LLAMA, POST_NORMS, QK_NORMS, QKV_BIASES, Draft, Part
from pyllm.formats.checkpoint import Checkpoint

LOCAL_THETA = 10000.0
ONE_PLUS = ("attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm", "final_norm", *QK_NORMS)


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "gemma"."""
    draft = _begin_gguf(checkpoint, "gemma")
    return from_gguf.finish(draft)


def gguf2(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "gemma2"."""
    draft = _begin_gguf(checkpoint, "gemma2")
    fields = draft.fields
    draft.needs(*POST_NORMS)
    from_gguf.window(draft, draft.pattern(2))
    draft.set(
        attention_softcap=fields.number("attn_logit_softcapping", 50.0),
        logit_softcap=fields.number("final_logit_softcapping", 30.0),
        attention_scale=_gguf_scale(draft, 46),
    )
    return from_gguf.finish(draft)


def gguf3(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "gemma3"."""
    draft = _begin_gguf(checkpoint, "gemma3")
    fields, head_dim = draft.fields, draft.config["head_dim"]
    draft.set(qk_norm="head", attention_scale=_gguf_scale(draft, 62))
    draft.set(logit_softcap=fields.number_or_off("final_logit_softcapping"))
    draft.needs(*POST_NORMS, *QK_NORMS)
    from_gguf.window(draft, draft.pattern(fields.integer("attention.sliding_window_pattern", 6)))
    for name in ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"):
        fields.assume(name, head_dim)
    draft.set(rope_local_base=fields.number("rope.freq_base_swa", LOCAL_THETA))
    draft.ropes("local", draft.local())
    return from_gguf.finish(draft)


def _begin_gguf(checkpoint: Checkpoint, architecture: str) -> Draft:
    draft = from_gguf.begin(checkpoint, architecture)
    draft.set(activation="gelu_tanh", embedding_scale=math.sqrt(draft.config["dim"]))
    draft.needs(*LLAMA)
    return draft


def _gguf_scale(draft: Draft, layers_of_27b: int) -> float:
    """llama.cpp knows the models with another scale by their number of layers: the file does not say it."""
    c = draft.config
    return math.sqrt(1.0 / (c["dim"] // c["n_heads"])) if c["n_layers"] == layers_of_27b else 0.0


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "gemma"."""
    draft = _begin_folder(checkpoint)
    from_folder.activation(draft, "hidden_activation", "hidden_act", default="gelu_pytorch_tanh")
    if draft.config["activation"] == "gelu":
        draft.set(activation="gelu_tanh")  # the first files say "gelu" and mean its approximation
    if draft.fields.has("hidden_act"):  # beside the other, as the files of 1.1 and CodeGemma have it
        draft.fields.choice("hidden_act", {"gelu": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"})
    from_folder.rotation(draft)
    return from_folder.finish(draft)


def folder2(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "gemma2"."""
    draft = _begin_folder(checkpoint)
    _norms_on_both_sides(draft)
    from_folder.rotation(draft)
    from_folder.window(draft, from_folder.layer_types(draft, draft.pattern(2)), 4096)
    draft.set(attention_softcap=_cap(draft, "attn_logit_softcapping", 50.0))
    draft.set(logit_softcap=_cap(draft, "final_logit_softcapping", 30.0))
    return from_folder.finish(draft)


def folder3(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "gemma3_text"."""
    draft = _begin_folder(checkpoint)
    _norms_on_both_sides(draft)
    period = draft.fields.integer("_sliding_window_pattern", draft.fields.integer("sliding_window_pattern", 6))
    from_folder.window(draft, from_folder.layer_types(draft, draft.pattern(period)), 4096)
    from_folder.rotations(draft, theta=1000000.0, local_theta=LOCAL_THETA)
    draft.set(qk_norm="head")
    draft.needs(*QK_NORMS)
    draft.set(logit_softcap=_cap(draft, "final_logit_softcapping", 0.0))
    draft.fields.get("attn_logit_softcapping")  # Gemma 3 has norms of queries and keys instead; nobody looks at it
    return from_folder.finish(draft)


def _begin_folder(checkpoint: Checkpoint) -> Draft:
    draft = from_folder.begin(checkpoint, head_dim=256, tied=True)
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-6)
    draft.set(embedding_scale=math.sqrt(draft.config["dim"]))
    draft.needs(*LLAMA)
    from_folder.biases(draft, "attention_bias", *QKV_BIASES, "bo")
    for slot in ONE_PLUS:
        if slot in draft.names:
            draft.place(slot, Part(draft.names[slot][0].name, plus=1.0))
    return draft


def _norms_on_both_sides(draft: Draft) -> None:
    from_folder.activation(draft, "hidden_activation", default="gelu_pytorch_tanh")
    draft.fields.get("hidden_act")  # which nobody looks at
    draft.set(attention_scale=draft.fields.number("query_pre_attn_scalar", 256.0) ** -0.5)
    draft.needs(*POST_NORMS)
    names = {
        "attention_post_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "ffn_post_norm": "post_feedforward_layernorm",
    }
    for slot, name in names.items():
        draft.place(slot, Part(f"model.layers.{{layer}}.{name}.weight", plus=1.0))


def _cap(draft: Draft, name: str, default: float) -> float:
    """A soft cap: null turns it off, absence means the family's default."""
    return draft.fields.number_or_off(name) if name in draft.fields.values else default
