"""File formats: bytes in, `Checkpoint` out. Parsers describe; they compute nothing and need no compiled code."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from pathlib import Path

from pyllm.errors import ModelFormatError, OutOfMemoryError
from pyllm.formats import adapter, folder, foreign, gguf, llama2c, split
from pyllm.formats.checkpoint import Buffer, Checkpoint, TensorSpec

__all__ = ["Checkpoint", "TensorSpec", "files_of", "open_adapter", "open_checkpoint", "parse"]


def files_of(path: Path) -> list[Path]:
    """The files of the model that `path` is, or is a part of. Whether they exist is not asked."""
    return folder.files_of(path) if folder.is_folder(path) else split.files_of(path)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Maps a model file and parses its header; the format is found from the first bytes, never from the name.

    Only the name tells a GGUF in several files, NAME-00001-of-0000N.gguf: any of them stands for all. A folder with a
    `config.json` is a model of the `transformers` library.

    Raises `ModelFormatError` for a damaged file or something that holds no model, `UnsupportedModelError` for a model
    in another form (both say what it seems to be), and `OSError` (`FileNotFoundError`, ...) as `open` does.
    """
    if folder.is_folder(Path(path)):
        return folder.open_folder(Path(path), _map)
    files = split.files_of(Path(path))
    if len(files) == 1:
        return _open_one(files[0])
    parts: list[Checkpoint] = []
    try:
        parts.extend(_open_part(file, len(files)) for file in files)
        return split.join(parts)
    except BaseException:
        for part in parts:
            part.close()
        raise


def open_adapter(path: str | os.PathLike[str]) -> Checkpoint:
    """Maps a low-rank adapter: a folder of the `peft` library, or a GGUF file. Raises as `open_checkpoint` does."""
    place = Path(path)
    if not adapter.is_peft(place):
        return _open_one(place)
    weights = place / adapter.PEFT_WEIGHTS
    if not weights.is_file():
        raise ModelFormatError(f"{place}: {adapter.PEFT_CONFIG} is there, but no {adapter.PEFT_WEIGHTS}")
    config, buffer = folder.read_json(place / adapter.PEFT_CONFIG), _map(weights)
    try:
        return folder.assemble(place, config, [(weights, buffer)], {})
    except BaseException:
        buffer.close()
        raise


def _open_part(path: Path, count: int) -> Checkpoint:
    try:
        return _open_one(path)
    except FileNotFoundError:
        raise ModelFormatError(f"{path} is missing: the model lies in {count} files that belong together") from None


def _open_one(path: Path) -> Checkpoint:
    buffer = _map(path)
    try:
        return parse(path, buffer)
    except BaseException:
        buffer.close()
        raise


def parse(path: Path, buffer: Buffer) -> Checkpoint:
    """Parses a whole file that is already mapped or in memory. `path` is for messages only."""
    head = bytes(buffer[: foreign.SNIFF_BYTES])
    if head.startswith(gguf.MAGIC):
        return gguf.parse(path, buffer)
    if head.startswith(llama2c.MAGIC):
        return llama2c.parse(path, buffer)
    flaw = llama2c.v0_flaw(buffer)
    if flaw is None:
        return llama2c.parse(path, buffer)
    raise foreign.refusal(path, head, len(buffer), flaw)


def _map(path: Path) -> mmap.mmap:
    """A read-only mapping. What is not a regular file is refused before it is opened: a pipe would wait for ever."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise _folder_refusal(path)
    if not stat.S_ISREG(status.st_mode):
        raise ModelFormatError(f"{path}: not a regular file; give the path of a model file")
    if status.st_size == 0:
        raise ModelFormatError(f"{path}: the file is empty; get it again")
    with open(path, "rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise OutOfMemoryError(f"{path}: no address space left to map its {status.st_size} bytes") from None


def _folder_refusal(path: Path) -> ModelFormatError:
    found = sorted(p.name for p in path.iterdir() if p.suffix in (".gguf", ".bin", ".safetensors"))
    hint = f"perhaps {found[0]!r} in it" if found else f"{foreign.READS}"
    if found and found[0].endswith(".safetensors"):
        hint = f"{found[0]!r} in it needs the config.json that came with it"
    return ModelFormatError(f"{path}: a folder, not a model file; {hint}")
