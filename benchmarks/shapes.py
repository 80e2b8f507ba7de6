"""Models of known shapes with random weights, quantised by pyllm: where only the speed is asked for.

    python benchmarks/shapes.py 1.1b OUT.gguf --type q4_k_m
    python benchmarks/shapes.py 15m OUT.bin               # llama2.c's fp32 file, for run.c

A `.gguf` carries a made-up vocabulary, without which llama.cpp refuses it; beside a `.bin` lies `OUT.tokenizer.bin`.
"""

from __future__ import annotations

import argparse
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import pyllm
from pyllm.quantizing import TYPES

PIECE = 1 << 24  # random values made at once, and used again: what they are costs nothing
DEVIATION = 0.02
UNSHARED = -1  # llama2.c marks a head of its own by a negative vocabulary size


@dataclass(frozen=True)
class Shape:
    """The header of llama2.c's file. `shared`: the head is the embedding."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    context_length: int
    shared: bool

    def sizes(self) -> Iterator[tuple[int, bool]]:
        """(values, whether they are norms) of llama2.c's version 0, part after part."""
        d, h, n, v = self.dim, self.hidden_dim, self.n_layers, self.vocab_size
        kv = d // self.n_heads * self.n_kv_heads
        yield v * d, False
        yield n * d, True
        yield from ((n * rows * cols, False) for rows, cols in ((d, d), (kv, d), (kv, d), (d, d)))
        yield n * d, True
        yield 3 * n * h * d, False
        yield d, True
        yield self.context_length * (d // self.n_heads), False  # tables of angles that nobody reads
        if not self.shared:
            yield v * d, False


SHAPES = {
    "260k": Shape(64, 172, 5, 8, 4, 512, 512, True),
    "15m": Shape(288, 768, 6, 6, 6, 32000, 256, True),
    "110m": Shape(768, 2048, 12, 12, 12, 32000, 1024, True),
    "1.1b": Shape(2048, 5632, 22, 32, 4, 32000, 8192, False),  # TinyLlama's, with room for long contexts
}


def write_model(shape: Shape, path: Path) -> None:
    """Random weights as llama2.c's version 0."""
    vocabulary = shape.vocab_size if shape.shared else UNSHARED * shape.vocab_size
    header = (shape.dim, shape.hidden_dim, shape.n_layers, shape.n_heads, shape.n_kv_heads, vocabulary)
    most = min(PIECE, max(n for n, _ in shape.sizes()))
    values = np.random.default_rng(0).standard_normal(most, np.float32) * np.float32(DEVIATION)
    with open(path, "wb") as file:
        file.write(struct.pack("<7i", *header, shape.context_length))
        for n, norms in shape.sizes():
            source: npt.NDArray[np.float32] = np.ones(n, np.float32) if norms else values
            for start in range(0, n, len(source)):
                file.write(source[: n - start].data)


def write_tokenizer(vocab_size: int, path: Path) -> None:
    """A llama2.c tokenizer: control tokens, bytes, a space, and made-up words."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), b" "]
    pieces += [b"w%d" % i for i in range(vocab_size - len(pieces))]
    with open(path, "wb") as file:
        file.write(struct.pack("<i", max(map(len, pieces))))
        for i, piece in enumerate(pieces):
            file.write(struct.pack("<fi", -float(i), len(piece)) + piece)


def make(shape: Shape, target: Path, kind: str) -> None:
    """Write the model: as a llama2.c file with its tokenizer beside it, or quantised as GGUF."""
    if target.suffix == ".bin":
        write_model(shape, target)
        write_tokenizer(shape.vocab_size, target.with_suffix(".tokenizer.bin"))
        return
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        model, tokenizer = Path(folder) / "model.bin", Path(folder) / "tokenizer.bin"
        write_model(shape, model)
        write_tokenizer(shape.vocab_size, tokenizer)
        pyllm.quantize(model, target, kind, tokenizer=tokenizer, progress=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="make a model of random weights")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("target", type=Path, help="a .gguf, or a .bin for llama2.c's fp32 format")
    parser.add_argument("--type", choices=TYPES, default="q4_0", help="weight type of a .gguf (q4_0)")
    arguments = parser.parse_args(argv)
    make(SHAPES[arguments.shape], arguments.target, arguments.type)


if __name__ == "__main__":
    main()
