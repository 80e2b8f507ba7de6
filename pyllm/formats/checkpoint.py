"""What every file format becomes: metadata, tensor descriptions, and the buffer they point into."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyllm.errors import ClosedError

# The bytes of a file: a read-only mapping, or (in tests and fuzzing) a view of bytes already in memory.
Buffer = mmap.mmap | memoryview


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as it lies in the file: no bytes are copied.

    `type_id` is GGUF's number for the weight type, or one of pyllm's own (`csrc/pyllm_api.h`). `shape` is
    row-major, outermost first: a matrix is (rows, cols), a vector (n,). `offset` and `nbytes` count bytes into the
    checkpoint's buffer and were checked against its length; of a model in several files, `part` says which. `group` is
    the group size of llama2.c v2 tensors, else 0. `inline` holds the bytes of a tensor that is in no file because a
    metadata field stands for it.
    """

    name: str
    type_id: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    group: int = 0
    inline: bytes | None = None
    part: int = 0


@dataclass
class Checkpoint:
    """A parsed model file. Owns the mapping until `close()`; formats parse, they never compute.

    The metadata holds copies, never views: it outlives the mapping.
    """

    path: Path
    format: str  # "gguf", "llama2c", "huggingface"
    metadata: Mapping[str, Any]  # GGUF keys or config.json as they stand; llama2.c fields under "llama2c.*"
    tensors: Mapping[str, TensorSpec]  # by the file's own names
    buffer: Buffer
    more: tuple[Buffer, ...] = ()  # of a model in several files: the second and later ones
    notes: dict[str, Any] = field(default_factory=dict)  # e.g. {"version": 2}
    closed: bool = False

    def view(self, spec: TensorSpec) -> memoryview:
        """The bytes of one tensor, without a copy. Raises `ClosedError` after `close()`."""
        if spec.inline is not None:
            return memoryview(spec.inline)
        if self.closed:
            raise ClosedError(f"{self.path}: the file was closed, its tensor {spec.name!r} can no longer be read")
        return memoryview(self.buffer_of(spec))[spec.offset : spec.offset + spec.nbytes]

    def buffer_of(self, spec: TensorSpec) -> Buffer:
        """The file that holds a tensor."""
        return self.more[spec.part - 1] if spec.part else self.buffer

    def close(self) -> None:
        """Let the mapping go; views that are still in use keep it alive until they go too. Harmless twice."""
        self.closed = True
        self.buffer = memoryview(b"")
        self.more = tuple(memoryview(b"") for _ in self.more)
