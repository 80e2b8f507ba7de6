"""How fast the kernels of each weight type are, at each kernel level, on weights made up here.

    python benchmarks/kernels.py [--type Q4_1 ...] [--isa avx512 ...] [--precision high ...] [--threads 1]
                                 [--only tiles|passes] [--json FILE]

*Tiles*: the kernels alone, for each number of columns: from the cache, in 10**9 multiply-accumulates per second beside
what the level's own instruction reaches in registers, halved for the two planes of "high"; and from memory, in GB/s of
weights beside a loop that only reads. One thread, in its CPU time. They are a C program, `kernels.c`, built here with
the sources of the library: types of one packing share their kernels and are measured once.

*Passes*: whole forward passes. There is no model file: a transformer whose matrices are all of one type is filled with
random blocks, so that 99 % of its work is those matrices. Prefill is 128 columns at once, in 10**9 multiply-accumulates
per second (of a weight and an activation: precision "high" needs two byte products for each); decode is one column, in
GB/s of weights read, beside what the same number of threads reads of a buffer of that size. Float weights know no
precision: they are run once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
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
from pyllm.measuring.probes import LOOK, idle_share
from pyllm.model import PLANES

COLUMNS = 128  # tokens of a prefill
DECODED = 16  # tokens of a decode
GROUP = 64  # of llama2.c's int8 type
TILE_COLUMNS = (1, 2, 3, 4, 6, 8, 16, 96)  # 96: a piece of a prompt
ROOT = Path(__file__).resolve().parent.parent
TILE_SOURCES = ("kernels/*.c", "quant/*.c", "base/*.c")
TILE_FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-D_GNU_SOURCE", "-pthread")
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


@dataclass(frozen=True)
class Tile:
    """What a kernel alone reaches with some columns. Medians of one thread's CPU time."""

    type: str
    isa: str
    precision: str
    columns: int
    gmac_per_second: float
    ceiling_gmac_per_second: float
    gb_per_second: float
    memory_gb_per_second: float


def build_tiles(folder: Path) -> Path:
    """Compile `kernels.c` with the library's sources."""
    program, csrc = folder / "kernels", ROOT / "csrc"
    sources = [Path(__file__).with_suffix(".c"), *(path for glob in TILE_SOURCES for path in sorted(csrc.glob(glob)))]
    compiler = shlex.split(os.environ.get("CC", "cc"))
    command = [*compiler, *TILE_FLAGS, f"-I{csrc}", *map(str, sources), "-o", str(program), "-lm"]
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit(f"could not build {sources[0].name}: it needs a C compiler and the source tree")
    return program


def run_tiles(program: Path, isa: str, type_id: int, planes: int, columns: Sequence[int]) -> list[list[str]]:
    """The fields of the lines that `kernels.c` prints."""
    command = [str(program), isa, str(type_id), str(planes), *map(str, columns)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return [line.split() for line in finished.stdout.splitlines()]


def measure_tiles(arguments: argparse.Namespace, types: dict[str, int]) -> Iterator[Tile]:
    """All kernels that were asked for; of types that share them, the first."""
    with tempfile.TemporaryDirectory() as folder:
        program = build_tiles(Path(folder))
        for isa in arguments.isa or _core.isa_names()[:1]:
            packings = {name: run_tiles(program, isa, types[name], 1, [])[0][0] for name in arguments.type or types}
            names = {packing: name for name, packing in reversed(packings.items())}
            for name in sorted(names.values(), key=list(packings).index):
                for precision in precisions(types[name], arguments):
                    print(f"tiles of {name}, {isa}, {precision}", file=sys.stderr)
                    planes = 0 if types[name] in FLOATS else PLANES[precision]
                    for columns, *rates in run_tiles(program, isa, types[name], planes, TILE_COLUMNS)[1:]:
                        yield Tile(name, isa, precision, int(columns), *map(float, rates))


def precisions(type_id: int, arguments: argparse.Namespace) -> Sequence[str]:
    """Those to measure: float weights know none."""
    return ["high"] if type_id in FLOATS else arguments.precision or list(PLANES)


def share(rate: float, ceiling: float) -> str:
    """As in "97.1 (83 %)"; the scalar level has no ceiling."""
    return f"{rate:.1f} ({rate / ceiling:.0%})" if ceiling > 0 else f"{rate:.1f}"


def tile_table(tiles: Sequence[Tile]) -> str:
    """GMAC/s from the cache and GB/s from memory, each with its share of the ceiling, as two Markdown tables."""
    rows: dict[tuple[str, str, str], list[Tile]] = {}
    for tile in tiles:
        rows.setdefault((tile.type, tile.isa, tile.precision), []).append(tile)
    head = "| type | level | precision |" + "".join(f" n = {n} |" for n in TILE_COLUMNS)
    lines = []
    for title in ("from the cache, GMAC/s (of the ceiling)", "from memory, GB/s (of a loop that reads)"):
        lines += [f"Tiles {title}:", "", head, "|---" * (3 + len(TILE_COLUMNS)) + "|"]
        for key, row in rows.items():
            cached = title.startswith("from the cache")
            cells = [
                share(t.gmac_per_second, t.ceiling_gmac_per_second)
                if cached
                else share(t.gb_per_second, t.memory_gb_per_second)
                for t in row
            ]
            lines.append(f"| {' | '.join((*key, *cells))} |")
        lines.append("")
    return "\n".join(lines)


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
    parser.add_argument("--only", choices=("tiles", "passes"), help="one of the two (both)")
    parser.add_argument("--threads", type=int, default=1, help="threads of one evaluation (1)")
    parser.add_argument("--layers", type=int, default=4, help="of 15.2 million weights each (4)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs after a warm-up (5)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args(argv)


def measure_passes(arguments: argparse.Namespace, types: dict[str, int]) -> Iterator[Rates]:
    """All forward passes that were asked for."""
    for name in arguments.type or types:
        for isa in arguments.isa or _core.isa_names()[:1]:
            for precision in precisions(types[name], arguments):
                print(f"passes of {name}, {isa}, {precision}", file=sys.stderr)
                yield measure(types[name], isa, precision, arguments)


def main(argv: Sequence[str] | None = None) -> None:
    arguments, types = parse(argv), all_types()
    tiles = [] if arguments.only == "passes" else list(measure_tiles(arguments, types))
    rows = [] if arguments.only == "tiles" else list(measure_passes(arguments, types))
    if arguments.json:
        idle = idle_share(LOOK)
        record: dict[str, Any] = {"date": conditions.today(), "machine": conditions.machine(), "idle_share_after": idle}
        record |= {"load_average": conditions.load_average(), "tiles": [asdict(tile) for tile in tiles]}
        record["rates"] = [asdict(row) for row in rows]
        arguments.json.write_text(conditions.format_record(record), "utf-8")
    if tiles:
        print(tile_table(tiles))
    if rows:
        print(table(rows))


if __name__ == "__main__":
    main()
