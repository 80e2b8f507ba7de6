"""Hugging Face folders: `config.json`, and weights in one or several `.safetensors` files.

The metadata of such a checkpoint is the config itself. The tokenizer's files are the tokenizers' business.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats import safetensors
from pyllm.formats.checkpoint import Buffer, Checkpoint, TensorSpec

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
MAX_JSON_BYTES = 64 << 20
MAX_FILES = 10_000

FORMAT = "huggingface"


def is_folder(path: Path) -> bool:
    """Whether this is a folder that holds a model as the `transformers` library writes it."""
    return path.is_dir() and (path / CONFIG).is_file()


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON object, or list, from a file of a folder. Raises `ModelFormatError`."""
    size = path.stat().st_size
    if not path.is_file() or size > MAX_JSON_BYTES:
        raise ModelFormatError(f"{path}: {size} bytes, expected a file of at most {MAX_JSON_BYTES}")
    return safetensors.read_json(path, path.read_bytes(), kind)


def files_of(path: Path) -> list[Path]:
    """The files that make up the model: the config, the index if there is one, and the weights."""
    index = path / INDEX
    weights = _weights(path)
    return [path / CONFIG, *([index] if index.is_file() else []), *weights]


def open_folder(path: Path, map_file: Callable[[Path], mmap.mmap]) -> Checkpoint:
    """Maps the weights and parses their headers. Raises as `open_checkpoint` does."""
    config: dict[str, Any] = read_json(path / CONFIG)
    placed = _weight_map(path)
    files: list[tuple[Path, mmap.mmap]] = []
    try:
        for file in _weights(path):
            files.append((file, _mapped(file, map_file)))
        return assemble(path, config, files, placed)
    except BaseException:
        for _, buffer in files:
            buffer.close()
        raise


def assemble(
    path: Path, config: dict[str, Any], files: Sequence[tuple[Path, Buffer]], placed: Mapping[str, str]
) -> Checkpoint:
    """One checkpoint of a config and mapped files of weights; `placed` is the index, if there is one."""
    tensors: dict[str, TensorSpec] = {}
    for part, (file, buffer) in enumerate(files):
        for name, spec in safetensors.parse(file, buffer, part).items():
            if placed.get(name, file.name) != file.name:
                continue  # the index says which of several files counts
            if name in tensors:
                raise ModelFormatError(f"{file}: tensor {name[:80]!r} is in another file of the model, too")
            tensors[name] = spec
    missing = placed.keys() - tensors.keys()
    if missing:
        raise ModelFormatError(f"{path / INDEX}: tensor {min(missing)[:80]!r} is in none of the files")
    buffers = [buffer for _, buffer in files]
    return Checkpoint(path, FORMAT, config, tensors, buffers[0], tuple(buffers[1:]), {"files": len(buffers)})


def _mapped(file: Path, map_file: Callable[[Path], mmap.mmap]) -> mmap.mmap:
    try:
        return map_file(file)
    except FileNotFoundError:
        raise ModelFormatError(f"{file} is missing: the model lies in several files that belong together") from None


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor to file, as the index says; empty where there is none."""
    if not (path / INDEX).is_file():
        return {}
    placed = read_json(path / INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(map(_is_plain_name, placed.values())):
        raise ModelFormatError(f"{path / INDEX}: weight_map is no object of file names in this folder")
    return placed


def _is_plain_name(name: object) -> bool:
    """A file beside the index: no path may lead out of the folder."""
    return isinstance(name, str) and Path(name).name == name and "\0" not in name and name.endswith(".safetensors")


def _weights(path: Path) -> list[Path]:
    """The files of weights, in order: those that the index names, else the one or the only ones there are."""
    placed = _weight_map(path)
    if placed:
        names = sorted(set(placed.values()))
    elif (path / WHOLE).is_file():
        names = [WHOLE]
    else:
        names = sorted(file.name for file in path.glob("*.safetensors"))
    if not names:
        raise _without_weights(path)
    if len(names) > MAX_FILES:
        raise ModelFormatError(f"{path}: {len(names)} files of weights, expected at most {MAX_FILES}")
    return [path / name for name in names]


#: Weights that another program wrote, by the ends of their files' names.
OTHER_WEIGHTS = {"*.bin": "PyTorch pickles", "*.pth": "PyTorch pickles", "*.h5": "HDF5", "*.msgpack": "Flax"}


def _without_weights(path: Path) -> ModelFormatError | UnsupportedModelError:
    for pattern, what in OTHER_WEIGHTS.items():
        found = sorted(path.glob(pattern))
        if found:
            return UnsupportedModelError(
                f"{path}: the weights are {what} ({found[0].name}): save the model with safe_serialization=True, or "
                "give a GGUF file of it"
            )
    return ModelFormatError(f"{path}: {CONFIG} is there, but no .safetensors file with weights")
