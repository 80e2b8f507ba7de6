"""GGUF parsing: every metadata type, tensor placement, the errors and their words, and the time it takes."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinygguf
from tinygguf import ARRAY, FLOAT32, FLOAT64, INT8, STRING, UINT8, UINT32, Typed

from pyllm.errors import ClosedError, ModelFormatError, PyllmError, UnsupportedModelError
from pyllm.formats import Checkpoint, open_checkpoint, parse
from pyllm.formats.gguf import StringArray
from pyllm.formats.weight_types import WEIGHT_TYPES

ONE = {"w": (tinygguf.F32, (2, 4), bytes(32))}


def parsed(data: bytes) -> Checkpoint:
    return parse(Path("tiny.gguf"), memoryview(data))


def metadata_of(metadata: dict[str, Any]) -> dict[str, Any]:
    return dict(parsed(tinygguf.gguf_bytes(metadata, {})).metadata)


def refusal(data: bytes) -> str:
    with pytest.raises(ModelFormatError, match=r"tiny\.gguf") as caught:
        parsed(data)
    return str(caught.value)


# ---- metadata -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        *((0, 200), (1, -100), (2, 60000), (3, -30000), (4, 2**32 - 1), (5, -(2**31)), (6, 0.5), (7, True), (7, False)),
        *((8, "grüße ▁"), (8, ""), (10, 2**64 - 1), (11, -(2**63)), (12, 1e300)),
    ],
)
def test_every_scalar_type(type_: int, value: object) -> None:
    got = metadata_of({"k": Typed(type_, value)})["k"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("type_", [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12])
def test_every_array_type(type_: int) -> None:
    got = metadata_of({"k": Typed(ARRAY, (type_, [1, 0, 1]))})["k"]
    assert isinstance(got, np.ndarray)
    assert got.tolist() == [1, 0, 1]
    assert (got.dtype == np.bool_) == (type_ == 7)


def test_string_arrays_read_like_lists() -> None:
    got = metadata_of({"k": ["a", "", "▁b"]})["k"]
    assert isinstance(got, StringArray)
    assert list(got) == ["a", "", "▁b"] == got[:]
    assert (len(got), got[-1], got.raw(2)) == (3, "▁b", "▁b".encode())
    assert got == ["a", "", "▁b"]
    assert "a" in got
    with pytest.raises(IndexError):
        got[3]


def test_bytes_that_are_no_text_are_found_when_read() -> None:
    got = metadata_of({"tokens": ["a", b"\xff\xfe"]})["tokens"]
    assert got.raw(1) == b"\xff\xfe"
    for read in (lambda: got[1], lambda: list(got)):
        with pytest.raises(ModelFormatError, match=r"tiny.gguf: tokens\[1\] is not UTF-8"):
            read()


def test_nested_arrays() -> None:
    inner = [(INT8, [1, -2]), (STRING, ["x"]), (ARRAY, [(UINT8, [])])]
    got = metadata_of({"k": Typed(ARRAY, (ARRAY, inner))})["k"]
    assert [list(part) for part in got[:2]] == [[1, -2], ["x"]]
    assert got[2][0].tolist() == []
    deep: tuple[int, list[Any]] = (UINT8, [1])
    for _ in range(10):
        deep = (ARRAY, [deep])
    with pytest.raises(ModelFormatError, match="more than 4 deep"):
        metadata_of({"k": Typed(ARRAY, deep)})


def test_metadata_outlives_the_file(tmp_path: Path) -> None:
    path = tinygguf.write_gguf(tmp_path / "a.gguf", {"n": [1, 2], "s": ["x"]}, ONE)
    checkpoint = open_checkpoint(path)
    checkpoint.close()
    assert checkpoint.metadata["n"].tolist() == [1, 2]
    assert list(checkpoint.metadata["s"]) == ["x"]
    with pytest.raises(ClosedError):
        checkpoint.view(checkpoint.tensors["w"])


@pytest.mark.parametrize(("element", "size"), [(STRING, 8), (ARRAY, 12)])
def test_millions_of_empty_things_are_refused_at_once(element: int, size: int) -> None:
    """They fit into the file, so only a limit keeps a reader from making an object of each."""
    count = (1 << 22) + 1
    key = tinygguf.pack_string("k") + struct.pack("<IIQ", ARRAY, element, count)
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + bytes(count * size)
    assert fastest(lambda: refusal(data), 1) < 0.5
    assert f"{count} {'strings' if element == STRING else 'arrays'} in k at" in refusal(data)


# ---- tensors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_tensors_are_found_where_they_lie(tmp_path: Path, version: int, alignment: int) -> None:
    rng = np.random.default_rng(0)
    tensors: dict[str, tinygguf.Tensor] = {"v": (tinygguf.F32, (5,), rng.bytes(20))}
    for type_id in tinygguf.BLOCKS:
        tensors[f"w{type_id}"] = (type_id, (3, 512), tinygguf.random_weights(rng, type_id, 3, 512))
    path = tinygguf.write_gguf(tmp_path / "a.gguf", {"general.alignment": alignment}, tensors, version=version)
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "gguf"
    assert checkpoint.notes == {"version": version, "alignment": alignment}
    assert list(checkpoint.tensors) == list(tensors)
    for name, (type_id, shape, raw) in tensors.items():
        spec = checkpoint.tensors[name]
        assert (spec.type_id, spec.shape, spec.offset % alignment) == (type_id, shape, 0)
        assert bytes(checkpoint.view(spec)) == raw


@pytest.mark.parametrize("row", WEIGHT_TYPES.values(), ids=lambda row: row.name)
def test_every_known_type_has_its_size(row: Any) -> None:
    cols, nbytes = 2 * row.block_elements, 2 * row.block_bytes * 3
    tensors = {"w": (row.id, (3, cols), bytes(nbytes))}
    spec = parsed(tinygguf.gguf_bytes({}, tensors)).tensors["w"]
    assert spec.nbytes == nbytes
    with pytest.raises(ModelFormatError, match="'w' lies at"):
        parsed(tinygguf.gguf_bytes({}, tensors)[:-1])


def test_a_vocabulary_without_tensors_is_a_checkpoint() -> None:
    checkpoint = parsed(tinygguf.gguf_bytes(tinygguf.tiny_vocabulary(300), {}))
    assert len(checkpoint.metadata["tokenizer.ggml.tokens"]) == 300
    assert checkpoint.tensors == {}


# ---- damage ---------------------------------------------------------------------------------------------------------


def test_versions_and_byte_order() -> None:
    for version, message in ((1, "GGUF version 1"), (4, "GGUF version 4"), (3 << 24, "big-endian GGUF")):
        with pytest.raises(UnsupportedModelError, match=message):
            parsed(tinygguf.gguf_bytes({}, ONE, version=version))


def test_counts_are_held_against_the_file() -> None:
    data = bytearray(tinygguf.gguf_bytes({"k": 1}, ONE))
    struct.pack_into("<Q", data, 8, 2**63)
    assert f"{2**63} tensors at 24, but there is room for" in refusal(bytes(data))
    struct.pack_into("<QQ", data, 8, 1, 2**64 - 1)
    assert f"{2**64 - 1} metadata keys at 24, but there is room for" in refusal(bytes(data))


@pytest.mark.parametrize("element", [STRING, ARRAY, FLOAT64])
def test_array_lengths_are_held_against_the_file(element: int) -> None:
    key = tinygguf.pack_string("k") + struct.pack("<IIQ", ARRAY, element, 2**61)
    assert str(2**61) in refusal(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + bytes(100))


def test_a_string_longer_than_the_file() -> None:
    key = tinygguf.pack_string("k") + struct.pack("<IIQ", ARRAY, STRING, 3) + tinygguf.pack_string("ok")
    key += struct.pack("<Q", 2**64 - 1) + bytes(64)
    message = refusal(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key)
    assert "k, an array of 3 strings, runs past the end of the file" in message
    assert "near string 2" in message


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"k": Typed(tinygguf.BOOL, 2)}, "k is a bool with the value 2"),
        ({"k": Typed(ARRAY, (tinygguf.BOOL, [0, 3]))}, "k is a bool with the value 3"),
        ({"": 1}, "metadata key 0 is empty"),
        ({"k": b"\xff"}, "k is not UTF-8"),
    ],
)
def test_bad_values_are_named(metadata: dict[str, Any], message: str) -> None:
    assert message in refusal(tinygguf.gguf_bytes(metadata, {}))


def test_unknown_value_types_are_named() -> None:
    for type_ in (13, 2**32 - 1):
        key = tinygguf.pack_string("k") + struct.pack("<I", type_)
        assert f"k has the unknown type {type_}" in refusal(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + bytes(8))


@pytest.mark.parametrize("alignment", [0, 1, 4, 24, 1 << 17, "32", -32, 32.0])
def test_odd_alignments(alignment: object) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + tinygguf.pack_metadata({"general.alignment": alignment})
    assert "general.alignment is" in refusal(head)


def test_duplicates() -> None:
    pairs = tinygguf.pack_metadata({"k": 1}) * 2
    assert "'k' occurs twice" in refusal(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + pairs)
    data = tinygguf.gguf_bytes({}, {"a": ONE["w"], "b": ONE["w"]})
    assert "'a' occurs twice" in refusal(data.replace(tinygguf.pack_string("b"), tinygguf.pack_string("a")))


def tensor_file(name: str, dims: tuple[int, ...], type_id: int, offset: int, data: int = 64) -> bytes:
    """A file with one tensor described exactly so, dims in the file's order."""
    info = tinygguf.pack_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + info
    return head + bytes(-len(head) % 32 + data)


