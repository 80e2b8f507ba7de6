"""`quantize`: any model that can be read, as a smaller GGUF file, or as a llama2.c file.

A GGUF keeps its metadata, its tokenizer and the order of its tensors, whatever its architecture: only matrices of
weights change. Tensors go through in pieces of a few million weights, so memory stays small and Ctrl-C works.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyllm import _core, architectures, formats, loading, model
from pyllm.architectures import from_gguf
from pyllm.config import ModelConfig
from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats import gguf
from pyllm.formats.checkpoint import Checkpoint, TensorSpec
from pyllm.formats.gguf_writer import FLOAT32, INT32, UINT32, Outline, encode, encode_array, write_gguf
from pyllm.formats.weight_types import is_runnable, type_name
from pyllm.machine import available_threads
from pyllm.progress import Progress, reporting
from pyllm.recipes import RECIPES, Recipe, is_kept, layers_of, type_of
from pyllm.tokenizers import Tokenizer
from pyllm.tokenizers.llama2c import BOS, EOS, FIRST_MERGED, UNKNOWN, Llama2cTokenizer

PIECE = 1 << 22  # weights that are quantised between two looks at Ctrl-C
LLAMA2C = {f"llama2c-v{version}": version for version in (0, 1, 2)}

#: Every `type` that `quantize` knows.
TYPES = (*RECIPES, *LLAMA2C)


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

    `source`: a model file or a catalogue name, as for `load`. `target`: the file to write; it appears whole, or not at
    all. `type`: one type for all matrices ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "q3_k", "q4_k", "q5_k",
    "q6_k", "f16", "bf16", "f32"), a mix ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m"), or a llama2.c file ("llama2c-v0",
    "-v1", "-v2"). The head is better than the rest; where rows are no whole blocks the next type that fits is taken.
    `threads`: None means as many as this process may use; the file does not depend on it. `tokenizer`: for a source
    that holds none. `progress`: a callable (done, total) in bytes, or True for a bar on a terminal.

    Raises `ModelFormatError` for a damaged file or weights that are not finite, `UnsupportedModelError` for weights or
    a model that cannot be written so, `ValueError` for an unknown type, `OSError` as writing does.
    """
    if type not in TYPES:
        raise ValueError(f"type must be one of {', '.join(TYPES)}, not {type!r}")
    path = model.find(source, progress)
    if type in LLAMA2C:
        with model.load(path, threads=threads, progress=progress) as loaded:
            loaded.export(target, version=LLAMA2C[type])
        return _summary(Path(target), path)
    threads = available_threads() if threads is None else threads
    checkpoint = formats.open_checkpoint(path)
    try:
        metadata, tensors = _contents(checkpoint, tokenizer)
        _write(Path(target), checkpoint, metadata, tensors, RECIPES[type], threads, progress)
    finally:
        checkpoint.close()
    return _summary(Path(target), path)


def _summary(target: Path, source: Path) -> Quantized:
    written = formats.open_checkpoint(target)
    try:
        names = [type_name(spec.type_id) for spec in written.tensors.values()]
    finally:
        written.close()
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    before = sum(part.stat().st_size for part in formats.files_of(source))
    return Quantized(target, target.stat().st_size, before, counts)


# ---- what the file will hold -----------------------------------------------------------------------------------------


def _contents(
    checkpoint: Checkpoint, tokenizer: str | os.PathLike[str] | Tokenizer | None
) -> tuple[dict[str, bytes], dict[str, TensorSpec]]:
    """Encoded metadata, and tensors by the names they will have."""
    if checkpoint.format == "gguf":
        if tokenizer is not None:
            raise ValueError(f"{checkpoint.path} holds a tokenizer of its own: there is no place for another")
        raw = gguf.raw_metadata(checkpoint.path, checkpoint.buffer)
        return {key: value for key, value in raw.items() if not key.startswith("split.")}, dict(checkpoint.tensors)
    if checkpoint.format == "llama2c":
        return _from_llama2c(checkpoint, tokenizer)
    raise UnsupportedModelError(f"{checkpoint.path}: a {checkpoint.format} model cannot be written as GGUF yet")


def _from_llama2c(
    checkpoint: Checkpoint, tokenizer: str | os.PathLike[str] | Tokenizer | None
) -> tuple[dict[str, bytes], dict[str, TensorSpec]]:
    """A llama2.c model is a Llama under other names."""
    config = architectures.describe(checkpoint)
    metadata = _llama_metadata(config, checkpoint.path.stem)
    if tokenizer is not None:
        opened = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)
        metadata |= _vocabulary(opened, config)
    bindings = architectures.bindings(checkpoint, config)
    tensors = {}
    for b in bindings:
        shape = (b.cols,) if b.rows == 1 else (b.rows, b.cols)
        tensors[from_gguf.NAMES[b.slot].format(layer=b.layer)] = replace(b.tensor, shape=shape)
    return metadata, tensors


