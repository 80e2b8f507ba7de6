"""llama2.c's `.bin` files, versions 0, 1 and 2: the header, and what lies where behind it.

One description (`Header`, `layout`) serves the reader here and the writer in `export.py`, so they cannot drift.

Version 0 has no magic: 28 bytes of header, then fp32 tensors. Versions 1 and 2 begin with "24ka" and pad their header
to 256 bytes; version 2 stores its matrices as int8 with one fp32 scale per group of weights. The original fixes the
RoPE base at 10000 and the norm's epsilon at 1e-5; pyllm writes other values into spare header bytes of versions 1 and
2, behind a tag, and the original never looks there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats.checkpoint import Buffer, Checkpoint, TensorSpec
from pyllm.formats.weight_types import F32, LLAMA2C_Q8

MAGIC = b"24ka"  # 0x616b3432, little-endian
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
V0_HEADER_BYTES = 28
HEADER_BYTES = 256

# Offsets into the 256-byte header. The group size is unaligned: the original writes it right behind a single byte.
SHARED_AT, GROUP_AT, SPARE_AT = 36, 37, 41
EXTENSION_AT, EXTENSION_TAG = 64, b"pllm"
EXTENSION_BYTES = 12  # the tag, fp32 rope_base, fp32 norm_eps

DEFAULT_ROPE_BASE, DEFAULT_NORM_EPS = 10000.0, 1e-5
MAX_LAYERS = 4096  # no model has a tenth of it; keeps the descriptions small whatever a header says

LAYERED = frozenset(("att_norm", "ffn_norm", "wq", "wk", "wv", "wo", "w1", "w2", "w3"))
QUANTIZED = frozenset(("tok_emb", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls"))
SKIPPED = frozenset(("freq_cos", "freq_sin"))  # version 0 carries RoPE tables that not even run.c reads
ORDER_V0 = (
    *("tok_emb", "att_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3"),
    *("final_norm", "freq_cos", "freq_sin", "wcls"),
)
ORDER_V1 = ("att_norm", "ffn_norm", "final_norm", "tok_emb", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls")


@dataclass(frozen=True)
class Header:
    """A llama2.c header. `shared`: the output head is the embedding. `group_size` is 0 but for version 2."""

    version: int
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared: bool
    group_size: int = 0
    rope_base: float = DEFAULT_ROPE_BASE
    norm_eps: float = DEFAULT_NORM_EPS

    @property
    def head_size(self) -> int:
        """Dimensions of one head."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Dimensions of all key heads together."""
        return self.head_size * self.n_kv_heads

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(rows, cols) of each kind of tensor; of one layer where there is one per layer."""
        d, hidden, vocab, kv = self.dim, self.hidden_dim, self.vocab_size, self.kv_dim
        shapes = {"tok_emb": (vocab, d), "att_norm": (1, d), "ffn_norm": (1, d), "final_norm": (1, d)}
        shapes |= {"wq": (d, d), "wk": (kv, d), "wv": (kv, d), "wo": (d, d)}
        shapes |= {"w1": (hidden, d), "w2": (d, hidden), "w3": (hidden, d), "wcls": (vocab, d)}
        tables = (self.seq_len, self.head_size // 2)
        return shapes | {"freq_cos": tables, "freq_sin": tables}

    def order(self) -> tuple[str, ...]:
        """The kinds of tensors in the order of the file."""
        order = ORDER_V0 if self.version == 0 else ORDER_V1
        return order[:-1] if self.shared else order

    def nbytes(self, kind: str) -> int:
        """Bytes of one tensor: fp32, or int8 weights followed by one fp32 scale per group."""
        rows, cols = self.shapes()[kind]
        if self.version == 2 and kind in QUANTIZED:
            return rows * cols + rows * cols // self.group_size * 4
        return rows * cols * 4

    def file_bytes(self) -> int:
        """The exact size of a file with this header."""
        head = V0_HEADER_BYTES if self.version == 0 else HEADER_BYTES
        return head + sum(self.nbytes(kind) * (self.n_layers if kind in LAYERED else 1) for kind in self.order())


class Entry(NamedTuple):
    """One tensor's place: `name` is `kind`, or `layers.3.kind`. `layer` is 0 where there is only one."""

    name: str
    kind: str
    layer: int
    offset: int
    nbytes: int