@pytest.mark.parametrize(
    ("name", "dims", "type_id", "offset", "message"),
    [
        ("w", (), 0, 0, "'w' has 0 dimensions, expected 1 to 4"),
        ("w", (1, 1, 1, 1, 1), 0, 0, "'w' has 5 dimensions"),
        ("w", (4, 0), 0, 0, r"'w' has the impossible shape (0, 4)"),
        ("w", (2**32, 2**31), 0, 0, "'w' has the impossible shape"),
        ("w", (2**64 - 1,), 0, 0, "'w' has the impossible shape"),
        ("w", (31,), 2, 0, "'w' has rows of 31 weights, expected a multiple of 32, the block size of Q4_0"),
        ("w", (4,), 0, 16, "'w' lies at 16, not on a multiple of 32"),
        ("w", (4,), 0, 2**63, "'w' lies at"),
        ("w", (2**40,), 0, 0, "but the file ends at"),
        ("w" * 65, (4,), 0, 0, "expected 1 to 64 bytes"),
        ("", (4,), 0, 0, "expected 1 to 64 bytes"),
    ],
)
def test_impossible_tensors_are_named(
    name: str, dims: tuple[int, ...], type_id: int, offset: int, message: str
) -> None:
    assert message in refusal(tensor_file(name, dims, type_id, offset))


