"""StableLM 2 and StableLM Zephyr: Llama with layer norms, partial RoPE, perhaps parallel blocks and norms per head."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import CORE, GATED, NORM_BIASES, NORMS, QK_NORMS, QKV_BIASES, Draft, Part
from pyllm.formats.checkpoint import Checkpoint

SLOTS = (*CORE, *NORMS, *NORM_BIASES, *GATED)
FFN_NORM = ("ffn_norm", "ffn_norm_bias")


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "stablelm"."""
    draft = from_gguf.begin(checkpoint, "stablelm")
    draft.set(norm="layer")
    draft.needs(*SLOTS)
    draft.may_have(*QKV_BIASES)
    _variants(
        draft,
        parallel=from_gguf.NAMES["ffn_norm"].format(layer=0) not in checkpoint.tensors,
        normed=from_gguf.NAMES["q_norm"].format(layer=0) in checkpoint.tensors,
    )
    draft.fields.get("use_parallel_residual")  # llama.cpp, too, goes by the tensors
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "stablelm"."""
    draft = from_folder.begin(checkpoint)
    from_folder.norm(draft, "layer", "layer_norm_eps", 1e-5)
    from_folder.activation(draft)
    from_folder.rotation(draft, partial=0.25)
    draft.needs(*SLOTS)
    from_folder.biases(draft, "use_qkv_bias", *QKV_BIASES)
    parallel, normed = draft.fields.flag("use_parallel_residual"), draft.fields.flag("qk_layernorm")
    _variants(draft, parallel, normed)
    for slot, heads in (("q_norm", draft.config["n_heads"]), ("k_norm", draft.config["n_kv_heads"])):
        name = f"model.layers.{{layer}}.self_attn.{slot[0]}_layernorm.norms.{{piece}}.weight"
        draft.place(slot, Part(name, pieces=heads))
    return from_folder.finish(draft)


def _variants(draft: Draft, parallel: bool, normed: bool) -> None:
    draft.set(parallel=parallel, qk_norm="each" if normed else "none")
    if parallel:
        draft.needed.difference_update(FFN_NORM)
    if normed:
        draft.needs(*QK_NORMS)
