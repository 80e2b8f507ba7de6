"""GPT-2: learned positions, layer norms, a plain feed-forward layer; folders hold its matrices transposed."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import CORE, FFN_BIASES, NORM_BIASES, NORMS, PLAIN, QKV_BIASES, Draft, Part, Runs
from pyllm.formats.checkpoint import Checkpoint

SLOTS = (
    *(*CORE, "position_embedding", *NORMS, *NORM_BIASES, *QKV_BIASES, "bo"),
    *(*PLAIN, *FFN_BIASES),
)
SIZES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
}


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "gpt2"."""
    draft = from_gguf.begin(checkpoint, "gpt2")
    draft.set(norm="layer", activation="gelu_tanh", gated=False)
    _learned_positions(draft)
    draft.needs(*SLOTS)
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "gpt2"."""
    draft = from_folder.begin(checkpoint, tied=True, sizes=SIZES)
    fields, dim, layer = draft.fields, draft.config["dim"], "transformer.h.{layer}."
    from_folder.norm(draft, "layer", "layer_norm_epsilon", 1e-5)
    from_folder.activation(draft, "activation_function", default="gelu_new", gated=False)
    _learned_positions(draft)
    if not fields.flag("scale_attn_weights", True):
        draft.set(attention_scale=1.0)
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        fields.assume(name, False)
    for name in ("n_ctx", "reorder_and_upcast_attn", *(name for name in fields.values if name.startswith("summary_"))):
        fields.get(name)  # of training, of other precisions and of another head
    draft.needs(*SLOTS)
    for slot, name in (("embedding", "wte.weight"), ("position_embedding", "wpe.weight")):
        draft.place(slot, f"transformer.{name}")
    draft.place("final_norm", "transformer.ln_f.weight")
    draft.place("final_norm_bias", "transformer.ln_f.bias")
    for slot, name in (("attention_norm", "ln_1"), ("ffn_norm", "ln_2")):
        draft.place(slot, f"{layer}{name}.weight")
        draft.place(f"{slot}_bias", f"{layer}{name}.bias")
    plain = (("wo", "bo", "attn.c_proj"), ("up", "up_bias", "mlp.c_fc"), ("down", "down_bias", "mlp.c_proj"))
    for slot, bias, name in plain:
        draft.place(slot, Part(f"{layer}{name}.weight", transposed=True))
        draft.place(bias, f"{layer}{name}.bias")
    for i, (slot, bias) in enumerate((("wq", "bq"), ("wk", "bk"), ("wv", "bv"))):
        runs = Runs(3 * dim, i * dim, dim)
        draft.place(slot, Part(f"{layer}attn.c_attn.weight", runs, transposed=True))
        draft.place(bias, Part(f"{layer}attn.c_attn.bias", runs))
    draft.ignore(f"{layer}attn.bias", f"{layer}attn.masked_bias")
    return from_folder.finish(draft, "transformer.")


def _learned_positions(draft: Draft) -> None:
    draft.set(rope_dims=0)
    draft.ropes("none", [True] * len(draft.layers))
