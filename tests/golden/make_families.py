"""Makes families.json and families.npz: tiny models of every family, and what `transformers` answers for them.

    python tests/golden/make_families.py [NAME ...]      (all, or some again; needs torch, transformers, gguf)

Each model has every switch of its family set to something that matters: windows shorter than the text, RoPE scaled past
its original length, odd head sizes, biases wherever they may be. Weights come from `tinyfolder.weights`, so only shapes
are kept, with the names that the `gguf` package has for the tensors; and, for TOKENS, the log-probabilities (float32)
at POSITIONS, computed in fp32 from the same bfloat16 weights, and the greedy continuation.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.append(str(Path(__file__).resolve().parent.parent))
import tinyfolder

HERE = Path(__file__).resolve().parent
VOCAB, LENGTH, GREEDY = 64, 40, 12
TOKENS = [int(n) % VOCAB for n in tinyfolder.integers("tokens", LENGTH)]
POSITIONS = [0, 3, 7, 9, 15, 16, 17, 23, 30, 35, 38, 39]

SIZES = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
EPSILON = 0.03  # large enough to matter
EPSILONS = {"gpt2": "layer_norm_epsilon", "falcon": "layer_norm_epsilon", "starcoder2": "norm_epsilon"}
EPSILONS |= dict.fromkeys(("phi", "stablelm", "cohere", "cohere2", "gpt_neox"), "layer_norm_eps")
SIZES |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"rope_type": "longrope", "rope_theta": 500.0}
SLIDING, FULL = "sliding_attention", "full_attention"
BIASES = {"attention_bias": True, "mlp_bias": True}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def rope(theta: float = 500.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


#: name -> (model_type, general.architecture or None, changes of the config)
MODELS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "llama": ("llama", "llama", {"head_dim": 20, **BIASES, "rope_parameters": LLAMA3}),
    "llama-linear": ("llama", "llama", {"tie_word_embeddings": True, **rope(rope_type="linear", factor=2.5)}),
    "llama-yarn": (
        "llama",
        "llama",
        {"rope_parameters": {**YARN, "beta_fast": 4.0, "beta_slow": 1.5}},
    ),
    "llama-yarn-mscale": (
        "llama",
        None,
        {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False}},
    ),
    "llama-dynamic": (
        "llama",
        None,
        {"max_position_embeddings": LENGTH // 2, **rope(rope_type="dynamic", factor=2.0)},
    ),
    "smollm3": (
        "smollm3",
        "smollm3",
        {**rope(), "num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4},
    ),
    "mistral": ("mistral", None, {"head_dim": 14, "sliding_window": 9, **rope()}),
    "ministral": (
        "ministral",
        None,
        {"sliding_window": 6, "layer_types": [SLIDING, FULL, SLIDING], "head_dim": 12}
        | {"rope_parameters": {**YARN, "attention_factor": 0.8}},
    ),
    "mixtral": (
        "mixtral",
        "llama",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None, **rope()},
    ),
    "qwen2": ("qwen2", "qwen2", {"tie_word_embeddings": True, **rope()}),
    "qwen2-window": (
        "qwen2",
        None,
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1, **rope()},
    ),
    "qwen2_moe": (
        "qwen2_moe",
        "qwen2moe",
        {**EXPERTS, "shared_expert_intermediate_size": 36, "norm_topk_prob": False, **rope()},
    ),
    "qwen2_moe-sparse": (
        "qwen2_moe",
        None,
        {**EXPERTS, "shared_expert_intermediate_size": 36, "norm_topk_prob": True, "decoder_sparse_step": 1, **rope()}
        | {"mlp_only_layers": [1], "qkv_bias": False, "use_sliding_window": True, "sliding_window": 6}
        | {"max_window_layers": 3},
    ),
    "qwen3": ("qwen3", "qwen3", {"head_dim": 18, **rope(), "tie_word_embeddings": True}),
    "qwen3_moe": ("qwen3_moe", "qwen3moe", {**EXPERTS, "head_dim": 10, "norm_topk_prob": True, **rope()}),
    "gemma": ("gemma", "gemma", {"head_dim": 20, **rope()}),
    "gemma2": (
        "gemma2",
        "gemma2",
        {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 6, "attn_logit_softcapping": 3.0}
        | {"final_logit_softcapping": 5.0, **rope()},
    ),
    "gemma2-scalar": (
        "gemma2",
        None,
        {"head_dim": 20, "query_pre_attn_scalar": 7, "sliding_window": 8, "attn_logit_softcapping": None, **rope()},
    ),
    "gemma3": (
        "gemma3_text",
        "gemma3",
        {"num_hidden_layers": 7, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 6, "hidden_size": 32}
        | {
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
                FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 700.0},
            }
        },
    ),
    "phi": ("phi", "phi2", {**rope(partial_rotary_factor=0.5)}),
    "phi3": ("phi3", "phi3", {"sliding_window": 11, **rope()}),
    "phi3-long": (
        "phi3",
        "phi3",
        {"original_max_position_embeddings": 16, "tie_word_embeddings": True, "num_key_value_heads": 4}
        | {
            "rope_parameters": {
                **LONG,
                "short_factor": [1.0 + i / 4 for i in range(6)],
                "long_factor": [1.5 + i for i in range(6)],
            }
        },
    ),
    "phi3-partial": (
        "phi3",
        None,
        {"original_max_position_embeddings": 32, "num_attention_heads": 3, "num_key_value_heads": 1}
        | {
            "rope_parameters": {
                **LONG,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0 + i / 4 for i in range(6)],
                "long_factor": [1.5 + i for i in range(6)],
            }
        },
    ),
    "olmo2": ("olmo2", "olmo2", {"hidden_size": 64, "num_key_value_heads": 4, **rope()}),
    "olmo3": (
        "olmo3",
        None,
        {"sliding_window": 8, "num_hidden_layers": 4}
        | {"rope_parameters": {SLIDING: {"rope_type": "default", "rope_theta": 500.0}, FULL: YARN}},
    ),
    "olmoe": ("olmoe", "olmoe", {"num_experts": 6, "num_experts_per_tok": 3, "num_key_value_heads": 4, **rope()}),
    "granite": (
        "granite",
        "granite",
        {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.4}
        | {"tie_word_embeddings": True, **BIASES, **rope()},
    ),
    "granitemoe": (
        "granitemoe",
        "granitemoe",
        {"embedding_multiplier": 2.0, "logits_scaling": 2.0, "residual_multiplier": 0.6, "attention_multiplier": 0.3}
        | {"num_local_experts": 5, "num_experts_per_tok": 2, **rope()},
    ),
    "stablelm": ("stablelm", "stablelm", {"use_qkv_bias": True, **rope(partial_rotary_factor=0.5)}),
    "stablelm-parallel": (
        "stablelm",
        None,
        {"use_parallel_residual": True, "qk_layernorm": True, **rope(partial_rotary_factor=0.34)},
    ),
    "cohere": ("cohere", "command-r", {"logit_scale": 1.25, "use_qk_norm": True, **rope()}),
    "cohere2": (
        "cohere2",
        "cohere2",
        {"logit_scale": 1.25, "sliding_window": 8, "num_hidden_layers": 4, **rope()},
    ),
    "starcoder2": ("starcoder2", "starcoder2", {**rope()}),
    "starcoder2-window": ("starcoder2", None, {"sliding_window": 9, "tie_word_embeddings": False, **rope()}),
    "gpt_neox": ("gpt_neox", "gptneox", {**rope(partial_rotary_factor=0.5)}),
    "gpt_neox-sequential": (
        "gpt_neox",
        "gptneox",
        {"use_parallel_residual": False, **rope(partial_rotary_factor=0.5), "hidden_size": 32},
    ),
    "gpt2": ("gpt2", "gpt2", {}),
    "gpt2-unscaled": ("gpt2", None, {"scale_attn_weights": False, "n_inner": None, "tie_word_embeddings": False}),
    "falcon-7b": ("falcon", "falcon", {"new_decoder_architecture": False, "multi_query": True, **rope()}),
    "falcon-40b": (
        "falcon",
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 56, **rope()},
    ),
    "falcon-11b": (
        "falcon",
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 1, "num_ln_in_parallel_attn": 1, **rope()},
    ),
    "falcon-sequential": (
        "falcon",
        None,
        {"new_decoder_architecture": False, "multi_query": False, "parallel_attn": False, "bias": True, **rope()}
        | {"tie_word_embeddings": False},
    ),
    "gpt_oss": (
        "gpt_oss",
        "gpt-oss",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 7, "hidden_size": 64}
        | {"intermediate_size": 32, "rope_parameters": {**YARN, "truncate": False}, "swiglu_limit": 7.0},
    ),
    "glm": ("glm", "chatglm", {"head_dim": 12, **rope(partial_rotary_factor=0.5)}),
    "glm4": ("glm4", "glm4", {"head_dim": 20, "attention_bias": True, **rope(partial_rotary_factor=0.5)}),
    "exaone4": (
        "exaone4",
        "exaone4",
        {"sliding_window": 8, "sliding_window_pattern": 4, "num_hidden_layers": 4, "head_dim": 12}
        | {"rope_parameters": LLAMA3},
    ),
    "exaone4-full": (
        "exaone4",
        "exaone4",
        {"sliding_window": None, "layer_types": [FULL] * 3, "head_dim": 12, **rope()},
    ),
    "ernie4_5": ("ernie4_5", "ernie4_5", {"head_dim": 14, "use_bias": True, **rope()}),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        "ernie4_5-moe",
        {"moe_num_experts": 5, "moe_k": 2, "moe_num_shared_experts": 2, "moe_intermediate_size": 16, **rope()}
        | {"moe_layer_start_index": 1, "moe_layer_end_index": 3, "num_hidden_layers": 4},
    ),
    "arcee": ("arcee", "arcee", {"head_dim": 12, "rope_parameters": YARN}),
    "seed_oss": ("seed_oss", "seed_oss", {"head_dim": 16, "attention_out_bias": True, **rope()}),
}


def config_of(model_type: str, changes: dict[str, Any]) -> Any:
    sizes = {**SIZES, EPSILONS.get(model_type, "rms_norm_eps"): EPSILON}
    if model_type == "gpt2":
        renamed = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        renamed |= {"max_position_embeddings": "n_positions", "intermediate_size": "n_inner"}
        sizes = {renamed.get(key, key): value for key, value in sizes.items() if key != "num_key_value_heads"}
    own = {"gpt_neox": ("num_key_value_heads",), "falcon": ("num_key_value_heads", "intermediate_size")}
    sizes = {key: value for key, value in sizes.items() if key not in own.get(model_type, ())}
    return AutoConfig.for_model(model_type, **(sizes | changes), attn_implementation="eager")


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def answers(folder: Path, greedy: bool) -> tuple[np.ndarray, list[int]]:
    """Log-probabilities at POSITIONS, and the most probable tokens behind TOKENS, each from a pass over all before."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = list(TOKENS)
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
        for _ in range(GREEDY if greedy else 0):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    logprobs = torch.log_softmax(logits.double(), -1)[POSITIONS].numpy().astype(np.float32)
    return logprobs, tokens[LENGTH:]


