"""GPT-NeoX and Pythia: parallel blocks with a norm each, partial RoPE, queries, keys and values interleaved by head."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import CORE, FFN_BIASES, NORM_BIASES, NORMS, PLAIN, QKV_BIASES, Draft, Part, Runs
from pyllm.formats.checkpoint import Checkpoint

SLOTS = (*CORE, *NORMS, *NORM_BIASES, *PLAIN, *FFN_BIASES)
NAMES = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "wo": "attention.dense",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}
BIASES = {
    "attention_norm_bias": "attention_norm",
    "ffn_norm_bias": "ffn_norm",
    "bo": "wo",
    "up_bias": "up",
    "down_bias": "down",
}


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "gptneox"."""
    draft = from_gguf.begin(checkpoint, "gptneox")
    draft.set(norm="layer", activation="gelu", gated=False, parallel=draft.fields.flag("use_parallel_residual", True))
    draft.needs(*SLOTS, *QKV_BIASES, "bo")
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "gpt_neox"."""
    draft = from_folder.begin(checkpoint)
    fields = draft.fields
    draft.set(n_kv_heads=draft.config["n_heads"])  # whatever the config says
    from_folder.norm(draft, "layer", "layer_norm_eps", 1e-5)
    from_folder.activation(draft, default="gelu", gated=False)
    from_folder.rotation(
        draft, theta=fields.number("rotary_emb_base", 10000.0), partial=fields.number("rotary_pct", 0.25)
    )
    draft.set(parallel=fields.flag("use_parallel_residual", True))
    draft.needs(*SLOTS)
    from_folder.biases(draft, "attention_bias", *QKV_BIASES, "bo", default=True)
    _place(draft)
    for name in ("bias", "masked_bias", "rotary_emb.inv_freq"):
        draft.ignore(f"gpt_neox.layers.{{layer}}.attention.{name}")
    if "head" not in draft.needed:
        draft.ignore("embed_out.weight")
    return from_folder.finish(draft, "gpt_neox.")


def _place(draft: Draft) -> None:
    layer, head = "gpt_neox.layers.{layer}.", draft.config["head_dim"]
    for slot, name in NAMES.items():
        draft.place(slot, f"{layer}{name}.weight")
    for slot, of in BIASES.items():
        draft.place(slot, f"{layer}{NAMES[of]}.bias")
    of = 3 * draft.config["n_heads"] * head
    for end, slots in (("weight", ("wq", "wk", "wv")), ("bias", QKV_BIASES)):
        for i, slot in enumerate(slots):
            draft.place(slot, Part(f"{layer}attention.query_key_value.{end}", Runs(of, i * head, head, 3 * head)))
    draft.place("embedding", "gpt_neox.embed_in.weight")
    draft.place("head", "embed_out.weight", "lm_head.weight")
    draft.place("final_norm", "gpt_neox.final_layer_norm.weight")
    draft.place("final_norm_bias", "gpt_neox.final_layer_norm.bias")
