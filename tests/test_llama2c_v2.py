"""llama2.c's int8 files (version 2), whatever their group size, and the way from and to all three versions."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from bits import Array, bits, kernel_level
from llama2c_runs import LOGITS_TOLERANCE, check, read_runs
from reference import forward, read_weights
from tinyllama2c import Shape, random_weights, v0_bytes, v2_bytes

import pyllm
from pyllm import _core

GROUPS = (4, 2)
GREEDY = pyllm.Sampler.greedy()
SMALL = Shape(dim=128, hidden=192, layers=2, heads=4, kv_heads=2, vocab=97, seq_len=64)
IDS: list[int] = np.random.default_rng(0).integers(0, SMALL.vocab, SMALL.seq_len).tolist()


@pytest.fixture(scope="module")
def maker(golden: Path) -> ModuleType:
    """The script that made the golden data: its `write_v2` is another implementation of the format."""
    spec = importlib.util.spec_from_file_location("make_llama2c", golden / "make_llama2c.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=GROUPS, ids=lambda group: f"gs{group}")
def file(
    request: pytest.FixtureRequest, maker: ModuleType, stories260k: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    """(group size, stories260K with int8 weights)."""
    path = tmp_path_factory.mktemp("v2") / f"gs{request.param}.bin"
    maker.write_v2(path, maker.read_v0(stories260k), request.param)
    return request.param, path


@pytest.fixture(scope="module")
def model(file: tuple[int, Path], tok512: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(file[1], tokenizer=tok512) as model:
        yield model


# ---- the golden files ------------------------------------------------------------------------------------------------


def test_the_file_is_the_one_of_the_golden_data(file: tuple[int, Path], golden: Path) -> None:
    facts = {fact["group_size"]: fact for fact in json.loads((golden / "llama2c_int8.json").read_text())["files"]}
    data = file[1].read_bytes()
    assert (len(data), sha256(data).hexdigest()) == (facts[file[0]]["bytes"], facts[file[0]]["sha256"])


def test_logits(file: tuple[int, Path], model: pyllm.Model, golden: Path) -> None:
    """Those of run.c on the same int8 weights written back as fp32: groups of 4 and 2 are no blocks of 32."""
    with np.load(golden / "llama2c_logits.npz") as arrays:
        logits, expected = model.logits(arrays["tokens"].tolist()), arrays[f"gs{file[0]}"]
    assert np.abs(logits - expected).max() <= LOGITS_TOLERANCE


def test_runs(file: tuple[int, Path], model: pyllm.Model, golden: Path) -> None:
    runs = [
        run for run, fact in read_runs(golden / "llama2c_int8.json", "dequantized") if fact["group_size"] == file[0]
    ]
    assert len(runs) == 3
    for run in runs:
        assert run.tokens is not None
        check(model, run)


def test_texts_of_runq(file: tuple[int, Path], model: pyllm.Model, golden: Path) -> None:
    """runq.c rounds activations to int8, so its texts part from the exact ones somewhere, but not at once."""
    runs = [run for run, fact in read_runs(golden / "llama2c_int8.json", "runq") if fact["group_size"] == file[0]]
    assert len(runs) == 3
    for run in runs:
        if run.temperature == 0:
            text = model.generate(run.prompt, max_tokens=24, sampler=GREEDY).text
            assert (run.prompt + text)[:40] == run.stdout[:40]


def test_both_precisions_are_one_where_groups_are_no_blocks(file: tuple[int, Path], model: pyllm.Model) -> None:
    """Such weights are kept as floats, and float weights meet fp32 activations."""
    with pyllm.load(file[1], precision="fast") as fast:
        assert np.array_equal(bits(fast.logits(IDS)), bits(model.logits(IDS)))


# ---- groups that are blocks ------------------------------------------------------------------------------------------


def dequantised(weights: dict[str, Array], group: int) -> dict[str, Array]:
    """The weights as they are after rounding to int8, in groups over each (flattened) matrix."""
    out = dict(weights)
    for kind in ("tok_emb", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls"):
        groups = weights[kind].reshape(-1, group)
        scale = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
        out[kind] = (np.rint(groups / scale).astype(np.float32) * scale).reshape(weights[kind].shape)
    return out


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("shared", [True, False])
def test_blocks_go_through_int8_kernels(tmp_path: Path, group: int, shared: bool) -> None:
    """Near the fp32 twin of the same weights, and as far as rounding activations to 16 bits brings it."""
    weights = random_weights(SMALL, group)
    v2, v0 = tmp_path / "v2.bin", tmp_path / "v0.bin"
    v2.write_bytes(v2_bytes(SMALL, weights, group, shared=shared))
    v0.write_bytes(v0_bytes(SMALL, dequantised(weights, group), shared=shared))
    config, values = read_weights(v2)
    shift = float(np.abs(forward(config, values, IDS, planes=2) - forward(config, values, IDS)).max())
    with pyllm.load(v2) as int8, pyllm.load(v0) as fp32, pyllm.load(v2, precision="fast") as fast:
        assert int8.nbytes < 0.35 * fp32.nbytes  # 1 byte and a fp32 scale per 32, instead of 4 bytes
        exact = fp32.logits(IDS)
        off = float(np.abs(int8.logits(IDS) - exact).max())
        assert 1e-6 < off < 2 * shift < 1e-3 * np.abs(exact).max()
        assert off < np.abs(fast.logits(IDS) - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("group", [16, 48, 144, 96, 128, 288])
def test_groups_over_several_blocks_or_rows(tmp_path: Path, group: int) -> None:
    """Rows are 96 or 192 long; the meaning is the flat tensor's, however groups lie over rows and blocks."""
    shape = Shape(dim=96, hidden=192, layers=2, heads=4, kv_heads=2, vocab=96, seq_len=64)
    weights, ids = random_weights(shape, group), [i % 96 for i in IDS]
    v2, v0 = tmp_path / "v2.bin", tmp_path / "v0.bin"
    v2.write_bytes(v2_bytes(shape, weights, group))
    v0.write_bytes(v0_bytes(shape, dequantised(weights, group)))
    with pyllm.load(v2) as int8, pyllm.load(v0) as fp32:
        y, exact = int8.logits(ids), fp32.logits(ids)
        assert (int8.nbytes < 0.35 * fp32.nbytes) == (group % 32 == 0)
    if group % 32:  # kept as the fp32 numbers they stand for
        assert np.array_equal(bits(y), bits(exact))
    else:
        assert 0 < np.abs(y - exact).max() < 1e-3 * np.abs(exact).max()