@pytest.mark.parametrize(
    ("type_id", "message"), [(77, "'w' has weight type number 77"), (31, "'w' has type Q4_0_4_4"), (2**32 - 1, "'w'")]
)
def test_unknown_weight_types_are_named(type_id: int, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"tiny.gguf: tensor {message}"):
        parsed(tensor_file("w", (256,), type_id, 0))


def test_overlapping_tensors() -> None:
    infos = [tinygguf.pack_string(name) + struct.pack("<IQIQ", 1, 16, 0, at) for name, at in (("b", 32), ("a", 0))]
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + b"".join(infos)
    assert "tensors 'a' and 'b' overlap" in refusal(head + bytes(-len(head) % 32 + 128))


# ---- files that are something else ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", ModelFormatError, "the file is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", ModelFormatError, "a web page"),
        (b"\n  <html lang=en>", ModelFormatError, "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", ModelFormatError, "a git-lfs pointer"),
        (b"PK\x03\x04" + bytes(60), UnsupportedModelError, "a zip archive or a PyTorch checkpoint"),
        (struct.pack("<Q", 40) + b'{"w":{"dtype":"F32"}}' + bytes(40), UnsupportedModelError, "a safetensors file"),
        (b"\x1f\x8b\x08" + bytes(60), ModelFormatError, "a gzip archive"),
        (b'{"model_type": "llama"}', ModelFormatError, "a JSON document"),
        (b"lmgg" + bytes(60), UnsupportedModelError, "before GGUF"),
        (b"FUGG" + bytes(60), UnsupportedModelError, "big-endian GGUF"),
        (b"ak42" + bytes(300), UnsupportedModelError, "big-endian llama2.c"),
        (bytes(4096), ModelFormatError, "nothing but zeros"),
        ("Es war einmal ein Drache, der hieß Grüß-Gott.".encode(), ModelFormatError, "a text file"),
        (b"\x00\x01\x02\x03" * 64, ModelFormatError, "no model file"),
        (b"\x80\x81", ModelFormatError, "28 bytes of header were expected, but the file has 2 bytes"),
    ],
)
def test_other_files_are_named(tmp_path: Path, data: bytes, error: type[PyllmError], message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


def test_tokenizers_given_as_models(tok512: Path, llama2_tokenizer_model: Path) -> None:
    for path, message in ((tok512, "llama2.c tokenizer"), (llama2_tokenizer_model, "SentencePiece tokenizer")):
        with pytest.raises(ModelFormatError, match=message):
            open_checkpoint(path)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_checkpoint(tmp_path / "absent.gguf")
    with pytest.raises(ModelFormatError, match="a folder, not a model file"):
        open_checkpoint(tmp_path)
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ModelFormatError, match=r"perhaps 'a\.gguf' in it"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelFormatError, match=r"config\.json is there, but no \.safetensors file"):
        open_checkpoint(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFormatError, match="not a regular file"):
        open_checkpoint(tmp_path / "pipe")


