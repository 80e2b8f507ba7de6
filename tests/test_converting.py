"""`pyllm.quantize` from Hugging Face folders: GGUF files that say the same model, to the bit, and its vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_json_merges
import tinyfolder
from test_families import MODELS, TABLE, folder_of

import pyllm
from pyllm import architectures, loading
from pyllm.architectures import Binding
from pyllm.architectures.to_gguf import ROTATED, row_order
from pyllm.config import ModelConfig
from pyllm.errors import UnsupportedModelError
from pyllm.formats import Checkpoint, open_checkpoint

#: What GGUF, or its architecture of that name, has no place for; and what the error says.
REFUSED = {
    "falcon-sequential": "attn_qkv.bias",
    "gemma2-scalar": "attention_scale",
    "gpt2-unscaled": "attention_scale",
    "llama-dynamic": "rope.scaling.attn_factor",
    "ministral": "no place for layers",
    "olmo3": "'olmo3' models cannot be written",
    "qwen2-window": "attention.sliding_window",
    "qwen2_moe-sparse": "attention.sliding_window",
    "starcoder2-window": "attention.sliding_window",
}
WRITTEN = [name for name in MODELS if name not in REFUSED]


def slots(checkpoint: Checkpoint) -> tuple[ModelConfig, dict[tuple[str, int, int], Binding]]:
    config = architectures.describe(checkpoint)
    return config, {(b.slot, b.layer, b.expert): b for b in architectures.bindings(checkpoint)}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_slot_holds_the_same_numbers(name: str, tmp_path: Path) -> None:
    """To the bit, in another order of rows where the file pairs RoPE's dimensions in another way."""
    folder, target = folder_of(name, tmp_path), tmp_path / "out.gguf"
    pyllm.quantize(folder, target, "copy")
    source, written = open_checkpoint(folder), open_checkpoint(target)
    config, ours = slots(source)
    back, theirs = slots(written)
    assert ours.keys() == theirs.keys()
    turned = back.rope_interleaved != config.rope_interleaved
    for key, b in ours.items():
        values, found = loading.dequantized(source, b), loading.dequantized(written, theirs[key])
        if b.slot in ROTATED and turned:
            values = values[row_order(config, b.rows)] if b.rows > 1 else values[:, row_order(config, b.cols)]
        if b.slot.startswith("rope_factors"):
            assert np.allclose(values, found, rtol=1e-6, atol=0), key  # numbers of the metadata, in single precision
        else:
            assert np.array_equal(values, found), key
    assert (written.metadata["general.file_type"], written.metadata["tokenizer.ggml.model"]) == (32, "no_vocab")


@pytest.mark.parametrize("name", WRITTEN)
def test_the_file_answers_as_the_folder_does(name: str, tmp_path: Path) -> None:
    """To the bit, where no sum over a head has another order."""
    folder, target = folder_of(name, tmp_path), tmp_path / "out.gguf"
    pyllm.quantize(folder, target, "copy")
    with pyllm.load(folder, threads=1) as one, pyllm.load(target, threads=1) as other:
        ours, theirs = one.logits(TABLE["tokens"]), other.logits(TABLE["tokens"])
        exact = one.config.rope_interleaved == other.config.rope_interleaved
    assert np.array_equal(ours, theirs) if exact else np.abs(ours - theirs).max() < 2e-3


def stems(names: Iterable[str]) -> set[str]:
    """Names without experts and their biases, and without an end that folders leave out and the package then, too."""
    return {name.replace("attn_sinks.weight", "attn_sinks") for name in names if not re.search("_exps|exp_probs", name)}


@pytest.mark.parametrize("name", [name for name in WRITTEN if MODELS[name]["gguf"]])
def test_architectures_and_names_are_llama_cpp_s(name: str, tmp_path: Path) -> None:
    """Those that the gguf package has for the tensors of a folder, but for experts, which lie together."""
    pyllm.quantize(folder_of(name, tmp_path), tmp_path / "out.gguf", "copy")
    written = open_checkpoint(tmp_path / "out.gguf")
    assert written.metadata["general.architecture"] == MODELS[name]["gguf"]
    expected = {found for _, found in tinyfolder.expand(MODELS[name]["tensors"]).values() if found}
    assert stems(n for n in written.tensors if "rope_" not in n) == stems(expected)