def gguf_names(architecture: str, shapes: dict[str, tuple[int, ...]], layers: int) -> dict[str, str | None]:
    """What the gguf package calls each tensor; None where it has no name for it."""
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(arch, layers)
    return {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in shapes}


def compact(shapes: dict[str, tuple[int, ...]], names: dict[str, str | None]) -> dict[str, list[Any]]:
    """The same tables with one entry for names that differ only in numbers: "layers.{3}.w": [shape, GGUF's name]."""
    groups: dict[str, list[tuple[int, ...]]] = {}
    for name in shapes:
        template = re.sub(r"(?<=\.)\d+(?=\.)", "{}", name)
        groups.setdefault(template, []).append(tuple(int(n) for n in re.findall(r"(?<=\.)\d+(?=\.)", name)))
    table: dict[str, list[Any]] = {}
    for template, numbers in groups.items():
        counts = [max(column) + 1 for column in zip(*numbers, strict=True)]
        whole = len(numbers) == math.prod(counts)
        for key in [tuple(f"{{{n}}}" for n in counts)] if whole else numbers:
            first = template.format(*numbers[0])
            renamed = names.get(first)
            renamed = renamed and re.sub(r"(?<=blk\.)\d+", "{}", renamed)
            table[template.format(*key)] = [list(shapes[first]), *([renamed] if names else [])]
    return table


