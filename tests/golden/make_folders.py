"""Golden token ids of Hugging Face folders: small tokenizers of the families' kinds, read by transformers.

Needs ``pip install transformers torch==2.13.0 tokenizers sentencepiece protobuf``. Run it as

    python make_folders.py

It writes ``folders.json`` beside itself. ``folders``: by name, the files of each folder; objects are JSON, strings
text, and ``{"base64": ...}`` bytes. ``{"vocabulary": ..., "merges": ...}`` names one of ``bases``, which many share.
``texts`` are what is encoded, and ``ids``, by folder, what ``AutoTokenizer`` makes of them: ``plain`` without special
tokens around them and with control words as text (``split_special_tokens``); ``before`` and ``after``, what
``add_special_tokens`` puts around each; ``special``, by a text's number and only where it differs from ``plain``, with
control words as control tokens.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
from make_tokens import HARD
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

HERE = Path(__file__).parent
SPACE = "\u2581"
CORPUS = ["the fox jumps over the lazy dog", "don't SHOUT, 123456 times!\n\n", "f\u00fcr \u6f22\u5b57 x\u00b2  y"] * 9
CONTROL = ("<|begin|>", "<|end|>", "<s>", "</s>", "<think>", "[MASK]")
TEXTS = [text for text in HARD if len(text) < 28][::3]
TEXTS += [f"a{word}b  {word} c\n{word}" for word in CONTROL]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")


# ---- vocabularies ----------------------------------------------------------------------------------------------------


def byte_level_base() -> dict[str, Any]:
    """A trained byte-level vocabulary."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    model = json.loads(library.to_str())["model"]
    return {"vocabulary": list(model["vocab"]), "merges": [" ".join(merge) for merge in model["merges"]]}


def raw_base() -> dict[str, Any]:
    """Pieces of text with fallback to bytes, as in Llama 2."""
    merges = [f"{SPACE} t", "h e", f"{SPACE}t he", f"{SPACE} {SPACE}", "\n \n", "o x", f"a {SPACE}", "s >"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *"abcdefghijklmnopqrstuvwxyz"]
    pieces += ["\n", "<", ">", "/", "A", "\u00e9", *(merge.replace(" ", "") for merge in merges)]
    return {"vocabulary": pieces, "merges": merges}


def sentencepiece_model() -> bytes:
    """A small model that SentencePiece trains."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=320, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


# ---- parts of tokenizer.json -----------------------------------------------------------------------------------------


def token(number: int, content: str, *, special: bool = True, **more: bool) -> dict[str, Any]:
    """One added token."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, **more}
    return {"id": number, "content": content, **flags, "special": special}


def byte_level(pattern: str | None, *, nfc: bool = False, **more: Any) -> dict[str, Any]:
    """A byte-level ``tokenizer.json``."""
    mapped = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pattern is None}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": more.pop("added"),
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, mapped]} if pattern else mapped,
        "post_processor": more.pop("post", None),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {"vocabulary": "byte level"}, "merges": {"merges": "byte level"}, **more,
        },
    }  # fmt: skip


def raw(normalizer: Any, pre_tokenizer: Any, *, strips: bool, added: list[Any], post: Any = None) -> dict[str, Any]:
    """A ``tokenizer.json`` whose pieces are text."""
    steps = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    steps += [{"type": "Fuse"}, *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if strips else [])]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {"vocabulary": "raw"}, "merges": {"merges": "raw"},
        },
    }  # fmt: skip


def around(before: dict[str, int], after: dict[str, int]) -> dict[str, Any]:
    """A post-processor that puts tokens around texts."""
    pieces = [{"SpecialToken": {"id": text, "type_id": 0}} for text in before]
    single = [*pieces, {"Sequence": {"id": "A", "type_id": 0}}]
    single += [{"SpecialToken": {"id": text, "type_id": 0}} for text in after]
    known = {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in {**before, **after}.items()}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known}


