"""Vocabularies in plain files, from before there was `tokenizer.json`: BERT's `vocab.txt`, GPT-2's `vocab.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyllm.errors import TokenizerError
from pyllm.tokenizers.folder import FolderFacts, read_object, read_text
from pyllm.tokenizers.pretokenizers import PRETOKENIZERS
from pyllm.tokenizers.wordpiece import tokenizer_json

#: How the classes of `tokenizer_config.json` cut text into words. Their files do not say it.
CLASSES = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}


def read_vocabulary(folder: Path, facts: FolderFacts) -> dict[str, Any]:
    """What a folder's `tokenizer.json` would hold. Raises `TokenizerError` where that is not known."""
    if (folder / "vocab.txt").is_file():
        return _wordpiece(folder / "vocab.txt", facts)
    return _byte_level(folder, facts)


def _wordpiece(path: Path, facts: FolderFacts) -> dict[str, Any]:
    """One piece a line; the defaults are transformers' for BERT."""
    pieces = read_text(path).removesuffix("\n").split("\n")
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    parts = {"unknown": "unk", "first": "cls", "last": "sep"}
    named = {part: facts.named.get(f"{name}_token", f"[{name.upper()}]") for part, name in parts.items()}
    for text in named.values():
        if text not in vocabulary:
            raise TokenizerError(f"{path}: damaged vocabulary: it lacks {text!r}")
    others = (facts.named.get(f"{name}_token", f"[{name.upper()}]") for name in ("pad", "mask"))
    control = {vocabulary[text]: text for text in (*named.values(), *others) if text in vocabulary}
    lowercase = facts.flag("do_lower_case", True)
    settings = {
        **named,
        "lowercase": lowercase,
        "strip_accents": facts.flag("strip_accents", lowercase),
        "split_chinese": facts.flag("tokenize_chinese_chars", True),
    }
    return tokenizer_json(vocabulary, control, settings)


def _byte_level(folder: Path, facts: FolderFacts) -> dict[str, Any]:
    name = str(facts.settings.get("tokenizer_class")).removesuffix("Fast")
    how = PRETOKENIZERS.get(CLASSES.get(name, ""))
    if how is None:
        raise TokenizerError(
            f"{folder}: a vocab.json of {name!r}, of which it is not known how text is cut into words (known: "
            f"{', '.join(CLASSES)}): give a tokenizer.json"
        )
    if facts.flag("add_prefix_space", False):
        raise TokenizerError(f"{folder}: a vocab.json with add_prefix_space, not known here: give a tokenizer.json")
    if not (folder / "merges.txt").is_file():
        raise TokenizerError(f"{folder}: a vocab.json without the merges.txt that belongs to it")
    vocabulary = read_object(folder / "vocab.json")
    merges = read_text(folder / "merges.txt").removesuffix("\n").split("\n")
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    steps = [{**split, "pattern": {"Regex": pattern}} for pattern in how.steps]
    mapped = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if how.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, mapped]},
        "post_processor": _around(facts, vocabulary),
        "decoder": mapped,
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": merges[1:] if merges[0].startswith("#version") else merges,
        },
    }


def _around(facts: FolderFacts, vocabulary: Mapping[str, Any]) -> dict[str, Any]:
    """The post-processor that puts BOS and EOS around texts as `tokenizer_config.json` says."""
    ids = {**vocabulary, **{token["content"]: token["id"] for token in facts.added}}
    wanted = zip(("bos_token", "eos_token"), facts.frame or (False, False), strict=True)
    named = [facts.named.get(name, "") if put else "" for name, put in wanted]
    before, after = ([{"SpecialToken": {"id": text, "type_id": 0}}] if text in ids else [] for text in named)
    single = [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in named if text in ids},
    }
