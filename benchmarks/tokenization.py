"""Encoding beside the `tokenizers` and `sentencepiece` libraries: the same vocabulary, the same texts, in turn.

    python benchmarks/tokenization.py [VOCABULARY ...] [--rounds N] [--json]

VOCABULARY is a GGUF file, a `tokenizer.model`, a `tokenizer.json` or a folder with one. Without any: that of the
default model (fetched once), and two that the libraries train on the spot. The peer reads the very same vocabulary: a
byte-level one becomes a `tokenizers` pipeline with the model's own patterns, pieces with scores a SentencePiece model.

load      s, until the first text is encoded
short     microseconds a call, for a sentence of 36 characters
text      MB/s, one text of a megabyte: prose, code, and words of many languages
batch     MB/s, the same in documents of 500 characters, `encode_batch` on all threads
growth    time of ten megabytes in one text over ten times that of one
times     how many times as fast as the peer: medians of the ratios of rounds in which both ran, one after the other

All of it is processor time, so that a shared machine can measure it; `batch` counts the time of all threads. `ids` says
whether both gave the same ids for all of the text.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import pydoc_data.topics
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import conditions
import sentencepiece
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from pyllm import Tokenizer, catalogue
from pyllm.formats import open_checkpoint
from pyllm.tokenizers.pretokenizers import PRETOKENIZERS
from pyllm.tokenizers.unigram import normalizer_spec, write_unigram

ROOT = Path(__file__).resolve().parent.parent
SHORT = "Hello, how are you today? I am fine."
DOCUMENT = 500  # characters
MEGABYTE = 1_000_000
BY_MERGES = b"\x12\x02\x18\x02"  # behind a model, a second TrainerSpec, which only says: byte pair merges
USER_DEFINED = 4

Ids = list[int]


@dataclass(frozen=True)
class Peer:
    """Another library's way to do the same, with the same vocabulary."""

    name: str
    encode: Callable[[str], Ids]
    encode_batch: Callable[[list[str]], Sequence[Ids]]


@dataclass(frozen=True)
class Row:
    """What was measured for one vocabulary; `_peer` is the other library's figure, `_times` ours over it."""

    vocabulary: str
    pieces: int
    peer: str
    ids: bool
    load: float
    load_peer: float
    short: float
    short_peer: float
    short_times: float
    text: float
    text_peer: float
    text_times: float
    batch: float
    batch_peer: float
    batch_times: float
    growth: float
    growth_peer: float


# ---- texts -----------------------------------------------------------------------------------------------------------


def texts() -> str:
    """A megabyte of prose, code and other languages, from what every checkout and every Python has."""
    prose = "\n".join(pydoc_data.topics.topics.values())
    code = "".join(path.read_text("utf-8", "replace") for path in sorted(Path(os.__file__).parent.glob("*.py")))
    golden = json.loads((ROOT / "tests" / "golden" / "smollm2_texts.json").read_text())
    words = [word for text in _strings(golden) if len(text) > 100 for word in text.split(" ")]
    rng = random.Random(1)
    many = " ".join(rng.choice(words) for _ in range(MEGABYTE // 16))
    return prose[: MEGABYTE // 3] + code[: MEGABYTE // 3] + many[: MEGABYTE // 3]


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


# ---- peers -----------------------------------------------------------------------------------------------------------


def peer_of(path: Path) -> Peer:
    """The library that reads this vocabulary. Raises `SystemExit` where none does."""
    if path.is_dir():
        path = next(path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file())
    if path.suffix == ".json":
        return _by_tokenizers(tokenizers.Tokenizer.from_file(str(path)))
    if path.suffix == ".model":
        return _by_sentencepiece(path.read_bytes())
    metadata = open_checkpoint(path).metadata
    if metadata.get("tokenizer.ggml.model") == "llama":
        return _by_sentencepiece(_model_of(metadata))
    how = PRETOKENIZERS.get(metadata.get("tokenizer.ggml.pre", ""))
    if metadata.get("tokenizer.ggml.model") != "gpt2" or how is None or not all(isinstance(s, str) for s in how.steps):
        raise SystemExit(f"{path}: neither library can be made to read this vocabulary")
    return _by_tokenizers(_pipeline(metadata, how.steps, nfc=how.nfc, whole_words=how.whole_words))


def _by_tokenizers(library: tokenizers.Tokenizer) -> Peer:
    def batch(documents: list[str]) -> list[Ids]:
        return [encoding.ids for encoding in library.encode_batch_fast(documents, add_special_tokens=False)]

    return Peer("tokenizers", lambda text: list(library.encode(text, add_special_tokens=False).ids), batch)


def _by_sentencepiece(model: bytes) -> Peer:
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    threads = len(os.sched_getaffinity(0))
    return Peer("sentencepiece", library.encode, lambda documents: library.encode(documents, num_threads=threads))


def _pipeline(metadata: Any, steps: Sequence[Any], *, nfc: bool, whole_words: bool) -> tokenizers.Tokenizer:
    """The `tokenizers` library's own reading of a GGUF file's vocabulary."""
    vocabulary = {piece: token for token, piece in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole_words))
    cut = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in steps]
    library.pre_tokenizer = pre_tokenizers.Sequence([*cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    if nfc:
        library.normalizer = normalizers.NFC()
    types = metadata["tokenizer.ggml.token_type"]
    library.add_tokens([piece for piece, token in vocabulary.items() if types[token] == USER_DEFINED])
    return library


def _model_of(metadata: Any) -> bytes:
    """A GGUF file's pieces as a SentencePiece model. User-defined ones are written with spaces there."""
    types = [int(kind) for kind in metadata["tokenizer.ggml.token_type"]]
    pieces = [
        piece.replace(" ", "\u2581").encode() if kind == USER_DEFINED else piece.encode()
        for piece, kind in zip(metadata["tokenizer.ggml.tokens"], types, strict=True)
    ]
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id", -1)
           for name, key in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"))}  # fmt: skip
    normalizer = normalizer_spec(b"", bool(metadata.get("tokenizer.ggml.add_space_prefix", True)), False, True)
    return write_unigram(pieces, metadata["tokenizer.ggml.scores"], types, normalizer, ids) + BY_MERGES


# ---- vocabularies of our own -----------------------------------------------------------------------------------------


def trained(folder: Path, text: str) -> list[Path]:
    """A byte-level vocabulary that `tokenizers` trains, and one that SentencePiece does."""
    lines = [line for line in text.split("\n") if line]
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=16_000, initial_alphabet=alphabet, show_progress=False)
    )
    library.save(str(folder / "tokenizer.json"))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=8_000, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return [folder / "tokenizer.json", folder / "tokenizer.model"]


# ---- measuring -------------------------------------------------------------------------------------------------------


def seconds(function: Callable[[], Any], calls: int = 1) -> float:
    """Processor time of a call."""
    gc.collect()
    start = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - start) / calls


