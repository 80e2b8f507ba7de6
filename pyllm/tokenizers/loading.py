"""Finds out what kind of vocabulary a file holds, and reads it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from pyllm.errors import TokenizerError
from pyllm.formats import open_checkpoint
from pyllm.tokenizers.base import Tokenizer
from pyllm.tokenizers.folder import FolderFacts, read_facts
from pyllm.tokenizers.gguf import from_metadata

#: Bytes. The largest vocabularies have a tenth of this; a model's weights given by mistake are not read.
LARGEST_FILE = 256 << 20

NAMES = ("tokenizer.json", "tokenizer.model", "tokenizer.bin")  # in a folder, in this order
UNKNOWN_NAMES = ("tekken.json", "tiktoken.model", "qwen.tiktoken", "spiece.model", "sentencepiece.bpe.model")


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """See `Tokenizer.load`."""
    path = Path(path)
    if path.is_dir():
        tokenizer = load_folder(path)
        if tokenizer is None:
            raise TokenizerError(f"{path}: a folder without {', '.join(NAMES)}")
        return tokenizer
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

        return _from_json(parse_object(data, source), source, read_facts(Path(source).parent))
    if looks_like_sentencepiece(data):
        from pyllm.tokenizers.sentencepiece_model import SentencePieceTokenizer

        return SentencePieceTokenizer(data, source, read_facts(Path(source).parent))
    from pyllm.tokenizers.llama2c import Llama2cTokenizer

    return Llama2cTokenizer(data, source)


def load_folder(folder: Path) -> Tokenizer | None:
    """The tokenizer in a Hugging Face folder; None where it holds no tokenizer's file.

    What lies beside the vocabulary counts as transformers has it: tokens that were added, BOS and EOS, chat templates,
    ids that end texts. Raises `TokenizerError` for damaged files and for kinds that are not known here.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return load(folder / name)
    if (folder / "vocab.txt").is_file() or (folder / "vocab.json").is_file():
        from pyllm.tokenizers.vocabulary_files import read_vocabulary

        facts = read_facts(folder)
        return _from_json(read_vocabulary(folder, facts), str(folder), facts)
    for name in UNKNOWN_NAMES:
        if (folder / name).is_file():
            raise TokenizerError(f"{folder / name}: such vocabularies are not known here: give a tokenizer.json")
    return None


def _from_json(spec: dict[str, Any], source: str, facts: FolderFacts) -> Tokenizer:
    from pyllm.tokenizers import json_merges
    from pyllm.tokenizers.huggingface import JsonTokenizer, completed

    spec = completed(spec, facts, source)
    if _is_wordpiece(spec["model"]):
        from pyllm.tokenizers.wordpiece import WordPieceTokenizer

        return WordPieceTokenizer(spec, source, facts)
    return json_merges.read(spec, source, facts) or JsonTokenizer(spec, source, facts)


def _is_wordpiece(model: Any) -> bool:
    """Older files do not name the type; no other type has a longest word."""
    if not isinstance(model, dict):
        return False
    kind = model.get("type")
    return kind == "WordPiece" or (kind is None and "max_input_chars_per_word" in model)


def looks_like_sentencepiece(data: bytes) -> bool:
    """A protobuf that begins with a piece, and the piece with its text; no tokenizer.bin has such a beginning."""
    return data[:1] == b"\n" and data[2:3] == b"\n"


def _from_gguf(path: Path) -> Tokenizer:
    checkpoint = open_checkpoint(path)
    try:
        tokenizer = from_metadata(checkpoint.metadata, str(path))
    finally:
        checkpoint.close()
    if tokenizer is None:
        raise TokenizerError(f"{path}: this GGUF file holds no vocabulary")
    return tokenizer
