"""Every family, from folders and from GGUF: what `transformers` answers for tiny models with every switch in use."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyconvert
import tinyfolder
from conftest import GOLDEN

import pyllm
from pyllm import _core, architectures, formats, loading
from pyllm.config import LayerConfig, ModelConfig
from pyllm.errors import ModelFormatError, PyllmError, UnsupportedModelError

sys.path.insert(0, str(Path(__file__).resolve().parent / "fuzz"))

import fuzz_folders

TABLE = json.loads((GOLDEN / "families.json").read_text())
MODELS: dict[str, dict[str, Any]] = TABLE["models"]
CONVERTED = [name for name, entry in MODELS.items() if entry["gguf"]]
TOLERANCES = {"f16": 5e-3, "f32": 5e-4}

Array = np.ndarray[Any, np.dtype[Any]]


@cache
def golden_logprobs() -> dict[str, Array]:
    with np.load(GOLDEN / "families.npz") as data:
        return dict(data)


def folder_of(name: str, path: Path, **options: Any) -> Path:
    entry = MODELS[name]
    shapes = {key: shape for key, (shape, _) in tinyfolder.expand(entry["tensors"]).items()}
    return tinyfolder.write_folder(path / name, entry["config"], shapes, **options)


def gguf_of(name: str, path: Path) -> Path:
    entry = MODELS[name]
    return tinyconvert.write_gguf(path / f"{name}.gguf", entry["gguf"], entry["config"], entry["tensors"])


def log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def check_answers(name: str, path: Path, kv_dtype: str = "f16") -> None:
    """Log-probabilities and the greedy continuation are the reference's."""
    with pyllm.load(path, threads=1, kv_dtype=kv_dtype) as model:
        found = log_softmax(model.logits(TABLE["tokens"]))[TABLE["positions"]]
        assert np.abs(found - golden_logprobs()[name]).max() < TOLERANCES[kv_dtype]
        greedy = MODELS[name]["greedy"]
        if greedy:
            with model.session() as session:
                row = session.eval(TABLE["tokens"])
                tokens = []
                for _ in greedy:
                    tokens.append(int(row.argmax()))
                    row = session.eval(tokens[-1:])
            assert tokens == greedy


@pytest.mark.parametrize("kv_dtype", TOLERANCES)
@pytest.mark.parametrize("name", MODELS)
def test_folder_answers_as_transformers_does(name: str, kv_dtype: str, tmp_path: Path) -> None:
    check_answers(name, folder_of(name, tmp_path), kv_dtype)


@pytest.mark.parametrize("name", CONVERTED)
def test_gguf_answers_as_the_folder_does(name: str, tmp_path: Path) -> None:
    """To the bit, since both descriptions lead to the same switches and the same weights."""
    answers = []
    for path in (folder_of(name, tmp_path), gguf_of(name, tmp_path)):
        with pyllm.load(path, threads=1) as model:
            answers.append(model.logits(TABLE["tokens"]))
    assert answers[0].tobytes() == answers[1].tobytes()


SWITCHES = {field.name: field.default for field in fields(ModelConfig) if field.default is not MISSING}
#: What changes nothing in these models: sizes, and what another switch makes irrelevant.
WITHOUT_EFFECT = {"layers", "n_experts", "n_experts_used", "expert_dim", "shared_dim", "rope_original"}


def run(config: ModelConfig, path: Path) -> Array:
    """Logits of a model file run by another config than its own."""
    checkpoint = formats.open_checkpoint(path)
    native = _core.NativeModel(config, planes=2, kv_type="f32", threads=1)
    loading.bind_all(native, checkpoint, architectures.bindings(checkpoint), None, None)
    session = native.new_session(config.context_length)
    logits = session.eval(TABLE["tokens"], len(TABLE["tokens"])).copy()
    session.close()
    native.close()
    checkpoint.close()
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_every_switch_matters(name: str, tmp_path: Path) -> None:
    """The tiny models would notice a switch that is not carried out: each of them changes more than the tolerance."""
    path = folder_of(name, tmp_path)
    with contextlib.closing(formats.open_checkpoint(path)) as checkpoint:
        config = architectures.describe(checkpoint)
    right = log_softmax(run(config, path))
    usual = {**SWITCHES, "attention_scale": config.head_dim**-0.5} if config.attention_scale else SWITCHES
    changed = [switch for switch, default in usual.items() if getattr(config, switch) != default]
    for switch in set(changed) - WITHOUT_EFFECT:
        try:
            wrong = log_softmax(run(replace(config, **{switch: usual[switch]}), path))
        except (PyllmError, ValueError):
            continue  # the tensors do not even fit
        assert np.abs(wrong - right).max() > TOLERANCES["f16"], switch
    for field in ("window", "rope") if config.rope_dims else ("window",):
        layers = tuple(replace(layer, **{field: getattr(LayerConfig(), field)}) for layer in config.layers)
        if layers != config.layers:
            wrong = log_softmax(run(replace(config, layers=layers), path))
            assert np.abs(wrong - right).max() > TOLERANCES["f16"], field


