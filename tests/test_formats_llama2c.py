"""llama2.c files, read and written: every version, against an independent writer and the original's own bytes."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyllama2c
from tinyllama2c import Shape

from pyllm import architectures
from pyllm.config import ModelConfig
from pyllm.errors import ClosedError, ModelFormatError, UnsupportedModelError
from pyllm.formats import Checkpoint, open_checkpoint, parse
from pyllm.formats.llama2c_writer import TensorSource, export_llama2c, quantize_groups, write_tokenizer_bin
from pyllm.formats.weight_types import F32, LLAMA2C_Q8

Array = np.ndarray[Any, np.dtype[Any]]
SHAPE = Shape()
WEIGHTS = tinyllama2c.random_weights(SHAPE)
LAYERED = ("att_norm", "ffn_norm", "wq", "wk", "wv", "wo", "w1", "w2", "w3")
KIND_OF_SLOT = {"embedding": "tok_emb", "attention_norm": "att_norm", "gate": "w1", "down": "w2", "up": "w3"}
KIND_OF_SLOT |= {"head": "wcls"}


def parsed(data: bytes) -> Checkpoint:
    return parse(Path("tiny.bin"), memoryview(data))


def config_of(checkpoint: Checkpoint) -> ModelConfig:
    return architectures.describe(checkpoint)


def values(checkpoint: Checkpoint, name: str) -> Array:
    """The fp32 values of a tensor, dequantised from the definition where it is int8."""
    spec = checkpoint.tensors[name]
    data = bytes(checkpoint.view(spec))
    if spec.type_id == F32:
        return np.frombuffer(data, "<f4").reshape(spec.shape)
    assert spec.type_id == LLAMA2C_Q8
    n = int(np.prod(spec.shape))
    codes, scales = np.frombuffer(data[:n], np.int8), np.frombuffer(data[n:], "<f4")
    out: Array = (codes.reshape(-1, spec.group) * scales[:, None]).reshape(spec.shape)
    return out


def source_of(checkpoint: Checkpoint) -> TensorSource:
    """What the exporter asks: (slot, layer) -> fp32 values."""
    bound = architectures.bindings(checkpoint)
    tensors = {(b.slot, b.layer): b.tensor.name for b in bound}
    return lambda slot, layer: values(checkpoint, tensors[slot, layer]) if (slot, layer) in tensors else None


def weight_source(weights: dict[str, Array], *, tied: bool) -> TensorSource:
    def read(slot: str, layer: int) -> Array | None:
        kind = KIND_OF_SLOT.get(slot, slot)
        if slot == "rope_factors" or (slot == "head" and tied):
            return None
        return weights[kind][layer] if kind in LAYERED else weights[kind]

    return read


def assert_holds(checkpoint: Checkpoint, weights: dict[str, Array], *, shared: bool, tolerance: float = 0.0) -> None:
    """Every tensor is there under its name, with its values, and no other one is."""
    expected = {f"layers.{i}.{kind}": weights[kind][i] for kind in LAYERED for i in range(SHAPE.layers)}
    expected |= {kind: weights[kind] for kind in ("tok_emb", "final_norm", *([] if shared else ["wcls"]))}
    assert set(checkpoint.tensors) == set(expected)
    for name, want in expected.items():
        got = values(checkpoint, name)
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= tolerance, name


# ---- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_reads_fp32_versions(version: int, shared: bool) -> None:
    write = tinyllama2c.v0_bytes if version == 0 else tinyllama2c.v1_bytes
    checkpoint = parsed(write(SHAPE, WEIGHTS, shared=shared))
    assert checkpoint.format == "llama2c"
    assert checkpoint.notes == {"version": version, "group_size": 0}
    assert_holds(checkpoint, WEIGHTS, shared=shared)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("group_size", [1, 2, 4, 8, 16])
def test_reads_int8_with_any_group_size(group_size: int, shared: bool) -> None:
    """16 divides every tensor's weights but neither row length: groups cross rows."""
    checkpoint = parsed(tinyllama2c.v2_bytes(SHAPE, WEIGHTS, group_size, shared=shared))
    assert checkpoint.notes == {"version": 2, "group_size": group_size}
    assert {spec.group for spec in checkpoint.tensors.values()} == {0, group_size}
    assert_holds(checkpoint, WEIGHTS, shared=shared, tolerance=0.5 / 127 * 0.6)


