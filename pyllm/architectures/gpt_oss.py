"""GPT-OSS: attention sinks, windows in every other layer, YaRN, experts with biases and a clamped activation.

Folders hold gate and up of an expert row by row in turns, as floats (transposed) or as four-bit floats (MXFP4).
"""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import CORE, EXPERTS, NORMS, QKV_BIASES, Draft, Part, Runs
from pyllm.formats.checkpoint import Checkpoint

SLOTS = (
    *(*CORE, *NORMS, "bo", "sinks", *EXPERTS, "router_bias"),
    *("expert_gate_bias", "expert_up_bias", "expert_down_bias"),
)
LIMIT = 7.0


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "gpt-oss"."""
    draft = from_gguf.begin(checkpoint, "gpt-oss")
    draft.set(routing="softmax_chosen", activation="silu_clamped", activation_limit=LIMIT)
    from_gguf.experts(draft)
    draft.needs(*SLOTS, *QKV_BIASES)
    draft.place("ffn_norm", *draft.names["attention_post_norm"])
    from_gguf.window(draft, draft.pattern(2))
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "gpt_oss"."""
    draft = from_folder.begin(checkpoint, head_dim=64)
    fields = draft.fields
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-5)
    fields.assume("hidden_act", "silu")
    fields.assume("swiglu_alpha", 1.702)
    from_folder.rotation(draft, theta=150000.0)
    draft.set(
        n_experts=fields.integer("num_local_experts", 128),
        n_experts_used=fields.integer("num_experts_per_tok", 4),
        expert_dim=draft.config["hidden_dim"],
        routing="softmax_chosen",
        activation="silu_clamped",
        activation_limit=fields.number("swiglu_limit", LIMIT),
    )
    for name in ("experts_per_token", "initial_context_length", "quantization_config"):
        fields.get(name)  # said again in other fields, or read from the tensors
    draft.experts()
    draft.needs(*SLOTS)
    from_folder.biases(draft, "attention_bias", *QKV_BIASES, "bo", default=True)
    from_folder.window(draft, from_folder.layer_types(draft, draft.pattern(2)), 128)
    _place(draft)
    return from_folder.finish(draft)


def _place(draft: Draft) -> None:
    layer, hidden = "model.layers.{layer}.", draft.config["expert_dim"]
    draft.place("sinks", f"{layer}self_attn.sinks")
    draft.place("router", f"{layer}mlp.router.weight")
    draft.place("router_bias", f"{layer}mlp.router.bias")
    parts = {"gate": ("gate_up_proj", Runs(2 * hidden, 0, 1, 2)), "up": ("gate_up_proj", Runs(2 * hidden, 1, 1, 2))}
    for slot, (name, runs) in {**parts, "down": ("down_proj", None)}.items():
        tensor = f"{layer}mlp.experts.{name}"
        draft.place(
            f"expert_{slot}",
            Part(tensor, runs, stacked=True, transposed=True),
            Part(f"{tensor}_blocks", runs, stacked=True, scales=f"{tensor}_scales"),
        )
        draft.place(f"expert_{slot}_bias", Part(f"{tensor}_bias", runs, stacked=True))
