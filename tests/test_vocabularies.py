"""Real vocabularies: llama.cpp's own test strings, in files that are under their models' own terms and not kept here.

Set PYLLM_VOCABULARIES to the folder `models` of llama.cpp's source, which the source distribution of llama-cpp-python
holds too: `ggml-vocab-NAME.gguf` with the strings in `.inp` and the reference tokenizer's ids in `.out`.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from pyllm.tokenizers import Tokenizer

NAMES = [
    "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm",
    "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
]  # fmt: skip
BETWEEN = "\n__ggml_vocab_test__\n"

#: Files whose ids llama.cpp made itself, without the composition of characters that the model's own tokenizer begins
#: with (NFC; transformers' Qwen3_5Tokenizer).
NOT_COMPOSED = {"qwen35"}


def vocabulary(name: str) -> Path:
    folder = os.environ.get("PYLLM_VOCABULARIES")
    path = Path(folder or "") / f"ggml-vocab-{name}.gguf"
    if not folder or not path.is_file():
        pytest.skip(f"{path.name} is not on this machine (PYLLM_VOCABULARIES names the folder that holds it)")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_hard_strings_of_real_vocabularies(name: str) -> None:
    path = vocabulary(name)
    tokenizer = Tokenizer.load(path)
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split(BETWEEN)
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    compared = 0
    for text, line in zip(texts, lines, strict=False):
        if name in NOT_COMPOSED and not unicodedata.is_normalized("NFC", text):
            continue
        assert tokenizer.encode(text, bos=False) == [int(token) for token in line.split()], text
        compared += 1
    assert compared > 40