def test_a_group_that_leaves_weights_over_is_refused() -> None:
    data = bytearray(tinyllama2c.v2_bytes(SHAPE, WEIGHTS, 8))
    struct.pack_into("<i", data, 37, 64)  # 10 x 8 weights of the embedding
    with pytest.raises(ModelFormatError, match=r"tiny\.bin: group_size 64 does not divide the 80 weights of tok_emb"):
        parsed(bytes(data))


def test_describes_the_model() -> None:
    config = config_of(parsed(tinyllama2c.v0_bytes(SHAPE, WEIGHTS)))
    assert config == ModelConfig("llama2c", 8, 12, 2, 2, 1, 4, 10, 6, 1e-5, 10000.0, 4, True)


def test_binds_every_tensor_to_its_slot() -> None:
    checkpoint = parsed(tinyllama2c.v1_bytes(SHAPE, WEIGHTS, shared=False))
    bound = architectures.bindings(checkpoint)
    assert len(bound) == len(checkpoint.tensors)
    by_slot = {(b.slot, b.layer): b for b in bound}
    assert by_slot["gate", 1].tensor.name == "layers.1.w1"
    assert by_slot["up", 1].tensor.name == "layers.1.w3"
    assert by_slot["down", 0].tensor.name == "layers.0.w2"
    assert (by_slot["down", 0].rows, by_slot["down", 0].cols) == (8, 12)
    assert (by_slot["final_norm", 0].rows, by_slot["final_norm", 0].cols) == (1, 8)
    assert by_slot["head", 0].tensor.name == "wcls"


def test_real_file(stories260k: Path) -> None:
    checkpoint = open_checkpoint(stories260k)
    assert config_of(checkpoint) == ModelConfig(
        "llama2c", 64, 172, 5, 8, 4, 8, 512, 512, rope_dims=8, rope_interleaved=True
    )
    first = struct.unpack_from("<f", stories260k.read_bytes(), 28)[0]
    assert values(checkpoint, "tok_emb")[0, 0] == first
    checkpoint.close()
    with pytest.raises(ClosedError):
        checkpoint.view(checkpoint.tensors["tok_emb"])


def test_views_outlive_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "tiny.bin"
    path.write_bytes(tinyllama2c.v0_bytes(SHAPE, WEIGHTS))
    checkpoint = open_checkpoint(path)
    view = checkpoint.view(checkpoint.tensors["tok_emb"])
    checkpoint.close()
    checkpoint.close()
    assert bytes(view) == WEIGHTS["tok_emb"].tobytes()


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, 0, "dim is 0"),
        (12, -1, "hidden_dim is -1"),
        (16, 1 << 20, "n_layers is 1048576, expected at most"),
        (20, 3, "dim is 8, expected a multiple of twice the 3 n_heads"),
        (24, 3, "n_heads is 2, expected a multiple of n_kv_heads, 3"),
        (28, -10, "vocab_size is -10"),
        (32, 0, "seq_len is 0"),
    ],
)
def test_impossible_fields_are_named(offset: int, value: int, message: str) -> None:
    data = bytearray(tinyllama2c.v1_bytes(SHAPE, WEIGHTS))
    struct.pack_into("<i", data, offset, value)
    with pytest.raises(ModelFormatError, match=message):
        parsed(bytes(data))


def test_size_is_exact() -> None:
    data = tinyllama2c.v0_bytes(SHAPE, WEIGHTS)
    expected = f"dim=8.*has exactly {len(data)} bytes, but this one has {len(data) - 4} .4 missing.: it was cut short"
    with pytest.raises(ModelFormatError, match=expected):
        parsed(data[:-4])
    with pytest.raises(ModelFormatError, match="1 too many"):
        parsed(data + b"\0")