@pytest.mark.parametrize("name", REFUSED)
def test_what_gguf_cannot_say_is_refused(name: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    with pytest.raises(UnsupportedModelError, match=REFUSED[name]):
        pyllm.quantize(folder, tmp_path / "out.gguf", "q8_0")
    assert not (tmp_path / "out.gguf").exists()


def test_a_folder_s_own_files_are_not_replaced(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path, files=2)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    for file in folder.iterdir():
        with pytest.raises(ValueError, match="is one of the files of"):
            pyllm.quantize(folder, file, "q8_0")
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_quantised_and_in_several_files(tmp_path: Path) -> None:
    """The same file, however many the folder has; matrices of it as the recipe says, vectors in fp32."""
    files = []
    for n in (1, 3):
        folder = folder_of("llama", tmp_path / str(n), files=n)
        result = pyllm.quantize(folder, tmp_path / f"{n}.gguf", "q8_0", threads=n)
        files.append((tmp_path / f"{n}.gguf").read_bytes())
        assert set(result.tensors) == {"F32", "F16"}  # rows of 48 and 80 weights are no whole blocks of 32
        assert result.source_nbytes > result.nbytes / 2
    assert files[0] == files[1]


def test_rows_are_quantised_where_they_will_lie(tmp_path: Path) -> None:
    """Neighbouring pairs first, then blocks: no value crosses rows."""
    config = {**MODELS["llama-linear"]["config"], "hidden_size": 64, "head_dim": 16, "intermediate_size": 96}
    shapes = {name: shape for name, (shape, _) in tinyfolder.expand(MODELS["llama-linear"]["tensors"]).items()}
    sizes = {48: 64, 40: 96, 24: 32}
    shapes = {name: tuple(sizes.get(n, n) for n in shape) for name, shape in shapes.items()}
    folder = tinyfolder.write_folder(tmp_path / "wide", config, shapes)
    for target, type_ in (("a.gguf", "copy"), ("b.gguf", "q8_0")):
        seen: list[tuple[int, int]] = []
        pyllm.quantize(folder, tmp_path / target, type_, progress=lambda *done, seen=seen: seen.append(done))
        assert seen[-1][0] == seen[-1][1] == sum(spec.nbytes for spec in open_checkpoint(folder).tensors.values())
    pyllm.quantize(tmp_path / "a.gguf", tmp_path / "c.gguf", "q8_0")
    b, c = open_checkpoint(tmp_path / "b.gguf"), open_checkpoint(tmp_path / "c.gguf")
    assert all(bytes(b.view(b.tensors[name])) == bytes(c.view(c.tensors[name])) for name in b.tensors)
    with pyllm.load(folder, dtype="q8_0") as one, pyllm.load(tmp_path / "b.gguf") as other:
        assert np.array_equal(one.logits([3, 1, 4, 1, 5]), other.logits([3, 1, 4, 1, 5]))


# ---- vocabularies ----------------------------------------------------------------------------------------------------

#: Texts that begin with a space get none before them, which GGUF has no field for.
UNSAYABLE = ("metaspace first", "metaspace always")


def with_vocabulary(path: Path, library: Any, **config: Any) -> Path:
    """A folder with a tokenizer.json, for a model with a few rows more than it has tokens."""
    size = library.get_vocab_size() + 3
    shapes = {name: shape for name, (shape, _) in tinyfolder.expand(MODELS["qwen2"]["tensors"]).items()}
    shapes = {name: (size, *shape[1:]) if "embed" in name else shape for name, shape in shapes.items()}
    folder = tinyfolder.write_folder(path, {**MODELS["qwen2"]["config"], "vocab_size": size}, shapes)
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", [name for name in test_json_merges.FILES if name not in UNSAYABLE])
def test_a_vocabulary_goes_along(name: str, tmp_path: Path) -> None:
    library = test_json_merges.FILES[name]()
    folder = with_vocabulary(tmp_path / "model", library, chat_template="{{ messages }}")
    pyllm.quantize(folder, tmp_path / "out.gguf", "copy")
    ours, theirs = pyllm.Tokenizer.load(folder), pyllm.Tokenizer.load(tmp_path / "out.gguf")
    for attribute in ("bos_id", "eos_ids", "add_bos", "chat_template", "control_texts", "user_defined_texts"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    for text in [*test_json_merges.CORPUS[:3], "<|start|> x<s>y</s> <turn>  the", "<|end|><mask>"]:
        assert ours.encode(text) == theirs.encode(text)


def test_generation_defaults_go_along(tmp_path: Path) -> None:
    folder = with_vocabulary(tmp_path / "model", test_json_merges.FILES["smollm"]())
    chosen = {"do_sample": True, "temperature": 0.5, "top_k": 7, "eos_token_id": [1, 5]}
    (folder / "generation_config.json").write_text(json.dumps(chosen))
    pyllm.quantize(folder, tmp_path / "out.gguf", "copy")
    metadata = open_checkpoint(tmp_path / "out.gguf").metadata
    assert (metadata["general.sampling.temp"], metadata["general.sampling.top_k"]) == (0.5, 7)
    assert {1, 5} <= pyllm.Tokenizer.load(tmp_path / "out.gguf").eos_ids


@pytest.mark.parametrize("name", UNSAYABLE)
def test_a_vocabulary_that_would_give_other_ids_is_refused(name: str, tmp_path: Path) -> None:
    folder = with_vocabulary(tmp_path / "model", test_json_merges.FILES[name]())
    with pytest.raises(UnsupportedModelError, match=r"' ' is .* and would be read as"):
        pyllm.quantize(folder, tmp_path / "out.gguf", "copy")
    assert not (tmp_path / "out.gguf").exists()


def test_tokens_that_swallow_spaces(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """GGUF has no field for them: they are written without, and that is said."""
    pyllm.quantize(with_vocabulary(tmp_path / "model", test_json_merges.FILES["gpt-2"]()), tmp_path / "out.gguf")
    assert "swallow the spaces beside them" in caplog.text


def test_a_vocabulary_that_gguf_cannot_name_is_refused(tmp_path: Path) -> None:
    library = test_json_merges.byte_level(test_json_merges.split(r"\p{N}{1,2}"), test_json_merges.GPT2)
    folder = with_vocabulary(tmp_path / "model", library)
    with pytest.raises(UnsupportedModelError, match="no name for how its vocabulary cuts"):
        pyllm.quantize(folder, tmp_path / "out.gguf", "copy")


def test_sentencepiece_s_vocabulary(llama2_tokenizer_model: Path, tmp_path: Path) -> None:
    from pyllm.tokenizers import Tokenizer

    entry = MODELS["llama-linear"]
    shapes = {name: shape for name, (shape, _) in tinyfolder.expand(entry["tensors"]).items()}
    shapes = {name: (32001, *shape[1:]) if "embed" in name else shape for name, shape in shapes.items()}
    folder = tinyfolder.write_folder(tmp_path / "model", {**entry["config"], "vocab_size": 32001}, shapes)
    (folder / "tokenizer.model").write_bytes(llama2_tokenizer_model.read_bytes())
    pyllm.quantize(folder, tmp_path / "out.gguf", "q8_0")
    ours, theirs = Tokenizer.load(folder), Tokenizer.load(tmp_path / "out.gguf")
    text = "Grüße, naïve café: 你好 don't 12345\n\n\tx  y 🙂"
    assert ours.encode(text) == theirs.encode(text)
    assert (theirs.vocab_size, theirs.bos_id, theirs.add_bos) == (32001, 1, True)
    assert theirs.id_to_piece(32000) == "[PAD32000]"
