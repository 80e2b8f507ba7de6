"""Models in several GGUF files: joined from any of them, and refused where they do not belong together."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinygguf
from tinygguf import Q8_0, Shape, Tensor

import pyllm
from pyllm.errors import ModelFormatError, PyllmError
from pyllm.formats import files_of, open_checkpoint

SHAPE = Shape()
METADATA = tinygguf.llama_metadata(SHAPE) | tinygguf.tiny_vocabulary(SHAPE.vocab)
TENSORS = tinygguf.llama_tensors(SHAPE, Q8_0)


def splits(count: int, number: int, tensors: int = len(TENSORS)) -> dict[str, Any]:
    typed = tinygguf.Typed
    return {
        "split.no": typed(tinygguf.UINT16, number),
        "split.count": typed(tinygguf.UINT16, count),
        "split.tensors.count": typed(tinygguf.INT32, tensors),
    }


def write(folder: Path, count: int = 3, first_is_empty: bool = False) -> list[Path]:
    """The tiny model in `count` files, as llama.cpp's gguf-split writes them."""
    paths = [folder / f"tiny-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    holders = count - 1 if first_is_empty else count
    shares: list[dict[str, Tensor]] = [{} for _ in paths]
    for i, (name, tensor) in enumerate(TENSORS.items()):
        shares[i * holders // len(TENSORS) + first_is_empty][name] = tensor
    for i, (path, share) in enumerate(zip(paths, shares, strict=True)):
        tinygguf.write_gguf(path, (METADATA if i == 0 else {}) | splits(count, i), share)
    return paths


@pytest.mark.parametrize("first_is_empty", [False, True])
def test_any_part_stands_for_all(tmp_path: Path, first_is_empty: bool) -> None:
    whole = tinygguf.write_gguf(tmp_path / "whole.gguf", METADATA, TENSORS)
    paths = write(tmp_path, 3, first_is_empty)
    with pyllm.load(whole) as model:
        expected = model.logits([5, 6, 7])
    for path in paths:
        with pyllm.load(path) as model:
            assert np.array_equal(model.logits([5, 6, 7]), expected)
            assert model.path == paths[0]
            assert model.info()["parts"] == 3


def test_tensors_come_from_their_own_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path)[1])
    assert {name: bytes(checkpoint.view(spec)) for name, spec in checkpoint.tensors.items()} == {
        name: raw for name, (_, _, raw) in TENSORS.items()
    }
    assert {spec.part for spec in checkpoint.tensors.values()} == {0, 1, 2}
    assert not any(key.startswith("split.") for key in checkpoint.metadata)
    checkpoint.close()


def test_a_change_of_any_part_is_noticed(tmp_path: Path) -> None:
    paths = write(tmp_path)
    with pyllm.load(paths[0]) as model:
        pickled = pickle.dumps(model)
    pickle.loads(pickled).close()
    with open(paths[2], "ab") as file:
        file.write(b"\0")
    with pytest.raises(PyllmError, match="it has changed since"):
        pickle.loads(pickled)


def test_names() -> None:
    assert files_of(Path("a/x-00002-of-00002.gguf")) == [Path(f"a/x-0000{i}-of-00002.gguf") for i in (1, 2)]
    for name in ("x.gguf", "x-00000-of-00002.gguf", "x-00003-of-00002.gguf", "x-1-of-2.gguf", "x-00001-of-00002.bin"):
        assert files_of(Path(name)) == [Path(name)]


def refusal(path: Path) -> str:
    with pytest.raises(ModelFormatError) as caught:
        open_checkpoint(path)
    return str(caught.value)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = write(tmp_path)
    paths[1].unlink()
    assert "tiny-00002-of-00003.gguf is missing: the model lies in 3 files" in refusal(paths[0])


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    paths = write(tmp_path)
    good = [path.read_bytes() for path in paths]
    paths[1].write_bytes(good[2])
    assert "split.no and split.count are 2 and 3, expected 1 and 3 from its name" in refusal(paths[0])
    tinygguf.write_gguf(paths[1], splits(3, 1), {"output_norm.weight": TENSORS["output_norm.weight"]})
    assert "is in another part" in refusal(paths[0])
    tinygguf.write_gguf(paths[1], splits(3, 1), {})
    assert f"tensors, not {len(TENSORS)}" in refusal(paths[0])
    paths[1].write_bytes(good[1][:-1])
    assert "tiny-00002-of-00003.gguf" in refusal(paths[0])
    paths[1].write_bytes((Path(__file__).parent / "golden" / "smollm2_tokens.json").read_bytes())
    assert "tiny-00002-of-00003.gguf" in refusal(paths[0])


def test_a_part_under_another_name_is_not_a_model(tmp_path: Path) -> None:
    alone = write(tmp_path)[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(PyllmError, match=r"NAME-00001-of-0000N\.gguf"):
        pyllm.load(alone)
