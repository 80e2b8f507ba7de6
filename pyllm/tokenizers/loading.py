"""Finds out what kind of vocabulary a file holds, and reads it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from pyllm.errors import TokenizerError
from pyllm.formats import open_checkpoint
from pyllm.tokenizers.base import Tokenizer
from pyllm.tokenizers.gguf import from_metadata

#: Bytes. The largest vocabularies have a tenth of this; a model's weights given by mistake are not read.
LARGEST_FILE = 256 << 20

NAMES = ("tokenizer.json", "tokenizer.model", "tokenizer.bin")  # in a folder, in this order


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """See `Tokenizer.load`."""
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise TokenizerError(f"{path}: not a regular file; give the path of a tokenizer's file")
    with open(path, "rb") as file:
        head = file.read(4)
        if head == b"GGUF":
            return _from_gguf(path)
        file.seek(0)
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise TokenizerError(f"{path}: more than {LARGEST_FILE >> 20} MiB, larger than any vocabulary")
    return parse(data, str(path))


def parse(data: bytes, source: str) -> Tokenizer:
    """The tokenizer in a whole file that is no GGUF. `source` names it in messages, and leads to its neighbours."""
    if not data:
        raise TokenizerError(f"{source}: the file is empty; get it again")
    if data.lstrip()[:1] == b"{":
        from pyllm.tokenizers.huggingface import parse_object

        return _from_json(parse_object(data, source), source)
    if looks_like_sentencepiece(data):
        from pyllm.tokenizers.sentencepiece_model import SentencePieceTokenizer

        return SentencePieceTokenizer(data, source)
    from pyllm.tokenizers.llama2c import Llama2cTokenizer

    return Llama2cTokenizer(data, source)


def _from_json(spec: dict[str, Any], source: str) -> Tokenizer:
    model = spec["model"]
    if isinstance(model, dict) and model.get("type") == "WordPiece":
        from pyllm.tokenizers.wordpiece import WordPieceTokenizer

        return WordPieceTokenizer(spec, source)
    from pyllm.tokenizers.huggingface import JsonTokenizer

    return JsonTokenizer(spec, source)


def looks_like_sentencepiece(data: bytes) -> bool:
    """A protobuf that begins with a piece, and the piece with its text; no tokenizer.bin has such a beginning."""
    return data[:1] == b"\n" and data[2:3] == b"\n"


def _in_folder(folder: Path) -> Path:
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    raise TokenizerError(f"{folder}: a folder without {', '.join(NAMES)}")


def _from_gguf(path: Path) -> Tokenizer:
    checkpoint = open_checkpoint(path)
    try:
        tokenizer = from_metadata(checkpoint.metadata, str(path))
    finally:
        checkpoint.close()
    if tokenizer is None:
        raise TokenizerError(f"{path}: this GGUF file holds no vocabulary")
    return tokenizer
