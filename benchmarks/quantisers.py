"""How much quantising loses, and how long it takes: pyllm's quantisers beside ggml's own.

    python benchmarks/quantisers.py [MODEL.gguf] [--ggml libggml-base.so] [--type q4_k ...] [--no-divergence]

Both make blocks of the same weights, and pyllm reads both back, so only the choice of scales and codes differs.

error           root of the mean squared error, in parts of the weights' own, over blocks from every matrix
divergence      mean Kullback-Leibler divergence, in nats, of next-token distributions: the model as it is, against the
                model with every matrix of its layers quantised and read back. Rows that are no whole blocks are
                quantised across their ends, so that every type is measured on every matrix.
Mweights/s      of one thread, in processor time: what else runs on the machine does not count

Without ggml (`pip install llama-cpp-python` brings it, `--ggml` names it) pyllm stands alone in the table. The default
model is Q4_1 itself, so that type finds its own grid again: compare columns, not rows.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import conditions
import numpy as np
import numpy.typing as npt
from fidelity import GOLDEN, log_softmax, read_texts

import pyllm
from pyllm import _core, recipes
from pyllm.formats import Checkpoint, TensorSpec, gguf, open_checkpoint
from pyllm.formats.gguf_writer import Outline, write_gguf
from pyllm.formats.weight_types import F16, F32, FLOATS, MAKEABLE, WEIGHT_TYPES
from pyllm.model import find

BLOCK = 256  # weights: a multiple of every type's block
SAMPLE = 48  # blocks from each matrix for the error and the time
TYPES = [name for name, type_id in MAKEABLE.items() if type_id not in FLOATS]

Array = npt.NDArray[Any]
Quantiser = Callable[[int, Array], Array]  # (type, float32 (n, 256)) -> uint8 (n, bytes of them)


@dataclass(frozen=True)
class Figures:
    """Of one type by one quantiser; `divergence` is None where it was not asked for."""

    error: float
    mweights_per_second: float
    divergence: float | None = None


# ---- quantisers ------------------------------------------------------------------------------------------------------


def by_pyllm(type_id: int, x: Array) -> Array:
    """One thread of pyllm."""
    return _core.quantize(type_id, F32, *x.shape, x)


def find_ggml(path: Path | None) -> Path | None:
    """The library given, or the one that llama-cpp-python installed."""
    if path is None and (spec := importlib.util.find_spec("llama_cpp")) is not None:
        found = sorted(Path(str(spec.origin)).parent.glob("lib/libggml-base*.so"))
        path = found[0] if found else None
    return path


def by_ggml(path: Path) -> Quantiser:
    """One thread of ggml, without an importance matrix."""
    chunk = ctypes.CDLL(str(path)).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantise(type_id: int, x: Array) -> Array:
        out = np.empty((len(x), WEIGHT_TYPES[type_id].nbytes(BLOCK)), np.uint8)
        if chunk(type_id, x.ctypes.data, out.ctypes.data, 0, *x.shape, None) != out.nbytes:
            raise SystemExit(f"{path}: ggml_quantize_chunk gave another number of bytes")
        return out

    return quantise


# ---- weights ---------------------------------------------------------------------------------------------------------


def is_layer_matrix(spec: TensorSpec) -> bool:
    """A matrix of a layer that quantising would change."""
    return spec.name.startswith("blk.") and not recipes.is_kept(spec.name, spec.shape)


def blocks_of(checkpoint: Checkpoint, spec: TensorSpec) -> Array:
    """A tensor's values as float32 (n, 256)."""
    rows, cols = int(np.prod(spec.shape[:-1])), spec.shape[-1]
    values = _core.dequantize(spec.type_id, rows, cols, checkpoint.view(spec), spec.group)
    return values.reshape(-1, BLOCK)


def sample(checkpoint: Checkpoint) -> Array:
    """Blocks from every matrix of the layers, the same ones in every run."""
    rng, parts = np.random.default_rng(0), []
    for spec in filter(is_layer_matrix, checkpoint.tensors.values()):
        blocks = blocks_of(checkpoint, spec)
        parts.append(blocks[rng.choice(len(blocks), min(SAMPLE, len(blocks)), replace=False)])
    return np.concatenate(parts)


def error_and_time(quantise: Quantiser, type_id: int, x: Array) -> Figures:
    start = time.thread_time()
    data = quantise(type_id, x)
    seconds = time.thread_time() - start
    off = _core.dequantize(type_id, *x.shape, data) - x
    return Figures(float(np.sqrt(np.square(off).mean() / np.square(x).mean())), x.size / seconds / 1e6)


# ---- divergence ------------------------------------------------------------------------------------------------------


