"""A fuzz target for vocabularies: any bytes give a tokenizer that works, or a `PyllmError`.

`driver.py` says how to run it; `tests/test_tokenizers.py` runs it over `mutations` in the test suite.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import driver
from fuzz_formats import MUTATIONS, tinygguf

from pyllm import formats
from pyllm.errors import PyllmError
from pyllm.tokenizers import Tokenizer
from pyllm.tokenizers.bytebpe import BYTE_OF
from pyllm.tokenizers.chat import encode_chat
from pyllm.tokenizers.folder import generation_defaults
from pyllm.tokenizers.gguf import from_metadata
from pyllm.tokenizers.loading import load_folder, parse
from pyllm.tokenizers.wordpiece import WordPieceTokenizer

TEXTS = ("", "a", " the  <s>end\n", "\u00e9\U0001f999\0<|im_end|>")
FOLDER_FILES = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"}
FOLDER_FILES |= {"generation_config.json", "config.json", "chat_template.jinja", "vocab.json", "merges.txt"}
TEMPLATE = "{% for m in messages %}{{ '<s>' + m.role + m.content | trim }}</s>{% endfor %}"


def exercise(data: bytes) -> str:
    """Takes bytes through loading and everything a tokenizer does; gives the outcome's name."""
    try:
        tokenizer = load(data)
        if tokenizer is None:
            return "none"
        use(tokenizer)
    except PyllmError as error:
        return type(error).__name__
    return "tokenizer"


def load(data: bytes) -> Tokenizer | None:
    if data.startswith(b'{"folder"'):
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), data)
            generation_defaults(Path(folder))
            return load_folder(Path(folder))
    if data.startswith(b"GGUF"):
        return from_metadata(formats.parse(Path("fuzzed"), memoryview(data)).metadata, "fuzzed")
    return parse(data, "fuzzed")


def write_folder(folder: Path, data: bytes) -> None:
    """The files of a folder, each given as a JSON value. Damaged names are no files, damaged JSON is a damaged file."""
    try:
        files = json.loads(data)["folder"]
    except (ValueError, RecursionError, KeyError, TypeError):
        files = {"tokenizer.json": data.decode("latin-1")}
    for name, content in files.items() if isinstance(files, dict) else ():
        if name in FOLDER_FILES:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))


def use(tokenizer: Tokenizer) -> None:
    """Every public method, and the promises that hold for any vocabulary."""
    ids = list(range(min(tokenizer.vocab_size, 600)))
    tokenizer.decode(ids)
    if not isinstance(tokenizer, WordPieceTokenizer):
        decoder = tokenizer.decoder()
        if "".join(map(decoder.push, ids)) + decoder.flush() != tokenizer.decode(ids):
            raise AssertionError("pieces in a row are not the whole")
    for token in ids:
        tokenizer.id_to_piece(token)
    for text in TEXTS:
        for special in (False, True):
            check(tokenizer, tokenizer.encode(text, bos=False, special=special), special)
    if tokenizer.chat_template is not None:
        check(tokenizer, encode_chat(tokenizer, [{"role": "user", "content": TEXTS[3]}]), True)


def check(tokenizer: Tokenizer, ids: list[int], special: bool) -> None:
    if not all(0 <= token < tokenizer.vocab_size for token in ids):
        raise AssertionError(f"{ids} are not all below {tokenizer.vocab_size}")
    if not special and any(tokenizer.control_texts.get(token) for token in ids):
        raise AssertionError(f"{ids} hold a control token that nobody asked for")


# ---- valid files -----------------------------------------------------------------------------------------------------


def fixed_pieces() -> list[str]:
    return ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


def tokenizer_bin() -> bytes:
    pieces = [piece.encode() for piece in [*fixed_pieces(), " ", "a", "t", "h", "e", "th", "the", " the"]]
    body = b"".join(struct.pack("<fi", -float(i), len(piece)) + piece for i, piece in enumerate(pieces))
    return struct.pack("<I", 6) + body


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def message(number: int, data: bytes) -> bytes:
    """A protobuf field that holds bytes."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def tokenizer_model(normalizer: bytes = b"") -> bytes:
    """SentencePiece's ModelProto: pieces with score and type, a trainer's and a normaliser's settings."""
    out = b""
    for i, piece in enumerate([*fixed_pieces(), "\u2581", "a", "t", "h", "e", "th", "the", "\u2581the"]):
        kind = 2 if i == 0 else 3 if i < 3 else 6 if i < 259 else 1
        fields = message(1, piece.encode()) + b"\x15" + struct.pack("<f", -float(i)) + b"\x18" + varint(kind)
        out += message(1, fields)
    trainer = b"\x18\x02" + varint(35 << 3) + b"\x01" + varint(40 << 3) + b"\x00"  # BPE, byte fallback, id of <unk>
    return out + message(2, trainer) + message(3, message(1, b"identity") + normalizer)


def merged_model() -> bytes:
    """One that asks for merges and nothing else: no white space is removed."""
    return tokenizer_model(varint(4 << 3) + b"\x00")


def byte_pieces() -> list[str]:
    return ["<s>", "</s>", *sorted(BYTE_OF, key=lambda character: BYTE_OF[character]), "th", "the", "\u0120the"]


MERGES = ["t h", "th e", "\u0120 the"]


def tokenizer_json() -> bytes:
    flags = {"single_word": False, "lstrip": False, "rstrip": True, "normalized": False, "special": True}
    vocabulary = {piece: i for i, piece in enumerate(byte_pieces())}
    spec = {
        "added_tokens": [{"id": i, "content": piece, **flags} for i, piece in enumerate(byte_pieces()[:2])],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": MERGES},
    }
    return json.dumps(spec).encode()


