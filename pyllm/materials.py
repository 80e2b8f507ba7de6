"""What a GGUF file of any model that can be read will hold: metadata, and tensors as they come, row after row.

A GGUF file's own names and fields stay, whatever its architecture; other models are described, and get llama.cpp's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyllm import architectures, loading
from pyllm.architectures import to_gguf
from pyllm.architectures.to_gguf import Planned
from pyllm.config import ModelConfig
from pyllm.errors import UnsupportedModelError
from pyllm.formats import gguf
from pyllm.formats.checkpoint import Checkpoint, TensorSpec
from pyllm.formats.gguf_writer import encode_value, head
from pyllm.formats.weight_types import F32, MXFP4
from pyllm.recipes import is_kept
from pyllm.tokenizers import Tokenizer
from pyllm.tokenizers.folder import generation_defaults
from pyllm.tokenizers.loading import load_folder
from pyllm.tokenizers.sentencepiece_model import SentencePieceTokenizer
from pyllm.tokenizers.to_gguf import vocabulary_metadata

GivenTokenizer = str | os.PathLike[str] | Tokenizer | None


class Rows(NamedTuple):
    """Rows of a tensor as they are stored: shape (rows, cols); `group` as in `TensorSpec`."""

    type_id: int
    rows: int
    cols: int
    data: Any
    group: int = 0


@dataclass(frozen=True)
class Material:
    """A tensor that the file will hold: `rows` gives all its rows, share by share, and lets them go again.

    `type_id`: its type if it is kept. `nbytes`: what it takes in the source.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    nbytes: int
    rows: Callable[[], Iterator[Rows]]


Contents = tuple[dict[str, bytes], list[Material]]


def contents(checkpoint: Checkpoint, tokenizer: GivenTokenizer) -> Contents:
    """Encoded metadata, and tensors."""
    if checkpoint.format != "gguf":
        return _described(checkpoint, tokenizer)
    if tokenizer is not None:
        raise ValueError(f"{checkpoint.path} holds a tokenizer of its own: there is no place for another")
    raw = gguf.raw_metadata(checkpoint.path, checkpoint.buffer)
    metadata = {key: value for key, value in raw.items() if not key.startswith("split.")}
    return metadata, [_as_it_lies(checkpoint, spec) for spec in checkpoint.tensors.values()]


def _as_it_lies(checkpoint: Checkpoint, spec: TensorSpec) -> Material:
    """A tensor of a GGUF file, which need not be of a model that pyllm runs."""

    def rows() -> Iterator[Rows]:
        yield Rows(spec.type_id, math.prod(spec.shape[:-1]), spec.shape[-1], checkpoint.view(spec))
        loading.forget(checkpoint, spec)

    return Material(spec.name, spec.shape, spec.type_id, spec.nbytes, rows)


def _described(checkpoint: Checkpoint, tokenizer: GivenTokenizer) -> Contents:
    """A model of another format under GGUF's names."""
    config = architectures.describe(checkpoint)
    plan = to_gguf.plan(checkpoint, config, architectures.bindings(checkpoint))
    path = checkpoint.path
    metadata = {"general.name": path.name if path.is_dir() else path.stem, **plan.metadata}
    if path.is_dir():
        metadata |= generation_defaults(path)
    vocabulary = _tokenizer(checkpoint, config, tokenizer)
    if vocabulary is None:
        metadata["tokenizer.ggml.model"] = "no_vocab"
    else:
        metadata |= vocabulary_metadata(vocabulary, config.vocab_size, str(path), _read_back)
    encoded = {key: encode_value(value) for key, value in metadata.items()}
    return encoded, [_assembled(checkpoint, config, planned) for planned in plan.tensors]


def _read_back(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that a reader of a file with this metadata gets."""
    raw = head({key: encode_value(value) for key, value in metadata.items()}, [])
    return Tokenizer.from_checkpoint(gguf.parse(Path("the new file"), memoryview(raw)))


def _tokenizer(checkpoint: Checkpoint, config: ModelConfig, given: GivenTokenizer) -> Tokenizer | None:
    """The one that is given, or the folder's own."""
    if given is None:
        return _own_tokenizer(checkpoint.path) if checkpoint.path.is_dir() else None
    tokenizer = given if isinstance(given, Tokenizer) else Tokenizer.load(given)
    if checkpoint.format == "llama2c" and tokenizer.vocab_size != config.vocab_size:
        expected = f"a tokenizer of {config.vocab_size} pieces"
        raise UnsupportedModelError(f"{checkpoint.path} needs {expected}, not {tokenizer!r}")
    return tokenizer


def _own_tokenizer(folder: Path) -> Tokenizer | None:
    """SentencePiece's own file before others: what GGUF says of such vocabularies is what that file means."""
    if (folder / "tokenizer.model").is_file():
        found = Tokenizer.load(folder / "tokenizer.model")
        if isinstance(found, SentencePieceTokenizer):
            return found
    return load_folder(folder)


def _assembled(checkpoint: Checkpoint, config: ModelConfig, planned: Planned) -> Material:
    """A tensor that is made of slots; vectors, and matrices that no recipe changes, are kept in fp32."""
    exact = not planned.is_matrix or is_kept(planned.name, planned.shape)

    def rows() -> Iterator[Rows]:
        for part in planned.parts:
            if exact:
                share = Rows(F32, part.rows, part.cols, loading.dequantized(checkpoint, part).view(np.uint8))
            else:
                type_id, data = loading.stored(checkpoint, part)
                share = Rows(type_id, part.rows, part.cols, data, part.tensor.group)
            yield _turned(config, share) if planned.turned else share
        for spec in {part.tensor for part in planned.parts}:
            loading.forget(checkpoint, spec)

    first, nbytes = planned.parts[0], sum(map(loading.share, planned.parts))
    kept = F32 if exact else MXFP4 if first.scales else first.tensor.type_id
    return Material(planned.name, planned.shape, kept, nbytes, rows)


def _turned(config: ModelConfig, share: Rows) -> Rows:
    """Rows of queries or keys, or their biases, in the order of the file."""
    n = max(share.rows, share.cols) if share.rows == 1 else share.rows
    by_row = np.frombuffer(share.data, np.uint8).reshape(n, -1)
    return share._replace(data=np.ascontiguousarray(by_row[to_gguf.row_order(config, n)]))