def test_unknown_version_and_flag() -> None:
    data = bytearray(tinyllama2c.v1_bytes(SHAPE, WEIGHTS))
    struct.pack_into("<i", data, 4, 3)
    with pytest.raises(UnsupportedModelError, match="version 3"):
        parsed(bytes(data))
    struct.pack_into("<i", data, 4, 1)
    data[36] = 2
    with pytest.raises(ModelFormatError, match="shared_classifier is 2"):
        parsed(bytes(data))


def test_unexplained_header_bytes_are_refused() -> None:
    data = bytearray(tinyllama2c.v1_bytes(SHAPE, WEIGHTS))
    data[100] = 1
    with pytest.raises(UnsupportedModelError, match="bytes 37 to 255"):
        parsed(bytes(data))


# ---- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_exports_are_the_originals_bytes(tmp_path: Path, shared: bool) -> None:
    config = config_of(parsed(tinyllama2c.v1_bytes(SHAPE, WEIGHTS, shared=shared)))
    source = weight_source(WEIGHTS, tied=shared)
    path = tmp_path / "out.bin"
    export_llama2c(path, config, source, version=1)
    assert path.read_bytes() == tinyllama2c.v1_bytes(SHAPE, WEIGHTS, shared=shared)
    export_llama2c(path, config, source, version=2, group_size=4)
    assert path.read_bytes() == tinyllama2c.v2_bytes(SHAPE, WEIGHTS, 4, shared=shared)
    export_llama2c(path, config, source, version=0)
    assert_holds(open_checkpoint(path), WEIGHTS, shared=shared)
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]


