"""How fast the kernels of each weight type are, at each kernel level: whole forward passes over weights made up here.

    python benchmarks/kernels.py [--type Q4_1 ...] [--isa avx512 ...] [--precision high ...] [--threads 1] [--json FILE]

There is no model file: a transformer whose matrices are all of one type is filled with random blocks, so that 99 % of
its work is those matrices. Prefill is 128 columns at once, in 10**9 multiply-accumulates per second (of a weight and an
activation: precision "high" needs two byte products for each); decode is one column, in GB/s of weights read, beside
what the same number of threads reads of a buffer of that size. Float weights know no precision: they are run once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import conditions
import numpy as np
import numpy.typing as npt

from pyllm import _core
from pyllm.config import ModelConfig
from pyllm.formats import weight_types
from pyllm.formats.weight_types import BF16, F16, F32, LLAMA2C_Q8, WEIGHT_TYPES, type_name
from pyllm.model import PLANES

COLUMNS = 128  # tokens of a prefill
DECODED = 16  # tokens of a decode
GROUP = 64  # of llama2.c's int8 type
FLOATS = {F32: "<f4", F16: "<f2", BF16: "<u2"}
# A float whose bytes are all below 0x20 is small and finite in any format, so scales may be any such bytes.
SMALL_BYTES = 0x20


def config_of(layers: int) -> ModelConfig:
    """A transformer of 15.2 million weights a layer, with a vocabulary too small to matter."""
    return ModelConfig(
        architecture="synthetic",
        dim=1024,
        hidden_dim=4096,
        n_layers=layers,
        n_heads=16,
        n_kv_heads=4,
        head_dim=64,
        vocab_size=256,
        context_length=COLUMNS,
        rope_dims=64,
    )


def matrices(config: ModelConfig) -> Iterator[tuple[str, int, int, int]]:
    """(slot, layer, rows, cols) of every matrix but the embedding."""
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    dim, hidden = config.dim, config.hidden_dim
    shapes = {"wq": (q, dim), "wk": (kv, dim), "wv": (kv, dim), "wo": (dim, q)}
    shapes |= {"gate": (hidden, dim), "up": (hidden, dim), "down": (dim, hidden)}
    for layer in range(config.n_layers):
        for slot, (rows, cols) in shapes.items():
            yield slot, layer, rows, cols


def random_matrix(rng: np.random.Generator, type_id: int, rows: int, cols: int) -> npt.NDArray[np.uint8]:
    """Bytes of a matrix of one type, with finite values. What they are does not matter: no kernel looks."""
    n = rows * cols
    if type_id == LLAMA2C_Q8:
        codes = rng.integers(-127, 128, n, dtype=np.int8).view(np.uint8)
        return np.concatenate([codes, np.full(n // GROUP, 1e-3, "<f4").view(np.uint8)])
    if type_id not in FLOATS:
        return rng.integers(0, SMALL_BYTES, WEIGHT_TYPES[type_id].nbytes(n), dtype=np.uint8)
    values = rng.standard_normal(n, np.float32) * np.float32(0.03)
    bits = (values.view(np.uint32) >> 16).astype("<u2") if type_id == BF16 else values.astype(FLOATS[type_id])
    data: npt.NDArray[np.uint8] = bits.view(np.uint8)
    return data


def build(config: ModelConfig, type_id: int, planes: int, threads: int) -> _core.NativeModel:
    """The transformer, all matrices of one type, packed for the kernel level in use."""
    rng = np.random.default_rng(0)
    model = _core.NativeModel(config, planes=planes, kv_type="f16", threads=threads)
    ones = np.ones(config.dim, np.float32).view(np.uint8)
    shape = config.vocab_size, config.dim
    model.bind("embedding", 0, F32, *shape, random_matrix(rng, F32, *shape))
    for layer in range(config.n_layers):
        model.bind("attention_norm", layer, F32, 1, config.dim, ones)
        model.bind("ffn_norm", layer, F32, 1, config.dim, ones)
    model.bind("final_norm", 0, F32, 1, config.dim, ones)
    group = GROUP if type_id == LLAMA2C_Q8 else 0
    for slot, layer, rows, cols in matrices(config):
        model.bind(slot, layer, type_id, rows, cols, random_matrix(rng, type_id, rows, cols), group)
    model.finish()
    return model


@dataclass(frozen=True)
class Rates:
    """What one type reaches at one level. Medians; `cpu` figures count CPU time of all threads instead of the clock."""

    type: str
    isa: str
    precision: str
    threads: int
    weight_bytes: int
    prefill_gmac_per_second: float
    prefill_gmac_per_cpu_second: float
    decode_gb_per_second: float
    decode_gb_per_cpu_second: float
    read_gb_per_second: float


def median_seconds(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds, and median CPU seconds of all threads, of `run` after a warm-up."""
    run()
    clock, cpu = [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        run()
        clock.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    return statistics.median(clock), statistics.median(cpu)


def measure(type_id: int, isa: str, precision: str, arguments: argparse.Namespace) -> Rates:
    """Build the transformer for one type and level, and time it."""
    _core.isa_select(isa)
    config = config_of(arguments.layers)
    ids = list(range(COLUMNS))
    with closing(build(config, type_id, PLANES[precision], arguments.threads)) as model:
        session = model.new_session(COLUMNS)

        def prefill() -> None:
            session.truncate(0)
            session.eval(ids)

        def decode() -> None:
            session.truncate(0)
            for token in ids[:DECODED]:
                session.eval([token])

        clock, cpu = median_seconds(prefill, arguments.repeats)
        slow, slow_cpu = median_seconds(decode, arguments.repeats)
        session.close()
        macs = COLUMNS * sum(rows * cols for _, _, rows, cols in matrices(config)) / 1e9
        read = DECODED * model.token_bytes / 1e9
        ceiling = conditions.read_bandwidth(model.token_bytes, arguments.threads)
        sizes = (arguments.threads, model.token_bytes)
        rates = (macs / clock, macs / cpu, read / slow, read / slow_cpu, ceiling)
        return Rates(type_name(type_id), isa, precision, *sizes, *rates)


def table(rows: Sequence[Rates]) -> str:
    """The rates as a Markdown table."""
    lines = [
        "| type | level | precision | prefill GMAC/s | per CPU s | decode GB/s | per CPU s | ceiling GB/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.type} | {r.isa} | {r.precision} | {r.prefill_gmac_per_second:.1f} | {r.prefill_gmac_per_cpu_second:.1f} "
        f"| {r.decode_gb_per_second:.1f} | {r.decode_gb_per_cpu_second:.1f} | {r.read_gb_per_second:.1f} |"
        for r in rows
    ]
    return "\n".join(lines)


def all_types() -> dict[str, int]:
    """Name to id of every type that has kernels."""
    ids = [id for id in (*WEIGHT_TYPES, LLAMA2C_Q8) if weight_types.is_runnable(id)]
    return {type_name(id): id for id in ids}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    types, levels = all_types(), _core.isa_names()
    parser = argparse.ArgumentParser(description="measure the kernels of each weight type at each level")
    parser.add_argument("--type", action="append", choices=types, help="may be given again (all)")
    parser.add_argument("--isa", action="append", choices=levels, help=f"may be given again ({levels[0]})")
    parser.add_argument("--precision", action="append", choices=PLANES, help="may be given again (both)")
    parser.add_argument("--threads", type=int, default=1, help="threads of one evaluation (1)")
    parser.add_argument("--layers", type=int, default=4, help="of 15.2 million weights each (4)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs after a warm-up (5)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    types, rows = all_types(), []
    for name in arguments.type or types:
        for isa in arguments.isa or _core.isa_names()[:1]:
            for precision in ["high"] if types[name] in FLOATS else arguments.precision or PLANES:
                print(f"{name}, {isa}, {precision}", file=sys.stderr)
                rows.append(measure(types[name], isa, precision, arguments))
    if arguments.json:
        idle = conditions.idle_share(conditions.IDLE_AFTER)
        record: dict[str, Any] = {"date": conditions.today(), "machine": conditions.machine(), "idle_share_after": idle}
        record |= {"load_average": conditions.load_average(), "rates": [asdict(row) for row in rows]}
        arguments.json.write_text(conditions.format_record(record), "utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
