r"""Golden runs of llama2.c (karpathy/llama2.c, MIT, commit 350e04f) on stories260K, in fp32 and in its int8 format.

Needs numpy, and the original's programs, built outside this repository:

    gcc -O3 -ffp-contract=off -o run run.c -lm
    gcc -O3 -ffp-contract=off -o runq runq.c -lm
    gcc -O3 -ffp-contract=off -DTESTING -fPIC -shared -o librun.so run.c -lm
    python make_llama2c.py --run ./run --runq ./runq --library ./librun.so \
        --model stories260K.bin --tokenizer tok512.bin

It writes beside itself:

``llama2c_runs.json``
    ``runs``: per run ``temperature``, ``top_p``, ``seed``, ``steps`` (positions, prompt included), ``prompt``,
    ``stdout`` (without the final newline; run drops the bytes of characters that its vocabulary spells byte by byte),
    ``tokens`` (all ids after BOS, prompt included) and ``margin``: how close the closest decision was, as a difference
    of logits where greedy and of probabilities where sampled (null: nothing was decided). Rounding may change a run
    whose margin is tiny, nothing else may.
``llama2c_int8.json``
    ``files``: for each group size the SHA-256 of the v2 file that ``write_v2`` makes, the same bytes as export.py's.
    ``runq``: runs as above, of runq on it (which rounds activations to int8 too; no tokens and margins).
    ``dequantized``: runs as above, of run on the same int8 weights written back as fp32.
``llama2c_logits.npz``
    ``tokens`` (16,) int32, and run's logits after each of them: ``fp32``, ``gs4`` and ``gs2`` (16, 512) float32, on the
    model itself and on the int8 weights of both group sizes written back as fp32.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
MAGIC = 0x616B3432
GROUP_SIZES = (4, 2)
FIELDS = 7  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
LOGITS_TOKENS = (1, 403, 407, 261, 378, 67, 3, 258, 511, 432, 410, 286, 13, 2, 1, 300)


class Run(NamedTuple):
    """One call of run."""

    temperature: float
    top_p: float
    seed: int
    steps: int
    prompt: str


RUNS = (
    Run(0.0, 0.9, 1, 512, ""),
    Run(0.0, 0.9, 1, 1, ""),
    Run(0.0, 0.9, 1, 2, "Once"),
    Run(0.0, 0.9, 1, 5, "This prompt is longer than the steps that are asked for"),
    Run(0.0, 0.9, 1, 160, "The little bird "),
    Run(0.0, 0.9, 1, 120, " two  spaces   and\na new line"),
    Run(0.0, 0.9, 1, 100, "Zo\u00eb ate a cr\u00eape at the caf\u00e9."),
    Run(0.0, 0.9, 1, 100, "\u201cHello,\u201d said the cat \U0001f431"),
    Run(0.0, 0.9, 1, 100, "\u041a\u043e\u0442 \u0438 \u732b"),
    Run(1.0, 0.9, 116, 256, ""),
    Run(1.0, 0.9, 13, 512, ""),
    Run(1.0, 1.0, 107, 256, ""),
    Run(1.0, 0.0, 4, 128, "Sam had"),
    Run(0.5, 0.9, 5, 256, "One day"),
    Run(0.1, 0.9, 6, 128, "Mia"),
    Run(2.0, 0.95, 107, 128, ""),  # BOS is drawn at once: no text
    Run(2.0, 0.95, 112, 128, ""),
    Run(1.5, 1.0, 8, 128, "A fish"),
    Run(1.0, 0.5, 9, 256, "Tim and Ben"),
    Run(1.0, 0.1, 10, 128, ""),
    Run(0.65, 0.99, 18446744073709551615, 200, "It was dark"),
    Run(0.9, 0.8, 2147483645, 200, "Na\u00efve fox \U0001f98a:"),
    Run(10.0, 1.0, 21, 64, "Noise"),
    Run(1.0, 0.9, 12, 300, "<s> </s> <0x41> "),
)

INT8_RUNS = (
    Run(0.0, 0.9, 1, 180, ""),
    Run(0.0, 0.9, 1, 120, "Tom and Sue went to the park"),
    Run(1.0, 0.9, 1, 120, ""),
)


class Checkpoint(NamedTuple):
    """A v0 file: its seven fields, the tensors in the file's order, and whether the classifier is the embedding."""

    fields: tuple[int, ...]
    tensors: dict[str, np.ndarray]
    shared: bool


