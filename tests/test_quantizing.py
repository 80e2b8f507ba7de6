"""`pyllm.quantize` and `load(dtype=)`: what the files hold, that they are whole, and that both mean the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinygguf
from tinygguf import ARRAY, BF16, F16, F32, INT32, Q4_K, Q8_0, Shape, Typed, tiny_llama

import pyllm
from pyllm import _core, cli
from pyllm.errors import ModelFormatError, PyllmError, UnsupportedModelError
from pyllm.formats import open_checkpoint
from pyllm.formats.gguf import raw_metadata
from pyllm.formats.weight_types import MAKEABLE, fitting_type, type_name
from pyllm.quantizing import TYPES
from pyllm.recipes import RECIPES, Traits, type_of

sys.path.insert(0, str(Path(__file__).resolve().parent / "fuzz"))

import fuzz_formats

IDS = [5, 17, 99, 250, 7, 31]
WIDE = Shape(dim=256, hidden=256, layers=2, heads=4, kv_heads=1, vocab=300, context=128)
ODD = Shape(dim=96, hidden=160, layers=2, heads=4, kv_heads=2, vocab=300, context=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantizing")


@pytest.fixture(scope="module")
def wide(folder: Path) -> Path:
    return tiny_llama(folder / "wide.gguf", F32, WIDE, tied=False)


def types_in(path: Path) -> dict[str, str]:
    checkpoint = open_checkpoint(path)
    return {name: type_name(spec.type_id) for name, spec in checkpoint.tensors.items()}


def logits(path: Path, **arguments: Any) -> Any:
    with pyllm.load(path, **arguments) as model:
        return model.logits(IDS)


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", RECIPES)
def test_every_tensor_is_the_source_s_quantised(folder: Path, wide: Path, type_: str) -> None:
    target = folder / f"wide-{type_}.gguf"
    result = pyllm.quantize(wide, target, type_)
    assert (result.path, result.nbytes, result.source_nbytes) == (target, target.stat().st_size, wide.stat().st_size)
    assert np.isfinite(logits(target)).all()
    before, after = open_checkpoint(wide), open_checkpoint(target)
    for name, spec in after.tensors.items():
        raw = before.view(before.tensors[name])
        expected = raw if len(spec.shape) == 1 else _core.quantize(spec.type_id, F32, *spec.shape, raw).tobytes()
        assert bytes(after.view(spec)) == bytes(expected)
    kinds = {type_name(spec.type_id) for spec in after.tensors.values()}
    assert type_name(RECIPES[type_].base) in kinds
    assert sum(result.tensors.values()) == len(after.tensors)


def test_eight_bits_answer_alike(folder: Path, wide: Path) -> None:
    pyllm.quantize(wide, folder / "alike.gguf", "q8_0")
    exact = logits(wide)
    assert np.abs(logits(folder / "alike.gguf") - exact).max() < 0.05 * np.abs(exact).max()


def test_the_file_says_what_the_source_said(folder: Path) -> None:
    """Every key with its own type, also those that pyllm does not know, and tensors in their order."""
    metadata = tinygguf.llama_metadata(WIDE) | tinygguf.tiny_vocabulary(300)
    metadata |= {
        "general.alignment": 64,
        "general.file_type": 0,
        "other.list": Typed(ARRAY, (INT32, [3, 1])),
        "x.y": -2,
    }
    source = tinygguf.write_gguf(folder / "said.gguf", metadata, tinygguf.llama_tensors(WIDE, F16))
    target = folder / "said-q8.gguf"
    pyllm.quantize(source, target, "q8_0")
    before, after = open_checkpoint(source), open_checkpoint(target)
    assert list(after.tensors) == list(before.tensors)
    old, new = raw_metadata(source, before.buffer), raw_metadata(target, after.buffer)
    changed = {"general.alignment", "general.file_type", "general.quantization_version"}
    assert {k: v for k, v in new.items() if k not in changed} == {k: v for k, v in old.items() if k not in changed}
    assert after.metadata["general.file_type"] == 7
    assert after.metadata["general.quantization_version"] == 2


def test_only_matrices_change(folder: Path) -> None:
    """Also in architectures that pyllm cannot run: norms, routers, biases and tables stay as they are."""
    rng = np.random.default_rng(0)
    kept = {"blk.0.attn_norm.weight": (64,), "blk.0.attn_q.bias": (64,), "blk.0.ffn_gate_inp.weight": (4, 64)}
    kept |= {"position_embd.weight": (32, 64), "token_types.weight": (2, 64), "blk.0.ssm_conv1d.weight": (64, 4)}
    made = {"blk.0.attn_q.weight": (64, 64), "blk.0.ffn_up_exps.weight": (4, 96, 64), "output.weight": (50, 64)}
    tensors: dict[str, tinygguf.Tensor] = {}
    for name, shape in (kept | made).items():
        tensors[name] = (F32, shape, rng.standard_normal(shape).astype("<f4").tobytes())
    tensors["blk.0.counts"] = (26, (3,), bytes(12))
    source = tinygguf.write_gguf(folder / "other.gguf", {"general.architecture": "other"}, tensors)
    target = folder / "other-q4.gguf"
    pyllm.quantize(source, target, "q4_0")
    types = types_in(target)
    assert {types[name] for name in kept} == {"F32"}
    assert [types[name] for name in made] == ["Q4_0", "Q4_0", "Q8_0"]
    checkpoint = open_checkpoint(target)
    spec = checkpoint.tensors["blk.0.ffn_up_exps.weight"]
    assert spec.shape == (4, 96, 64)
    values = np.frombuffer(tensors[spec.name][2], "<f4").reshape(-1, 64)
    assert bytes(checkpoint.view(spec)) == _core.quantize(spec.type_id, F32, 384, 64, values).tobytes()
    for name in (*kept, "blk.0.counts"):
        assert bytes(checkpoint.view(checkpoint.tensors[name])) == tensors[name][2]


def test_mixes_are_better_where_it_counts(folder: Path) -> None:
    shape = Shape(dim=32, hidden=32, layers=8, heads=2, kv_heads=1, vocab=300)
    pyllm.quantize(tiny_llama(folder / "deep.gguf", F32, shape, tied=False), folder / "mix.gguf", "q4_k_m")
    types = types_in(folder / "mix.gguf")  # no row has 256 weights: Q8_0 for Q6_K, Q5_0 for Q4_K
    better = {name for name, kind in types.items() if kind == "Q8_0"}
    assert better == {"output.weight"} | {
        f"blk.{i}.{kind}.weight" for i in (0, 3, 6, 7) for kind in ("attn_v", "ffn_down")
    }
    assert types["token_embd.weight"] == types["blk.1.ffn_down.weight"] == "Q5_0"


def test_recipes_by_name() -> None:
    def chosen(recipe: str, name: str, layers: int = 32, cols: int = 256, tied: bool = False) -> str:
        return type_name(type_of(RECIPES[recipe], name, (512, cols), Traits(layers, tied)))

    assert chosen("q4_0", "token_embd.weight", tied=True) == "Q6_K"
    assert chosen("q4_0", "token_embd.weight", cols=96, tied=True) == "Q8_0"
    assert chosen("f16", "output.weight") == "F16"
    assert [chosen("q3_k_m", f"blk.{i}.attn_v.weight") for i in (0, 1, 2, 31)] == ["Q5_K", "Q5_K", "Q4_K", "Q4_K"]
    assert [chosen("q3_k_m", f"blk.{i}.ffn_down_exps.weight") for i in (1, 2)] == ["Q5_K", "Q4_K"]
    assert chosen("q2_k", "blk.3.attn_output.weight") == "Q3_K"
    assert chosen("q5_k_m", "blk.5.ffn_down.weight") == "Q5_K"


def test_types_for_rows_that_are_no_whole_blocks() -> None:
    names = [type_name(fitting_type(MAKEABLE[t], 96)) for t in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")]
    assert names == ["IQ4_NL", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0", "Q8_0"]
    assert {type_name(fitting_type(t, 40)) for t in MAKEABLE.values()} == {"F32", "F16", "BF16"}


def test_rows_of_any_length(folder: Path) -> None:
    source = tiny_llama(folder / "odd.gguf", F32, ODD)
    for type_ in ("q4_k_m", "q2_k", "q8_0"):
        pyllm.quantize(source, folder / "odd-q.gguf", type_)
        assert np.abs(logits(folder / "odd-q.gguf") - logits(source)).max() < np.abs(logits(source)).max()


def test_what_has_its_type_already_is_copied(folder: Path) -> None:
    source = tiny_llama(folder / "q8.gguf", Q8_0, WIDE, tied=False)
    pyllm.quantize(source, folder / "q8-again.gguf", "q8_0")
    before, after = open_checkpoint(source), open_checkpoint(folder / "q8-again.gguf")
    for name, spec in before.tensors.items():
        assert bytes(before.view(spec)) == bytes(after.view(after.tensors[name]))


def test_the_same_file_with_any_number_of_threads(wide: Path, folder: Path) -> None:
    files = [folder / f"threads-{n}.gguf" for n in (1, 3)]
    for n, file in zip((1, 3), files, strict=True):
        pyllm.quantize(wide, file, "q3_k_m", threads=n)
    assert files[0].read_bytes() == files[1].read_bytes()


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [F32, F16, BF16], ids=["F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", ["q8_0", "q6_k"])
def test_quantised_while_loading_is_quantised_before(folder: Path, stored: int, dtype: str) -> None:
    """To the bit, for types whose recipe has no better head."""
    source = tiny_llama(folder / f"{stored}.gguf", stored, WIDE)
    target = folder / "before.gguf"
    pyllm.quantize(source, target, dtype)
    assert np.array_equal(logits(source, dtype=dtype), logits(target))


def test_dtype_leaves_quantised_weights_alone(folder: Path) -> None:
    source = tiny_llama(folder / "q4k.gguf", Q4_K, WIDE)
    assert np.array_equal(logits(source, dtype="q8_0"), logits(source))


def test_dtype_is_part_of_the_model(wide: Path, folder: Path) -> None:
    with pyllm.load(wide, dtype="q8_0") as model, pyllm.load(wide) as other:
        assert (model.dtype, other.dtype) == ("q8_0", None)
        assert model.nbytes < other.nbytes / 3
        assert model.info()["dtype"] == "q8_0"
        with model.session() as session:
            session.eval(IDS)
            session.save(folder / "session")
        with pytest.raises(ModelFormatError, match="belongs to"):
            other.restore(folder / "session")
    with pytest.raises(ValueError, match=r"dtype must be one of 'f32', .*, not 'q9'"):
        pyllm.load(wide, dtype="q9")


# ---- llama2.c --------------------------------------------------------------------------------------------------------


def test_llama2c_becomes_gguf(stories260k: Path, tok512: Path, tmp_path: Path) -> None:
    """The same model: the same logits to the bit, the same text, with the tokenizer inside."""
    target = tmp_path / "stories.gguf"
    pyllm.quantize(stories260k, target, "f32", tokenizer=tok512)
    arguments: dict[str, Any] = {"max_tokens": 40, "sampler": pyllm.Sampler.greedy()}
    with pyllm.load(stories260k, tokenizer=tok512) as a, pyllm.load(target, kv_dtype="f32") as b:
        assert np.array_equal(a.logits(IDS), b.logits(IDS))
        assert a.generate("Once upon a time", **arguments).text == b.generate("Once upon a time", **arguments).text
    assert logits(stories260k, dtype="q8_0").shape == (6, 512)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_gguf_becomes_llama2c(folder: Path, version: int) -> None:
    source = tiny_llama(folder / "small.gguf", F32, Shape())
    target = folder / "small.bin"
    seen: list[tuple[int, int]] = []
    result = pyllm.quantize(source, target, f"llama2c-v{version}", progress=lambda *done: seen.append(done))
    assert seen[-1] == (result.nbytes, result.nbytes)
    assert result.tensors.keys() == ({"F32", "LLAMA2C_Q8"} if version == 2 else {"F32"})
    with pyllm.load(source) as model:
        model.export(folder / "expected.bin", version=version)
    assert target.read_bytes() == (folder / "expected.bin").read_bytes()


def test_only_a_fitting_tokenizer_is_written(stories260k: Path, llama2_tokenizer_bin: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="needs a tokenizer of 512 pieces"):
        pyllm.quantize(stories260k, tmp_path / "a.gguf", "q8_0", tokenizer=llama2_tokenizer_bin)
    assert not list(tmp_path.iterdir())


# ---- nothing half-written --------------------------------------------------------------------------------------------


def test_a_failure_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    tensors = tinygguf.llama_tensors(WIDE, F32)
    type_id, shape, raw = tensors["blk.1.ffn_up.weight"]
    tensors["blk.1.ffn_up.weight"] = (type_id, shape, raw[:-4] + np.float32(np.nan).tobytes())
    source = tinygguf.write_gguf(tmp_path / "broken.gguf", tinygguf.llama_metadata(WIDE), tensors)
    target = tmp_path / "target.gguf"
    target.write_bytes(b"before")
    message = r"broken\.gguf: tensor 'blk\.1\.ffn_up\.weight': row 255 has weights that are not finite"
    with pytest.raises(ModelFormatError, match=message):
        pyllm.quantize(source, target, "q4_k")
    assert target.read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == ["broken.gguf", "target.gguf"]
    with pytest.raises(ModelFormatError, match=message.replace("weight'", "weight' cannot be quantised")):
        pyllm.load(source, dtype="q4_k")


def test_an_interruption_leaves_nothing(wide: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pyllm.quantize(wide, tmp_path / "a.gguf", "q8_0", progress=stop)
    assert not list(tmp_path.iterdir())


def test_progress_counts_the_bytes_of_the_source(wide: Path, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    pyllm.quantize(wide, folder / "p.gguf", "q8_0", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(spec.nbytes for spec in open_checkpoint(wide).tensors.values())


def test_a_file_may_replace_its_source(folder: Path) -> None:
    path = tiny_llama(folder / "self.gguf", F32, WIDE)
    before = path.stat().st_size
    pyllm.quantize(path, path, "q8_0")
    assert path.stat().st_size < before / 3
    assert logits(path).shape == (6, 300)


def test_links_are_followed(wide: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link, target = tmp_path / "link.gguf", tmp_path / "far" / "target.gguf"
    link.symlink_to(target)
    for _ in range(2):  # to a file that is not there yet, and to one that is
        pyllm.quantize(wide, link, "q8_0")
        assert link.is_symlink()
        assert logits(target).shape == (6, 300)
    assert os.listdir(tmp_path / "far") == ["target.gguf"]


def test_permissions_are_the_user_s(wide: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        pyllm.quantize(wide, tmp_path / "a.gguf", "q8_0")
    finally:
        os.umask(before)
    assert (tmp_path / "a.gguf").stat().st_mode & 0o777 == 0o640


def test_places_where_no_file_can_be_put(wide: Path, tmp_path: Path) -> None:
    """Before the work, not after it; and nothing that is no file is ever replaced."""
    seen: list[int] = []
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for target, error in ((tmp_path, IsADirectoryError), (tmp_path / "a" / "b", FileNotFoundError), (pipe, OSError)):
        with pytest.raises(error) as caught:
            pyllm.quantize(wide, target, "q8_0", progress=lambda done, total: seen.append(done))
        assert str(target) in str(caught.value)
    assert (seen, os.listdir(tmp_path), pipe.is_fifo()) == ([], ["pipe"], True)


FULL_DISK = """
import os, resource, signal, sys, pyllm
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does: then writing fails
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    pyllm.quantize(sys.argv[1], sys.argv[2], "q8_0", threads=1)
except OSError as error:
    print(error.strerror)