# ---- folders ---------------------------------------------------------------------------------------------------------


def logits_of(path: Path, **options: Any) -> Array:
    with pyllm.load(path, threads=1, **options) as model:
        return model.logits(TABLE["tokens"])


def edit_config(path: Path, **changes: Any) -> Path:
    """Changes fields of a folder's config.json; `...` takes one away."""
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Changes the tensors of a folder: name to (type, shape, data)."""
    data = (path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], tuple(entry["shape"]), data[8 + length + start : 8 + length + end])
    (path / "model.safetensors").write_bytes(tinyfolder.safetensors_bytes(change(tensors)))
    return path


def test_weights_in_several_files_are_the_same_model(tmp_path: Path) -> None:
    whole, parts = folder_of("llama", tmp_path / "a"), folder_of("llama", tmp_path / "b", files=3)
    assert logits_of(whole).tobytes() == logits_of(parts).tobytes()
    (parts / "model.safetensors.index.json").unlink()
    assert logits_of(whole).tobytes() == logits_of(parts).tobytes()
    with pyllm.load(parts) as model:
        assert model.info()["files"] == 3


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_other_types_of_floats(dtype: str, tmp_path: Path) -> None:
    """All weights of the tiny models are exact in bfloat16, and nearly all in half precision."""
    other = logits_of(folder_of("qwen2", tmp_path / dtype, dtype=dtype))
    same = logits_of(folder_of("qwen2", tmp_path))
    assert np.abs(other - same).max() < (1e-4 if dtype == "F32" else 1e-2)


def test_floats_are_quantised_on_loading(tmp_path: Path) -> None:
    path = folder_of("gpt_oss", tmp_path)
    with pyllm.load(path, dtype="q8_0") as model:
        small, logits = model.nbytes, model.logits(TABLE["tokens"])
    with pyllm.load(path) as model:
        assert small < 0.75 * model.nbytes
        assert 0 < np.median(np.abs(logits - model.logits(TABLE["tokens"]))) < 0.03


def test_names_without_their_first_part(tmp_path: Path) -> None:
    """Models saved without a head have none."""
    path = folder_of("gpt2", tmp_path)
    before = logits_of(path)
    rewrite(path, lambda tensors: {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()})
    assert logits_of(path).tobytes() == before.tobytes()


def test_known_buffers_are_ignored_and_others_are_not(tmp_path: Path) -> None:
    path = folder_of("gpt2", tmp_path)
    before = logits_of(path)
    mask = ("F32", (1, 1, 64, 64), bytes(4 * 64 * 64))
    rewrite(path, lambda tensors: tensors | {"transformer.h.1.attn.bias": mask})
    assert logits_of(path).tobytes() == before.tobytes()
    rewrite(path, lambda tensors: tensors | {"transformer.h.1.attn.extra": mask})
    with pytest.raises(UnsupportedModelError, match=r"tensor 'transformer\.h\.1\.attn\.extra'"):
        pyllm.load(path)


def test_a_tied_head_in_the_file_is_not_used(tmp_path: Path) -> None:
    path = folder_of("qwen2", tmp_path)
    before = logits_of(path)
    rewrite(path, lambda tensors: tensors | {"lm_head.weight": ("BF16", (64, 48), bytes(2 * 64 * 48))})
    assert logits_of(path).tobytes() == before.tobytes()


def test_fused_experts_as_transformers_5_has_them_in_memory(tmp_path: Path) -> None:
    path = folder_of("qwen3_moe", tmp_path)
    before = logits_of(path)

    def fuse(tensors: dict[str, Any]) -> dict[str, Any]:
        out = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
        for layer in range(3):
            base = f"model.layers.{layer}.mlp.experts."
            kinds = ("gate", "up", "down")
            raw = {kind: [tensors[f"{base}{e}.{kind}_proj.weight"][2] for e in range(6)] for kind in kinds}
            gate_up = b"".join(gate + up for gate, up in zip(raw["gate"], raw["up"], strict=True))
            out[f"{base}gate_up_proj"] = ("BF16", (6, 48, 48), gate_up)
            out[f"{base}down_proj"] = ("BF16", (6, 48, 24), b"".join(raw["down"]))
        return out

    assert logits_of(rewrite(path, fuse)).tobytes() == before.tobytes()


def test_rope_as_transformers_4_writes_it(tmp_path: Path) -> None:
    for name in ("llama", "llama-yarn", "phi3-long", "gemma3", "phi"):
        path = folder_of(name, tmp_path)
        before = logits_of(path)
        rope = MODELS[name]["config"]["rope_parameters"]
        old: dict[str, Any] = {"rope_parameters": ...}
        if "full_attention" in rope:
            old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
            rope = rope["full_attention"]
        rope = dict(rope)
        old["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        if rope["rope_type"] != "default":
            old["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
        assert logits_of(edit_config(path, **old)).tobytes() == before.tobytes(), name


def test_the_length_of_a_text_decides_between_factors(tmp_path: Path) -> None:
    """LongRoPE's short factors hold up to the original length, to the token."""
    path, tokens = folder_of("phi3-long", tmp_path), TABLE["tokens"]
    rope = MODELS["phi3-long"]["config"]["rope_parameters"]
    with pyllm.load(path, threads=1) as model:
        within, beyond = model.logits(tokens[:16]), model.logits(tokens[:17])
    edit_config(path, rope_parameters=rope | {"long_factor": rope["short_factor"]})
    with pyllm.load(path, threads=1) as model:
        assert within.tobytes() == model.logits(tokens[:16]).tobytes()
        assert np.abs(beyond - model.logits(tokens[:17])).max() > TOLERANCES["f16"]