# ---- from and to every version ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("shared", [True, False])
def test_fp32_round_trips_keep_every_bit(tmp_path: Path, version: int, shared: bool) -> None:
    path, back = tmp_path / "in.bin", tmp_path / "out.bin"
    path.write_bytes(v0_bytes(SMALL, random_weights(SMALL), shared=shared))
    with pyllm.load(path) as model:
        model.export(back, version=version)
        with pyllm.load(back) as copy:
            assert copy.info()["version"] == version
            assert copy.config == model.config
            assert np.array_equal(bits(copy.logits(IDS)), bits(model.logits(IDS)))


@pytest.mark.parametrize("group", [64, 32])
def test_int8_round_trip(tmp_path: Path, group: int) -> None:
    """Rounding to int8 what already is int8 in the same groups changes no weight but by a last bit of its scale."""
    path, back = tmp_path / "in.bin", tmp_path / "out.bin"
    path.write_bytes(v2_bytes(SMALL, random_weights(SMALL), group))
    with pyllm.load(path) as model:
        model.export(back, version=2, group_size=group)
        with pyllm.load(back) as copy:
            assert copy.info()["version"] == 2
            y, expected = copy.logits(IDS), model.logits(IDS)
    assert np.abs(y - expected).max() < 1e-4 * np.abs(expected).max()


def test_int8_to_fp32_means_the_same_weights(file: tuple[int, Path], model: pyllm.Model, tmp_path: Path) -> None:
    model.export(tmp_path / "v0.bin", version=0)
    with pyllm.load(tmp_path / "v0.bin") as copy:
        assert np.array_equal(bits(copy.logits(IDS)), bits(model.logits(IDS)))


def test_stories_in_every_version(stories260k: Path, tok512: Path, maker: ModuleType, tmp_path: Path) -> None:
    """Version 2 is, byte for byte, what the original's export makes."""
    with pyllm.load(stories260k, tokenizer=tok512) as model:
        for group in GROUPS:
            model.export(tmp_path / "ours.bin", version=2, group_size=group)
            maker.write_v2(tmp_path / "theirs.bin", maker.read_v0(stories260k), group)
            assert (tmp_path / "ours.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()
        for version in (0, 1):
            model.export(tmp_path / "copy.bin", version=version)
            with pyllm.load(tmp_path / "copy.bin", tokenizer=tok512) as copy:
                assert np.array_equal(bits(copy.logits(IDS)), bits(model.logits(IDS)))
                same = copy.generate("", max_tokens=64, sampler=GREEDY)
                assert same.text == model.generate("", max_tokens=64, sampler=GREEDY).text


def test_every_level_runs_int8(tmp_path: Path) -> None:
    path = tmp_path / "v2.bin"
    path.write_bytes(v2_bytes(SMALL, random_weights(SMALL), 64))
    with pyllm.load(path) as model:
        expected = model.logits(IDS)
        for name in _core.isa_names():
            with kernel_level(name):
                assert np.array_equal(bits(model.logits(IDS)), bits(expected)), name
