"""StarCoder2: layer norms, a plain feed-forward layer with tanh-GELU, biases everywhere, a sliding window."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import CORE, FFN_BIASES, NORM_BIASES, NORMS, PLAIN, QKV_BIASES, Draft
from pyllm.formats.checkpoint import Checkpoint

SLOTS = (*CORE, *NORMS, *NORM_BIASES, *PLAIN)
SOFTMAX = ("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")
BIASES = (*QKV_BIASES, "bo", *FFN_BIASES)


def gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "starcoder2"."""
    draft = from_gguf.begin(checkpoint, "starcoder2")
    draft.set(norm="layer", activation="gelu_tanh", gated=False)
    draft.needs(*SLOTS, *BIASES)
    return from_gguf.finish(draft)


def folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "starcoder2"."""
    draft = from_folder.begin(checkpoint, tied=True)
    from_folder.norm(draft, "layer", "norm_epsilon", 1e-5)
    from_folder.activation(draft, default="gelu_pytorch_tanh", gated=False)
    from_folder.rotation(draft)
    from_folder.window(draft, [True] * len(draft.layers))
    draft.needs(*SLOTS)
    from_folder.biases(draft, "use_bias", *BIASES, default=True)
    for name in ("norm_type", "mlp_type", "scale_attn_weights"):
        draft.fields.assume(name, "layer_norm", "default", True)
    for name in ("activation_function", "layer_norm_epsilon", *SOFTMAX):
        draft.fields.get(name)  # said again in other fields, or of other precisions
    for slot, name in (("up", "c_fc"), ("down", "c_proj")):
        draft.place(slot, f"model.layers.{{layer}}.mlp.{name}.weight")
        draft.place(f"{slot}_bias", f"model.layers.{{layer}}.mlp.{name}.bias")
    return from_folder.finish(draft)