DYNAMIC = MODELS["llama-dynamic"]["config"]["rope_parameters"]
ORIGINAL = MODELS["llama-dynamic"]["config"]["max_position_embeddings"]


def test_dynamic_rope_is_none_up_to_the_original_length(tmp_path: Path) -> None:
    """As in transformers: the model's own base, to the bit and to the token."""
    path, tokens = folder_of("llama-dynamic", tmp_path), TABLE["tokens"]
    with pyllm.load(path, threads=1) as model:
        assert model.context_length == ORIGINAL * DYNAMIC["factor"]
        within, beyond = model.logits(tokens[:ORIGINAL]), model.logits(tokens[: ORIGINAL + 1])
    plain = {"rope_type": "default", "rope_theta": DYNAMIC["rope_theta"]}
    edit_config(path, rope_parameters=plain, max_position_embeddings=2 * ORIGINAL)
    with pyllm.load(path, threads=1) as model:
        assert within.tobytes() == model.logits(tokens[:ORIGINAL]).tobytes()
        assert np.abs(beyond - model.logits(tokens[: ORIGINAL + 1])).max() > TOLERANCES["f16"]


def test_dynamic_rope_beyond_the_original_length_is_that_of_the_longest_text(tmp_path: Path) -> None:
    """As in transformers once it has read one: its rows are those of shorter texts."""
    with pyllm.load(folder_of("llama-dynamic", tmp_path), threads=1) as model:
        lengths = [position + 1 for position in TABLE["positions"] if position >= ORIGINAL]
        for length, expected in zip(lengths, golden_logprobs()["llama-dynamic"][-len(lengths) :], strict=True):
            found = log_softmax(model.logits(TABLE["tokens"][:length])[-1])
            assert np.abs(found - expected).max() < TOLERANCES["f16"], length
    assert len(lengths) >= 4


def test_dynamic_rope_does_not_depend_on_how_a_text_came(tmp_path: Path) -> None:
    """At once, in chunks, token by token, after a longer text, and generated: the same bits on both sides of the limit.

    In transformers each of them has another answer.
    """
    tokens = TABLE["tokens"]
    with pyllm.load(folder_of("llama-dynamic", tmp_path), threads=1) as model:
        expected = {length: model.logits(tokens[:length])[-1].tobytes() for length in range(1, len(tokens) + 1)}
        for chunk in (1, 3, ORIGINAL - 1, ORIGINAL + 1):
            with model.session() as session:
                for start in range(0, len(tokens), chunk):
                    row = session.eval(tokens[start : start + chunk])
                    assert row.tobytes() == expected[session.position], (chunk, session.position)
                session.truncate(ORIGINAL - 2)
                for token in tokens[ORIGINAL - 2 : ORIGINAL + 2]:
                    assert session.eval([token]).tobytes() == expected[session.position], (chunk, session.position)
        greedy = pyllm.Sampler.greedy()
        generated = model.generate(tokens[: ORIGINAL - 3], max_tokens=8, sampler=greedy, stop=()).tokens
        text = list(tokens[: ORIGINAL - 3])
        for token in generated:
            assert token == int(model.logits(text)[-1].argmax())
            text.append(token)
        assert len(text) > ORIGINAL + 1


