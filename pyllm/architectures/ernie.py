"""ERNIE 4.5: Llama with RoPE in neighbouring pairs; and its experts, chosen with the help of a bias, two shared."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import LLAMA, QKV_BIASES, SHARED, Draft
from pyllm.formats.checkpoint import Checkpoint

BIASES = (*QKV_BIASES, "bo", "gate_bias", "up_bias", "down_bias")


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "ernie4_5"."""
    draft = from_gguf.begin(checkpoint, "ernie4_5")
    draft.set(rope_interleaved=True)
    draft.needs(*LLAMA)
    draft.may_have(*BIASES)
    return from_gguf.finish(draft)


def moe_gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "ernie4_5-moe"."""
    draft = from_gguf.begin(checkpoint, "ernie4_5-moe")
    fields = draft.fields
    draft.set(rope_interleaved=True, expert_renormalise=True)
    draft.needs(*LLAMA)
    dense = fields.integer("leading_dense_block_count", 0, least=0)
    layers = _sparse(draft, dense, len(draft.layers), fields.integer("interleave_moe_layer_step", 1))
    from_gguf.experts(draft, layers)
    shared = fields.integer("expert_shared_count", 0, least=0)
    width = fields.integer("expert_shared_feed_forward_length", shared * draft.config["expert_dim"], least=0)
    _shared(draft, width if shared else 0)
    draft.may_have("choice_bias")
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "ernie4_5"."""
    draft = _begin_folder(checkpoint, head_dim=128)
    return from_folder.finish(draft)


def moe_folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "ernie4_5_moe"."""
    draft = _begin_folder(checkpoint, head_dim=0)
    draft.fields.assume("use_bias", False)
    fields, layers = draft.fields, len(draft.layers)
    draft.set(
        n_experts=fields.integer("moe_num_experts", 64),
        n_experts_used=fields.integer("moe_k", 6),
        expert_dim=fields.integer("moe_intermediate_size", 1536),
        expert_renormalise=True,
    )
    start, end = fields.integer("moe_layer_start_index", 1, least=0), fields.get("moe_layer_end_index")
    last = layers - 1 if end in (None, -1) else fields.integer("moe_layer_end_index", least=0)
    draft.experts(_sparse(draft, start, last + 1, fields.integer("moe_layer_interval", 1)))
    _shared(draft, fields.integer("moe_num_shared_experts", 2, least=0) * draft.config["expert_dim"])
    fields.number("moe_norm_min", 1e-12)  # far below any sum of probabilities
    for name, usual in (("moe_gate", "topk"), ("moe_use_aux_free", True), ("compression_ratio", 1.0)):
        fields.assume(name, usual)
    for name in ("moe_capacity", "num_nextn_predict_layers"):
        fields.get(name)  # of training, and of layers behind the model that foresee more than one token
    draft.ignored.update(name for name in checkpoint.tensors if name.startswith("model.mtp_"))
    layer = "model.layers.{layer}.mlp."
    draft.needs("choice_bias")
    bias = "moe_statics.e_score_correction_bias"
    draft.place("choice_bias", layer + bias, f"{layer}gate.{bias}")
    from_folder.fused_experts(draft, f"{layer}experts.")
    for slot in SHARED:
        draft.place(slot, f"{layer}shared_experts.{slot.removeprefix('shared_')}_proj.weight")
    return from_folder.finish(draft)


def _begin_folder(checkpoint: Checkpoint, head_dim: int) -> Draft:
    draft = from_folder.begin(checkpoint, head_dim=head_dim, tied=True)
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-5)
    from_folder.activation(draft)
    from_folder.rotation(draft, theta=500000.0)
    draft.set(rope_interleaved=True)
    draft.needs(*LLAMA)
    from_folder.biases(draft, "use_bias", *BIASES)
    return draft


def _sparse(draft: Draft, start: int, end: int, interval: int) -> list[bool]:
    """Every `interval`-th layer of [start, end)."""
    return [(i + 1) % interval == 0 and start <= i < end for i in range(len(draft.layers))]


def _shared(draft: Draft, width: int) -> None:
    draft.set(shared_dim=width)
    if width:
        draft.needs(*SHARED)
