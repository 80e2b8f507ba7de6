"""What a Hugging Face folder says of texts outside the vocabulary's own file: JSON files and templates beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyllm.errors import ModelFormatError, TokenizerError

#: Bytes. What lies beside a vocabulary is read whole; real files have a tenth of this at most.
LARGEST_FILE = 64 << 20
MOST_TEMPLATES = 64

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: Those of them that are never words. A model may pad with any token, and may take any for the unknown.
_NEVER_TEXT = ("bos_token", "eos_token", "sep_token", "cls_token", "mask_token")

# transformers' names of sampling's numbers, and those of GGUF files, which samplers are made from here.
_SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


@dataclass(frozen=True)
class FolderFacts:
    """What is said beside a vocabulary. Without such files: nothing.

    `named`: texts of tokens by their part, such as "bos_token". `special`: texts of control tokens. `added`: tokens
    beyond the vocabulary, as a `tokenizer.json` lists them. `frame`: whether BOS and EOS are put around texts, for
    vocabularies that do not say it themselves; None where nothing is said. `ending_ids`: ids at which generation stops.
    `settings`: `tokenizer_config.json` itself.
    """

    named: Mapping[str, str] = field(default_factory=dict)
    special: frozenset[str] = frozenset()
    added: tuple[Mapping[str, Any], ...] = ()
    frame: tuple[bool, bool] | None = None
    ending_ids: frozenset[int] = frozenset()
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def flag(self, name: str, default: bool) -> bool:
        """A truth value of `tokenizer_config.json`; anything else there counts as not said."""
        value = self.settings.get(name)
        return value if isinstance(value, bool) else default


def read_facts(folder: Path) -> FolderFacts:
    """Reads what lies in a folder. Raises `TokenizerError` where one of the files is damaged."""
    config = read_object(folder / "tokenizer_config.json")
    settings = dict(config)
    if "added_tokens_decoder" not in config:  # files of older versions
        settings |= read_object(folder / "special_tokens_map.json")
    named = {name: text for name in _NAMED if (text := _text_of(settings.get(name))) is not None}
    special = {named[name] for name in _NEVER_TEXT if name in named} | set(_more_special(settings))
    frame = None
    if "add_bos_token" in config or "add_eos_token" in config:
        frame = (config.get("add_bos_token") is True, config.get("add_eos_token") is True)
    return FolderFacts(
        named=named,
        special=frozenset(special),
        added=tuple(_added_tokens(folder, config, special)),
        frame=frame,
        ending_ids=_ending_ids(folder),
        chat_templates=_chat_templates(folder, config),
        settings=config,
    )


def generation_defaults(folder: Path) -> dict[str, float | int]:
    """A folder's `generation_config.json` as a GGUF file's metadata `general.sampling.*`; {} where it says nothing.

    What the file leaves out is then neutral, as in transformers, but for that library's `top_k` of 50, which is no
    model's choice. Ids that end texts are in the tokenizer's `eos_ids`. Raises `ModelFormatError` for a damaged file.
    """
    path = folder / "generation_config.json"
    try:
        config = read_object(path)
    except TokenizerError as error:
        raise ModelFormatError(str(error)) from error
    if config.get("do_sample") is False:
        return {_SAMPLING["temperature"]: 0.0}
    given = {name: config[name] for name in _SAMPLING if config.get(name) is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelFormatError(f"{path}: {name} is {value!r:.80}, expected a number")
    if not given and config.get("do_sample") is not True:
        return {}
    return {_SAMPLING[name]: value for name, value in {"temperature": 1.0, "top_p": 1.0, **given}.items()}


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no such file. Raises `TokenizerError` for anything else."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: damaged: {error}") from error
    if not isinstance(found, dict):
        raise TokenizerError(f"{path}: damaged: it holds no JSON object")
    return found


def read_text(path: Path) -> str:
    """A whole text file. Raises `TokenizerError` where it is too large or no UTF-8, and `OSError` as `open` does."""
    try:
        return _read(path).decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: no UTF-8 text: {error}") from error


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise TokenizerError(f"{path}: more than {LARGEST_FILE >> 20} MiB, larger than any such file")
    return data


# ---- tokens ----------------------------------------------------------------------------------------------------------


def _text_of(token: Any) -> str | None:
    """The text of a token, which is written as such or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _more_special(settings: Mapping[str, Any]) -> Iterator[str]:
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = settings.get(key) or []
        for token in listed.values() if isinstance(listed, dict) else listed if isinstance(listed, list) else []:
            if (text := _text_of(token)) is not None:
                yield text


def _added_tokens(folder: Path, config: Mapping[str, Any], special: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Tokens beyond the vocabulary, as a `tokenizer.json` lists them, by id."""
    listed = config.get("added_tokens_decoder")
    if isinstance(listed, dict):
        tokens = {_id_of(key, folder): token for key, token in listed.items()}
    else:
        older = read_object(folder / "added_tokens.json")
        tokens = {_id_of(i, folder): {"content": text, "special": text in special} for text, i in older.items()}
    for token_id, token in sorted(tokens.items()):
        text = _text_of(token) if isinstance(token, dict) else None
        if text is None:
            raise TokenizerError(f"{folder}: the added token {token_id} is {token!r:.80}, which has no content")
        flags = {name: token.get(name) is True for name in ("special", "lstrip", "rstrip", "single_word")}
        yield {"id": token_id, "content": text, "normalized": token.get("normalized") is True, **flags}


def _id_of(key: Any, folder: Path) -> int:
    """Ids are keys of JSON objects in one file, and numbers in the other."""
    if isinstance(key, int) and not isinstance(key, bool):
        return key
    if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10):
        raise TokenizerError(f"{folder}: {key!r:.80} is no id of an added token")
    return int(key)


def _ending_ids(folder: Path) -> frozenset[int]:
    """Where generation stops: of `generation_config.json`, else of the model's own `config.json`."""
    for name in ("generation_config.json", "config.json"):
        found = read_object(folder / name).get("eos_token_id")
        ids = found if isinstance(found, list) else [found]
        if ending := frozenset(token for token in ids if type(token) is int and token >= 0):
            return ending
    return frozenset()


# ---- chat templates --------------------------------------------------------------------------------------------------


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name; the usual one is "default". Files of their own count before the other files' entries."""
    usual, others = folder / "chat_template.jinja", folder / "additional_chat_templates"
    found = {"default": read_text(usual)} if usual.is_file() else {}
    if others.is_dir():
        for path in sorted(others.glob("*.jinja"))[:MOST_TEMPLATES]:
            found[path.stem] = read_text(path)
    return found or _named_templates(config) or _named_templates(read_object(folder / "chat_template.json"))


def _named_templates(config: Mapping[str, Any]) -> dict[str, str]:
    """One template, or a list of them with names."""
    entry = config.get("chat_template")
    if isinstance(entry, str):
        return {"default": entry}
    listed = [item for item in entry if isinstance(item, dict)] if isinstance(entry, list) else []
    pairs = ((item.get("name"), item.get("template")) for item in listed[:MOST_TEMPLATES])
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
