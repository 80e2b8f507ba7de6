"""Model families: from a checkpoint's metadata and names to one plain config and the slots of one forward pass.

A family is a module with a function for each kind of file, and a line for it in the tables.
"""

from __future__ import annotations

from collections.abc import Callable

from pyllm.architectures import (
    arcee,
    bert,
    cohere,
    ernie,
    exaone4,
    falcon,
    gemma,
    glm,
    gpt2,
    gpt_neox,
    gpt_oss,
    granite,
    llama,
    llama2c,
    mistral,
    olmo,
    phi,
    phi3,
    qwen2,
    qwen3,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
)
from pyllm.architectures.binding import Binding, bind
from pyllm.architectures.draft import Description, Draft
from pyllm.config import ModelConfig
from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats.checkpoint import Checkpoint

__all__ = ["Binding", "bindings", "describe"]

Family = Callable[[Checkpoint], Draft]

# By GGUF's general.architecture.
GGUF: dict[str, Family] = {
    "arcee": arcee.gguf,
    "bert": bert.gguf,
    "chatglm": glm.gguf,
    "cohere2": cohere.gguf2,
    "command-r": cohere.gguf,
    "ernie4_5": ernie.gguf,
    "ernie4_5-moe": ernie.moe_gguf,
    "exaone4": exaone4.gguf,
    "falcon": falcon.gguf,
    "gemma": gemma.gguf,
    "gemma2": gemma.gguf2,
    "gemma3": gemma.gguf3,
    "glm4": glm.gguf4,
    "gpt-oss": gpt_oss.gguf,
    "gpt2": gpt2.gguf,
    "gptneox": gpt_neox.gguf,
    "granite": granite.gguf,
    "granitemoe": granite.moe_gguf,
    "llama": llama.gguf,
    "olmo2": olmo.gguf2,
    "olmoe": olmo.moe_gguf,
    "phi2": phi.gguf,
    "phi3": phi3.gguf,
    "qwen2": qwen2.gguf,
    "qwen2moe": qwen2.moe_gguf,
    "qwen3": qwen3.gguf,
    "qwen3moe": qwen3.moe_gguf,
    "seed_oss": seed_oss.gguf,
    "smollm3": smollm3.gguf,
    "stablelm": stablelm.gguf,
    "starcoder2": starcoder2.gguf,
}

# By the model_type of a folder's config.json.
FOLDERS: dict[str, Family] = {
    "arcee": arcee.folder,
    "bert": bert.folder,
    "cohere": cohere.folder,
    "cohere2": cohere.folder2,
    "ernie4_5": ernie.folder,
    "ernie4_5_moe": ernie.moe_folder,
    "exaone4": exaone4.folder,
    "falcon": falcon.folder,
    "gemma": gemma.folder,
    "gemma2": gemma.folder2,
    "gemma3_text": gemma.folder3,
    "glm": glm.folder,
    "glm4": glm.folder4,
    "gpt2": gpt2.folder,
    "gpt_neox": gpt_neox.folder,
    "gpt_oss": gpt_oss.folder,
    "granite": granite.folder,
    "granitemoe": granite.moe_folder,
    "llama": llama.folder,
    "ministral": mistral.folder,
    "mistral": mistral.folder,
    "mixtral": mistral.mixtral_folder,
    "olmo2": olmo.folder2,
    "olmo3": olmo.folder3,
    "olmoe": olmo.moe_folder,
    "phi": phi.folder,
    "phi3": phi3.folder,
    "qwen2": qwen2.folder,
    "qwen2_moe": qwen2.moe_folder,
    "qwen3": qwen3.folder,
    "qwen3_moe": qwen3.moe_folder,
    "seed_oss": seed_oss.folder,
    "roberta": bert.roberta_folder,
    "smollm3": smollm3.folder,
    "stablelm": stablelm.folder,
    "starcoder2": starcoder2.folder,
    "xlm-roberta": bert.roberta_folder,
}

# What pyllm lacks for families that people have.
_LACKS = {
    "state-space layers (Mamba)": "mamba mamba2 falcon_mamba jamba bamba zamba zamba2 falcon_h1 falcon-h1 nemotron_h "
    "granitemoehybrid granitehybrid plamo2",
    "short convolutions": "lfm2 lfm2moe lfm2_moe",
    "recurrent layers": "rwkv rwkv6 rwkv7 recurrent_gemma xlstm qwen3_next qwen3next minimax kimi_linear",
    "multi-head latent attention (MLA)": "deepseek_v2 deepseek_v3 deepseek_v32 deepseek2 minicpm3 kimi_k2 "
    "glm4_moe_lite longcat_flash",
    "ALiBi positions": "bloom mpt baichuan jais",
    "a vision tower": "gemma3 llava llava_next llava_onevision mllama mistral3 qwen2_vl qwen2_5_vl qwen3_vl qwen2vl "
    "qwen3vl idefics3 smolvlm paligemma phi4mm phi4_multimodal llama4 internvl pixtral glm4v",
    "an audio tower": "whisper qwen2_audio voxtral",
    "an encoder beside the decoder": "t5 mt5 umt5 bart mbart m2m_100 marian pegasus t5gemma led",
    "embeddings for each layer": "gemma3n gemma3n_text gemma4 gemma4_text",
}
LACKING = {name: what for what, names in _LACKS.items() for name in names.split()}


def describe(checkpoint: Checkpoint) -> ModelConfig:
    """The model's shape; nothing is ever guessed.

    Raises `ModelFormatError` where fields do not fit together, `UnsupportedModelError` naming what is unknown.
    """
    return _description(checkpoint).config


def bindings(checkpoint: Checkpoint) -> list[Binding]:
    """Every tensor with its slot, in the order of the forward pass. Raises as `describe` does."""
    return bind(checkpoint, _description(checkpoint))


def _description(checkpoint: Checkpoint) -> Description:
    return _family(checkpoint)(checkpoint).described()


def _family(checkpoint: Checkpoint) -> Family:
    if checkpoint.format == "llama2c":
        return llama2c.describe  # the format has one architecture
    if checkpoint.format == "huggingface":
        return _known(checkpoint, FOLDERS, "model_type", "config.json's model_type")
    if checkpoint.metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedModelError(
            f"{checkpoint.path}: one part of a split GGUF; give all parts their names, NAME-00001-of-0000N.gguf"
        )
    return _known(checkpoint, GGUF, "general.architecture", "metadata general.architecture")


def _known(checkpoint: Checkpoint, families: dict[str, Family], key: str, label: str) -> Family:
    name = checkpoint.metadata.get(key)
    if not isinstance(name, str):
        raise ModelFormatError(f"{checkpoint.path}: {label} is missing; the file is incomplete")
    if name not in families:
        lack = f", which has {LACKING[name]}" if name in LACKING else ""
        raise UnsupportedModelError(
            f"{checkpoint.path}: {key} is {name[:80]!r}{lack}; pyllm runs: {', '.join(sorted(families))}"
        )
    return families[name]
