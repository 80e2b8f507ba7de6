"""Seed-OSS: Llama with biases of queries, keys and values, and a head size of its own."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import LLAMA, QKV_BIASES, Draft
from pyllm.formats.checkpoint import Checkpoint


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "seed_oss"."""
    draft = from_gguf.begin(checkpoint, "seed_oss")
    draft.needs(*LLAMA)
    draft.may_have(*QKV_BIASES, "bo")
    draft.place("ffn_norm", *draft.names["attention_post_norm"])
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "seed_oss"."""
    draft = from_folder.begin(checkpoint, head_dim=128)
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-6)
    from_folder.activation(draft)
    from_folder.rotation(draft)
    draft.needs(*LLAMA)
    from_folder.biases(draft, "attention_bias", *QKV_BIASES, default=True)
    from_folder.biases(draft, "attention_out_bias", "bo")
    from_folder.biases(draft, "mlp_bias", "gate_bias", "up_bias", "down_bias")
    return from_folder.finish(draft)
