"""Vectors of texts: encoders as `transformers` computes them, pooling, and what the model's files say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyfolder
import tinygguf
from conftest import GOLDEN
from test_families import folder_of

import pyllm
from pyllm.errors import ClosedError, ContextLengthError, UnsupportedModelError

TABLE = json.loads((GOLDEN / "encoders.json").read_text())
TOKENS: list[int] = TABLE["tokens"]

Array = np.ndarray[Any, np.dtype[Any]]


def encoder(name: str, path: Path, **changes: Any) -> Path:
    entry = TABLE["models"][name]
    shapes = {key: tuple(shape) for key, shape in entry["tensors"].items()}
    return tinyfolder.write_folder(path / name, entry["config"] | changes, shapes, "F32")


def golden(name: str) -> Array:
    with np.load(GOLDEN / "encoders.npz") as data:
        states: Array = data[name]
        return states


def unit(vector: Array) -> Array:
    result: Array = vector / np.linalg.norm(vector)
    return result


@pytest.mark.parametrize("name", TABLE["models"])
def test_encoders_answer_as_transformers_does(name: str, tmp_path: Path) -> None:
    states = golden(name).astype(np.float64)
    with pyllm.load(encoder(name, tmp_path), threads=1) as model:
        for pooling, wanted in (("mean", states.mean(axis=0)), ("cls", states[0]), ("last", states[-1])):
            found = model.embed([TOKENS], pooling=pooling, normalize=False)
            assert found.shape == (1, model.config.dim)
            assert found.dtype == np.float32
            assert np.abs(found[0] - wanted).max() < 1e-4
            assert np.abs(model.embed([TOKENS], pooling=pooling)[0] - unit(wanted)).max() < 1e-5
        assert np.array_equal(model.embed([TOKENS]), model.embed([TOKENS], pooling="mean"))


#: What the `gguf` package calls BERT's tensors.
GGUF_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def bert_gguf(path: Path, **changes: Any) -> Path:
    """The tiny BERT as llama.cpp's converter writes it, without the pooler."""
    entry = TABLE["models"]["bert"]
    c, tensors = entry["config"], dict[str, tinygguf.Tensor]()
    for name, shape in entry["tensors"].items():
        layer, _, rest = name.removeprefix("encoder.layer.").partition(".") if "encoder" in name else ("", "", name)
        stem, _, end = rest.rpartition(".")
        if stem in GGUF_NAMES:
            own = f"blk.{layer}.{GGUF_NAMES[stem]}.{end}" if layer else f"{GGUF_NAMES[stem]}.{end}"
            values = tinyfolder.weights(name, tuple(shape))
            tensors[own] = (tinygguf.F32, values.shape, values.astype("<f4").tobytes())
    fields = {
        "embedding_length": c["hidden_size"],
        "feed_forward_length": c["intermediate_size"],
        "block_count": c["num_hidden_layers"],
        "context_length": c["max_position_embeddings"],
        "attention.head_count": c["num_attention_heads"],
        "attention.layer_norm_epsilon": c["layer_norm_eps"],
        "attention.causal": False,
        "pooling_type": 2,
    }
    metadata = {"general.architecture": "bert", **{f"bert.{key}": value for key, value in (fields | changes).items()}}
    return tinygguf.write_gguf(path / "bert.gguf", metadata, tensors)


def test_bert_in_gguf(tmp_path: Path) -> None:
    """The bits of the folder, and the pooling that the file asks for."""
    with pyllm.load(encoder("bert", tmp_path), threads=1) as folder:
        wanted = [folder.embed([TOKENS], pooling=pooling) for pooling in ("mean", "cls")]
    with pyllm.load(bert_gguf(tmp_path), threads=1) as model:
        assert np.array_equal(model.embed([TOKENS], pooling="mean"), wanted[0])
        assert np.array_equal(model.embed([TOKENS]), wanted[1])
    ranking = pyllm.load(bert_gguf(tmp_path, pooling_type=4), threads=1)
    with pytest.raises(UnsupportedModelError, match=r"bert\.pooling_type is 4"):
        ranking.embed([TOKENS])
    ranking.close()
    with pytest.raises(UnsupportedModelError, match=r"bert\.attention\.causal"):
        pyllm.load(bert_gguf(tmp_path, **{"attention.causal": True}))