def test_v0_export_is_byte_identical_but_for_the_rope_tables(stories260k: Path, tmp_path: Path) -> None:
    """The tables come from another libm, and no reader looks at them."""
    checkpoint = open_checkpoint(stories260k)
    export_llama2c(tmp_path / "out.bin", config_of(checkpoint), source_of(checkpoint), version=0)
    old, new = stories260k.read_bytes(), (tmp_path / "out.bin").read_bytes()
    tables = 2 * 512 * 4 * 4  # cos and sin, 512 positions, 4 pairs, fp32
    assert old[:-tables] == new[:-tables]
    np.testing.assert_allclose(
        np.frombuffer(new[-tables:], "<f4"), np.frombuffer(old[-tables:], "<f4"), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("version", [1, 2])
def test_real_model_comes_back_equal(stories260k: Path, tmp_path: Path, version: int) -> None:
    checkpoint = open_checkpoint(stories260k)
    config, source = config_of(checkpoint), source_of(checkpoint)
    header = export_llama2c(tmp_path / "out.bin", config, source, version=version)
    again = open_checkpoint(tmp_path / "out.bin")
    assert config_of(again) == config
    assert header.group_size == (4 if version == 2 else 0)  # 64 halved until it divides 172
    for name in checkpoint.tensors:
        want, got = values(checkpoint, name), values(again, name)
        assert np.abs(got - want).max() <= (np.abs(want).max() / 253 if version == 2 else 0), name


def test_a_group_that_must_shrink_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(parsed(tinyllama2c.v0_bytes(SHAPE, WEIGHTS)))
    with caplog.at_level(logging.WARNING, "pyllm"):
        header = export_llama2c(tmp_path / "o.bin", config, weight_source(WEIGHTS, tied=True), version=2, group_size=64)
    assert header.group_size == 4
    assert "group size 64 does not divide dim 8 and hidden_dim 12: using 4" in caplog.text


def test_quantisation_rounds_half_to_even_and_survives_zeros() -> None:
    weights = np.array([127.0, 0.5, 1.5, -2.5, 0, 0, 0, 0], np.float32)
    codes, scales = quantize_groups(weights, 4)
    assert codes.tolist() == [127, 0, 2, -2, 0, 0, 0, 0]
    assert scales.tolist() == [1.0, 0.0]


def test_quantisation_of_extreme_weights() -> None:
    tiny = np.array([190, -190, 5, 0], np.float32) * np.float32(1.4e-45)  # the scale rounds down to the smallest number
    codes, _ = quantize_groups(tiny, 4)
    assert codes.tolist()[:2] == [127, -127]
    with pytest.raises(ValueError, match="not finite"):
        quantize_groups(np.array([1, np.inf], np.float32), 2)


def test_other_constants_are_kept_in_spare_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = config_of(parsed(tinyllama2c.v0_bytes(SHAPE, WEIGHTS)))
    config = ModelConfig(**{**vars(base), "rope_base": 500000.0, "norm_eps": float(np.float32(1e-6))})
    source = weight_source(WEIGHTS, tied=True)
    with pytest.raises(UnsupportedModelError, match="v0 files have no place for rope_base 500000"):
        export_llama2c(tmp_path / "v0.bin", config, source, version=0)
    assert not list(tmp_path.iterdir())
    for version in (1, 2):
        with caplog.at_level(logging.WARNING, "pyllm"):
            export_llama2c(tmp_path / "out.bin", config, source, version=version)
        assert "the original answers wrongly" in caplog.text
        assert config_of(open_checkpoint(tmp_path / "out.bin")) == config


def test_half_split_rope_rows_are_interleaved(tmp_path: Path) -> None:
    base = config_of(parsed(tinyllama2c.v0_bytes(SHAPE, WEIGHTS)))
    config = ModelConfig(**{**vars(base), "rope_interleaved": False})
    export_llama2c(tmp_path / "out.bin", config, weight_source(WEIGHTS, tied=True), version=1)
    got = open_checkpoint(tmp_path / "out.bin")
    rows = [0, 2, 1, 3, 4, 6, 5, 7]  # two heads of four: (0, 1 | 2, 3) becomes 0, 2, 1, 3
    np.testing.assert_array_equal(values(got, "layers.1.wq"), WEIGHTS["wq"][1][rows])
    np.testing.assert_array_equal(values(got, "layers.1.wk"), WEIGHTS["wk"][1][rows[:4]])
    np.testing.assert_array_equal(values(got, "layers.1.wv"), WEIGHTS["wv"][1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"head_dim": 8}, "heads of 8"), ({"rope_dims": 2}, "RoPE over 2 of the 4 dimensions")],
)
def test_what_the_format_cannot_say_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    base = config_of(parsed(tinyllama2c.v0_bytes(SHAPE, WEIGHTS)))
    with pytest.raises(UnsupportedModelError, match=message):
        export_llama2c(
            tmp_path / "o.bin", ModelConfig(**{**vars(base), **changes}), weight_source(WEIGHTS, tied=True), version=1
        )


def test_rope_factors_are_refused(tmp_path: Path) -> None:
    config = config_of(parsed(tinyllama2c.v0_bytes(SHAPE, WEIGHTS)))
    ours = weight_source(WEIGHTS, tied=True)
    with pytest.raises(UnsupportedModelError, match="RoPE factors"):
        export_llama2c(
            tmp_path / "o.bin", config, lambda s, i: np.ones(2, np.float32) if s == "rope_factors" else ours(s, i)
        )


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    config = config_of(parsed(tinyllama2c.v0_bytes(SHAPE, WEIGHTS)))
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    broken = {**WEIGHTS, "w2": WEIGHTS["w2"][:, :4]}
    with pytest.raises(ValueError, match="w2 of layer 0"):
        export_llama2c(path, config, weight_source(broken, tied=True))
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_tokenizer_bin_comes_back_byte_for_byte(tok512: Path, tmp_path: Path) -> None:
    data, at = tok512.read_bytes(), 4
    pieces, scores = [], []
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    write_tokenizer_bin(tmp_path / "tok.bin", pieces, scores)
    assert (tmp_path / "tok.bin").read_bytes() == data
    with pytest.raises(ValueError, match="512 pieces but 511 scores"):
        write_tokenizer_bin(tmp_path / "tok.bin", pieces, scores[:-1])
