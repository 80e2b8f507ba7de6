"""OLMo 2 and 3: norms behind attention and feed-forward layer, wide norms of queries and keys. And OLMoE."""

from __future__ import annotations

from pyllm.architectures import from_folder, from_gguf
from pyllm.architectures.draft import CORE, GATED, LLAMA, POST_NORMS, QK_NORMS, QKV_BIASES, Draft
from pyllm.formats.checkpoint import Checkpoint

OLMO2 = (*CORE, *GATED, *POST_NORMS, *QK_NORMS)


def gguf2(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "olmo2"."""
    draft = from_gguf.begin(checkpoint, "olmo2")
    draft.set(qk_norm="wide")
    draft.needs(*OLMO2)
    from_gguf.window(draft, draft.pattern(4))  # OLMo 3 comes under this name
    if any(draft.local()) and draft.constants:
        draft.set(rope_local_base=draft.config["rope_base"])  # only full attention is stretched
        draft.ropes("local", draft.local())
    return from_gguf.finish(draft)


def moe_gguf(checkpoint: Checkpoint) -> Draft:
    """A GGUF file of architecture "olmoe"."""
    draft = from_gguf.begin(checkpoint, "olmoe")
    draft.set(qk_norm="wide")
    draft.needs(*LLAMA, *QK_NORMS)
    from_gguf.experts(draft)
    return from_gguf.finish(draft)


def folder2(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "olmo2"."""
    draft = _begin(checkpoint)
    from_folder.rotation(draft)
    return from_folder.finish(draft)


def folder3(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "olmo3"."""
    draft = _begin(checkpoint)
    from_folder.window(draft, from_folder.layer_types(draft, draft.pattern(4)), 4096)
    from_folder.rotations(draft, theta=500000.0, local_theta=None)
    return from_folder.finish(draft)


def _begin(checkpoint: Checkpoint) -> Draft:
    draft = from_folder.begin(checkpoint)
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-5)
    from_folder.activation(draft)
    draft.set(qk_norm="wide")
    draft.needs(*OLMO2)
    from_folder.biases(draft, "attention_bias", *QKV_BIASES, "bo")
    draft.place("attention_post_norm", "model.layers.{layer}.post_attention_layernorm.weight")
    draft.place("ffn_post_norm", "model.layers.{layer}.post_feedforward_layernorm.weight")
    return draft


def moe_folder(checkpoint: Checkpoint) -> Draft:
    """A folder of model_type "olmoe"."""
    draft = from_folder.begin(checkpoint)
    from_folder.norm(draft, "rms", "rms_norm_eps", 1e-5)
    from_folder.activation(draft)
    from_folder.rotation(draft)
    draft.set(qk_norm="wide")
    draft.needs(*LLAMA, *QK_NORMS)
    from_folder.biases(draft, "attention_bias", *QKV_BIASES, "bo")
    draft.fields.assume("clip_qkv", None)
    from_folder.qwen_experts(draft, expert_dim=draft.config["hidden_dim"], n_experts=64, used=8)
    return from_folder.finish(draft)