def layout(header: Header) -> Iterator[Entry]:
    """Every tensor of the file in order, the RoPE tables of version 0 among them."""
    offset = V0_HEADER_BYTES if header.version == 0 else HEADER_BYTES
    for kind in header.order():
        nbytes = header.nbytes(kind)
        for layer in range(header.n_layers if kind in LAYERED else 1):
            name = f"layers.{layer}.{kind}" if kind in LAYERED else kind
            yield Entry(name, kind, layer, offset, nbytes)
            offset += nbytes


# ---- reading --------------------------------------------------------------------------------------------------------


def parse(path: Path, buffer: Buffer) -> Checkpoint:
    """Describes a llama2.c file. Raises `ModelFormatError` where fields or the size do not fit together."""
    header = read_header(path, buffer)
    if header.version == 2:
        _check_groups(path, header)
    _check_size(path, header, len(buffer))
    return Checkpoint(
        path=path,
        format="llama2c",
        metadata={f"llama2c.{name}": value for name, value in asdict(header).items()},
        tensors={entry.name: _spec(header, entry) for entry in layout(header) if entry.kind not in SKIPPED},
        buffer=buffer,
        notes={"version": header.version, "group_size": header.group_size},
    )


def v0_flaw(buffer: Buffer) -> str | None:
    """Why these bytes cannot be a version 0 header, or None if they can. Without a magic, plausibility decides."""
    if len(buffer) < V0_HEADER_BYTES:
        return f"{V0_HEADER_BYTES} bytes of header were expected, but the file has {len(buffer)} bytes"
    return _field_flaw(_v0_header(buffer))


def read_header(path: Path, buffer: Buffer) -> Header:
    """The header of a llama2.c file of any version, its fields checked one by one and against each other."""
    versioned = bytes(buffer[:4]) == MAGIC
    needed = HEADER_BYTES if versioned else V0_HEADER_BYTES
    if len(buffer) < needed:
        raise ModelFormatError(
            f"{path}: a llama2.c header takes {needed} bytes, but the file has {len(buffer)}: it was cut short, "
            "get it again"
        )
    header = _versioned_header(path, bytes(buffer[:HEADER_BYTES])) if versioned else _v0_header(buffer)
    flaw = _field_flaw(header)
    if flaw:
        raise ModelFormatError(f"{path}: damaged llama2.c v{header.version} header: {flaw}")
    return header


def _v0_header(buffer: Buffer) -> Header:
    dim, hidden, layers, heads, kv_heads, vocab, seq_len = struct.unpack_from("<7i", buffer, 0)
    # A negative vocabulary size says that the head is a matrix of its own.
    return Header(0, dim, hidden, layers, heads, kv_heads, abs(vocab), seq_len, shared=vocab > 0)


def _versioned_header(path: Path, head: bytes) -> Header:
    version = struct.unpack_from("<i", head, 4)[0]
    fields = dict(zip(FIELDS, struct.unpack_from("<7i", head, 8), strict=True))
    if version not in (1, 2):
        raise UnsupportedModelError(f"{path}: llama2.c file of version {version}; pyllm reads versions 0, 1 and 2")
    if head[SHARED_AT] > 1:
        raise ModelFormatError(f"{path}: damaged llama2.c header: shared_classifier is {head[SHARED_AT]}, not 0 or 1")
    group = struct.unpack_from("<i", head, GROUP_AT)[0] if version == 2 else 0
    rope_base, norm_eps = _read_extension(path, head, SPARE_AT if version == 2 else GROUP_AT)
    return Header(
        version, **fields, shared=bool(head[SHARED_AT]), group_size=group, rope_base=rope_base, norm_eps=norm_eps
    )