def test_a_vector_does_not_depend_on_the_others(tmp_path: Path) -> None:
    texts = [TOKENS[i : i + n] for i, n in enumerate((1, 7, 20, 3, 11, 16, 2, 5) * 12) if i + n <= len(TOKENS)]
    texts = [TOKENS[: 1 + i % len(TOKENS)] for i in range(150)] + texts  # more than one pass takes
    for threads in (1, 3):
        with pyllm.load(encoder("bert", tmp_path), threads=threads) as model:
            together = model.embed(texts)
            alone = np.concatenate([model.embed([text]) for text in texts])
            assert together.tobytes() == alone.tobytes()
            assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-6
            assert model.embed([]).shape == (0, model.config.dim)


def test_decoders_embed_too(tmp_path: Path) -> None:
    """The states after the final norm, also of texts that are read in several chunks."""
    with pyllm.load(folder_of("llama", tmp_path, dtype="F32"), threads=1, kv_dtype="f32") as model:
        ids = [int(n) % 64 for n in tinyfolder.integers("text", 60)]
        states = model._native.new_session(64).eval(ids, len(ids), states=True)
        assert np.array_equal(model.embed([ids], pooling="last", normalize=False)[0], states[-1])
        assert np.abs(model.embed([ids], normalize=False)[0] - states.mean(axis=0)).max() < 1e-6
    shape = {"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    entry = json.loads((GOLDEN / "families.json").read_text())["models"]["llama"]
    shapes = {key: shape for key, (shape, _) in tinyfolder.expand(entry["tensors"]).items()}
    path = tinyfolder.write_folder(tmp_path / "long", entry["config"] | shape, shapes)
    with pyllm.load(path, threads=1) as model:
        ids = [int(n) % 64 for n in tinyfolder.integers("long", 1300)]
        with model.session() as session:
            depth = model.config.n_layers
            assert session.hidden_states(ids, [depth]).shape == (1, len(ids), model.config.dim)
        whole = model.embed([ids], pooling="last", normalize=False)[0]
        native = model._native.new_session(2048)
        native.eval(ids[:-1])
        assert np.array_equal(native.eval(ids[-1:], states=True)[0], whole)


def test_what_the_files_say_of_pooling(tmp_path: Path) -> None:
    path = encoder("bert", tmp_path)
    (path / "1_Pooling").mkdir()

    def pooling(**modes: bool) -> None:
        modes = {f"pooling_mode_{name}": on for name, on in modes.items()}
        (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 40, **modes}))

    def embedded(wanted: str | None = None) -> Array:
        with pyllm.load(path, threads=1) as model:
            return model.embed([TOKENS], pooling=wanted)

    pooling(cls_token=True, mean_tokens=False)
    assert np.array_equal(embedded(), embedded("cls"))
    pooling(lasttoken=True)
    assert np.array_equal(embedded(), embedded("last"))
    pooling(cls_token=True, mean_tokens=True)
    with pytest.raises(UnsupportedModelError, match=r"pooling_mode_cls_token, pooling_mode_mean_tokens.*say which"):
        embedded()
    assert embedded("mean").shape == (1, 40)
    pooling(mean_tokens=True)
    dense = [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Dense")]
    (path / "modules.json").write_text(json.dumps(dense[:2]))
    assert np.array_equal(embedded(), embedded("mean"))
    (path / "modules.json").write_text(json.dumps(dense))
    with pytest.raises(UnsupportedModelError, match=r"modules\.json has 'Dense'"):
        embedded()


def test_what_embed_refuses(tmp_path: Path) -> None:
    model = pyllm.load(encoder("bert", tmp_path), threads=1)
    with pytest.raises(ValueError, match="pooling"):
        model.embed([TOKENS], pooling="max")
    with pytest.raises(ValueError, match="empty"):
        model.embed([[]])
    with pytest.raises(ContextLengthError, match="33 tokens exceeds the context of 32"):
        model.embed([[2] * 33])
    with pytest.raises(ValueError, match="64"):
        model.embed([[64]])
    with pytest.raises(pyllm.TokenizerError, match="no tokenizer"):
        model.embed("text")
    with pytest.raises(UnsupportedModelError, match="an encoder, which generates no text"):
        model.generate(TOKENS)
    model.close()
    with pytest.raises(ClosedError):
        model.embed([TOKENS])


def test_texts_are_framed_as_the_files_say(smollm2: Path) -> None:
    with pyllm.load(smollm2) as model:
        texts = ["The capital of France is Paris.", "Paris is France's capital.", "Mix flour, eggs and milk."]
        first, second, third = model.embed(texts, pooling="mean")
        assert first @ second > first @ third
        assert np.array_equal(model.embed(texts[0])[0], first)
        assert model.tokenizer is not None
        assert np.array_equal(model.embed([model.tokenizer.encode(texts[0])])[0], first)
