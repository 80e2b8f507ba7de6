"""The one model of llama2.c: Llama's layers with constants that the original has built in."""

from __future__ import annotations

from pyllm.architectures.draft import LLAMA, Draft, Part
from pyllm.architectures.fields import Fields
from pyllm.formats.checkpoint import Checkpoint

NAMES = {
    "embedding": "tok_emb",
    "attention_norm": "layers.{layer}.att_norm",
    "wq": "layers.{layer}.wq",
    "wk": "layers.{layer}.wk",
    "wv": "layers.{layer}.wv",
    "wo": "layers.{layer}.wo",
    "ffn_norm": "layers.{layer}.ffn_norm",
    "gate": "layers.{layer}.w1",
    "up": "layers.{layer}.w3",
    "down": "layers.{layer}.w2",
    "final_norm": "final_norm",
    "head": "wcls",
}


def describe(checkpoint: Checkpoint) -> Draft:
    """A llama2.c file."""
    fields = Fields(checkpoint.path, checkpoint.metadata, "llama2c.")
    draft = Draft(checkpoint, fields, {slot: (Part(name),) for slot, name in NAMES.items()})
    field = {key.removeprefix("llama2c."): value for key, value in checkpoint.metadata.items()}
    head_dim = field["dim"] // field["n_heads"]
    draft.set(
        architecture="llama2c",
        dim=field["dim"],
        hidden_dim=field["hidden_dim"],
        n_heads=field["n_heads"],
        n_kv_heads=field["n_kv_heads"],
        head_dim=head_dim,
        vocab_size=field["vocab_size"],
        context_length=field["seq_len"],
        norm_eps=field["norm_eps"],
        rope_base=field["rope_base"],
        rope_dims=head_dim,
        rope_interleaved=True,
    )
    draft.begin_layers(field["n_layers"])
    draft.needs(*LLAMA)
    draft.may_have("head")
    return draft
