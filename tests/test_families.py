"""Every family, from folders and from GGUF: what `transformers` answers for tiny models with every switch in use."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyconvert
import tinyfolder
from conftest import GOLDEN

import pyllm

TABLE = json.loads((GOLDEN / "families.json").read_text())
MODELS: dict[str, dict[str, Any]] = TABLE["models"]
CONVERTED = [name for name, entry in MODELS.items() if entry["gguf"]]
TOLERANCE = 5e-3

Array = np.ndarray[Any, np.dtype[Any]]


@cache
def golden_logprobs() -> dict[str, Array]:
    with np.load(GOLDEN / "families.npz") as data:
        return dict(data)


def folder_of(name: str, path: Path, **options: Any) -> Path:
    entry = MODELS[name]
    shapes = {key: shape for key, (shape, _) in tinyfolder.expand(entry["tensors"]).items()}
    return tinyfolder.write_folder(path / name, entry["config"], shapes, **options)


def gguf_of(name: str, path: Path) -> Path:
    entry = MODELS[name]
    return tinyconvert.write_gguf(path / f"{name}.gguf", entry["gguf"], entry["config"], entry["tensors"])


def log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def check_answers(name: str, path: Path) -> None:
    """Log-probabilities and the greedy continuation are the reference's."""
    with pyllm.load(path, threads=1) as model:
        found = log_softmax(model.logits(TABLE["tokens"]))[TABLE["positions"]]
        assert np.abs(found - golden_logprobs()[name]).max() < TOLERANCE
        greedy = MODELS[name]["greedy"]
        if greedy:
            with model.session() as session:
                row = session.eval(TABLE["tokens"])
                tokens = []
                for _ in greedy:
                    tokens.append(int(row.argmax()))
                    row = session.eval(tokens[-1:])
            assert tokens == greedy


@pytest.mark.parametrize("name", MODELS)
def test_folder_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    check_answers(name, folder_of(name, tmp_path))


@pytest.mark.parametrize("name", CONVERTED)
def test_gguf_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    check_answers(name, gguf_of(name, tmp_path))
