"""Granite 3: Llama with multipliers of the embedding, of residuals, of scores and of logits; and its experts."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import LLAMA, QKV_BIASES, Draft, Part, Runs
from pyllm.formats.checkpoint import Checkpoint


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "granite"."""
    draft = _begin_gguf(checkpoint, "granite")
    return from_gguf.finish(draft)


def moe_gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "granitemoe"."""
    draft = _begin_gguf(checkpoint, "granitemoe")
    draft.set(routing="softmax_chosen")
    from_gguf.experts(draft)
    return from_gguf.finish(draft)


def _begin_gguf(checkpoint: Checkpoint, architecture: str) -> Draft:
    draft = from_gguf.begin(checkpoint, architecture)
    fields = draft.fields
    draft.set(
        rope_interleaved=True,
        embedding_scale=fields.number_or_off("embedding_scale") or 1.0,
        residual_scale=fields.number_or_off("residual_scale") or 1.0,
        attention_scale=fields.number_or_off("attention.scale"),
        logit_scale=1.0 / (fields.number_or_off("logit_scale") or 1.0),
    )
    draft.needs(*LLAMA)
    draft.may_have(*QKV_BIASES, "bo", "gate_bias", "up_bias", "down_bias")
    return draft


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "granite"."""
    draft = _begin_folder(checkpoint)
    from_folder.biases(draft, "mlp_bias", "gate_bias", "up_bias", "down_bias")
    return from_folder.finish(draft)


def moe_folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "granitemoe"."""
    draft = _begin_folder(checkpoint)
    hidden = draft.config["hidden_dim"]
    draft.set(
        n_experts=draft.fields.integer("num_local_experts", 8),
        n_experts_used=draft.fields.integer("num_experts_per_tok", 2),
        expert_dim=hidden,
        routing="softmax_chosen",
    )
    draft.experts()
    block = "model.layers.{layer}.block_sparse_moe."
    draft.place("router", block + "router.layer.weight")
    for slot, start in (("expert_gate", 0), ("expert_up", hidden)):
        draft.place(slot, Part(block + "input_linear.weight", Runs(2 * hidden, start, hidden), stacked=True))
    draft.place("expert_down", Part(block + "output_linear.weight", stacked=True))
    return from_folder.finish(draft)


def _begin_folder(checkpoint: Checkpoint) -> Draft:
    draft = from_folder.begin(checkpoint)
    fields = draft.fields
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-6)
    from_folder.activation(draft)
    from_folder.rotation(draft)
    draft.set(
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        attention_scale=fields.number("attention_multiplier", 1.0),
        logit_scale=1.0 / fields.number("logits_scaling", 1.0),
    )
    draft.needs(*LLAMA)
    from_folder.biases(draft, "attention_bias", *QKV_BIASES, "bo")
    return draft