# ---- time -----------------------------------------------------------------------------------------------------------


def fastest(work: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of some runs: what the work takes, not what the machine was busy with."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def vocabulary(size: int, merges: int) -> bytes:
    pieces = [f"\u0120piece{i}" for i in range(size)]
    return tinygguf.gguf_bytes(
        {
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.scores": Typed(ARRAY, (FLOAT32, [0.0] * size)),
            "tokenizer.ggml.token_type": Typed(ARRAY, (UINT32, [1] * size)),
            "tokenizer.ggml.merges": [f"\u0120a{i} b{i}" for i in range(merges)],
        },
        {},
    )


@pytest.mark.parametrize(("size", "merges", "limit"), [(49152, 48900, 0.1), (262144, 580000, 0.5)])
def test_vocabularies_parse_quickly(size: int, merges: int, limit: float) -> None:
    data = vocabulary(size, merges)
    assert fastest(lambda: parsed(data)) < limit


def test_real_file_parses_quickly(smollm2: Path) -> None:
    assert fastest(lambda: open_checkpoint(smollm2).close()) < 0.1
    metadata = open_checkpoint(smollm2).metadata
    assert len(metadata["tokenizer.ggml.tokens"]) == 49152
    assert len(metadata["tokenizer.ggml.merges"]) == 48900
    assert list(metadata["tokenizer.ggml.tokens"])[1] == "<|im_start|>"


NO_ROOM = """
import resource, sys
from pyllm.errors import OutOfMemoryError
from pyllm.formats import open_checkpoint
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**27,) * 2)
try:
    open_checkpoint(sys.argv[1])
except OutOfMemoryError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and a limit on the address space")
def test_no_address_space_left(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    with open(path, "wb") as file:
        file.truncate(2**30)  # a hole: it takes no room on the disk
    out = subprocess.run([sys.executable, "-c", NO_ROOM, path], capture_output=True, text=True, check=True)
    assert out.stdout == f"{path}: no address space left to map its {2**30} bytes\n"
