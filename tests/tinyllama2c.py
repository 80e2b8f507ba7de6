"""A small writer of llama2.c files with random weights, for tests. It shares no code with the reader or the exporter.

The layouts are those of the original's export.py, written down once more.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Shape(NamedTuple):
    dim: int = 8
    hidden: int = 12
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    vocab: int = 10
    seq_len: int = 6

    @property
    def kv_dim(self) -> int:
        return self.dim // self.heads * self.kv_heads


def random_weights(shape: Shape, seed: int = 0) -> dict[str, Array]:
    """fp32 weights by kind; kinds that exist per layer have the layer as their first dimension."""
    d, hidden, n, kv, vocab = shape.dim, shape.hidden, shape.layers, shape.kv_dim, shape.vocab
    sizes: dict[str, tuple[int, ...]] = {"tok_emb": (vocab, d), "att_norm": (n, d), "ffn_norm": (n, d)}
    sizes |= {"wq": (n, d, d), "wk": (n, kv, d), "wv": (n, kv, d), "wo": (n, d, d)}
    sizes |= {"w1": (n, hidden, d), "w2": (n, d, hidden), "w3": (n, hidden, d), "final_norm": (d,), "wcls": (vocab, d)}
    rng = np.random.default_rng(seed)
    return {kind: rng.normal(0, 0.1, size).astype(np.float32) for kind, size in sizes.items()}


def v0_bytes(shape: Shape, weights: dict[str, Array], *, shared: bool = True) -> bytes:
    out = [struct.pack("<7i", *shape[:5], shape.vocab if shared else -shape.vocab, shape.seq_len)]
    for kind in ("tok_emb", "att_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "final_norm"):
        out.append(weights[kind].tobytes())
    out.append(b"\x55" * (4 * shape.seq_len * (shape.dim // shape.heads)))  # two RoPE tables that nobody reads
    return b"".join(out) + (b"" if shared else weights["wcls"].tobytes())


def header(shape: Shape, version: int, shared: bool, group_size: int | None = None) -> bytes:
    head = struct.pack("<I8iB", 0x616B3432, version, *shape, shared)
    head += b"" if group_size is None else struct.pack("<i", group_size)
    return head.ljust(256, b"\0")


def v1_bytes(shape: Shape, weights: dict[str, Array], *, shared: bool = True) -> bytes:
    kinds = ["att_norm", "ffn_norm", "final_norm", "tok_emb", "wq", "wk", "wv", "wo", "w1", "w2", "w3"]
    kinds += [] if shared else ["wcls"]
    return header(shape, 1, shared) + b"".join(weights[kind].tobytes() for kind in kinds)


def q80(values: Array, group_size: int) -> bytes:
    """One tensor: int8[n], then fp32 scales[n / group_size], groups over the flattened tensor."""
    groups = values.reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    return bytes(np.rint(groups / scales[:, None]).astype(np.int8).tobytes() + scales.tobytes())


def v2_bytes(shape: Shape, weights: dict[str, Array], group_size: int, *, shared: bool = True) -> bytes:
    out = [header(shape, 2, shared, group_size)]
    out += [weights[kind].tobytes() for kind in ("att_norm", "ffn_norm", "final_norm")]
    out.append(q80(weights["tok_emb"], group_size))
    for kind in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
        out += [q80(weights[kind][layer], group_size) for layer in range(shape.layers)]
    return b"".join(out) + (b"" if shared else q80(weights["wcls"], group_size))
