"""Tiny Hugging Face folders: a safetensors writer, and weights made by integer arithmetic alone.

The weights of a tensor follow from its name and shape, by the same numbers on every machine and with every version of
every library, so golden data needs no weights beside it.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I64": "<i8", "F64": "<f8"}


def integers(name: str, count: int) -> Array:
    """`count` pseudo-random integers in [-128, 127] (splitmix64, seeded by the name), int64."""
    with np.errstate(over="ignore"):
        step = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = step + np.uint64(zlib.crc32(name.encode())) * np.uint64(0xD1B54A32D192ED03)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    top: Array = ((z ^ z >> np.uint64(31)) >> np.uint64(56)).astype(np.int64) - 128
    return top


def weights(name: str, shape: tuple[int, ...], centre: float = 1.0) -> Array:
    """float32 weights that bfloat16 can hold: norms around a centre, biases around zero, matrices of a gain."""
    units = integers(name, math.prod(shape)).reshape(shape).astype(np.float32) / np.float32(128)
    if name.endswith("weight") and len(shape) == 1:
        return np.round((centre + 0.5 * units) * 128).astype(np.float32) / np.float32(128)
    if "bias" in name or len(shape) == 1:
        return units * np.float32(0.5)
    if any(part in name for part in ("embed_", "wte", "wpe", "word_emb")) and "embed_out" not in name:
        return units * np.float32(0.25)
    inputs = shape[0] if re.search(r"c_attn|c_proj|c_fc", name) else shape[-1]
    gain = 2.4 if "lm_head" in name or "embed_out" in name else 1.8
    scaled = units * np.float32(gain / math.sqrt(inputs))
    return (scaled.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def centre(config: Mapping[str, Any]) -> float:
    """What norms' weights lie around: Gemma adds one."""
    return 0.0 if config["model_type"].startswith("gemma") else 1.0


def expand(table: Mapping[str, list[Any]]) -> dict[str, tuple[tuple[int, ...], str | None]]:
    """Every tensor with its shape and GGUF's name, from a table whose "layers.{3}.w" stands for layers 0, 1 and 2."""
    tensors: dict[str, tuple[tuple[int, ...], str | None]] = {}
    for template, (shape, *name) in table.items():
        counts = [range(int(n)) for n in re.findall(r"\{(\d+)\}", template)]
        for numbers in itertools.product(*counts):
            key = re.sub(r"\{\d+\}", "{}", template).format(*numbers)
            number = re.search(r"(?<=\.)\d+(?=\.)", key)
            renamed = name[0].format(number[0] if number else 0) if name and name[0] else None
            tensors[key] = tuple(shape), renamed
    return tensors


def encode(dtype: str, values: Array) -> bytes:
    """Values as a file holds them; BF16 ones must be exact."""
    if dtype != "BF16":
        return values.astype(DTYPES[dtype]).tobytes()
    words = np.ascontiguousarray(values, "<f4").view("<u4")
    assert not (words & 0xFFFF).any()
    return (words >> 16).astype("<u2").tobytes()


def safetensors_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], **changes: Any) -> bytes:
    """A whole safetensors file of (type, shape, data); `changes` replace entries of the header."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header | changes).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + data


def write_folder(
    path: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16", files: int = 1
) -> Path:
    """A folder with a config and the weights that belong to the names, in so many files."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    middle = centre(config)
    tensors = {name: (dtype, shape, encode(dtype, weights(name, shape, middle))) for name, shape in shapes.items()}
    if files == 1:
        (path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return path
    placed: dict[str, str] = {}
    for i in range(files):
        file = f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        part = dict(list(tensors.items())[i::files])
        placed |= dict.fromkeys(part, file)
        (path / file).write_bytes(safetensors_bytes(part))
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return path


def write_adapter(path: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A folder with a low-rank adapter as the `peft` library writes it, of fp32 weights that belong to the names."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {
        name: ("F32", tuple(shape), encode("F32", weights(name, tuple(shape)))) for name, shape in shapes.items()
    }
    (path / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    return path


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a safetensors file."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