"""


def test_a_full_disk_leaves_nothing(wide: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.gguf"
    command = [sys.executable, "-c", FULL_DISK, str(wide), str(target)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (out.stdout, os.listdir(tmp_path)) == ("File too large\n", [])


def test_a_model_in_several_files(folder: Path, wide: Path, tmp_path: Path) -> None:
    """Any part stands for all; with "copy" they become one file of the same tensors."""
    metadata, tensors = tinygguf.llama_metadata(WIDE), list(tinygguf.llama_tensors(WIDE, F32, tied=False).items())
    parts = [tmp_path / f"x-{i + 1:05d}-of-00003.gguf" for i in range(3)]
    for i, part in enumerate(parts):
        share = {"split.no": i, "split.count": 3, "split.tensors.count": len(tensors)}
        of_this = dict(tensors[len(tensors) * i // 3 : len(tensors) * (i + 1) // 3])
        tinygguf.write_gguf(part, (metadata if i == 0 else {}) | share, of_this)
    whole = tinygguf.write_gguf(tmp_path / "whole.gguf", metadata, dict(tensors))
    for part, type_ in zip(parts, ("copy", "q4_k_m", "q8_0"), strict=True):
        target = tmp_path / f"{type_}.gguf"
        pyllm.quantize(part, target, type_)
        pyllm.quantize(whole, folder / "expected.gguf", type_)
        assert target.read_bytes() == (folder / "expected.gguf").read_bytes()
    for target in (parts[1], tmp_path / "y-00001-of-00002.gguf"):
        with pytest.raises(ValueError, match="the name of one part of several"):
            pyllm.quantize(parts[0], target, "q8_0")


def test_copy_keeps_types(folder: Path) -> None:
    source = tiny_llama(folder / "types.gguf", Q4_K, WIDE)
    pyllm.quantize(source, folder / "types-copy.gguf", "copy")
    assert types_in(folder / "types-copy.gguf") == types_in(source)
    assert np.array_equal(logits(folder / "types-copy.gguf"), logits(source))
    checkpoint = open_checkpoint(folder / "types-copy.gguf")
    assert checkpoint.metadata["general.file_type"] == 14


@pytest.mark.parametrize("type_", ["q8_0", "copy"])
def test_hostile_files_give_a_file_or_an_error(tmp_path: Path, type_: str) -> None:
    """Damaged anywhere in the header: what was written can be read, and an error leaves nothing."""
    outcomes = set()
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    for damaged in fuzz_formats.mutations(fuzz_formats.seeds()["gguf"], 150, seed=3):
        source.write_bytes(damaged)
        try:
            pyllm.quantize(source, target, type_, threads=1)
        except PyllmError as error:
            outcomes.add(type(error).__name__)
            assert os.listdir(tmp_path) == ["source.gguf"]
        else:
            outcomes.add("file")
            assert open_checkpoint(target).tensors.keys() == open_checkpoint(source).tensors.keys()
            target.unlink()
    assert {"file", "ModelFormatError"} <= outcomes


def test_errors(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"type must be one of f32, .*, llama2c-v2, not 'q9'"):
        pyllm.quantize(wide, tmp_path / "a", "q9")
    with pytest.raises(ValueError, match="a tokenizer of its own"):
        pyllm.quantize(wide, tmp_path / "a", "q8_0", tokenizer="x")
    with pytest.raises(ValueError, match="holds no tokenizer: there is nothing to do"):
        pyllm.quantize(wide, tmp_path / "a", "llama2c-v0", tokenizer="x")
    unreadable = {"blk.0.a.weight": (9, (2, 32), bytes(72))}
    source = tinygguf.write_gguf(tmp_path / "u.gguf", {"general.architecture": "other"}, unreadable)
    with pytest.raises(UnsupportedModelError, match="weight type Q8_1, which cannot be read"):
        pyllm.quantize(source, tmp_path / "a", "q8_0")
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(PyllmError):
        pyllm.quantize(tmp_path / "no.gguf", tmp_path / "a", "q8_0")
    assert not (tmp_path / "a").exists()


def test_command_line(wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.gguf"
    assert cli.main(["quantize", str(wide), str(target), "--type", "q8_0", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["path"] == str(target)
    assert facts["nbytes"] == target.stat().st_size
    assert facts["tensors"]["Q8_0"] == 16
    assert cli.main(["quantize", str(wide), str(target), "--type", "q9"]) == 1
    assert "type must be one of" in capsys.readouterr().err
    assert "q8_0" in TYPES