def text_json() -> bytes:
    """Pieces of text, with a prefix and a first token."""
    vocabulary = {piece: i for i, piece in enumerate([*fixed_pieces(), "\u2581", *"athe", "th", "the"])}
    steps = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}]
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [start, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec = {
        "added_tokens": [{"id": i, "content": piece, **flags} for i, piece in enumerate(fixed_pieces()[:3])],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
        "post_processor": template,
        "decoder": {"type": "Sequence", "decoders": [*steps, {"type": "Fuse"}]},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["t h", ["th", "e"]], "byte_fallback": True},
    }
    return json.dumps(spec).encode()


def folder(**files: Any) -> bytes:
    """A Hugging Face folder: its files by their names, "_json" for ".json"."""
    return json.dumps({"folder": {name.replace("_json", ".json"): data for name, data in files.items()}}).encode()


def described_folder() -> bytes:
    """A vocabulary, and everything that may lie beside it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    n = len(byte_pieces())
    config = {
        "bos_token": "<s>", "eos_token": {"content": "<|im_end|>", **flags}, "chat_template": TEMPLATE,
        "additional_special_tokens": ["<|im_end|>"],
        "added_tokens_decoder": {str(n): {"content": "<|im_end|>", **flags}},
    }  # fmt: skip
    return folder(
        tokenizer_json=json.loads(tokenizer_json()),
        tokenizer_config_json=config,
        generation_config_json={"eos_token_id": [1, n], "temperature": 0.5, "top_k": 4},
    )


def older_folder() -> bytes:
    return folder(
        vocab_json={piece: i for i, piece in enumerate(byte_pieces())},
        **{"merges.txt": "#version: 0.2\n" + "\n".join(MERGES)},
        tokenizer_config_json={"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": True, "bos_token": "<s>"},
        special_tokens_map_json={"eos_token": "</s>"},
        added_tokens_json={"<|im_end|>": len(byte_pieces())},
        config_json={"eos_token_id": 1},
    )


def bert_folder() -> bytes:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "##e", "a", "<", "s", ">"]
    return folder(**{"vocab.txt": "\n".join(pieces) + "\n"}, tokenizer_config_json={"do_lower_case": False})


def gguf(fields: dict[str, Any]) -> bytes:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    return tinygguf.gguf_bytes({"tokenizer.chat_template": TEMPLATE, **metadata}, {})


def ranked() -> dict[str, Any]:
    """SentencePiece's pieces with merges."""
    pieces = [*fixed_pieces(), "\u2581", "a", "t", "h", "e", "th", "the", "\u2581the"]
    types = [2, 3, 3, *[6] * 256, *[1] * 8]
    ids = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    merges = ["t h", "th e", "\u2581 the"]
    return {"model": "gemma4", "tokens": pieces, "token_type": types, "merges": merges, **ids}


def wordpiece() -> dict[str, Any]:
    pieces = ["[UNK]", "[CLS]", "[SEP]", "\u2581the", "\u2581a", "e", "s", "\u2581<", "\u2581/", "\u2581>"]
    ids = {"unknown_token_id": 0, "cls_token_id": 1, "seperator_token_id": 2}
    return {"model": "bert", "tokens": pieces, "token_type": [3] * 3 + [1] * 7, **ids}


def seeds() -> dict[str, bytes]:
    """One small valid file of each kind."""
    pieces = byte_pieces()
    types = [3, 3, *[1] * (len(pieces) - 2)]
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    byte_level = {"model": "gpt2", "pre": "qwen2", "tokens": pieces, "token_type": types, "merges": MERGES, **ids}
    scored = {key.removeprefix("tokenizer.ggml."): value for key, value in tinygguf.tiny_vocabulary(300).items()}
    return {
        "tokenizer.bin": tokenizer_bin(),
        "tokenizer.model": tokenizer_model(),
        "merged.model": merged_model(),
        "tokenizer.json": tokenizer_json(),
        "text.json": text_json(),
        "byte-level.gguf": gguf(byte_level),
        "scored.gguf": gguf(scored),
        "ranked.gguf": gguf(ranked()),
        "unigram.gguf": gguf({**scored, "model": "t5"}),
        "wordpiece.gguf": gguf(wordpiece()),
        "folder": described_folder(),
        "older folder": older_folder(),
        "bert folder": bert_folder(),
    }


# ---- damage ---------------------------------------------------------------------------------------------------------


VALUES: tuple[Any, ...] = (None, True, -1, 2**40, 0.5, "", "Metaspace", "\u2581", "ByteFallback", [], ["a b"], {}, [[]])


def change_json(rng: random.Random, data: bytes) -> bytes:
    """A file that is JSON still, but holds something else at one place."""
    place = spec = json.loads(data)
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.2:
            break
        place = place[key]
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice((*VALUES, json.loads(data).get("decoder", 7)))
    return json.dumps(spec).encode()


def mutations(data: bytes, rounds: int, seed: int) -> Iterator[bytes]:
    """`rounds` damaged copies of a file, the same ones for the same seed."""
    rng = random.Random(seed)
    for n in range(rounds):
        if data.startswith(b"{") and n % 2:
            yield change_json(rng, data)
            continue
        copy = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 3))):
            if copy:
                rng.choice(MUTATIONS)(rng, copy, len(copy))
        yield bytes(copy)


if __name__ == "__main__":
    driver.main(driver.Target("vocabularies", exercise, seeds, mutations))
