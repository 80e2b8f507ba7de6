"""Adapters from files: what `peft` answers, on folders and on GGUF files, at load, per session, several at once."""

from __future__ import annotations

import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyconvert
import tinyfolder
import tinygguf
from conftest import GOLDEN
from test_families import TABLE, folder_of, gguf_of, log_softmax

import pyllm
from pyllm import cli
from pyllm.errors import ModelFormatError, PyllmError, UnsupportedModelError

CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "adapters.json").read_text())
#: Models whose GGUF files hold rows in another order, or matrices that were one.
ON_GGUF = ["llama", "llama-patterns"]

Array = np.ndarray[Any, np.dtype[Any]]


@cache
def golden() -> dict[str, Array]:
    with np.load(GOLDEN / "adapters.npz") as data:
        return dict(data)


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in CASES[name]["tensors"].items()}


def adapter_of(name: str, path: Path, **changes: Any) -> Path:
    return tinyfolder.write_adapter(path / f"{name}-adapter", CASES[name]["config"] | changes, shapes_of(name))


def off(name: str, logits: Array) -> float:
    return float(np.abs(log_softmax(logits)[TABLE["positions"]] - golden()[name]).max())


def adapted(model: pyllm.Model, adapters: Any) -> Array:
    with model.session(adapters=adapters) as session:
        return np.array([session.eval([token]).copy() for token in TABLE["tokens"]])


@pytest.mark.parametrize("name", CASES)
def test_answers_as_peft_does(name: str, tmp_path: Path) -> None:
    base, adapter = folder_of(CASES[name]["family"], tmp_path), adapter_of(name, tmp_path)
    with pyllm.load(base, threads=1, kv_dtype="f32", adapters=[adapter]) as model:
        logits = model.logits(TABLE["tokens"])
        assert off(name, logits) < 5e-4
        ((opened, scale),) = model.adapters
        assert (opened.path, scale) == (adapter, 1.0)
        assert adapted(model, [model.adapter(adapter)]).tobytes() == logits.tobytes()
        plain = adapted(model, ())
    with pyllm.load(base, threads=1, kv_dtype="f32") as model:
        assert model.logits(TABLE["tokens"]).tobytes() == plain.tobytes() != logits.tobytes()


@pytest.mark.parametrize("name", ON_GGUF)
def test_a_peft_adapter_on_a_gguf_file(name: str, tmp_path: Path) -> None:
    base, adapter = gguf_of(CASES[name]["family"], tmp_path), adapter_of(name, tmp_path)
    with pyllm.load(base, threads=1, kv_dtype="f32", adapters=adapter) as model:
        assert off(name, model.logits(TABLE["tokens"])) < 5e-4


def gguf_adapter(name: str, path: Path, **changes: Any) -> Path:
    """The adapter as llama.cpp's converter writes it: GGUF's names, rows of queries and keys as the model's file."""
    entry = CASES[name]
    config = TABLE["models"][entry["family"]]["config"]
    tensors: dict[str, Any] = {}
    for key, shape in shapes_of(name).items():
        module, half = key.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
        values = tinyfolder.weights(key, shape)
        if half == "B":
            values = tinyconvert.permuted(f"{module}.weight", values, config)
        names = {k: n for k, (_, n) in tinyfolder.expand(TABLE["models"][entry["family"]]["tensors"]).items()}
        own = f"{names[f'{module}.weight']}.lora_{half.lower()}"
        tensors[own] = (tinygguf.F32, values.shape, values.astype("<f4").tobytes())
    metadata = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    metadata |= {"adapter.lora.alpha": float(entry["config"]["lora_alpha"])} | changes
    file = path / f"{name}-lora.gguf"
    file.write_bytes(tinygguf.gguf_bytes(metadata, tensors))
    return file


def test_a_gguf_adapter(tmp_path: Path) -> None:
    adapter = gguf_adapter("llama", tmp_path)
    with pyllm.load(gguf_of("llama", tmp_path), threads=1, kv_dtype="f32") as model:
        assert off("llama", adapted(model, model.adapter(adapter))) < 5e-4
        wrong = gguf_adapter("llama", tmp_path, **{"general.architecture": "qwen2"})
        with pytest.raises(ModelFormatError, match=r"an adapter for 'qwen2', but the model is 'llama'"):
            model.adapter(wrong)
        with pytest.raises(ModelFormatError, match="not a LoRA adapter"):
            model.adapter(gguf_adapter("llama", tmp_path, **{"adapter.type": "other"}))


def test_scales_and_several_at_once(tmp_path: Path) -> None:
    """Halves of two adapters are not one whole, but twice a half is; the order is that of the list."""
    names = ("llama", "llama-patterns")
    paths = [adapter_of(name, tmp_path) for name in names]
    with pyllm.load(folder_of("llama", tmp_path), threads=1, kv_dtype="f32") as model:
        first, second = map(model.adapter, paths)
        whole, none = adapted(model, first), adapted(model, ())
        halves = adapted(model, [(first, 0.5), (first, 0.5)])
        assert np.abs(halves - whole).max() < 1e-4 < np.abs(adapted(model, [(first, 0.5)]) - whole).max()
        assert adapted(model, [(first, 0.0)]).tobytes() == none.tobytes()
        both = adapted(model, [first, (second, -0.5)])
        assert np.abs(both - adapted(model, [(second, -0.5), first])).max() < 1e-3
        assert min(np.abs(both - other).max() for other in (whole, none)) > 0.1
        for bad, error in ((["x"], TypeError), ([(first, float("nan"))], ValueError), ([(first,)], TypeError)):
            with pytest.raises(error):
                model.session(adapters=bad)  # type: ignore[arg-type]
        with (
            pyllm.load(folder_of("llama", tmp_path), threads=1) as other,
            pytest.raises(ValueError, match="another model"),
        ):
            other.session(adapters=first)


