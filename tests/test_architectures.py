"""From metadata and tensor names to a config and slots: what is read, and what is refused rather than guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinygguf
from tinygguf import ARRAY, FLOAT64, INT32, UINT64, Shape, Typed

from pyllm import _core, architectures
from pyllm.architectures import Binding, binding
from pyllm.config import ModelConfig
from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats import Checkpoint, open_checkpoint, parse

SHAPE = Shape()
PER_LAYER = ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "gate", "up", "down")


def checkpoint_of(
    changes: dict[str, Any] | None = None, tensors: dict[str, tinygguf.Tensor] | None = None, shape: Shape = SHAPE
) -> Checkpoint:
    """A tiny Llama file with some fields changed (None takes a field away)."""
    metadata = tinygguf.llama_metadata(shape) | (changes or {})
    metadata = {key: value for key, value in metadata.items() if value is not None}
    tensors = tinygguf.llama_tensors(shape) if tensors is None else tensors
    return parse(Path("tiny.gguf"), memoryview(tinygguf.gguf_bytes(metadata, tensors)))


def described(changes: dict[str, Any] | None = None) -> ModelConfig:
    return architectures.describe(checkpoint_of(changes))


def bound(checkpoint: Checkpoint) -> dict[tuple[str, int], Binding]:
    found = architectures.bindings(checkpoint)
    by_place = {(b.slot, b.layer): b for b in found}
    assert len(by_place) == len(found)
    return by_place


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_describes_a_llama() -> None:
    eps = float(np.float32(1e-5))
    assert described() == ModelConfig("llama", 64, 96, 2, 4, 2, 16, 300, 128, eps, 10000.0, 16, True)


def test_optional_fields_have_their_defaults() -> None:
    absent = {f"llama.{name}": None for name in ("attention.head_count_kv", "rope.freq_base", "rope.dimension_count")}
    config = described(absent)
    assert (config.n_kv_heads, config.rope_base, config.rope_dims) == (4, 10000.0, 16)


def test_explicit_head_size_and_partial_rope() -> None:
    config = described(
        {"llama.attention.key_length": 32, "llama.attention.value_length": 32, "llama.rope.dimension_count": 8}
    )
    assert (config.head_dim, config.rope_dims, config.dim) == (32, 8, 64)


def test_wide_integers_and_equal_per_layer_arrays_are_read() -> None:
    config = described(
        {
            "llama.embedding_length": Typed(UINT64, 64),
            "llama.attention.head_count_kv": Typed(ARRAY, (INT32, [2, 2])),
            "llama.rope.freq_base": Typed(FLOAT64, 5e5),
        }
    )
    assert (config.dim, config.n_kv_heads, config.rope_base) == (64, 2, 5e5)


@pytest.mark.parametrize("tied", [True, False])
def test_binds_every_tensor_once(tied: bool) -> None:
    checkpoint = checkpoint_of(tensors=tinygguf.llama_tensors(SHAPE, tied=tied))
    places = bound(checkpoint)
    expected = {(slot, layer) for slot in PER_LAYER for layer in range(SHAPE.layers)}
    expected |= {("embedding", 0), ("final_norm", 0)} | (set() if tied else {("head", 0)})
    assert set(places) == expected
    assert {b.tensor.name for b in places.values()} == set(checkpoint.tensors)
    wk = places["wk", 1]
    assert (wk.tensor.name, wk.rows, wk.cols) == ("blk.1.attn_k.weight", 32, 64)
    assert (places["down", 0].rows, places["down", 0].cols) == (64, 96)
    assert (places["ffn_norm", 0].rows, places["ffn_norm", 0].cols) == (1, 64)


def test_rope_factors_of_the_file() -> None:
    factors = {"rope_freqs.weight": (tinygguf.F32, (8,), bytes(32))}
    places = bound(checkpoint_of(tensors=tinygguf.llama_tensors(SHAPE) | factors))
    assert (places["rope_factors", 0].rows, places["rope_factors", 0].cols) == (1, 8)


@pytest.mark.parametrize(
    "fields",
    [
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.factor": 4.0},
        {"llama.rope.scale_linear": 4.0},
    ],
)
def test_linear_scaling_becomes_rope_factors(fields: dict[str, Any]) -> None:
    checkpoint = checkpoint_of(fields)
    factors = bound(checkpoint)["rope_factors", 0]
    assert np.frombuffer(checkpoint.view(factors.tensor), "<f4").tolist() == [4.0] * 8
    both = {**tinygguf.llama_tensors(SHAPE), "rope_freqs.weight": (tinygguf.F32, (8,), bytes(32))}
    with pytest.raises(UnsupportedModelError, match=r"factor = 4\.0 scales RoPE, and rope_freqs\.weight"):
        bound(checkpoint_of(fields, both))


@pytest.mark.parametrize(
    "fields",
    [
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0},
        {"llama.rope.scaling.original_context_length": 64, "llama.rope.scaling.finetuned": True},
        {"llama.expert_count": 0, "llama.attention.causal": True, "llama.vocab_size": 290},
        {"llama.tensor_data_layout": "Meta AI original pth", "other.key": 1},
    ],
)
def test_fields_that_change_nothing(fields: dict[str, Any]) -> None:
    assert ("rope_factors", 0) not in bound(checkpoint_of(fields))


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general.architecture": "new"}, "general.architecture is 'new'; pyllm runs: arcee, .*, llama, "),
        ({"general.architecture": "mamba2"}, "general.architecture is 'mamba2', which has state-space layers"),
        ({"general.architecture": "llama2c"}, "general.architecture is 'llama2c'"),
        ({"split.count": 3}, "one part of a split GGUF"),
        ({"llama.expert_shared_count": 8}, "llama.expert_shared_count is '8'"),
        ({"llama.rope.scaling.type": "longrope"}, "llama.rope.scaling.type is 'longrope'"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor is '0.5'"),
        ({"llama.attention.clamp_kqv": 8.0}, "llama.attention.clamp_kqv is '8.0'"),
        ({"llama.attention.causal": False}, "llama.attention.causal is 'False'"),
        ({"llama.attention.value_length": 8}, "value_length differs from the key length 16"),
        ({"llama.attention.head_count_kv": Typed(ARRAY, (INT32, [2, 1]))}, "head_count_kv differs from layer to layer"),
    ],
)
def test_unknown_demands_are_named(fields: dict[str, Any], message: str) -> None:
    checkpoint = checkpoint_of(fields)
    with pytest.raises(UnsupportedModelError, match=f"tiny.gguf: .*{message}"):
        architectures.bindings(checkpoint)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general.architecture": None}, "general.architecture is missing"),
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.context_length": 0}, "llama.context_length is 0, expected an integer from 1"),
        ({"llama.embedding_length": Typed(UINT64, 2**31)}, "llama.embedding_length is 2147483648"),
        ({"llama.embedding_length": "64"}, "llama.embedding_length is 64, expected an integer"),
        ({"llama.embedding_length": True}, "llama.embedding_length is True"),
        ({"llama.embedding_length": 66}, "66 is no multiple of the 4 heads"),
        ({"llama.attention.head_count_kv": 3}, "n_heads is 4, expected a multiple of n_kv_heads, 3"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon is nan, expected a positive"),
        ({"llama.attention.layer_norm_rms_epsilon": 2.0}, "norm_eps is 2.0"),
        ({"llama.rope.freq_base": float("inf")}, "freq_base is inf"),
        ({"llama.rope.freq_base": Typed(FLOAT64, 1e300)}, r"freq_base is 1e\+300"),
        ({"llama.rope.scaling.factor": -1.0}, "factor is -1.0"),
        ({"llama.rope.dimension_count": 7}, "rope_dims is 7 and head_dim is 16"),
        ({"llama.rope.dimension_count": 32}, "rope_dims is 32"),
        ({"llama.attention.key_length": 2**31 - 2}, "4 heads of 2147483646 are too wide"),
        ({"llama.feed_forward_length": 95}, "blk.0.ffn_gate.weight' has the shape .96, 64., expected .95, 64."),
        ({"llama.block_count": 3}, "'blk.2.attn_norm.weight', 1 x 64, is missing"),
        ({"llama.block_count": 2**31 - 1}, "2147483647 layers, but only 20 tensors in the file"),
        ({"llama.expert_count": 8}, "llama.expert_used_count is missing"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.freq_base": 1.0}, "freq_base is 1.0, expected more than 1"),
    ],
)
def test_impossible_fields_are_named(fields: dict[str, Any], message: str) -> None:
    checkpoint = checkpoint_of(fields)
    with pytest.raises(ModelFormatError, match=f"tiny.gguf: .*{message}"):
        architectures.bindings(checkpoint)


@pytest.mark.parametrize("name", ["blk.0.attn_norm.bias", "blk.0.ffn_gate_inp.weight", "blk.2.ffn_up.weight", "extra"])
def test_a_tensor_without_use_is_named(name: str) -> None:
    tensors = {**tinygguf.llama_tensors(SHAPE), name: (tinygguf.F32, (64,), bytes(256))}
    with pytest.raises(UnsupportedModelError, match=f"has a tensor '{name}' .and 0 more. that pyllm has no use for"):
        bound(checkpoint_of(tensors=tensors))


def test_mistral_under_llamas_name_has_windows() -> None:
    config = described({"llama.attention.sliding_window": 16})
    assert [config.layer(i).window for i in range(2)] == [16, 16]


def test_optional_tensors_are_in_every_layer_or_in_none() -> None:
    biases = {f"blk.{layer}.attn_q.bias": (tinygguf.F32, (64,), bytes(256)) for layer in range(2)}
    assert ("bq", 1) in bound(checkpoint_of(tensors=tinygguf.llama_tensors(SHAPE) | biases))
    del biases["blk.1.attn_q.bias"]
    with pytest.raises(ModelFormatError, match=r"tensor 'blk\.1\.attn_q\.bias', 1 x 64, is missing"):
        bound(checkpoint_of(tensors=tinygguf.llama_tensors(SHAPE) | biases))


def test_the_slots_are_those_of_the_boundary() -> None:
    assert list(binding.SLOTS) == sorted(_core.SLOTS, key=_core.SLOTS.__getitem__)


@pytest.mark.parametrize("name", list(tinygguf.llama_tensors(SHAPE)))
def test_a_missing_tensor_is_named(name: str) -> None:
    tensors = tinygguf.llama_tensors(SHAPE)
    del tensors[name]
    with pytest.raises(ModelFormatError, match=f"tensor '{name}'.* is missing"):
        bound(checkpoint_of(tensors=tensors))


def test_a_type_without_kernels_is_named() -> None:
    name, shape = "blk.1.ffn_up.weight", Shape(dim=256, hidden=256)
    tensors = {**tinygguf.llama_tensors(shape), name: (9, (256, 256), bytes(256 * 8 * 36))}
    with pytest.raises(UnsupportedModelError, match=f"'{name}' has weight type Q8_1, which pyllm cannot run"):
        bound(checkpoint_of(tensors=tensors, shape=shape))


def test_real_model(smollm2: Path) -> None:
    checkpoint = open_checkpoint(smollm2)
    config = architectures.describe(checkpoint)
    eps = float(np.float32(1e-5))
    assert config == ModelConfig("llama", 576, 1536, 30, 9, 3, 64, 49152, 8192, eps, 100000.0, 64, True)
    assert len(architectures.bindings(checkpoint)) == 272
