"""A fuzz target for Hugging Face folders: any config.json and any safetensors file give a model or a `PyllmError`.

The bytes are those of both files: four bytes that say how long the config is, the config, the weights. `driver.py` says
how to run it; `tests/test_hostile_files.py` runs it in the test suite.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tiny writers, where pytest has not found them

import driver
import fuzz_formats
import tinyfolder

from pyllm import architectures, loading
from pyllm.errors import PyllmError
from pyllm.formats import folder, safetensors

SIZES = {"vocab_size": 3, "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "max_position_embeddings": 32}
LAYER = "model.layers.0."
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8}

# What takes the place of values in a config, one at a time.
VALUES: tuple[Any, ...] = (None, True, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, 1e300, float("nan"), "", "x", [], [1], {})


def seeds() -> dict[str, bytes]:
    """Tiny valid folders: one with plain matrices, one with fused ones, one with experts in blocks."""
    dense = {"self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8)}
    dense |= {"mlp.gate_proj": (4, 8), "mlp.up_proj": (4, 8)}
    fused = {"self_attn.qkv_proj": (16, 8), "mlp.gate_up_proj": (8, 8)}
    shared = {"self_attn.o_proj": (8, 8), "mlp.down_proj": (8, 4), "input_layernorm": (8,)}
    shared |= {"post_attention_layernorm": (8,)}
    top = {"model.embed_tokens.weight": (3, 8), "model.norm.weight": (8,), "lm_head.weight": (3, 8)}
    out = {}
    for name, own in (("llama", dense), ("phi3", fused)):
        config = {"model_type": name, **SIZES, "rope_parameters": YARN, "eos_token_id": 2}
        shapes = top | {f"{LAYER}{key}.weight": shape for key, shape in (own | shared).items()}
        tensors = {key: ("F32", shape, bytes(tinyfolder.weights(key, shape))) for key, shape in shapes.items()}
        out[name] = join(json.dumps(config).encode(), tinyfolder.safetensors_bytes(tensors))
    return out | {"gpt_oss": _four_bits()}


def _four_bits() -> bytes:
    config = {"model_type": "gpt_oss", **SIZES, "hidden_size": 32, "intermediate_size": 32, "num_local_experts": 2}
    config |= {"num_experts_per_tok": 1, "head_dim": 4, "layer_types": ["full_attention"]}
    config |= {"quantization_config": {"quant_method": "mxfp4"}}
    shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (32,), "post_attention_layernorm.weight": (32,)}
    for letter, rows in (("q", 8), ("k", 4), ("v", 4)):
        shapes |= {f"self_attn.{letter}_proj.weight": (rows, 32), f"self_attn.{letter}_proj.bias": (rows,)}
    shapes |= {"self_attn.o_proj.weight": (32, 8), "self_attn.o_proj.bias": (32,), "self_attn.sinks": (2,)}
    shapes |= {"mlp.router.weight": (2, 32), "mlp.router.bias": (2,)}
    shapes |= {"mlp.experts.gate_up_proj_bias": (2, 64), "mlp.experts.down_proj_bias": (2, 32)}
    named = {LAYER + key: shape for key, shape in shapes.items()}
    named |= {"model.embed_tokens.weight": (3, 32), "model.norm.weight": (32,), "lm_head.weight": (3, 32)}
    tensors = {key: ("F32", shape, bytes(tinyfolder.weights(key, shape))) for key, shape in named.items()}
    for key, rows in (("gate_up", 64), ("down", 32)):
        base = f"{LAYER}mlp.experts.{key}_proj_"
        tensors[base + "blocks"] = ("U8", (2, rows, 1, 16), bytes(2 * rows * 16))
        tensors[base + "scales"] = ("U8", (2, rows, 1), bytes(2 * rows))
    return join(json.dumps(config).encode(), tinyfolder.safetensors_bytes(tensors))


def join(config: bytes, weights: bytes) -> bytes:
    return len(config).to_bytes(4, "little") + config + weights


def split(data: bytes) -> tuple[bytes, bytes]:
    end = 4 + min(int.from_bytes(data[:4], "little"), max(len(data) - 4, 0))
    return data[4:end], data[end:]


def exercise(data: bytes) -> str:
    """Takes both files through everything that happens before C sees them; gives the outcome's name."""
    config, weights = split(data)
    try:
        fields = safetensors.read_json(Path("fuzzed/config.json"), config)
        files = [(Path("fuzzed/model.safetensors"), memoryview(weights))]
        checkpoint = folder.assemble(Path("fuzzed"), fields, files, {})
        fuzz_formats.check_invariants(checkpoint, len(weights))
        architectures.describe(checkpoint)
        for binding in architectures.bindings(checkpoint):
            if loading.dequantized(checkpoint, binding).shape != (binding.rows, binding.cols):
                raise AssertionError(f"{binding} is not what its slot needs")
    except PyllmError as error:
        if "fuzzed" not in str(error):
            raise AssertionError(f"this message names no file: {error}") from error
        return type(error).__name__
    return "model"


def mutations(data: bytes, rounds: int, seed: int) -> Iterator[bytes]:
    """Damaged copies: bytes of either file, or one value of the config or of the header of the weights."""
    rng = random.Random(seed)
    config, weights = split(data)
    length = int.from_bytes(weights[:8], "little")
    for i in range(rounds):
        if i % 3 == 0:
            yield join(json.dumps(another_value(rng, json.loads(config))).encode(), weights)
        elif i % 3 == 1:
            header = json.dumps(another_value(rng, json.loads(weights[8 : 8 + length]))).encode()
            yield join(config, len(header).to_bytes(8, "little") + header + weights[8 + length :])
        else:
            copy = bytearray(data)
            rng.choice(fuzz_formats.MUTATIONS)(rng, copy, 4 + len(config) + 8 + length)
            yield bytes(copy)


def another_value(rng: random.Random, value: Any) -> Any:
    """The same document with something else at one place in it."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.05:
        return rng.choice(VALUES)
    copy = value.copy()
    key = rng.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
    if isinstance(copy, dict) and rng.random() < 0.15:
        copy[rng.choice(("x", "__metadata__", "sliding_window", "head_dim", "layer_types"))] = copy.pop(key)
    else:
        copy[key] = another_value(rng, copy[key])
    return copy


if __name__ == "__main__":
    driver.main(driver.Target("Hugging Face folders", exercise, seeds, mutations))