def read_v0(path: Path) -> Checkpoint:
    """Read a v0 checkpoint."""
    data = path.read_bytes()
    fields = struct.unpack_from(f"<{FIELDS}i", data)
    dim, hidden, layers, heads, kv_heads, vocab, seq_len = fields
    shared, vocab = vocab > 0, abs(vocab)
    kv = dim * kv_heads // heads
    shapes: dict[str, tuple[int, ...]] = {
        "tok_emb": (vocab, dim),
        "att_norm": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, kv, dim),
        "wv": (layers, kv, dim),
        "wo": (layers, dim, dim),
        "ffn_norm": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "final_norm": (dim,),
        "rope": (2, seq_len, dim // heads // 2),
    }
    if not shared:
        shapes["wcls"] = (vocab, dim)
    tensors: dict[str, np.ndarray] = {}
    offset = 4 * FIELDS
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        tensors[name] = np.frombuffer(data, "<f4", count, offset).reshape(shape)
        offset += 4 * count
    return Checkpoint((dim, hidden, layers, heads, kv_heads, vocab, seq_len), tensors, shared)


def write_v0(path: Path, checkpoint: Checkpoint) -> None:
    """Write a v0 checkpoint."""
    *rest, vocab, seq_len = checkpoint.fields
    header = struct.pack(f"<{FIELDS}i", *rest, vocab if checkpoint.shared else -vocab, seq_len)
    path.write_bytes(header + b"".join(tensor.astype("<f4").tobytes() for tensor in checkpoint.tensors.values()))


