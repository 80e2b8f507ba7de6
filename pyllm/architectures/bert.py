"""BERT and RoBERTa: encoders that see a text whole, and are there for embeddings.

Each block is normalised after it was added to the stream. No second sentence is ever given, so the first row of the
token types stands for all of them: it is part of the positions.
"""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import FFN_BIASES, PLAIN, POST_NORMS, QKV_BIASES, Draft, Part, Runs
from pyllm.formats.checkpoint import Checkpoint

SLOTS = (
    *("embedding", "position_embedding", "embedding_norm", "embedding_norm_bias", "wq", "wk", "wv", "wo", "bo"),
    *(*QKV_BIASES, *PLAIN, *FFN_BIASES, *POST_NORMS, "attention_post_norm_bias", "ffn_post_norm_bias"),
)

_LAYER = {
    "wq": "attention.self.query",
    "wk": "attention.self.key",
    "wv": "attention.self.value",
    "wo": "attention.output.dense",
    "attention_post_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "ffn_post_norm": "output.LayerNorm",
}
_BIASES = {"wq": "bq", "wk": "bk", "wv": "bv", "wo": "bo"}


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "bert"."""
    draft = from_gguf.begin(checkpoint, "bert")
    draft.set(activation="gelu")
    _encoder(draft)
    draft.place("position_embedding", Part("position_embd.weight", every_plus="token_types.weight"))
    for slot, name in (("attention_post_norm", "attn_output_norm"), ("ffn_post_norm", "layer_output_norm")):
        draft.place(slot, f"blk.{{layer}}.{name}.weight")
        draft.place(f"{slot}_bias", f"blk.{{layer}}.{name}.bias")
    draft.place("embedding_norm", "token_embd_norm.weight")
    draft.place("embedding_norm_bias", "token_embd_norm.bias")
    draft.ignore("cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias")
    draft.fields.assume("attention.causal", False)
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "bert"."""
    draft = from_folder.begin(checkpoint, tied=True)
    return _folder(draft, "bert.", draft.config["context_length"], first=0)


def roberta_folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "roberta" or "xlm-roberta", whose positions are counted from behind the padding's id."""
    draft = from_folder.begin(checkpoint, tied=True)
    count, first = draft.config["context_length"], draft.fields.integer("pad_token_id", 1, least=0) + 1
    draft.set(context_length=max(1, count - first))
    return _folder(draft, "roberta.", count, first)


def _folder(draft: Draft, base: str, count: int, first: int) -> Draft:
    """`count` rows of positions, of which those from `first` on are used."""
    from_folder.norm(draft, "layer", "layer_norm_eps", 1e-12)
    from_folder.activation(draft, default="gelu", gated=False)
    _encoder(draft)
    for name, allowed in (
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
        ("add_cross_attention", False),
    ):
        draft.fields.assume(name, allowed)
    draft.fields.integer("type_vocab_size", 2)
    draft.fields.get("classifier_dropout")
    names, layer = f"{base}embeddings.", f"{base}encoder.layer.{{layer}}."
    used, types = Runs(count, first, count - first), f"{names}token_type_embeddings.weight"
    draft.place("embedding", f"{names}word_embeddings.weight")
    draft.place("position_embedding", Part(f"{names}position_embeddings.weight", used, every_plus=types))
    draft.place("embedding_norm", f"{names}LayerNorm.weight")
    draft.place("embedding_norm_bias", f"{names}LayerNorm.bias")
    for slot, name in _LAYER.items():
        draft.place(slot, f"{layer}{name}.weight")
        draft.place(_BIASES.get(slot, f"{slot}_bias"), f"{layer}{name}.bias")
    draft.ignore(f"{names}position_ids", f"{base}pooler.dense.weight", f"{base}pooler.dense.bias")
    return from_folder.finish(draft, base)


def _encoder(draft: Draft) -> None:
    draft.set(norm="layer", norm_after_sum=True, causal=False, gated=False, rope_dims=0)
    draft.ropes("none", [True] * len(draft.layers))
    draft.optional.clear()
    draft.needs(*SLOTS)