def _llama_metadata(config: ModelConfig, name: str) -> dict[str, bytes]:
    counts = {
        "context_length": config.context_length,
        "embedding_length": config.dim,
        "feed_forward_length": config.hidden_dim,
        "block_count": config.n_layers,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "rope.dimension_count": config.rope_dims,
        "vocab_size": config.vocab_size,
    }
    numbers = {"attention.layer_norm_rms_epsilon": config.norm_eps, "rope.freq_base": config.rope_base}
    metadata = {"general.architecture": encode(gguf.STRING, "llama"), "general.name": encode(gguf.STRING, name)}
    metadata |= {f"llama.{key}": encode(UINT32, value) for key, value in counts.items()}
    return metadata | {f"llama.{key}": encode(FLOAT32, value) for key, value in numbers.items()}


def _vocabulary(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, bytes]:
    """llama2.c's pieces as GGUF has them: spaces as U+2581, and a type for each."""
    if not isinstance(tokenizer, Llama2cTokenizer) or tokenizer.vocab_size != config.vocab_size:
        raise UnsupportedModelError(
            f"only a tokenizer.bin of {config.vocab_size} pieces can be written into this file, not {tokenizer!r}"
        )
    pieces, scores = tokenizer.pieces, tokenizer.scores
    names = [piece.replace(b" ", "\u2581".encode()) for piece in pieces]
    names[:3] = [b"<unk>", b"<s>", b"</s>"]
    normal, unknown, control, byte = 1, 2, 3, 6
    types = [normal] * len(pieces)
    types[UNKNOWN], types[BOS], types[EOS] = unknown, control, control
    types[EOS + 1 : FIRST_MERGED] = [byte] * 256
    return {
        "tokenizer.ggml.model": encode(gguf.STRING, "llama"),
        "tokenizer.ggml.tokens": encode_array(gguf.STRING, names),
        "tokenizer.ggml.scores": encode_array(FLOAT32, scores),
        "tokenizer.ggml.token_type": encode_array(INT32, types),
        "tokenizer.ggml.bos_token_id": encode(UINT32, BOS),
        "tokenizer.ggml.eos_token_id": encode(UINT32, BOS),  # where run.c ends a text
        "tokenizer.ggml.unknown_token_id": encode(UINT32, UNKNOWN),
        "tokenizer.ggml.add_bos_token": encode(gguf.BOOL, True),
    }


# ---- writing ---------------------------------------------------------------------------------------------------------


def _write(
    target: Path,
    checkpoint: Checkpoint,
    metadata: dict[str, bytes],
    tensors: dict[str, TensorSpec],
    recipe: Recipe,
    threads: int,
    progress: Progress | bool | None,
) -> None:
    outlines = _outlines(checkpoint, tensors, recipe)
    metadata = {key: value for key, value in metadata.items() if key != "general.alignment"}
    metadata |= {"general.file_type": encode(UINT32, recipe.file_type)}
    metadata |= {"general.quantization_version": encode(UINT32, 2)}
    done, total = 0, sum(spec.nbytes for spec in tensors.values())
    with reporting(progress, f"quantising {checkpoint.path.name}") as report:

        def pieces(outline: Outline) -> Iterator[Any]:
            nonlocal done
            spec = tensors[outline.name]
            for share, piece in _pieces(checkpoint, spec, outline.type_id, threads):
                yield piece
                report(done + int(share * spec.nbytes), total)
            loading.forget(checkpoint, spec)
            done += spec.nbytes

        write_gguf(target, metadata, outlines, pieces)


def _outlines(checkpoint: Checkpoint, tensors: dict[str, TensorSpec], recipe: Recipe) -> list[Outline]:
    """Every tensor with the type it will have: what is no matrix of weights keeps its own, known to pyllm or not."""
    n_layers, tied = layers_of(tensors), "output.weight" not in tensors
    outlines = []
    for name, spec in tensors.items():
        type_id = spec.type_id
        if not is_kept(name, spec.shape):
            if not is_runnable(type_id):
                raise UnsupportedModelError(
                    f"{checkpoint.path}: tensor {name!r} has weight type {type_name(type_id)}, which cannot be read"
                )
            type_id = type_of(recipe, name, spec.shape, n_layers, tied)
        outlines.append(Outline(name, type_id, spec.shape))
    return outlines


def _pieces(checkpoint: Checkpoint, spec: TensorSpec, type_id: int, threads: int) -> Iterator[tuple[float, Any]]:
    """(share of the tensor that is done, the next bytes) of a tensor as another type."""
    data = checkpoint.view(spec)
    if type_id == spec.type_id:
        for start in range(0, len(data), PIECE):
            end = min(start + PIECE, len(data))
            yield end / len(data), data[start:end]
        return
    cols = spec.shape[-1]
    rows = 1
    for n in spec.shape[:-1]:
        rows *= n
    step = max(1, PIECE // cols)
    for first in range(0, rows, step):
        n = min(step, rows - first)
        try:
            piece = _core.quantize(
                type_id, spec.type_id, rows, cols, data, spec.group, first=first, n=n, threads=threads
            )
        except ModelFormatError as error:
            raise ModelFormatError(f"{checkpoint.path}: tensor {spec.name!r}: {error}") from None
        yield (first + n) / rows, piece
