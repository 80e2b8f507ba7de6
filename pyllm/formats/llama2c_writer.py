"""Writes llama2.c files: models in versions 0, 1 and 2, and `tokenizer.bin`, byte for byte as the original does.

Tensors are asked for one at a time, so memory stays at one tensor however large the model is. Files appear whole or
not at all.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pyllm.config import ModelConfig
from pyllm.errors import UnsupportedModelError
from pyllm.formats.llama2c import QUANTIZED, Header, has_default_constants, layout, pack_header
from pyllm.formats.replacing import replacing
from pyllm.logs import logger

log = logger(__name__)

Array = np.ndarray[Any, np.dtype[np.float32]]
# (slot, layer) -> fp32 values, (rows, cols) for a matrix and (n,) or (1, n) for a vector. Slots are those of
# `pyllm.architectures.Binding`. "head" is None for a tied model, "rope_factors" where there are none.
TensorSource = Callable[[str, int], Array | None]

SLOT_OF_KIND = {"tok_emb": "embedding", "att_norm": "attention_norm", "ffn_norm": "ffn_norm", "wcls": "head"}
SLOT_OF_KIND |= {"w1": "gate", "w2": "down", "w3": "up", "final_norm": "final_norm"}
CHUNK_WEIGHTS = 1 << 20  # quantised at once


def export_llama2c(
    path: str | os.PathLike[str],
    config: ModelConfig,
    tensors: TensorSource,
    *,
    version: int = 0,
    group_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Header:
    """Writes a model as a llama2.c file of version 0 (fp32, for run.c), 1 (fp32) or 2 (int8, for runq.c).

    `group_size` (version 2) is halved until it divides dim and hidden_dim, because runq.c drops the rest of a group;
    what was used is in the returned header. Query and key rows are brought into the file's order where the model has
    another. `progress`: called with (done, total) bytes of the file. Raises `UnsupportedModelError` for a model that
    the format cannot say.
    """
    if version not in (0, 1, 2):
        raise ValueError(f"version is {version}, expected 0, 1 or 2")
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}, expected a positive number")
    _refuse_inexpressible(config, tensors, version)
    header = _header(config, version, group_size, shared=tensors("head", 0) is None)
    with replacing(Path(path)) as file:
        file.write(pack_header(header))
        entries = list(layout(header))
        for entry in entries:
            _write_tensor(file, header, entry.kind, _values(config, tensors, header, entry.kind, entry.layer))
            if progress is not None:
                progress(entry.offset + entry.nbytes, entries[-1].offset + entries[-1].nbytes)
    return header


def write_tokenizer_bin(path: str | os.PathLike[str], pieces: Sequence[bytes], scores: Sequence[float]) -> None:
    """Writes a vocabulary as llama2.c's `tokenizer.bin`: for each piece its score, its length, its bytes.

    The format holds nothing else: ids 0, 1 and 2 must be unknown, begin and end, 3 to 258 the bytes.
    """
    if len(pieces) != len(scores):
        raise ValueError(f"{len(pieces)} pieces but {len(scores)} scores")
    with replacing(Path(path)) as file:
        file.write(struct.pack("<I", max(map(len, pieces), default=0)))
        for piece, score in zip(pieces, scores, strict=True):
            file.write(struct.pack("<fI", score, len(piece)) + piece)


def _refuse_inexpressible(config: ModelConfig, tensors: TensorSource, version: int) -> None:
    """A file that the original would read and answer wrongly must not be written."""
    what = ""
    if config.head_dim * config.n_heads != config.dim:
        what = f"heads of {config.head_dim}, which are not dim / n_heads = {config.dim / config.n_heads:g}"
    elif config.rope_dims != config.head_dim:
        what = f"RoPE over {config.rope_dims} of the {config.head_dim} dimensions of a head"
    elif tensors("rope_factors", 0) is not None:
        what = "RoPE factors (a scaled context)"
    elif not has_default_constants(config.rope_base, config.norm_eps):
        constants = f"rope_base {config.rope_base:g} and norm_eps {config.norm_eps:g} (it has 10000 and 1e-05 built in)"
        if version == 0:
            what = constants
        else:
            log.warning(
                "llama2.c ignores %s; pyllm reads them back from the file, the original answers wrongly", constants
            )
    if what:
        raise UnsupportedModelError(f"llama2.c v{version} files have no place for {what}")


def _header(config: ModelConfig, version: int, group_size: int, shared: bool) -> Header:
    return Header(
        version=version,
        dim=config.dim,
        hidden_dim=config.hidden_dim,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        vocab_size=config.vocab_size,
        seq_len=config.context_length,
        shared=shared,
        group_size=_fitting_group(config, group_size) if version == 2 else 0,
        rope_base=config.rope_base,
        norm_eps=config.norm_eps,
    )


def _fitting_group(config: ModelConfig, wanted: int) -> int:
    """The wanted group size, halved until it divides the rows of every tensor (which are dim or hidden_dim long)."""
    group = wanted
    while config.dim % group or config.hidden_dim % group:
        group //= 2
    if group != wanted:
        sizes = f"dim {config.dim} and hidden_dim {config.hidden_dim}"
        log.warning("group size %d does not divide %s: using %d", wanted, sizes, group)
    return group


def _values(config: ModelConfig, tensors: TensorSource, header: Header, kind: str, layer: int) -> Array:
    """The fp32 values of one tensor, in the file's order and checked for their shape."""
    shape = header.shapes()[kind]
    if kind in ("freq_cos", "freq_sin"):
        return _rope_table(shape, kind)
    values = tensors(SLOT_OF_KIND.get(kind, kind), layer)
    if values is None or values.size != shape[0] * shape[1]:
        raise ValueError(f"{kind} of layer {layer} is {values if values is None else values.shape}, expected {shape}")
    values = np.asarray(values, np.float32).reshape(shape)
    if kind in ("wq", "wk") and not config.rope_interleaved:
        return _interleaved(values, config.head_dim)
    return values