def test_an_adapter_goes_along(tmp_path: Path) -> None:
    """Into forks, generations, saved sessions, pickles and the prefix cache; a session without it shares nothing."""
    base, path = folder_of("llama", tmp_path), adapter_of("llama", tmp_path)
    tokens, more = TABLE["tokens"][:30], TABLE["tokens"][30:]
    with pyllm.load(base, threads=1) as model:
        adapter = model.adapter(path)
        session = model.session(adapters=[(adapter, 0.5)])
        session.eval(tokens)
        with session.fork() as fork:
            wanted = np.array(fork.eval(more))
            assert fork.adapters == session.adapters == ((adapter, 0.5),)
        session.save(tmp_path / "saved")
        again = model.restore(tmp_path / "saved", adapters=[(adapter, 0.5)])
        assert np.array_equal(again.eval(more), wanted)
        for others in (None, [(adapter, 1.0)]):
            with pytest.raises(ModelFormatError, match="the session belongs to"):
                model.restore(tmp_path / "saved", adapters=others)
    greedy = pyllm.Sampler.greedy()
    with pyllm.load(base, threads=1, adapters=[(path, 0.5)]) as model:
        texts = [model.generate(TABLE["tokens"], max_tokens=6, sampler=greedy).tokens for _ in range(2)]
        copy = pickle.loads(pickle.dumps(model))
        texts.append(copy.generate(TABLE["tokens"], max_tokens=6, sampler=greedy).tokens)
        copy.close()
        assert texts[0] == texts[1] == texts[2]
        assert np.array_equal(model.logits(TABLE["tokens"])[-1], wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "an adapter of the kind 'IA3'"),
        ({"use_dora": True}, "use_dora is 'True'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_alpha": "8"}, "lora_alpha is 8, expected a number"),
        ({"alpha_pattern": [1]}, "alpha_pattern is no object"),
        ({"alpha_pattern": {r"layers\.[01]\..*q_proj": 9}}, r"alpha_pattern has the expression 'layers"),
        ({"alpha_pattern": {"(a+)+": 9}}, r"alpha_pattern has the expression '\(a\+\)\+', not a name"),
    ],
)
def test_other_adapters_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pyllm.load(folder_of("llama", tmp_path), threads=1) as model, pytest.raises(PyllmError, match=message):
        model.adapter(adapter_of("llama", tmp_path, **changes))


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    with pyllm.load(folder_of("llama", tmp_path), threads=1) as model:
        with pytest.raises(UnsupportedModelError, match=r"it changes 'transformer\.h\.0.*no matrix of llama"):
            model.adapter(adapter_of("gpt2", tmp_path))
        shapes = shapes_of("llama")
        name = next(key for key in shapes if key.endswith("lora_B.weight"))
        for changed, message in (
            ({**shapes, name: (shapes[name][0] + 1, shapes[name][1])}, "has .* rows for"),
            ({**shapes, name: (shapes[name][0], shapes[name][1] + 1)}, r"are no \(rank, cols\) and \(rows, rank\)"),
            ({key: shape for key, shape in shapes.items() if key != name}, "only one half"),
            ({**shapes, "base_model.model.other": (3,)}, "no half of a low-rank addition"),
            ({}, "an adapter without tensors"),
        ):
            path = tinyfolder.write_adapter(tmp_path / "odd", CASES["llama"]["config"], changed)
            with pytest.raises(PyllmError, match=message):
                model.adapter(path)
        (path / "adapter_model.safetensors").unlink()
        with pytest.raises(ModelFormatError, match=r"no adapter_model\.safetensors"):
            model.adapter(path)


def test_damaged_adapters(tmp_path: Path) -> None:
    """Every truncation, and every byte of the header changed: an adapter or a PyllmError."""
    path = adapter_of("gpt_neox", tmp_path)
    weights = path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    with pyllm.load(folder_of("gpt_neox", tmp_path), threads=1) as model:
        for n in [*range(0, 200, 7), *range(200, len(whole), 97)]:
            weights.write_bytes(whole[:n])
            with pytest.raises(PyllmError):
                model.adapter(path)
        refused = 0
        for i in range(0, int.from_bytes(whole[:8], "little") + 8, 3):
            weights.write_bytes(whole[:i] + bytes([whole[i] ^ 0x15]) + whole[i + 1 :])
            try:
                model.adapter(path)
            except PyllmError:
                refused += 1
        assert refused > 50


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, path = folder_of("llama", tmp_path), adapter_of("llama", tmp_path)
    assert cli.main(["info", str(base), "--adapter", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapters"] == [[str(path), 1.0]]