def log_probabilities(model: Path, texts: Sequence[Sequence[int]], threads: int) -> list[Array]:
    """Of every token after every position of each text."""
    with pyllm.load(model, threads=threads) as loaded:
        return [log_softmax(loaded.logits(ids)) for ids in texts]


def divergence(reference: Sequence[Array], other: Sequence[Array]) -> float:
    """Mean over positions of sum_i p_i log(p_i / q_i)."""
    parts = [(np.exp(p) * (p - q)).sum(-1) for p, q in zip(reference, other, strict=True)]
    return float(np.concatenate(parts).mean())


def write_read_back(checkpoint: Checkpoint, target: Path, quantise: Callable[[Array], Array]) -> None:
    """The model with the matrices of its layers as `quantise` and a reader leave them, in half precision."""
    outlines = [
        Outline(name, F16 if is_layer_matrix(spec) else spec.type_id, spec.shape)
        for name, spec in checkpoint.tensors.items()
    ]

    def pieces(outline: Outline) -> Iterator[Any]:
        spec = checkpoint.tensors[outline.name]
        if is_layer_matrix(spec):
            yield quantise(blocks_of(checkpoint, spec)).astype("<f2").data.cast("B")
        else:
            yield checkpoint.view(spec)

    metadata = gguf.raw_metadata(checkpoint.path, checkpoint.buffer)
    write_gguf(target, {k: v for k, v in metadata.items() if k != "general.alignment"}, outlines, pieces)


def measure_divergence(
    checkpoint: Checkpoint, quantisers: dict[str, Quantiser], names: Sequence[str], options: argparse.Namespace
) -> dict[tuple[str, str], float]:
    """By type and quantiser."""
    tokenizer = pyllm.Tokenizer.load(checkpoint.path)
    texts = [tokenizer.encode(text)[: options.longest] for _, text in read_texts([GOLDEN / "smollm2_texts.json"])]
    out: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_read_back(checkpoint, path, lambda x: x)
        reference = log_probabilities(path, texts, options.threads)
        for name in names:
            for who, quantise in quantisers.items():
                type_id = MAKEABLE[name]
                write_read_back(
                    checkpoint, path, lambda x, t=type_id, q=quantise: _core.dequantize(t, *x.shape, q(t, x))
                )
                out[name, who] = divergence(reference, log_probabilities(path, texts, options.threads))
                print(f"{name} by {who}: {out[name, who]:.6f}", file=sys.stderr)
    return out


# ---- the command -----------------------------------------------------------------------------------------------------


def table(rows: dict[str, dict[str, Figures]]) -> str:
    """The figures as a Markdown table, pyllm's first; ratios are pyllm's over ggml's."""
    lines = ["| type | error | divergence | Mweights/s |", "|---|---|---|---|"]
    for name, by in rows.items():
        cells = []
        for field, digits in (("error", 5), ("divergence", 6), ("mweights_per_second", 1)):
            values = [getattr(figures, field) for figures in by.values()]
            if None in values:
                cells.append("")
            else:
                ratio = f" ({values[0] / values[1]:.3f})" if len(values) > 1 and values[1] else ""
                cells.append(" / ".join(f"{value:.{digits}f}" for value in values) + ratio)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="compare quantisers with ggml's")
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="a GGUF file or a name (the default model)")
    parser.add_argument("--ggml", type=Path, help="ggml's base library; by default the one of llama-cpp-python")
    parser.add_argument("--type", action="append", choices=TYPES, help="may be given again (all)")
    parser.add_argument("--no-divergence", action="store_true", help="leave out what takes minutes")
    parser.add_argument("--longest", type=int, default=64, help="tokens to which texts are cut (64)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the model that is evaluated (2)")
    parser.add_argument("--json", type=Path, help="write a record to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    names, ggml = options.type or TYPES, find_ggml(options.ggml)
    quantisers: dict[str, Quantiser] = {"pyllm": by_pyllm} | ({"ggml": by_ggml(ggml)} if ggml else {})
    checkpoint = open_checkpoint(find(options.model, None))
    x = sample(checkpoint)
    rows = {n: {who: error_and_time(q, MAKEABLE[n], x) for who, q in quantisers.items()} for n in names}
    if not options.no_divergence:
        found = measure_divergence(checkpoint, quantisers, names, options)
        rows = {
            n: {who: Figures(f.error, f.mweights_per_second, found[n, who]) for who, f in by.items()}
            for n, by in rows.items()
        }
    print(f"{checkpoint.path.name}, {' / '.join(quantisers)}\n\n{table(rows)}")
    if options.json:
        types = {name: {who: asdict(figures) for who, figures in by.items()} for name, by in rows.items()}
        record = {"date": conditions.today(), "machine": conditions.machine(), "model": checkpoint.path.name}
        options.json.write_text(conditions.format_record(record | {"types": types}))


if __name__ == "__main__":
    main()