def _interleaved(values: Array, head_dim: int) -> Array:
    """Rows reordered in each head so that RoPE's pairs (i, i + head_dim / 2) become neighbours (2i, 2i + 1)."""
    rows, cols = values.shape
    halves = values.reshape(rows // head_dim, 2, head_dim // 2, cols)
    pairs: Array = halves.swapaxes(1, 2).reshape(rows, cols)
    return pairs


def _rope_table(shape: tuple[int, int], kind: str) -> Array:
    """Cosine or sine of position times frequency, (positions, head_size / 2): written for version 0, read by nobody."""
    positions, half = shape
    frequencies = 1.0 / 10000.0 ** (np.arange(0, 2 * half, 2, dtype=np.float32) / np.float32(2 * half))
    angles = np.outer(np.arange(positions, dtype=np.float32), frequencies.astype(np.float32))
    table: Array = (np.cos(angles) if kind == "freq_cos" else np.sin(angles)).astype(np.float32)
    return table


def _write_tensor(file: BinaryIO, header: Header, kind: str, values: Array) -> None:
    if header.version != 2 or kind not in QUANTIZED:
        file.write(np.ascontiguousarray(values, "<f4").data)
        return
    flat, scales = np.ascontiguousarray(values).reshape(-1), []
    step = max(1, CHUNK_WEIGHTS // header.group_size) * header.group_size
    for start in range(0, flat.size, step):
        codes, scale = quantize_groups(flat[start : start + step], header.group_size)
        file.write(codes.data)
        scales.append(scale)
    file.write(np.concatenate(scales).astype("<f4").data)


def quantize_groups(flat: Array, group_size: int) -> tuple[np.ndarray[Any, np.dtype[np.int8]], Array]:
    """Codes (n,) in [-127, 127] and scales (n / group_size,) of fp32 weights (n,), n a multiple of the group size.

    scale = max|w| / 127 and code = w / scale rounded half to even, in fp32. A group of zeros has scale 0 and codes 0,
    where the original divides by zero. Raises `ValueError` for weights that are not finite.
    """
    groups = flat.reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127.0)
    if not np.isfinite(scales).all():
        raise ValueError("the model has weights that are not finite: they cannot be quantised")
    divisors = np.where(scales > 0, scales, np.float32(1.0))
    # The clip is for groups of subnormal numbers, whose scale is too coarse to bring them below 127.
    codes = np.clip(np.rint(groups / divisors[:, None]), -127, 127).astype(np.int8)
    return codes.reshape(-1), scales
