"""Hugging Face folders: texts, special tokens and generation defaults as transformers reads them."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pyllm.errors import ModelFormatError, PyllmError, TokenizerError
from pyllm.sampling import sampler_from_metadata
from pyllm.tokenizers import Tokenizer
from pyllm.tokenizers.folder import generation_defaults
from pyllm.tokenizers.loading import load_folder

GOLDEN = Path(__file__).parent / "golden" / "folders.json"
DATA: dict[str, Any] = json.loads(GOLDEN.read_text())


def resolved(value: Any) -> Any:
    """A file's object with the vocabularies that folders share put in."""
    if isinstance(value, dict) and value.keys() == {"vocabulary"}:
        return {piece: i for i, piece in enumerate(DATA["bases"][value["vocabulary"]]["vocabulary"])}
    if isinstance(value, dict) and value.keys() == {"merges"}:
        return DATA["bases"][value["merges"]]["merges"]
    return {key: resolved(item) for key, item in value.items()} if isinstance(value, dict) else value


@cache
def files(name: str) -> dict[str, bytes]:
    """The files of a folder of the golden data."""
    found = {}
    for file, content in DATA["folders"][name].items():
        value = resolved(content)
        if isinstance(value, dict) and value.keys() == {"base64"}:
            found[file] = base64.b64decode(value["base64"])
        elif isinstance(value, str):
            found[file] = value.encode()
        else:
            text = json.dumps(value) if file.endswith(".json") else "\n".join(["#version: 0.2", *value]) + "\n"
            found[file] = text.encode()
    return found


def written(folder: Path, name: str, **changes: dict[str, Any]) -> Path:
    """The folder, with JSON files changed: "tokenizer_config" stands for the file of that name."""
    for file, data in files(name).items():
        (folder / file).write_bytes(data)
    for file, change in changes.items():
        path = folder / f"{file}.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, **change}))
    return folder


def loaded(folder: Path) -> Tokenizer:
    tokenizer = load_folder(folder)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("name", DATA["folders"])
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    tokenizer, expected = loaded(written(tmp_path, name)), DATA["ids"][name]
    for number, text in enumerate(DATA["texts"]):
        if name == "sentencepiece" and text.startswith(" "):
            continue  # transformers puts no space before a space; SentencePiece itself does
        plain = expected["plain"][number]
        assert tokenizer.encode(text, bos=False) == plain, text
        framed = [*expected["before"], *plain, *expected["after"]]
        assert tokenizer.encode(text, eos=tokenizer.add_eos) == framed, text
        special = expected["special"].get(str(number), plain)
        assert tokenizer.encode(text, bos=False, special=True) == special, text
    batch = tokenizer.encode_batch(DATA["texts"], bos=False)
    assert batch == [tokenizer.encode(text, bos=False) for text in DATA["texts"]]


def test_the_golden_data_is_no_smaller_than_it_was() -> None:
    assert len(DATA["texts"]) >= 20
    assert len(DATA["folders"]) >= 14
    assert sum(len(ids["special"]) for ids in DATA["ids"].values()) >= 25


# ---- what a folder says ----------------------------------------------------------------------------------------------


def test_endings_come_from_every_file_that_names_one(tmp_path: Path) -> None:
    tokenizer = loaded(written(tmp_path, "llama 3"))
    end = tokenizer.eos_id
    assert end is not None
    assert tokenizer.eos_ids == {end, 5}
    assert tokenizer.special_text(end) == "<|end|>"
    (tmp_path / "generation_config.json").unlink()
    assert loaded(tmp_path).eos_ids == {end}
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert loaded(tmp_path).eos_ids == {end, 7}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"_from_model_config": True, "eos_token_id": 1}, {}),
        ({"do_sample": True}, {"temp": 1.0, "top_p": 1.0}),
        ({"do_sample": False, "temperature": 0.7}, {"temp": 0.0}),
        ({"temperature": 0.7, "top_k": 20, "top_p": 0.8}, {"temp": 0.7, "top_k": 20, "top_p": 0.8}),
        ({"repetition_penalty": 1.05, "min_p": 0.1, "top_k": None},
         {"temp": 1.0, "top_p": 1.0, "penalty_repeat": 1.05, "min_p": 0.1}),
    ],
)  # fmt: skip
def test_generation_defaults(config: dict[str, Any], expected: dict[str, float], tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    found = generation_defaults(tmp_path)
    assert found == {f"general.sampling.{name}": value for name, value in expected.items()}
    sampler = sampler_from_metadata(found)
    if expected:
        assert (sampler.temperature, sampler.top_p) == (expected["temp"], expected.get("top_p", sampler.top_p))


def test_no_generation_config_says_nothing(tmp_path: Path) -> None:
    assert generation_defaults(tmp_path) == {}


@pytest.mark.parametrize("text", ['{"temperature": "hot"}', '{"top_k": true}', "[1]", "{", '{"a":' * 9999])
def test_damaged_generation_configs_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelFormatError, match=r"generation_config\.json"):
        generation_defaults(tmp_path)


