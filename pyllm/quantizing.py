"""`quantize`: any model that can be read, as a smaller GGUF file, or as a llama2.c file.

Only matrices of weights change. Tensors go through in pieces of a few million weights, so memory stays small and Ctrl-C
works.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllm import _core, architectures, formats, model
from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats.checkpoint import Checkpoint
from pyllm.formats.gguf_writer import UINT32, Outline, encode, write_gguf
from pyllm.formats.llama2c_writer import export_llama2c
from pyllm.formats.weight_types import WEIGHT_TYPES, is_runnable, type_name
from pyllm.loading import reader
from pyllm.machine import available_threads
from pyllm.materials import Material, contents
from pyllm.progress import Progress, reporting
from pyllm.recipes import COPY, RECIPES, Recipe, guessed_file_type, is_kept, traits_of, type_of
from pyllm.tokenizers import Tokenizer

PIECE = 1 << 22  # weights that are quantised between two looks at Ctrl-C
LLAMA2C = {f"llama2c-v{version}": version for version in (0, 1, 2)}

#: Every `type` that `quantize` knows.
TYPES = (*RECIPES, COPY, *LLAMA2C)


@dataclass(frozen=True)
class Quantized:
    """What `quantize` wrote: the file, its size, the source's, and how many tensors there are of each type."""

    path: Path
    nbytes: int
    source_nbytes: int
    tensors: dict[str, int]


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    type: str = "q4_k_m",
    *,
    threads: int | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    progress: Progress | bool | None = None,
) -> Quantized:
    """Write a model with other weight types.

    `source`: a model file, a Hugging Face folder or a catalogue name, as for `load`. `target`: the file to write; it
    appears whole, or not at all. `type`: one type for all matrices ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q3_k",
    "q4_k", "q5_k", "q6_k", "f16", "bf16", "f32"), one of llama.cpp's mixes ("q2_k", "q2_k_s", "q3_k_s", "q3_k_m",
    "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "iq4_nl"), "copy" (each tensor as it is, also of a model in
    several files or in a folder), or a llama2.c file ("llama2c-v0", "-v1", "-v2"). The head is better than the rest;
    where rows are no whole blocks the next type that fits is taken. `threads`: None means as many as this process may
    use; the file does not depend on it. `tokenizer`: for a source that holds none; not for llama2.c files, which hold
    none either. `progress`: a callable (done, total)
    in bytes, or True for a bar on a terminal.

    Raises `ModelFormatError` for a damaged file or weights that are not finite, `UnsupportedModelError` for weights, a
    model or a vocabulary that cannot be written so, `ValueError` for an unknown type, `OSError` as writing does.
    """
    if type not in TYPES:
        raise ValueError(f"type must be one of {', '.join(TYPES)}, not {type!r}")
    path = model.find(source, progress)
    _refuse_target(Path(target), path)
    if type in LLAMA2C and tokenizer is not None:
        raise ValueError("a llama2.c file holds no tokenizer: there is nothing to do with tokenizer=")
    threads = available_threads() if threads is None else threads
    checkpoint = formats.open_checkpoint(path)
    try:
        if type in LLAMA2C:
            _export(target, checkpoint, LLAMA2C[type], progress)
        else:
            metadata, materials = contents(checkpoint, tokenizer)
            _write(Path(target), checkpoint, metadata, materials, RECIPES.get(type), threads, progress)
    finally:
        checkpoint.close()
    return _summary(Path(target), path)


def _refuse_target(target: Path, source: Path) -> None:
    """A name under which the file could not be read, or that would take a file from a folder."""
    if len(formats.files_of(target)) > 1:
        raise ValueError(f"{target.name!r} is the name of one part of several, but the model is written into one file")
    if not source.is_dir():
        return
    for part in formats.files_of(source):
        if target.exists() and part.exists() and target.samefile(part):
            raise ValueError(f"{target} is one of the files of {source}: it cannot be replaced alone")


def _summary(target: Path, source: Path) -> Quantized:
    written = formats.open_checkpoint(target)
    try:
        names = [type_name(spec.type_id) for spec in written.tensors.values()]
    finally:
        written.close()
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    before = sum(part.stat().st_size for part in formats.files_of(source))
    return Quantized(target, target.stat().st_size, before, counts)


# ---- writing ---------------------------------------------------------------------------------------------------------


def _export(
    target: str | os.PathLike[str], checkpoint: Checkpoint, version: int, progress: Progress | bool | None
) -> None:
    config = architectures.describe(checkpoint)
    with reporting(progress, f"writing {os.path.basename(target)}") as report:
        export_llama2c(target, config, reader(checkpoint), version=version, progress=report)


def _write(
    target: Path,
    checkpoint: Checkpoint,
    metadata: dict[str, bytes],
    materials: list[Material],
    recipe: Recipe | None,
    threads: int,
    progress: Progress | bool | None,
) -> None:
    by_name = {material.name: material for material in materials}
    outlines = _outlines(checkpoint, by_name, recipe)
    metadata = {key: value for key, value in metadata.items() if key != "general.alignment"}
    if recipe is not None:
        metadata |= {"general.file_type": encode(UINT32, recipe.file_type)}
    elif "general.file_type" not in metadata:
        metadata |= {"general.file_type": encode(UINT32, guessed_file_type(o.type_id for o in outlines))}
    metadata |= {"general.quantization_version": encode(UINT32, 2)}
    done, total = 0, sum(material.nbytes for material in materials)
    with reporting(progress, f"quantising {checkpoint.path.name}") as report:

        def pieces(outline: Outline) -> Iterator[Any]:
            nonlocal done
            material, written = by_name[outline.name], 0
            for piece in _pieces(checkpoint, material, outline.type_id, threads):
                yield piece
                written += len(memoryview(piece).cast("B"))
                report(done + material.nbytes * written // outline.nbytes, total)
            done += material.nbytes

        write_gguf(target, metadata, outlines, pieces)


def _outlines(checkpoint: Checkpoint, materials: Mapping[str, Material], recipe: Recipe | None) -> list[Outline]:
    """Every tensor with the type it will have: what is no matrix of weights keeps its own, known to pyllm or not."""
    traits = traits_of({name: material.shape for name, material in materials.items()})
    outlines = []
    for name, material in materials.items():
        type_id = material.type_id
        if recipe is not None and not is_kept(name, material.shape):
            if not is_runnable(type_id):
                raise UnsupportedModelError(
                    f"{checkpoint.path}: tensor {name!r} has weight type {type_name(type_id)}, which cannot be read"
                )
            type_id = type_of(recipe, name, material.shape, traits)
        if type_id not in WEIGHT_TYPES:
            raise UnsupportedModelError(
                f"{checkpoint.path}: tensor {name!r} has weight type {type_name(type_id)}, which GGUF does not have"
            )
        outlines.append(Outline(name, type_id, material.shape))
    return outlines


def _pieces(checkpoint: Checkpoint, material: Material, type_id: int, threads: int) -> Iterator[Any]:
    """The bytes of a tensor as another type."""
    for share in material.rows():
        if type_id == share.type_id:
            data = memoryview(share.data).cast("B")
            for start in range(0, len(data), PIECE):
                yield data[start : start + PIECE]
            continue
        step = max(1, PIECE // share.cols)
        for first in range(0, share.rows, step):
            n = min(step, share.rows - first)
            try:
                yield _core.quantize(type_id, *share, first=first, n=n, threads=threads)
            except ModelFormatError as error:
                raise ModelFormatError(f"{checkpoint.path}: tensor {material.name!r}: {error}") from None