def in_turn(
    rounds: int, ours: Callable[[], Any], peer: Callable[[], Any], calls: int = 1
) -> tuple[float, float, float]:
    """Medians of both times, and of how many times as fast ours was in each round."""
    pairs = [(seconds(ours, calls), seconds(peer, calls)) for _ in range(rounds)]
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(b / a for a, b in pairs)


def loaded(make: Callable[[], Any], encode: Callable[[Any], Any]) -> tuple[Any, float]:
    """Something, and the processor time until it has encoded its first text."""
    start = time.process_time()
    made = make()
    encode(made)
    return made, time.process_time() - start


def measure(path: Path, text: str, rounds: int) -> Row:
    """All figures of one vocabulary."""
    ours, load = loaded(lambda: Tokenizer.load(path), lambda made: made.encode("a"))
    peer, load_peer = loaded(lambda: peer_of(path), lambda made: made.encode("a"))
    size, documents = len(text.encode()), [text[at : at + DOCUMENT] for at in range(0, len(text), DOCUMENT)]
    short = in_turn(rounds, lambda: ours.encode(SHORT, bos=False), lambda: peer.encode(SHORT), calls=2000)
    whole = in_turn(rounds, lambda: ours.encode(text, bos=False), lambda: peer.encode(text))
    batch = in_turn(rounds, lambda: ours.encode_batch(documents, bos=False), lambda: peer.encode_batch(documents))
    long = text * 10
    return Row(
        vocabulary="/".join(path.parts[-2:]),
        pieces=ours.vocab_size,
        peer=peer.name,
        ids=ours.encode(text, bos=False) == peer.encode(text)
        and ours.encode_batch(documents, bos=False) == list(peer.encode_batch(documents)),
        load=load,
        load_peer=load_peer,
        short=short[0] * 1e6,
        short_peer=short[1] * 1e6,
        short_times=short[2],
        text=size / whole[0] / 1e6,
        text_peer=size / whole[1] / 1e6,
        text_times=whole[2],
        batch=size / batch[0] / 1e6,
        batch_peer=size / batch[1] / 1e6,
        batch_times=batch[2],
        growth=seconds(lambda: ours.encode(long, bos=False)) / (10 * whole[0]),
        growth_peer=seconds(lambda: peer.encode(long)) / (10 * whole[1]),
    )


def line(row: Row) -> str:
    """A row of the table."""
    figures = [f"{row.load:.2f} ({row.load_peer:.2f})"]
    for name in ("short", "text", "batch"):
        mine, other, times = (getattr(row, name + end) for end in ("", "_peer", "_times"))
        figures.append(f"{mine:.1f} ({other:.1f}), {times:.1f} times")
    figures += [f"{row.growth:.2f} ({row.growth_peer:.2f})", "equal" if row.ids else "DIFFERENT"]
    return f"{row.vocabulary}, {row.pieces}, {row.peer} | {' | '.join(figures)}"


def main() -> None:
    """Measure each vocabulary beside its peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabularies", nargs="*", type=Path, metavar="VOCABULARY")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    text = texts()
    with tempfile.TemporaryDirectory() as folder:
        paths = arguments.vocabularies or [catalogue.resolve("smollm2-135m"), *trained(Path(folder), text)]
        rows = []
        if not arguments.json:
            print("vocabulary, pieces, peer | load s | short us | text MB/s | batch MB/s | growth | ids")
        for path in paths:
            rows.append(measure(path, text, arguments.rounds))
            if not arguments.json:
                print(line(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps({"machine": conditions.machine(), "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