def _read_extension(path: Path, head: bytes, spare_at: int) -> tuple[float, float]:
    """(rope_base, norm_eps) from pyllm's spare bytes, or the original's. Bytes nobody can explain are refused."""
    end = EXTENSION_AT + EXTENSION_BYTES
    tagged = head[EXTENSION_AT : EXTENSION_AT + 4] == EXTENSION_TAG
    spare = head[spare_at:EXTENSION_AT] + head[end if tagged else EXTENSION_AT :]
    if any(spare):
        raise UnsupportedModelError(
            f"{path}: bytes {spare_at} to 255 of the llama2.c header are zero in every known version, but here they "
            "are not: the file needs something that pyllm does not know"
        )
    if not tagged:
        return DEFAULT_ROPE_BASE, DEFAULT_NORM_EPS
    rope_base, norm_eps = struct.unpack_from("<ff", head, EXTENSION_AT + 4)
    return rope_base, norm_eps


def _field_flaw(header: Header) -> str | None:
    """The first thing wrong with the fields, in words, or None."""
    for name in FIELDS:
        if getattr(header, name) <= 0:
            return f"{name} is {getattr(header, name)}, expected a positive number"
    if header.n_layers > MAX_LAYERS:
        return f"n_layers is {header.n_layers}, expected at most {MAX_LAYERS}"
    if header.dim % (2 * header.n_heads):
        return f"dim is {header.dim}, expected a multiple of twice the {header.n_heads} n_heads"
    if header.n_heads % header.n_kv_heads:
        return f"n_heads is {header.n_heads}, expected a multiple of n_kv_heads, {header.n_kv_heads}"
    if header.version == 2 and header.group_size <= 0:
        return f"group_size is {header.group_size}, expected a positive number"
    return None


def _check_groups(path: Path, header: Header) -> None:
    shapes = header.shapes()
    for kind in header.order():
        rows, cols = shapes[kind]
        if kind in QUANTIZED and rows * cols % header.group_size:
            raise ModelFormatError(
                f"{path}: group_size {header.group_size} does not divide the {rows * cols} weights of {kind} "
                f"({rows} x {cols}), so its last weights have no scale: export the model again with a smaller one"
            )


def _check_size(path: Path, header: Header, found: int) -> None:
    expected = header.file_bytes()
    if found == expected:
        return
    verdict = "it was cut short, get it again" if found < expected else "it is damaged, or not a llama2.c file"
    fields = ", ".join(f"{name}={getattr(header, name)}" for name in FIELDS)
    raise ModelFormatError(
        f"{path}: a llama2.c v{header.version} file with {fields} has exactly {expected} bytes, but this one has "
        f"{found} ({abs(found - expected)} {'missing' if found < expected else 'too many'}): {verdict}"
    )


def _spec(header: Header, entry: Entry) -> TensorSpec:
    rows, cols = header.shapes()[entry.kind]
    quantized = header.version == 2 and entry.kind in QUANTIZED
    return TensorSpec(
        name=entry.name,
        type_id=LLAMA2C_Q8 if quantized else F32,
        shape=(rows, cols) if entry.kind in QUANTIZED else (cols,),
        offset=entry.offset,
        nbytes=entry.nbytes,
        group=header.group_size if quantized else 0,
    )


# ---- writing --------------------------------------------------------------------------------------------------------


def has_default_constants(rope_base: float, norm_eps: float) -> bool:
    """Whether these are, as fp32, the two numbers that the original has built in."""
    return struct.pack("<ff", rope_base, norm_eps) == struct.pack("<ff", DEFAULT_ROPE_BASE, DEFAULT_NORM_EPS)


def pack_header(header: Header) -> bytes:
    """The header's bytes, as the original's `export.py` writes them."""
    fields = [getattr(header, name) for name in FIELDS]
    if header.version == 0:
        fields[FIELDS.index("vocab_size")] *= 1 if header.shared else -1
        return struct.pack("<7i", *fields)
    head = bytearray(HEADER_BYTES)
    struct.pack_into("<4s8iB", head, 0, MAGIC, header.version, *fields, header.shared)
    if header.version == 2:
        struct.pack_into("<i", head, GROUP_AT, header.group_size)
    if not has_default_constants(header.rope_base, header.norm_eps):
        struct.pack_into("<4sff", head, EXTENSION_AT, EXTENSION_TAG, header.rope_base, header.norm_eps)
    return bytes(head)