def quantize(tensor: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Round a tensor to int8 in groups of its flattened elements, to the nearest, half to even; as export.py does."""
    rows = tensor.astype(np.float32).reshape(-1, group)
    scale = np.abs(rows).max(1) / np.float32(127.0)
    safe = np.where(scale == 0, np.float32(1.0), scale)  # export.py divides 0 by 0 here
    return np.rint(rows / safe[:, None]).astype(np.int8), scale


def quantized_names(checkpoint: Checkpoint) -> list[str]:
    """Names of the tensors that v2 holds in int8, in its order."""
    return ["tok_emb", "wq", "wk", "wv", "wo", "w1", "w2", "w3"] + ([] if checkpoint.shared else ["wcls"])


def write_v2(path: Path, checkpoint: Checkpoint, group: int) -> None:
    """Write an int8 checkpoint, byte for byte what export.py writes where it need not halve the group size."""
    header = struct.pack(f"<Ii{FIELDS}iBi", MAGIC, 2, *checkpoint.fields, int(checkpoint.shared), group)
    parts = [header.ljust(256, b"\0")]
    parts += [checkpoint.tensors[name].astype("<f4").tobytes() for name in ("att_norm", "ffn_norm", "final_norm")]
    for name in quantized_names(checkpoint):
        tensor = checkpoint.tensors[name]
        for matrix in tensor if tensor.ndim == 3 else [tensor]:
            q, scale = quantize(matrix, group)
            parts += [q.tobytes(), scale.astype("<f4").tobytes()]
    path.write_bytes(b"".join(parts))


def dequantized(checkpoint: Checkpoint, group: int) -> Checkpoint:
    """Give the checkpoint with the values that its int8 form stands for."""
    tensors = dict(checkpoint.tensors)
    for name in quantized_names(checkpoint):
        q, scale = quantize(tensors[name], group)
        tensors[name] = (q.astype(np.float32) * scale[:, None]).reshape(tensors[name].shape)
    return checkpoint._replace(tensors=tensors)


def stdout_of(program: Path, model: Path, tokenizer: Path, run: Run) -> str:
    """Call run or runq, and return what it prints without the final newline."""
    # run reads the seed as an int and keeps it in 64 unsigned bits.
    seed = run.seed if run.seed < 1 << 31 else run.seed - (1 << 64)
    command = [str(program.resolve()), str(model), "-z", str(tokenizer), "-t", str(run.temperature)]
    command += ["-p", str(run.top_p), "-s", str(seed), "-n", str(run.steps)]
    command += ["-i", run.prompt] if run.prompt else []
    printed = subprocess.run(command, check=True, capture_output=True).stdout.decode()
    return printed.removesuffix("\n")


class Library:
    """run.c as a shared library: its own forward pass, tokenizer and sampler, driven token by token."""

    def __init__(self, library: Path, model: Path, tokenizer: Path) -> None:
        """Load the model and its tokenizer; the C structs stay opaque."""
        self.c = ctypes.CDLL(str(library.resolve()))
        self.c.forward.restype = ctypes.POINTER(ctypes.c_float)
        self.c.decode.restype = ctypes.c_char_p
        self.vocab = abs(struct.unpack_from(f"<{FIELDS}i", model.read_bytes())[5])
        self.transformer = ctypes.create_string_buffer(4096)
        self.tokenizer = ctypes.create_string_buffer(4096)
        self.c.build_transformer(self.transformer, str(model).encode())
        self.c.build_tokenizer(self.tokenizer, str(tokenizer).encode(), self.vocab)

    def logits(self, token: int, position: int) -> np.ndarray:
        """Logits after one more token."""
        pointer = self.c.forward(self.transformer, token, position)
        return np.ctypeslib.as_array(pointer, (self.vocab,)).copy()

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with BOS."""
        raw, count = text.encode(), ctypes.c_int()
        ids = (ctypes.c_int * (len(raw) + 3))()
        self.c.encode(self.tokenizer, raw, ctypes.c_byte(1), ctypes.c_byte(0), ids, ctypes.byref(count))
        return ids[: count.value]

    def printed(self, previous: int, token: int) -> bytes:
        """Bytes that run prints for a token."""
        piece: bytes = self.c.decode(self.tokenizer, previous, token)
        dropped = len(piece) == 1 and not (32 <= piece[0] < 127 or 9 <= piece[0] <= 13)
        return b"" if dropped else piece

    def generate(self, run: Run) -> tuple[list[int], float, str]:
        """Do what run does: the ids after BOS, the margin of the closest decision, and the text printed."""
        sampler = ctypes.create_string_buffer(4096)
        temperature, top_p = ctypes.c_float(run.temperature), ctypes.c_float(run.top_p)
        self.c.build_sampler(sampler, self.vocab, temperature, top_p, ctypes.c_ulonglong(run.seed))
        prompt, state = self.encode(run.prompt), run.seed
        ids, margin, text, token = [], np.inf, b"", prompt[0]
        for position in range(run.steps):
            logits = self.logits(token, position)
            if position < len(prompt) - 1:
                following = prompt[position + 1]
            else:
                state, coin = next_coin(state)
                margin = min(margin, decision_margin(logits, run, coin))
                following = self.c.sample(sampler, logits.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
            if following == 1:
                break
            ids.append(following)
            text += self.printed(token, following)
            token = following
        self.c.free_sampler(sampler)
        return ids, float(margin), text.decode()


def next_coin(state: int) -> tuple[int, float]:
    """One step of xorshift64*: the new state and a float in [0, 1)."""
    mask = (1 << 64) - 1
    state ^= state >> 12
    state = (state ^ (state << 25)) & mask
    state ^= state >> 27
    return state, (((state * 0x2545F4914F6CDD1D) & mask) >> 40) / 16777216.0


def decision_margin(logits: np.ndarray, run: Run, coin: float) -> float:
    """How far this choice is from another one: a gap of logits if greedy, else a distance of probabilities.

    With top_p, the order of nearly equal tokens decides too: how far the chosen one's log-probability is from its
    neighbours'.
    """
    if run.temperature == 0:
        best = np.sort(logits.astype(np.float64))
        return float(best[-1] - best[-2])
    scaled = logits.astype(np.float64) / run.temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    if not 0 < run.top_p < 1:
        return float(np.abs(np.cumsum(p) - coin).min())
    cumulative = np.cumsum(-np.sort(-p))
    last = min(int(np.searchsorted(cumulative, run.top_p, side="right")), len(p) - 1)
    margin = np.abs(cumulative - run.top_p).min()
    margin = min(margin, np.abs(cumulative[:last] - coin * cumulative[last]).min(initial=np.inf))
    chosen = int(np.searchsorted(cumulative[: last + 1], coin * cumulative[last], side="right"))
    near = np.diff(-np.sort(-np.log(p)))[max(chosen - 1, 0) : chosen + 1]
    return float(min(margin, np.abs(near).min()))


def golden_run(arguments: argparse.Namespace, library: Library, model: Path, run: Run) -> dict[str, Any]:
    """One run by the program and by the library, which must agree."""
    stdout = stdout_of(arguments.run, model, arguments.tokenizer, run)
    ids, margin, text = library.generate(run)
    if text != stdout:
        raise ValueError(f"the program and the library differ for {run}: {stdout!r} and {text!r}")
    rounded = None if np.isinf(margin) else float(f"{margin:.3g}")
    return {**run._asdict(), "stdout": stdout, "tokens": ids, "margin": rounded}


def lines(items: list[dict[str, Any]]) -> str:
    """JSON of a list, one item a line."""
    return "[\n" + ",\n".join("  " + json.dumps(item) for item in items) + "\n ]"


def main() -> None:
    """Make the three files."""
    parser = argparse.ArgumentParser(description="make the golden runs of llama2.c")
    for name in ("run", "runq", "library", "model", "tokenizer"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    library = Library(arguments.library, arguments.model, arguments.tokenizer)
    runs = [golden_run(arguments, library, arguments.model, run) for run in RUNS]
    note = "Output of llama2.c's run.c (commit 350e04f, gcc -O3 -ffp-contract=off) on stories260K.bin with tok512.bin; "
    note += "see make_llama2c.py."
    (HERE / "llama2c_runs.json").write_text(f'{{\n "note": {json.dumps(note)},\n "runs": {lines(runs)}\n}}\n')

    arrays = {"tokens": np.array(LOGITS_TOKENS, np.int32)}
    arrays["fp32"] = np.stack([library.logits(token, i) for i, token in enumerate(LOGITS_TOKENS)])
    checkpoint, files, by_runq, by_run = read_v0(arguments.model), [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for group in GROUP_SIZES:
            v2, back = Path(folder) / f"v2-gs{group}.bin", Path(folder) / f"v0-gs{group}.bin"
            write_v2(v2, checkpoint, group)
            write_v0(back, dequantized(checkpoint, group))
            digest = hashlib.sha256(v2.read_bytes()).hexdigest()
            files.append({"group_size": group, "bytes": v2.stat().st_size, "sha256": digest})
            library = Library(arguments.library, back, arguments.tokenizer)
            arrays[f"gs{group}"] = np.stack([library.logits(token, i) for i, token in enumerate(LOGITS_TOKENS)])
            for run in INT8_RUNS:
                stdout = stdout_of(arguments.runq, v2, arguments.tokenizer, run)
                by_runq.append({"group_size": group, **run._asdict(), "stdout": stdout})
                by_run.append({"group_size": group, **golden_run(arguments, library, back, run)})
    np.savez_compressed(HERE / "llama2c_logits.npz", **arrays)
    (HERE / "llama2c_int8.json").write_text(
        f'{{\n "files": {lines(files)},\n "runq": {lines(by_runq)},\n "dequantized": {lines(by_run)}\n}}\n'
    )


if __name__ == "__main__":
    main()
