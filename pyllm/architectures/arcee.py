"""Arcee's AFM: Llama with a plain feed-forward layer and squared ReLU."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import CORE, NORMS, PLAIN, QKV_BIASES, Draft
from pyllm.formats.checkpoint import Checkpoint

SLOTS = (*CORE, *NORMS, *PLAIN)


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "arcee"."""
    draft = from_gguf.begin(checkpoint, "arcee")
    draft.set(rope_interleaved=True, activation="relu_squared", gated=False)
    draft.needs(*SLOTS)
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "arcee"."""
    draft = from_folder.begin(checkpoint)
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-5)
    from_folder.activation(draft, default="relu2", gated=False)
    from_folder.rotation(draft)
    draft.needs(*SLOTS)
    from_folder.biases(draft, "attention_bias", *QKV_BIASES, "bo")
    from_folder.biases(draft, "mlp_bias", "up_bias", "down_bias")
    return from_folder.finish(draft)