#: Fields of published configs that the library's own classes do not write.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama": {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}},
    "gemma": {"hidden_act": "gelu", "hidden_activation": None},
    "gemma2": {"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"},
    "phi3": {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "auto_map": {"AutoConfig": "x"}},
    "smollm3": {"max_window_layers": 28, "use_cache": False},
    "starcoder2": {"activation_function": "gelu", "attention_softmax_in_fp32": True, "norm_type": "layer_norm"},
    "cohere": {"model_max_length": 131072},
    "cohere2": {"position_embedding_type": "rope_gptj", "rotary_pct": 1.0, "use_parallel_block": True},
    "gpt2": {"n_ctx": 64, "task_specific_params": {"text-generation": {"max_length": 50}}},
    "gpt_oss": {"initial_context_length": 16, "experts_per_token": 2},
    "ernie4_5_moe": {"moe_gate": "topk", "moe_capacity": [64, 64], "num_nextn_predict_layers": 1},
    "falcon-7b": {"apply_residual_connection_post_layernorm": False, "intermediate_size": 7},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_fields_that_change_nothing(name: str, tmp_path: Path) -> None:
    path = folder_of(name, tmp_path)
    before = logits_of(path)
    common = {"_name_or_path": "a/b", "torch_dtype": "bfloat16", "unsloth_version": "2025.1", "attention_dropout": 0.1}
    assert logits_of(edit_config(path, **common, **PUBLISHED[name])).tobytes() == before.tobytes()


GELU, TANH = "gelu", "gelu_pytorch_tanh"


@pytest.mark.parametrize(("act", "activation"), [(GELU, None), (GELU, TANH), (TANH, TANH), (TANH, None), (None, None)])
def test_gemma_names_its_activation_twice(act: str | None, activation: str | None, tmp_path: Path) -> None:
    """Gemma 1, 1.1 and CodeGemma say it in different ways and mean the same."""
    path = folder_of("gemma", tmp_path)
    before = logits_of(path)
    assert logits_of(edit_config(path, hidden_act=act, hidden_activation=activation)).tobytes() == before.tobytes()


def test_gemma_3_has_no_cap_on_attention(tmp_path: Path) -> None:
    """transformers keeps the field and does not look at it, nor does anybody else; Gemma 2's matters."""
    path = folder_of("gemma3", tmp_path)
    before = logits_of(path)
    assert logits_of(edit_config(path, attn_logit_softcapping=0.5)).tobytes() == before.tobytes()
    path = folder_of("gemma2", tmp_path)
    before = logits_of(path)
    assert logits_of(edit_config(path, attn_logit_softcapping=0.5)).tobytes() != before.tobytes()


@pytest.mark.parametrize("name", ["qwen2-window", "qwen2_moe-sparse", "smollm3"])
def test_a_window_that_no_layer_has(name: str, tmp_path: Path) -> None:
    path = folder_of(name, tmp_path)
    off, on = ({"use_sliding_window": on, "sliding_window": 6} for on in (False, True))
    types = ["full_attention"] * MODELS[name]["config"]["num_hidden_layers"]
    plain = logits_of(edit_config(path, layer_types=types, **off))
    assert logits_of(edit_config(path, **on)).tobytes() == plain.tobytes()


def test_a_folder_with_a_tokenizer_speaks(tmp_path: Path) -> None:
    """Its tokenizer, the ids that end a text, and the defaults of generation."""
    path = folder_of("qwen2", tmp_path)
    pieces = [*"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"0123456789", "Ġ"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    end = {"id": 63, "content": "<end>", "special": True, "normalized": False}
    end |= {"single_word": False, "lstrip": False, "rstrip": False}
    more = end | {"id": 64, "content": "<pad>"}  # a token that the model has no row for
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end, more], "normalizer": None}
    tokenizer |= {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}}
    tokenizer |= {"post_processor": None, "decoder": {"type": "ByteLevel"}}
    tokenizer |= {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [63, 5], "temperature": 0.25}))
    with pyllm.load(path) as model:
        assert model.tokenizer is not None
        assert model.tokenizer.encode("ab c") == [0, 1, 62, 2]
        assert model.stop_ids == {63, 5}
        assert model.default_sampler.temperature == 0.25
        assert model.tokenizer.encode("<pad>", special=True) == [64]
        with pytest.raises(ValueError, match=r"64.*\[0, 64\)"):
            model.generate([64], max_tokens=1)
        generation = model.generate("Hello", max_tokens=8, sampler=pyllm.Sampler.greedy())
        assert len(generation.text) >= len([token for token in generation.tokens if token < 63]) > 0