def make(name: str) -> tuple[dict[str, Any], np.ndarray]:
    model_type, architecture, changes = MODELS[name]
    config = config_of(model_type, changes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        shapes = shapes_of(folder)
        written = json.loads((folder / "config.json").read_text())
        tinyfolder.write_folder(folder, written, shapes)
        logprobs, greedy = answers(folder, "dynamic" not in name)
    spread = float(np.exp(logprobs).max(axis=1).mean())
    print(f"{name}: {sum(map(np.prod, shapes.values()))} weights, mean top probability {spread:.3f}, {greedy}")
    names = gguf_names(architecture, shapes, config.num_hidden_layers) if architecture else {}
    tensors = compact(shapes, names)
    assert {name: shape for name, (shape, _) in tinyfolder.expand(tensors).items()} == shapes
    return {"config": written, "greedy": greedy, "gguf": architecture, "tensors": tensors}, logprobs


def main() -> None:
    made = {name: make(name) for name in sys.argv[1:] or MODELS}
    if len(made) < len(MODELS):  # the others as they are
        table, arrays = json.loads((HERE / "families.json").read_text())["models"], np.load(HERE / "families.npz")
        made = {name: made[name] if name in made else (table[name], arrays[name]) for name in MODELS}
    models = ",\n".join(f'"{name}": {json.dumps(entry)}' for name, (entry, _) in made.items())
    head = f'"tokens": {TOKENS},\n"positions": {POSITIONS},\n'
    (HERE / "families.json").write_text(f'{{\n{head}"models": {{\n{models}\n}}\n}}\n')
    np.savez_compressed(HERE / "families.npz", **{name: logprobs for name, (_, logprobs) in made.items()})


if __name__ == "__main__":
    main()
