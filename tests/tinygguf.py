"""A small GGUF writer, and tiny Llama models with random weights, for tests that need a file but no real model.

`write_gguf(path, metadata, tensors)` is the whole API for files; `tiny_llama(path, ...)` writes a model that runs.
It shares no code with the reader it helps to test.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Metadata value types by their number in the file, and how the fixed-size ones are packed.
UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
PACKING = {UINT8: "B", INT8: "b", UINT16: "H", INT16: "h", UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "B"}
PACKING |= {UINT64: "Q", INT64: "q", FLOAT64: "d"}

F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16 = 0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 30
Q2_K, Q3_K, Q8_K, IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S, IQ4_NL = 10, 11, 15, 16, 17, 18, 19, 20
IQ3_S, IQ2_S, IQ4_XS, IQ1_M, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0, Q2_0 = 21, 22, 23, 29, 34, 35, 39, 40, 41, 42

# type -> (elements per block, bytes per block, {byte offset of a scale or minimum: its magnitude})
BLOCKS: dict[int, tuple[int, int, dict[int, float]]] = {
    Q4_0: (32, 18, {0: 0.012}),
    Q4_1: (32, 20, {0: 0.012, 2: -0.09}),
    Q5_0: (32, 22, {0: 0.006}),
    Q5_1: (32, 24, {0: 0.006, 2: -0.09}),
    Q8_0: (32, 34, {0: 0.0008}),
    Q4_K: (256, 144, {0: 0.0002, 2: 0.0015}),
    Q5_K: (256, 176, {0: 0.0001, 2: 0.0015}),
    Q6_K: (256, 210, {208: 0.00005}),
    Q2_K: (256, 84, {80: 0.008, 82: 0.01}),
    Q3_K: (256, 110, {108: 0.002}),
    Q8_K: (256, 292, {0: 0.0008}),
    IQ2_XXS: (256, 66, {0: 0.001}),
    IQ2_XS: (256, 74, {0: 0.001}),
    IQ2_S: (256, 82, {0: 0.001}),
    IQ3_XXS: (256, 98, {0: 0.0006}),
    IQ3_S: (256, 110, {0: 0.0006}),
    IQ1_S: (256, 50, {0: 0.01}),
    IQ1_M: (256, 56, {48: 0.01}),
    IQ4_NL: (32, 18, {0: 0.001}),
    IQ4_XS: (256, 136, {0: 0.00005}),
    TQ1_0: (256, 54, {52: 0.1}),
    TQ2_0: (256, 66, {64: 0.1}),
    MXFP4: (32, 17, {0: 0.02}),
    NVFP4: (64, 36, {0: 0.02, 1: 0.02, 2: 0.02, 3: 0.02}),
    Q1_0: (128, 18, {0: 0.1}),
    Q2_0: (64, 18, {0: 0.1}),
}

Tensor = tuple[int, tuple[int, ...], bytes]  # type number, row-major shape, the data


class Typed(NamedTuple):
    """A metadata value whose type in the file is given instead of chosen: `Typed(UINT64, 5)`, `Typed(ARRAY, ...)`.

    For an array `value` is `(element type, [elements])`.
    """

    type: int
    value: Any


def choose_type(value: Any) -> Typed:
    """The GGUF type a Python value is written as: bool, uint32 (int32, int64, uint64 where needed), float32, ..."""
    if isinstance(value, Typed):
        return value
    if isinstance(value, bool):
        return Typed(BOOL, value)
    if isinstance(value, int):
        fits = [t for t, low, high in INTEGER_RANGES if low <= value <= high]
        return Typed(fits[0], value)
    if isinstance(value, float):
        return Typed(FLOAT32, value)
    if isinstance(value, (str, bytes)):
        return Typed(STRING, value)
    items = list(value)
    element = choose_type(items[0]).type if items else INT32
    return Typed(ARRAY, (INT32 if element == UINT32 else element, items))


INTEGER_RANGES = (
    (UINT32, 0, 2**32 - 1),
    (INT32, -(2**31), 2**31 - 1),
    (INT64, -(2**63), 2**63 - 1),
    (UINT64, 0, 2**64 - 1),
)


def pack_string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pack_value(type_: int, value: Any) -> bytes:
    if type_ == STRING:
        return pack_string(value)
    if type_ == ARRAY:
        element, items = value
        return struct.pack("<IQ", element, len(items)) + b"".join(pack_value(element, item) for item in items)
    return struct.pack("<" + PACKING[type_], value)


def pack_metadata(metadata: Mapping[str, Any]) -> bytes:
    out = []
    for key, value in metadata.items():
        typed = choose_type(value)
        out.append(pack_string(key) + struct.pack("<I", typed.type) + pack_value(typed.type, typed.value))
    return b"".join(out)


def padding(n: int, alignment: int) -> bytes:
    return b"\0" * (-n % alignment)


def gguf_bytes(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], *, version: int = 3) -> bytes:
    """A whole GGUF file. Shapes are row-major, (rows, cols) or (n,); the alignment is `general.alignment` or 32."""
    alignment = metadata.get("general.alignment", 32)
    alignment = alignment.value if isinstance(alignment, Typed) else alignment
    infos, data = [], b""
    for name, (type_id, shape, raw) in tensors.items():
        data += padding(len(data), alignment)
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        infos.append(pack_string(name) + dims + struct.pack("<IQ", type_id, len(data)))
        data += raw
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += pack_metadata(metadata) + b"".join(infos)
    return head + padding(len(head), alignment) + data


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], *, version: int = 3) -> Path:
    """Writes `gguf_bytes(...)` and gives the path back."""
    path.write_bytes(gguf_bytes(metadata, tensors, version=version))
    return path


def random_weights(rng: np.random.Generator, type_id: int, rows: int, cols: int) -> bytes:
    """Bytes of a (rows, cols) matrix of any runnable type, with values of the order of 0.1."""
    if type_id not in BLOCKS:
        return float_bytes(type_id, rng.normal(0, 0.1, (rows, cols)).astype(np.float32))
    elements, nbytes, scales = BLOCKS[type_id]
    blocks = rng.integers(0, 256, (rows * cols // elements, nbytes), dtype=np.uint8)
    if type_id == TQ2_0:  # two bits for three values: no file has the fourth, 2
        blocks[:, :64] = (rng.integers(0, 3, (len(blocks), 64, 4)) << np.arange(0, 8, 2)).sum(axis=2)
    for offset, magnitude in scales.items():
        put_scales(blocks, type_id, offset, (magnitude * rng.uniform(0.5, 1.5, len(blocks))).astype("<f2"))
    return blocks.tobytes()


def put_scales(blocks: np.ndarray[Any, Any], type_id: int, offset: int, scales: np.ndarray[Any, Any]) -> None:
    """Writes one fp16 number (n,) into each of n blocks, in the form that the type has for it."""
    if type_id == Q8_K:
        blocks[:, offset : offset + 4] = scales.astype("<f4").view(np.uint8).reshape(-1, 4)
    elif type_id == MXFP4:  # a power of two, or the largest one
        exponents = np.frexp(np.abs(scales.astype(np.float64)))[1] + 126
        blocks[:, offset] = np.where(np.isfinite(scales), exponents.clip(0, 254), 255)
    elif type_id == NVFP4:  # an unsigned float of 4 + 3 bits, half of what it says; 0x7f and 0xff where it is no number
        mantissas, exponents = np.frexp(np.nan_to_num(np.abs(scales.astype(np.float64))))
        codes = (exponents + 7).clip(0, 15) * 8 + (mantissas * 16).astype(np.int64) % 8
        blocks[:, offset] = np.where(np.isfinite(scales), codes.clip(0, 126), np.where(scales > 0, 127, 255))
    elif type_id == IQ1_M:  # nibble i in the top of word i, whose other bits are small scales
        for i in range(4):
            nibble = (scales.view("<u2") >> 4 * i & 15).astype(np.uint8)
            blocks[:, offset + 2 * i + 1] = blocks[:, offset + 2 * i + 1] & 15 | nibble << 4
    else:
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)


def float_bytes(type_id: int, values: np.ndarray[Any, Any]) -> bytes:
    """fp32 `values` as F32, F16 or BF16 (cut, not rounded: tests make their own expectations)."""
    if type_id == F32:
        return values.astype("<f4").tobytes()
    if type_id == F16:
        return values.astype("<f2").tobytes()
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def tiny_vocabulary(size: int) -> dict[str, Any]:
    """A SentencePiece-style vocabulary: unk, bos, eos, 256 bytes, then pieces made of two letters; size >= 259."""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    pairs = [a + b for a in "\u2581etaoinshr" for b in "etaoinshrdlucmfywgpbvk"]
    pieces = (pieces + pairs + [f"\u2581w{i}" for i in range(max(0, size))])[:size]
    types = [2, 3, 3] + [6] * 256 + [1] * (size - 259)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(size - 259)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


class Shape(NamedTuple):
    """Sizes of a tiny model. K-quants need dim and hidden to be multiples of 256, the other quantised types of 32."""

    dim: int = 64
    hidden: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 300
    context: int = 128


def llama_metadata(shape: Shape) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.dim,
        "llama.feed_forward_length": shape.hidden,
        "llama.block_count": shape.layers,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": shape.dim // shape.heads,
    }


def matrix_shapes(shape: Shape, tied: bool) -> Iterable[tuple[str, tuple[int, int]]]:
    kv = shape.dim // shape.heads * shape.kv_heads
    yield "token_embd.weight", (shape.vocab, shape.dim)
    for i in range(shape.layers):
        yield f"blk.{i}.attn_q.weight", (shape.dim, shape.dim)
        yield f"blk.{i}.attn_k.weight", (kv, shape.dim)
        yield f"blk.{i}.attn_v.weight", (kv, shape.dim)
        yield f"blk.{i}.attn_output.weight", (shape.dim, shape.dim)
        yield f"blk.{i}.ffn_gate.weight", (shape.hidden, shape.dim)
        yield f"blk.{i}.ffn_up.weight", (shape.hidden, shape.dim)
        yield f"blk.{i}.ffn_down.weight", (shape.dim, shape.hidden)
    if not tied:
        yield "output.weight", (shape.vocab, shape.dim)


def llama_tensors(shape: Shape, type_id: int = F32, *, tied: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of one type, and norms in F32 around one."""
    rng = np.random.default_rng(seed)
    norms = ["output_norm.weight"]
    norms += [f"blk.{i}.{name}.weight" for i in range(shape.layers) for name in ("attn_norm", "ffn_norm")]
    out: dict[str, Tensor] = {}
    for name in norms:
        values = rng.uniform(0.5, 1.5, shape.dim).astype(np.float32)
        out[name] = (F32, (shape.dim,), float_bytes(F32, values))
    for name, (rows, cols) in matrix_shapes(shape, tied):
        out[name] = (type_id, (rows, cols), random_weights(rng, type_id, rows, cols))
    return out


def tiny_llama(path: Path, type_id: int = F32, shape: Shape | None = None, *, tied: bool = True, seed: int = 0) -> Path:
    """Writes a Llama GGUF with random weights of one type and a small vocabulary (from 259 pieces up)."""
    shape = shape or Shape()
    metadata = llama_metadata(shape)
    if shape.vocab >= 259:
        metadata |= tiny_vocabulary(shape.vocab)
    return write_gguf(path, metadata, llama_tensors(shape, type_id, tied=tied, seed=seed))