def test_four_bit_floats_of_gpt_oss(tmp_path: Path) -> None:
    """Blocks and scales in a folder are GGUF's MXFP4 to the bit, and the values that their definition gives."""
    path, rng = folder_of("gpt_oss", tmp_path), np.random.default_rng(0)
    blocks: dict[str, tuple[Array, Array]] = {}

    def pack(tensors: dict[str, Any]) -> dict[str, Any]:
        out = dict(tensors)
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            experts, cols, rows = out.pop(name)[1]
            codes = rng.integers(0, 256, (experts, rows, cols // 32, 16), dtype=np.uint8)
            scales = rng.integers(122, 126, (experts, rows, cols // 32), dtype=np.uint8)
            blocks[name] = codes, scales
            out[f"{name}_blocks"] = ("U8", codes.shape, codes.tobytes())
            out[f"{name}_scales"] = ("U8", scales.shape, scales.tobytes())
        return out

    edit_config(rewrite(path, pack), quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": []})
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    with contextlib.closing(formats.open_checkpoint(path)) as checkpoint:
        bound = {(b.slot, b.layer, b.expert): b for b in architectures.bindings(checkpoint)}
        for slot, name, start in (("gate", "gate_up", 0), ("up", "gate_up", 1), ("down", "down", 0)):
            codes, scales = (array[2] for array in blocks[f"model.layers.1.mlp.experts.{name}_proj"])
            values = np.array(table, np.float32)[np.stack((codes & 15, codes >> 4), -1)]
            values = values.reshape(*scales.shape, 32) * np.exp2(scales.astype(np.float32) - 127)[..., None]
            values = values.reshape(len(values), -1)[start :: 2 if name == "gate_up" else 1]
            found = loading.dequantized(checkpoint, bound[f"expert_{slot}", 1, 2])
            assert np.array_equal(found, values)
    assert np.isfinite(logits_of(path)).all()


def test_a_folder_is_a_model_like_any_other(tmp_path: Path) -> None:
    path = folder_of("llama", tmp_path, files=2)
    with pyllm.load(path) as model:
        expected = model.logits(TABLE["tokens"])
        assert model.info()["format"] == "huggingface"
        again = pickle.loads(pickle.dumps(model))
        assert again.logits(TABLE["tokens"]).tobytes() == expected.tobytes()
        with model.session() as session:
            session.eval(TABLE["tokens"])
            session.save(tmp_path / "state")
        assert list(again.restore(tmp_path / "state").tokens) == TABLE["tokens"]
        pickled = pickle.dumps(model)
    edit_config(path, rms_norm_eps=1e-3)
    with pytest.raises(PyllmError, match="not the file of the pickled model"):
        pickle.loads(pickled)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model_type": "deepseek_v3"}, r"'deepseek_v3', which has multi-head latent attention"),
        ("llama", {"model_type": "mamba"}, r"'mamba', which has state-space layers"),
        ("llama", {"model_type": "unheard_of"}, r"model_type is 'unheard_of'; pyllm runs: arcee, .*stablelm"),
        ("llama", {"vision_config": {"depth": 2}}, r"has a vision tower"),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised by 'gptq'"),
        ("llama", {"quantization_config": {"quant_method": "mxfp4"}}, r"quantised by 'mxfp4'"),
        ("llama", {"new_switch": 3}, r"new_switch is '3', a field that this family is not known to have"),
        ("llama", {"hidden_act": "quick_gelu"}, r"hidden_act is 'quick_gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "spiral"}}, r"rope_parameters\.rope_type is 'spiral'"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "odd": 1}}, r"parameters\.odd is '1'"),
        ("llama", {"sliding_window": 5}, r"sliding_window is '5'"),
        ("gemma3", {"layer_types": ["linear_attention"] * 7}, r"layer_types has 'linear_attention'"),
        ("gemma", {"hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh"}, r"hidden_act is 'silu'"),
        ("gemma2", {"use_bidirectional_attention": True}, r"use_bidirectional_attention is 'True'"),
        ("falcon-7b", {"alibi": True}, r"alibi asks for ALiBi positions"),
        ("phi", {"qk_layernorm": True}, r"qk_layernorm is 'True'"),
        ("olmoe", {"clip_qkv": 8.0}, r"clip_qkv is '8\.0'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx is 'True'"),
        ("gpt_oss", {"swiglu_alpha": 2.0}, r"swiglu_alpha is '2\.0'"),
    ],
)
def test_what_pyllm_lacks_is_named(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = edit_config(folder_of(name, tmp_path), **changes)
    with pytest.raises(UnsupportedModelError, match=message):
        pyllm.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": ...}, r"config\.json's model_type is missing"),
        ({"hidden_size": ...}, r"config\.json's hidden_size is missing"),
        ({"hidden_size": "48"}, r"hidden_size is 48, expected an integer"),
        ({"num_hidden_layers": 2**31 - 1}, r"2147483647 layers, but only 51 tensors"),
        ({"num_hidden_layers": 4}, r"'model\.layers\.3\.input_layernorm\.weight'.* is missing"),
        ({"num_attention_heads": 3}, r"expected a multiple of n_kv_heads|has the shape"),
        ({"vocab_size": 65}, r"'model\.embed_tokens\.weight' has the shape \(64, 48\), expected \(65, 48\)"),
        ({"rms_norm_eps": 0}, r"rms_norm_eps is 0, expected a positive"),
        ({"rope_parameters": 7}, r"rope_parameters is 7, expected an object"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, r"low_freq_factor is missing"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}}, r"short_factor is \[1\.0\], expect"),
        ({"tie_word_embeddings": "no"}, r"tie_word_embeddings is no, expected true or false"),
    ],
)
def test_impossible_configs_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = edit_config(folder_of("llama", tmp_path), **changes)
    with pytest.raises(ModelFormatError, match=message):
        pyllm.load(path)


@pytest.mark.parametrize("dtype", ["I8", "F8_E4M3", "I64", "F64", "U8", "BOOL"])
def test_other_types_are_refused_by_name(dtype: str, tmp_path: Path) -> None:
    size = {"I64": 8, "F64": 8}.get(dtype, 1)
    name = "model.layers.1.mlp.up_proj.weight"
    path = rewrite(folder_of("llama", tmp_path), lambda old: old | {name: (dtype, old[name][1], bytes(size * 40 * 48))})
    with pytest.raises(UnsupportedModelError, match=f"tensor '{name}' has weight type {dtype}"):
        pyllm.load(path)


def test_incomplete_folders_say_what_is_missing(tmp_path: Path) -> None:
    path = folder_of("llama", tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors: .* give the folder"):
        pyllm.load(path / "model.safetensors")
    (path / "config.json").rename(path / "other.json")
    with pytest.raises(ModelFormatError, match=r"'model\.safetensors' in it needs the config\.json"):
        pyllm.load(path)
    (path / "other.json").rename(path / "config.json")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"the weights are PyTorch pickles \(pytorch_model\.bin\)"):
        pyllm.load(path)
    (path / "pytorch_model.bin").unlink()
    with pytest.raises(ModelFormatError, match=r"no \.safetensors file"):
        pyllm.load(path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    path = folder_of("llama", tmp_path, files=3)
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"model-00002-of-00003\.safetensors is missing"):
        pyllm.load(path)


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "", "x.bin", 7, None])
def test_no_index_leads_out_of_the_folder(file: object, tmp_path: Path) -> None:
    path = folder_of("llama", tmp_path, files=2)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = file
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFormatError, match="weight_map is no object of file names in this folder"):
        pyllm.load(path)


@pytest.mark.parametrize("name", MODELS)
def test_any_value_in_a_config_gives_a_model_or_an_error(name: str, tmp_path: Path) -> None:
    """Law 6 for what each family reads: one value at a time is another one."""
    path, rng = folder_of(name, tmp_path), random.Random(name)
    config = json.loads((path / "config.json").read_text())
    weights = memoryview((path / "model.safetensors").read_bytes())
    for _ in range(40):
        changed = fuzz_folders.another_value(rng, config)
        if not isinstance(changed, dict):
            continue
        checkpoint = formats.folder.assemble(Path("x"), changed, [(Path("x/model.safetensors"), weights)], {})
        with contextlib.suppress(PyllmError):  # nothing else may be raised
            architectures.bindings(checkpoint)
