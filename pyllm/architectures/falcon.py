"""Falcon: attention and feed-forward layer side by side; queries, keys and values lie together group by group.

GGUF files hold them one behind the other.
"""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import CORE, FFN_BIASES, PLAIN, QKV_BIASES, Draft, Part, Runs
from pyllm.formats.checkpoint import Checkpoint

SLOTS = (*CORE, *PLAIN, "attention_norm", "attention_norm_bias", "final_norm_bias")
FFN_NORM = ("ffn_norm", "ffn_norm_bias")
NAMES = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "wo": "self_attention.dense",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}
BIASES = {
    "attention_norm": "attention_norm_bias",
    "ffn_norm": "ffn_norm_bias",
    "wo": "bo",
    "up": "up_bias",
    "down": "down_bias",
}


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "falcon"."""
    draft = from_gguf.begin(checkpoint, "falcon")
    draft.set(norm="layer", activation="gelu", gated=False, parallel=True)
    draft.needs(*SLOTS)
    if "blk.0.attn_norm_2.weight" in checkpoint.tensors:  # attention has a norm of its own: that one
        draft.needs(*FFN_NORM)
        for end, suffix in (("weight", ""), ("bias", "_bias")):
            draft.place(f"attention_norm{suffix}", f"blk.{{layer}}.attn_norm_2.{end}")
            draft.place(f"ffn_norm{suffix}", f"blk.{{layer}}.attn_norm.{end}")
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "falcon"."""
    fields_of_heads = {"num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size"}
    draft = from_folder.begin(checkpoint, tied=True, sizes=fields_of_heads)
    fields = draft.fields
    for name in ("intermediate_size", "num_key_value_heads"):
        fields.get(name)  # other families' names of what has its own here
    from_folder.norm(draft, "layer", "layer_norm_epsilon", 1e-5)
    from_folder.activation(draft, "activation", default="gelu", gated=False)
    from_folder.rotation(draft)
    if fields.flag("alibi"):
        raise fields.unsupported("alibi", "asks for ALiBi positions")
    grouped, multi_query = fields.flag("new_decoder_architecture"), fields.flag("multi_query", True)
    if not grouped:
        draft.set(n_kv_heads=1 if multi_query else draft.config["n_heads"])
    parallel = fields.flag("parallel_attn", True) or grouped
    norms = fields.integer("num_ln_in_parallel_attn", 2 if grouped else 1)
    draft.set(parallel=parallel)
    draft.needs(*SLOTS)
    _place(draft, grouped and norms == 2)
    if not parallel or (grouped and norms == 2):
        draft.needs(*FFN_NORM)
    from_folder.biases(draft, "bias", *QKV_BIASES, "bo", *FFN_BIASES)
    draft.ignore("transformer.h.{layer}.self_attention.rotary_emb.inv_freq")
    return from_folder.finish(draft, "transformer.")


def _place(draft: Draft, two_norms: bool) -> None:
    layer, c = "transformer.h.{layer}.", draft.config
    names = NAMES | ({"attention_norm": "ln_attn", "ffn_norm": "ln_mlp"} if two_norms else {})
    for slot, name in names.items():
        draft.place(slot, f"{layer}{name}.weight")
        draft.place(BIASES[slot], f"{layer}{name}.bias")
    head, groups = c["head_dim"], c["n_kv_heads"]
    queries = c["n_heads"] // max(groups, 1) * head
    every = queries + 2 * head
    for end, slots in (("weight", ("wq", "wk", "wv")), ("bias", QKV_BIASES)):
        for slot, start, count in zip(slots, (0, queries, queries + head), (queries, head, head), strict=True):
            runs = Runs(every * groups, start, count, every)
            draft.place(slot, Part(f"{layer}self_attention.query_key_value.{end}", runs))
    draft.place("embedding", "transformer.word_embeddings.weight")
    draft.place("final_norm", "transformer.ln_f.weight")
    draft.place("final_norm_bias", "transformer.ln_f.bias")
