"""benchmarks/peers without any peer: specifications, programs that time themselves, converted folders; and shapes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tinygguf import Q4_0, tiny_llama

import pyllm
from pyllm.measuring.peers import Pyllm, Setup

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def peers() -> ModuleType:
    return importlib.import_module("peers")


def program(path: Path, out: str = "", errors: str = "", status: int = 0) -> Path:
    """A program that writes its arguments beside itself, says its piece and ends."""
    (path.parent / "out").write_text(out)
    (path.parent / "errors").write_text(errors)
    folder = path.parent
    path.write_text(
        f'#!/bin/sh\necho "$OMP_NUM_THREADS $*" > {folder}/called\n'
        f"cat {folder}/out; cat {folder}/errors >&2; exit {status}\n"
    )
    path.chmod(0o755)
    return path


def test_no_engine(peers: ModuleType, tmp_path: Path) -> None:
    setup = Setup(tmp_path / "m.gguf", 1, 8)
    with pytest.raises(ValueError, match=r"'llama' is no engine; there are pyllm:high, .*, run.c=PATH"):
        peers.open_engine("llama", setup)
    with pytest.raises(FileNotFoundError, match="nowhere is no program"):
        peers.open_engine(f"run.c={tmp_path}/nowhere", setup)


def test_llama_bench(peers: ModuleType, tmp_path: Path) -> None:
    rows = [{"n_prompt": 0, "n_gen": 128, "samples_ns": [500_000_000]}]
    path = program(tmp_path / "llama-bench", out="build: 1\n" + json.dumps(rows))
    engine = peers.open_engine(f"llama-bench={path},-fa,1", Setup(tmp_path / "m.gguf", 2, 8))
    taken = engine.decode(list(range(128)), before=list(range(16)))
    assert (taken.tokens, taken.seconds) == (128, 0.5)
    called = (tmp_path / "called").read_text().split()
    assert called == f"-m {tmp_path}/m.gguf -t 2 -r 1 -o json -p 0 -n 128 -d 16 -fa 1".split()
    assert engine.version == "llama-bench -fa 1"
    with pytest.raises(NotImplementedError):
        engine.logits([1])


def test_run_c(peers: ModuleType, tmp_path: Path) -> None:
    path = program(tmp_path / "run", out="Once upon a time\n", errors="achieved tok/s: 256.000000\n")
    engine = peers.open_engine(f"run.c={path}", Setup(tmp_path / "m.bin", 2, 8, tokenizer=tmp_path / "t.bin"))
    taken = engine.text("Once", 128)
    assert (taken.tokens, taken.seconds) == (128, 0.5)
    assert (tmp_path / "called").read_text().strip() == f"2 {tmp_path}/m.bin -t 0 -n 128 -z {tmp_path}/t.bin -i Once"


@pytest.mark.parametrize("errors", ["", "achieved tok/s: inf\n", "achieved tok/s: 0.000000\n"])
def test_a_program_that_tells_no_rate(peers: ModuleType, tmp_path: Path, errors: str) -> None:
    path = program(tmp_path / "run", errors=errors)
    engine = peers.open_engine(f"run.c={path}", Setup(tmp_path / "m.bin", 2, 8, tokenizer=tmp_path / "t.bin"))
    with pytest.raises(RuntimeError, match="told no rate"):
        engine.text("Once", 128)


def test_a_program_that_fails(peers: ModuleType, tmp_path: Path) -> None:
    path = program(tmp_path / "llama-bench", errors="loading\nno such model\n", status=3)
    engine = peers.open_engine(f"llama-bench={path}", Setup(tmp_path / "m.gguf", 2, 8))
    with pytest.raises(RuntimeError, match="status 3: no such model"):
        engine.prefill([1, 2])


def test_a_converted_folder_must_be_of_this_model(tmp_path: Path) -> None:
    converted = importlib.import_module("peers.converted")
    sha256 = importlib.import_module("conditions").sha256
    model = tmp_path / "m.gguf"
    model.write_bytes(b"weights")
    setup = Setup(model, 1, 8, converted=tmp_path)
    with pytest.raises(FileNotFoundError, match="must be converted first"):
        converted.converted(Setup(model, 1, 8), "openvino:int8")
    with pytest.raises(FileNotFoundError, match="openvino-int8 is not there"):
        converted.converted(setup, "openvino:int8")

    convert = importlib.import_module("convert")
    made = []
    folder = convert.make(tmp_path / "openvino-int8", made.append, sha256(model))
    assert converted.converted(setup, "openvino:int8") == folder == tmp_path / "openvino-int8"
    convert.make(tmp_path / "openvino-int8", made.append, sha256(model))
    assert len(made) == 1  # what is there already is kept
    model.write_bytes(b"other weights")
    with pytest.raises(FileNotFoundError, match="was made from another model"):
        converted.converted(setup, "openvino:int8")
    convert.make(tmp_path / "openvino-int8", made.append, sha256(model))
    assert converted.converted(setup, "openvino:int8") == folder


def test_a_conversion_that_fails_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    convert = importlib.import_module("convert")

    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        convert.make(tmp_path / "hf", fail, "0")
    assert not (tmp_path / "hf").exists()


def test_decoding_goes_on_from_the_same_context(tmp_path: Path) -> None:
    ids, before = [3, 1, 4], [1, 5, 9, 2]
    engine = Pyllm(Setup(tiny_llama(tmp_path / "tiny.gguf", Q4_0), 1, 16), "high")
    expected = engine.logits([*before, *ids])[-1]
    for known in (before, before, [7, *before]):
        assert engine.decode(ids, known).tokens == 3
        session = engine._session
        assert session.tokens == [*known, *ids]
        assert np.array_equal(session.fork().eval([0]), engine.logits([*known, *ids, 0])[-1])
    assert np.array_equal(engine.logits([*before, *ids])[-1], expected)
    engine.close()


def test_a_batch_is_read_anew_each_time_and_ends_nowhere_early(tmp_path: Path) -> None:
    engine = Pyllm(Setup(tiny_llama(tmp_path / "tiny.gguf", Q4_0), 1, 64), "high")
    prompts = [list(range(i, i + 40)) for i in range(3)]
    assert [engine.batch(prompts, 5).tokens for _ in range(2)] == [15, 15]
    generations = engine.model.generate_batch(prompts, max_tokens=1)
    assert [len(g.tokens) and g.stats.cached_tokens for g in generations] == [0, 0, 0]
    engine.close()


def test_shapes(tmp_path: Path) -> None:
    shapes = importlib.import_module("shapes")
    shapes.main(["260k", str(tmp_path / "m.bin")])
    assert (tmp_path / "m.bin").stat().st_size == 1_056_540  # that of stories260K
    with pyllm.load(tmp_path / "m.bin", tokenizer=tmp_path / "m.tokenizer.bin", threads=1) as model:
        assert (model.config.dim, model.config.n_kv_heads, model.config.vocab_size) == (64, 4, 512)
        assert np.isfinite(model.logits([1, 2, 3])).all()
    shapes.main(["260k", str(tmp_path / "m.gguf"), "--type", "q8_0"])
    with pyllm.load(tmp_path / "m.gguf", threads=1) as model:
        assert len(model.generate("w3 w4", max_tokens=3).tokens) <= 3
        assert model.tokenizer is not None
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_untied_shape_is_tinyllamas() -> None:
    shapes = importlib.import_module("shapes")
    weights = sum(n for n, _ in shapes.SHAPES["1.1b"].sizes())
    tables = 8192 * 64
    assert weights - tables == 1_100_048_384  # as TinyLlama-1.1B counts its parameters