def test_chat_templates_from_each_place(tmp_path: Path) -> None:
    """Files of their own come before the configuration's entry, and that before a processor's file."""
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}, {"name": "odd"}]
    folder = written(tmp_path, "llama 3", chat_template={"chat_template": "P"})
    assert loaded(folder).chat_template == "P"
    written(folder, "llama 3", tokenizer_config={"chat_template": "C"})
    assert loaded(folder).chat_template == "C"
    written(folder, "llama 3", tokenizer_config={"chat_template": named})
    assert loaded(folder).chat_templates == {"default": "D", "tool_use": "T"}
    (folder / "chat_template.jinja").write_text("J\u00e9")
    assert loaded(folder).chat_templates == {"default": "J\u00e9"}
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("R")
    assert loaded(folder).chat_templates == {"default": "J\u00e9", "rag": "R"}


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert load_folder(tmp_path) is None
    with pytest.raises(TokenizerError, match="a folder without"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tekken\.json: such vocabularies are not known"):
        load_folder(tmp_path)


def test_bert_does_not_generate(tmp_path: Path) -> None:
    tokenizer = loaded(written(tmp_path, "bert"))
    assert tokenizer.decode(tokenizer.encode("The FOXES jump!")) == "the foxes jump!"
    with pytest.raises(TokenizerError, match="embed text and do not generate it"):
        tokenizer.decoder()


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("llama 3", "tokenizer_config", {"added_tokens_decoder": {"x": {"content": "a"}}}, "'x' is no id"),
        ("llama 3", "tokenizer_config", {"added_tokens_decoder": {"9": {}}}, "token 9 is {}"),
        ("llama 3", "tokenizer_config", {"added_tokens_decoder": {"999999999": {"content": "a"}}}, "far behind"),
        ("sentencepiece", "tokenizer_config", {"added_tokens_decoder": {"99999": {"content": "a"}}}, "far behind"),
        ("older files", "added_tokens", {"a": 1.5}, "1.5 is no id"),
        ("qwen 2 in plain files", "tokenizer_config", {"tokenizer_class": "XTokenizer"}, "'XTokenizer', of which"),
        ("qwen 2 in plain files", "tokenizer_config", {"add_prefix_space": True}, "with add_prefix_space"),
        ("bert", "tokenizer_config", {"cls_token": "<cls>"}, "it lacks '<cls>'"),
    ],
)
def test_damaged_neighbours_are_refused(
    name: str, file: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError, match=message):
        load_folder(written(tmp_path, name, **{file: change}))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"])
@pytest.mark.parametrize("data", [b"\xff\xfe", b"[]", b"{", b"{" * 9999, b""])
def test_any_bytes_beside_a_vocabulary(file: str, data: bytes, tmp_path: Path) -> None:
    folder = written(tmp_path, "older files")
    expected = str(loaded(folder).encode("a", bos=False))
    (folder / file).write_bytes(data)
    try:
        outcome = str(loaded(folder).encode("a", bos=False))
    except PyllmError as error:
        outcome = str(error)
    assert file in outcome or outcome == expected


def test_a_control_token_that_the_model_itself_makes_of_text_is_refused(tmp_path: Path) -> None:
    """A neighbour may call a piece special that the vocabulary's own library finds in text."""
    tokenizer = loaded(written(tmp_path, "sentencepiece"))
    the = tokenizer.encode("the", bos=False)[0]
    config = json.loads(files("sentencepiece")["tokenizer_config.json"])
    decoder = config["added_tokens_decoder"] | {str(the): {"content": tokenizer.id_to_piece(the), "special": True}}
    tokenizer = loaded(written(tmp_path, "sentencepiece", tokenizer_config={"added_tokens_decoder": decoder}))
    with pytest.raises(TokenizerError, match="control tokens of plain text"):
        tokenizer.encode("the fox")