def metaspace(scheme: str) -> dict[str, Any]:
    """The step that puts a space before a text."""
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}


# ---- folders ---------------------------------------------------------------------------------------------------------


def folders(bases: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The files of each folder."""
    n = len(bases["byte level"]["vocabulary"])
    fixed = [token(i, text) for i, text in enumerate(("<unk>", "<s>", "</s>"))]
    begin, end, think = token(n, "<|begin|>"), token(n + 1, "<|end|>"), token(n + 2, "<think>", special=False)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    by_space = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    prepended = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces]}
    named = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    llama = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    decoder = {str(item["id"]): {k: v for k, v in item.items() if k != "id"} for item in (begin, end, think)}
    generic = {"tokenizer_class": "PreTrainedTokenizerFast"}
    plain_files = {"vocab.json": {"vocabulary": "byte level"}, "merges.txt": {"merges": "byte level"}}
    wordpiece = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "##es", "jump", "##s", "\u6f22", "!", ","]
    letters = "abcdefghijklmnopqrstuvwxyz"
    wordpiece += [*letters, *(f"##{letter}" for letter in letters), "\u00fcber", "0", "##1"]
    return {
        "llama 3": {
            "tokenizer.json": byte_level(
                LLAMA3, added=[begin, end, think], ignore_merges=True,
                post={"type": "Sequence", "processors": [
                    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
                    around({"<|begin|>": n}, {}),
                ]},
            ),
            "tokenizer_config.json": {**generic, **named, "added_tokens_decoder": decoder},
            "generation_config.json": {"eos_token_id": [n + 1, 5], "do_sample": True, "temperature": 0.6, "top_p": 0.9},
        },
        "qwen 2, tokens added beside the file": {
            "tokenizer.json": byte_level(QWEN2, nfc=True, added=[begin]),
            "tokenizer_config.json": {
                "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "eos_token": "<|end|>", "bos_token": None,
                "additional_special_tokens": ["<|begin|>"], "added_tokens_decoder": decoder,
                "pad_token": "<|end|>", "unk_token": "<|end|>",
            },
        },
        "qwen 2 in plain files": {
            **plain_files,
            "tokenizer_config.json": {
                "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|end|>", "added_tokens_decoder": decoder,
                "pad_token": "<|end|>", "unk_token": "<|end|>", "add_bos_token": True, "bos_token": "<|begin|>",
            },
        },
        "older files": {
            "tokenizer.json": byte_level(None, added=[begin, token(n + 1, "<|end|>", special=False)]),
            "tokenizer_config.json": {**generic, "bos_token": {"content": "<|begin|>"}},
            "special_tokens_map.json": named,
            "added_tokens.json": {"<think>": n + 2},
        },
        "the file's own say about bos and eos": {
            "tokenizer.json": byte_level(LLAMA3, added=[begin, end], post=around({}, {"<|end|>": n + 1})),
            "tokenizer_config.json": {**generic, **named, "add_bos_token": True, "add_eos_token": True},
        },
        "two tokens before": {
            "tokenizer.json": byte_level(
                LLAMA3, added=[begin, end, think], post=around({"<|begin|>": n, "<think>": n + 2}, {})
            ),
            "tokenizer_config.json": {**generic, "eos_token": "<|end|>"},
        },
        "an embedding model": {
            "tokenizer.json": byte_level(QWEN2, added=[begin, end], post=around({}, {"<|end|>": n + 1})),
            "tokenizer_config.json": {**generic, "eos_token": "<|begin|>"},
        },
        "white space eaten": {
            "tokenizer.json": byte_level(
                None, added=[token(n, "<|begin|>", rstrip=True), token(n + 1, "[MASK]", lstrip=True)]
            ),
            "tokenizer_config.json": {**generic, "mask_token": "[MASK]"},
        },
        "llama 2": {
            "tokenizer.json": raw(None, metaspace("first"), strips=True, added=fixed, post=around({"<s>": 1}, {})),
            "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", **llama, "add_bos_token": True,
                                      "add_eos_token": False, "legacy": False},
        },
        "llama 2, as it was": {
            "tokenizer.json": raw(prepended, None, strips=True, added=fixed, post=around({"<s>": 1}, {})),
            "tokenizer_config.json": {**generic, **llama},
        },
        "gemma": {
            "tokenizer.json": raw(
                spaces, by_space, strips=False, added=[*fixed, token(300, "[MASK]")], post=around({"<s>": 1}, {})
            ),
            "tokenizer_config.json": {**generic, **llama, "add_bos_token": True},
        },
        "bert": {
            "vocab.txt": "".join(f"{piece}\n" for piece in wordpiece),
            "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
        },
        "bert, cased": {
            "vocab.txt": "".join(f"{piece}\n" for piece in wordpiece),
            "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": False,
                                      "tokenize_chinese_chars": False, "strip_accents": True},
        },
        "sentencepiece": {
            "tokenizer.model": {"base64": base64.b64encode(sentencepiece_model()).decode()},
            "tokenizer_config.json": {
                "tokenizer_class": "LlamaTokenizer", **llama, "add_bos_token": True, "add_eos_token": False,
                "legacy": False, "added_tokens_decoder": {
                    **{str(item["id"]): {k: v for k, v in item.items() if k != "id"} for item in fixed},
                    "320": {"content": "<|end|>", "special": True, "lstrip": False, "rstrip": False,
                            "single_word": False, "normalized": False},
                },
            },
        },
    }  # fmt: skip


def resolved(value: Any, bases: dict[str, Any]) -> Any:
    """A file's object with the shared vocabularies put in."""
    if isinstance(value, dict) and value.keys() == {"vocabulary"}:
        return {piece: number for number, piece in enumerate(bases[value["vocabulary"]]["vocabulary"])}
    if isinstance(value, dict) and value.keys() == {"merges"}:
        return bases[value["merges"]]["merges"]
    return {key: resolved(item, bases) for key, item in value.items()} if isinstance(value, dict) else value


def write_folder(folder: Path, files: dict[str, Any], bases: dict[str, Any]) -> None:
    """Write the files of one folder."""
    for name, content in files.items():
        found = resolved(content, bases)
        if isinstance(found, dict) and found.keys() == {"base64"}:
            (folder / name).write_bytes(base64.b64decode(found["base64"]))
        elif isinstance(found, (dict, list)) and name.endswith(".json"):
            (folder / name).write_text(json.dumps(found))
        else:
            (folder / name).write_text(found if isinstance(found, str) else "\n".join(["#version: 0.2", *found]) + "\n")


def ids_of(files: dict[str, Any], bases: dict[str, Any]) -> dict[str, Any]:
    """What transformers makes of the texts."""
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), files, bases)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in TEXTS]
    framed = [tokenizer.encode(text, add_special_tokens=True, split_special_tokens=True) for text in TEXTS]
    special = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    longest = max(range(len(TEXTS)), key=lambda i: len(plain[i]))
    at = next(i for i in range(3) if framed[longest][i : i + len(plain[longest])] == plain[longest])
    before, after = framed[longest][:at], framed[longest][at + len(plain[longest]) :]
    if framed != [before + ids + after for ids in plain]:
        raise ValueError("special tokens depend on the text")
    differing = {str(i): special[i] for i in range(len(TEXTS)) if special[i] != plain[i]}
    return {"before": before, "after": after, "plain": plain, "special": differing}


def main() -> None:
    """Make the folders, read them, and write the file."""
    bases = {"byte level": byte_level_base(), "raw": raw_base()}
    made = folders(bases)
    data = {"bases": bases, "texts": TEXTS, "folders": made, "ids": {name: ids_of(made[name], bases) for name in made}}
    body = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    (HERE / "folders.json").write_text("{\n" + body + "\n}\n")


if __name__ == "__main__":
    main()
