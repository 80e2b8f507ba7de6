"""Every switch of the config: against the formulas in float64 (reference.py), and for the same bits on every path.

Models are random ones that no architecture describes, so each switch is tried by itself and with others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from bits import Array, bits, kernel_level
from random_models import RandomModel, logits, random_model
from reference import Trace, forward, rotated_order
from test_law1 import eval_together, forked, in_chunks, restored, rewound, run, whole
from tinygguf import BF16, F16, F32, Q4_0, Q8_0

import pyllm
from pyllm import _core
from pyllm.config import LayerConfig, ModelConfig

#: fp32 against float64, relative to the largest answer.
ROUNDING = 2e-5

VOCAB = 90
IDS: list[int] = np.random.default_rng(0).integers(0, VOCAB, 330).tolist()  # more than a chunk of attention
NORMS = "attention_norm ffn_norm final_norm"
BIASES = "bq bk bv bo gate_bias up_bias down_bias head_bias"
LAYER_NORMS = f"{NORMS} attention_norm_bias ffn_norm_bias final_norm_bias"
POST = "attention_post_norm ffn_post_norm"


def config(**switches: Any) -> ModelConfig:
    """A small Llama with some of it otherwise."""
    plain = {
        "architecture": "random",
        "dim": 64,
        "hidden_dim": 96,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 16,
        "vocab_size": VOCAB,
        "context_length": 512,
        "rope_dims": 16,
    }
    return ModelConfig(**(plain | switches))


def experts(**switches: Any) -> ModelConfig:
    """Layers with and without experts."""
    layers = tuple(LayerConfig(experts=i != 1) for i in range(3))
    few: dict[str, Any] = {"n_layers": 3, "layers": layers, "n_experts": 6, "n_experts_used": 2, "expert_dim": 64}
    return config(**(few | switches))


def windows(*sizes: int, **switches: Any) -> ModelConfig:
    """A layer for each window, every second with local rotation."""
    layers = tuple(LayerConfig(window=w, rope=("main", "local")[i % 2]) for i, w in enumerate(sizes))
    return config(n_layers=len(sizes), layers=layers, rope_local_base=300.0, **switches)


EXPERT_BIASES = "router_bias expert_gate_bias expert_up_bias expert_down_bias"

CASES: dict[str, tuple[ModelConfig, str]] = {
    "llama": (config(), f"{NORMS} head rope_factors"),
    "no norms at all": (config(), ""),
    "biases": (config(), f"{NORMS} {BIASES}"),
    "interleaved": (config(rope_interleaved=True, rope_dims=12, qk_norm="each"), f"{NORMS} bq bk"),
    "layer norms": (config(norm="layer"), LAYER_NORMS),
    "layer norms without bias": (config(norm="layer"), NORMS),
    "rms norms with bias": (config(), LAYER_NORMS),
    "embedding": (
        config(norm="layer", embedding_scale=3.5),
        f"{NORMS} position_embedding embedding_norm embedding_norm_bias",
    ),
    "only post norms": (config(qk_norm="wide"), f"{POST} final_norm"),
    "post norms": (config(residual_scale=0.3), f"{NORMS} {POST} attention_post_norm_bias ffn_post_norm_bias"),
    "norm after sum": (config(norm="layer", norm_after_sum=True), f"{POST} attention_post_norm_bias"),
    "parallel": (config(norm="layer", parallel=True), f"attention_norm final_norm {BIASES}"),
    "parallel with two norms": (config(parallel=True, residual_scale=0.5), NORMS),
    "qk norm of heads": (config(qk_norm="head", rope_interleaved=True), f"{NORMS} bq bk"),
    "qk norm of each head": (config(qk_norm="each", norm="layer"), NORMS),
    "qk norm of all heads": (config(qk_norm="wide", n_kv_heads=1), NORMS),
    "gelu": (config(activation="gelu", gated=False), f"{NORMS} up_bias down_bias"),
    "gated gelu": (config(activation="gelu"), NORMS),
    "gelu by tanh": (config(activation="gelu_tanh"), NORMS),
    "plain gelu by tanh": (config(activation="gelu_tanh", gated=False), NORMS),
    "squared relu": (config(activation="relu_squared", gated=False), NORMS),
    "ungated silu": (config(activation="silu", gated=False), NORMS),
    "clamped silu": (config(activation="silu_clamped", activation_limit=0.7), f"{NORMS} {BIASES}"),
    "scales": (config(embedding_scale=8.0, residual_scale=0.22, logit_scale=0.125, attention_scale=0.05), NORMS),
    "caps": (config(attention_softcap=2.0, logit_softcap=1.5, logit_scale=3.0), NORMS),
    "no rotation": (config(layers=(LayerConfig(rope="none"), LayerConfig())), NORMS),
    "rope scale": (config(rope_scale=1.3, rope_dims=8), f"{NORMS} rope_factors"),
    "long rope": (config(rope_original=100), f"{NORMS} rope_factors"),
    "windows": (windows(40, 0, 1, 256, 257, 300, rope_scale=1.2), NORMS),
    "windows and sinks": (windows(7, 0, 100, attention_softcap=3.0), f"{NORMS} sinks"),
    "odd heads": (config(head_dim=20, rope_dims=10, n_heads=3, n_kv_heads=3, qk_norm="head"), f"{NORMS} bq bk bv"),
    "wide heads": (config(head_dim=80, rope_dims=32, n_heads=2, n_kv_heads=1, qk_norm="each"), NORMS),
    "many heads to a key": (
        config(n_heads=34, n_kv_heads=2, head_dim=6, rope_dims=6, qk_norm="each"),
        f"{NORMS} sinks",
    ),
    "nothing a multiple": (
        config(dim=37, hidden_dim=29, head_dim=6, rope_dims=4, n_heads=5, n_kv_heads=1, norm="layer"),
        f"{LAYER_NORMS} {BIASES} {POST}",
    ),
    "encoder": (
        config(norm="layer", norm_after_sum=True, causal=False, activation="gelu", gated=False, rope_dims=0),
        f"embedding_norm embedding_norm_bias position_embedding {POST} attention_post_norm_bias ffn_post_norm_bias "
        "bq bv bo up_bias down_bias",
    ),
    "encoder with windows": (windows(129, 0, 9, causal=False, activation="gelu"), f"{NORMS} head"),
    "experts": (experts(), NORMS),
    "experts renormalised": (experts(expert_renormalise=True, expert_scale=2.5, n_experts_used=3), NORMS),
    "experts by chosen logits": (
        experts(routing="softmax_chosen", activation="silu_clamped", activation_limit=0.5),
        f"{NORMS} {EXPERT_BIASES}",
    ),
    "experts by sigmoid": (
        experts(routing="sigmoid", expert_renormalise=True, shared_dim=48, n_experts=20, n_experts_used=5),
        f"{NORMS} choice_bias",
    ),
    "experts with a weighed shared one": (experts(shared_dim=160), f"{NORMS} shared_router {POST}"),
    "ungated experts": (
        experts(gated=False, activation="gelu", shared_dim=20, expert_dim=27),
        f"{NORMS} router_bias expert_up_bias expert_down_bias",
    ),
    "one expert, always": (
        experts(n_experts=1, n_experts_used=1, hidden_dim=0, layers=(LayerConfig(experts=True),) * 3),
        NORMS,
    ),
}

ENCODERS = [name for name, (c, _) in CASES.items() if not c.causal]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Several threads mean several threads here, also on a machine that others keep busy."""
    _core.insist_on_threads(True)
    yield
    _core.insist_on_threads(False)


def model_of(name: str, types: tuple[int, ...] = (F32,)) -> RandomModel:
    c, optional = CASES[name]
    if "rope_dims=0" in repr(c):
        c = replace(c, layers=(LayerConfig(rope="none"),) * c.n_layers)
    return random_model(c, optional, types=types, seed=list(CASES).index(name))


def has_logits(model: RandomModel) -> bool:
    return model.config.causal or any(t.slot == "head" for t in model.tensors)


def off(a: Array, b: Array) -> float:
    """The largest difference, relative to the largest answer."""
    return float(np.abs(a - b).max() / np.abs(b).max())


# ---- the formulas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_formulas(name: str) -> None:
    """All positions in one pass, hidden states and logits."""
    model = model_of(name)
    native, weights = model.native(), model.weights()
    assert off(logits(native, IDS, states=True), forward(model.config, weights, IDS, states=True)) < ROUNDING
    if has_logits(model):
        assert off(logits(native, IDS), forward(model.config, weights, IDS)) < ROUNDING


@pytest.mark.parametrize("name", CASES)
def test_each_optional_tensor_and_switch_counts(name: str) -> None:
    """The formulas would notice: without any one of a case's tensors the answers are others."""
    model = model_of(name)
    weights, ids = model.weights(), IDS[:90]
    full = forward(model.config, weights, ids)
    assert np.isfinite(full).all()
    for slot in CASES[name][1].split():
        less = {key: value for key, value in weights.items() if key[0] != slot}
        assert len(less) < len(weights), slot
        assert off(forward(model.config, less, ids), full) > 50 * ROUNDING, slot


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("name", ["biases", "qk norm of heads", "experts by chosen logits", "encoder", "parallel"])
def test_quantised_weights(name: str, planes: int) -> None:
    """As far from the exact answer as rounding activations makes it, for all positions together."""
    model = model_of(name, (Q8_0, Q4_0))
    c, weights = model.config, model.weights()
    exact, rounded = (forward(c, weights, IDS[:60], planes=n, states=True) for n in (None, planes))
    y = logits(model.native(planes=planes), IDS[:60], states=True)
    assert off(y, exact) < max(2.5 * off(rounded, exact), ROUNDING)


#: Encoders look at all of a text at once, and keep nothing.
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0].causal])
def test_the_inside_of_every_layer(name: str) -> None:
    """What a session shows of the stream, the keys and the values, wherever norms and blocks stand."""
    model = model_of(name)
    c, trace, ids = model.config, Trace([], [], []), IDS[:90]
    forward(c, model.weights(), ids, trace=trace)
    native = model.native(threads=2)
    session = native.new_session(len(ids))
    hidden = session.eval_hidden(ids, list(range(c.n_layers + 1)))
    for layer, expected in enumerate(trace.hidden):
        assert off(hidden[layer], expected) < ROUNDING
    for layer in range(c.n_layers):
        keys, values = session.kv(layer)
        assert off(keys.transpose(1, 0, 2), trace.keys[layer][..., rotated_order(c)]) < ROUNDING
        assert off(values.transpose(1, 0, 2), trace.values[layer]) < ROUNDING
    session.close()


# ---- the same bits ---------------------------------------------------------------------------------------------------

#: Float and quantised matrices side by side.
MIXED = (Q8_0, F32, Q4_0, BF16, F16)


@cache
def expected_bits(name: str, kv_type: str = "f16") -> Array:
    """Every position's answer in one plain scalar pass."""
    with kernel_level("scalar"):
        return bits(run(model_of(name, MIXED).native(kv_type=kv_type), whole, IDS))


WAYS: dict[str, Callable[[_core.NativeSession, Any], Array]] = {
    "whole": whole,
    "ones": partial(in_chunks, 1),
    "sevens": partial(in_chunks, 7),
    "hundreds": partial(in_chunks, 100),
    "rewound": rewound,
    "forked": forked,
    "restored": restored,
}


DECODERS = [name for name in CASES if name not in ENCODERS and name != "long rope"]


#: What attention does otherwise: heads that are no whole blocks of 32, shorter than one and longer, and several of them
#: to a key; windows, sinks, caps.
ATTENTION = ["odd heads", "wide heads", "many heads to a key", "nothing a multiple", "windows and sinks", "caps"]


@pytest.mark.parametrize("isa", [name for name in _core.isa_names() if name != "scalar"])
@pytest.mark.parametrize(
    ("name", "kv_type"), [*((name, "f16") for name in DECODERS), *((name, "q8_0") for name in ATTENTION)]
)
def test_every_way_gives_the_same_bits(name: str, kv_type: str, isa: str) -> None:
    expected = expected_bits(name, kv_type)
    assert len({row.tobytes() for row in expected}) == len(IDS)
    for threads in (1, 3):
        model = model_of(name, MIXED).native(kv_type=kv_type, threads=threads)
        for way, evaluate in WAYS.items():
            with kernel_level(isa):
                found = bits(run(model, evaluate, IDS))
            assert np.array_equal(found, expected[len(expected) - len(found) :]), (way, threads)
        assert model.kv_pages == 0


@pytest.mark.parametrize("name", DECODERS)
def test_a_batch_equals_each_alone(name: str) -> None:
    """Two sessions at different places, with one token and with many each."""
    expected = expected_bits(name)
    for threads in (1, 3):
        model = model_of(name, MIXED).native(kv_type="f16")
        sessions, at = [model.new_session(400) for _ in range(2)], [0, 0]
        for sizes in zip([300, 1, 1, 20, 1], [1, 1, 90, 1, 5], strict=True):
            parts = [(s, IDS[a : a + n]) for s, a, n in zip(sessions, at, sizes, strict=True)]
            for found, a, n in zip(eval_together(model, parts, threads), at, sizes, strict=True):
                assert np.array_equal(bits(found), expected[a : a + n]), (threads, a, n)
            at = [a + n for a, n in zip(at, sizes, strict=True)]


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_give_the_same_bits(name: str) -> None:
    """At every level, on any number of threads; a sequence's answers do not depend on what else is in the pass."""
    model = model_of(name, MIXED)
    for n in (1, 2, 17, 330):
        with kernel_level("scalar"):
            expected = bits(logits(model.native(), IDS[:n], states=True))
        for isa in _core.isa_names():
            with kernel_level(isa):
                assert np.array_equal(bits(logits(model.native(threads=3), IDS[:n], states=True)), expected), (isa, n)


#: Sizes with enough weights for a single token's work to be shared out.
LARGE: dict[str, Any] = {
    "dim": 192,
    "hidden_dim": 900,
    "n_heads": 6,
    "head_dim": 32,
    "rope_dims": 32,
    "expert_dim": 512,
}


@pytest.mark.parametrize(
    ("c", "optional"),
    [
        (windows(5, 0, 3, qk_norm="head", attention_softcap=5.0, **LARGE), f"{NORMS} {POST} {BIASES} sinks"),
        (config(qk_norm="wide", norm="layer", parallel=True, n_layers=3, **LARGE), f"attention_norm {BIASES}"),
        (config(norm_after_sum=True, gated=False, activation="gelu", n_layers=4, **LARGE), f"{POST} {BIASES}"),
        (experts(shared_dim=256, routing="sigmoid", **LARGE), f"{NORMS} choice_bias shared_router {POST}"),
    ],
    ids=["windows", "parallel", "norm after sum", "experts"],
)
def test_one_token_on_several_threads(c: ModelConfig, optional: str) -> None:
    model = random_model(c, optional, types=(F32, F32, Q8_0))
    alone = model.native()
    assert alone.token_bytes > 4e6  # below this the engine works alone
    expected = bits(run(alone, whole, IDS[:12]))
    for threads in (2, 3, 5):
        assert np.array_equal(bits(run(model.native(threads=threads), partial(in_chunks, 1), IDS[:12])), expected)


# ---- what a sequence's length decides --------------------------------------------------------------------------------


def test_long_sequences_use_the_long_factors() -> None:
    """All of a sequence by the factors that its length asks for: beyond the limit it has to begin again."""
    model = model_of("long rope")
    c, weights, limit = model.config, model.weights(), model.config.rope_original
    session = model.native().new_session(400)
    assert off(session.eval(IDS[: limit - 1])[0], forward(c, weights, IDS[: limit - 1])[-1]) < ROUNDING
    short = np.array(session.eval(IDS[limit - 1 : limit]))
    assert off(short[0], forward(c, weights, IDS[:limit])[-1]) < ROUNDING
    with pytest.raises(ValueError, match="factors change at 100 positions"):
        session.eval(IDS[limit : limit + 1])
    session.expect(limit)
    assert session.position == limit
    session.expect(limit + 1)
    assert session.position == 0
    session.eval(IDS[:40], n_logits=0)
    session.eval(IDS[40:60], n_logits=0)
    fork = session.fork()
    for either in (session, fork):
        found = np.array(either.eval(IDS[60 : limit + 1]))
        assert off(found[0], forward(c, weights, IDS[: limit + 1])[-1]) < ROUNDING
    state = session.state()
    fork.truncate(limit - 1)
    with pytest.raises(ValueError, match="evaluated again"):
        fork.eval(IDS[limit - 1 : limit])
    fork.expect(limit)
    assert fork.position == 0
    assert np.array_equal(bits(fork.eval(IDS[:limit])), bits(short))
    fork.load_state(state, limit + 1)
    assert np.array_equal(bits(fork.eval(IDS[limit + 1 : 150])), bits(session.eval(IDS[limit + 1 : 150])))


def test_learned_positions_end() -> None:
    model = random_model(config(context_length=40), f"{NORMS} position_embedding").native()
    session = model.new_session(100)
    session.eval(IDS[:40])
    with pytest.raises(pyllm.ContextLengthError, match="1 tokens at position 40 exceed the context of 40"):
        session.eval(IDS[:1])
    assert session.position == 40


def test_an_encoder_takes_a_sequence_at_once() -> None:
    session = model_of("encoder").native().new_session(100)
    first = np.array(session.eval(IDS[:10], states=True))
    with pytest.raises(ValueError, match="as a whole: it cannot go on at position 10"):
        session.eval(IDS[:1], states=True)
    with pytest.raises(pyllm.UnsupportedModelError, match="no head"):
        model_of("encoder").native().new_session(10).eval(IDS[:3])
    session.truncate(0)
    assert np.array_equal(bits(session.eval(IDS[:10], states=True)), bits(first))


def test_hidden_states_beside_logits_in_one_batch() -> None:
    """Each run says what it wants; the head works for those that want logits."""
    core: Any = _core
    ffi, lib = core.ffi, core.lib
    model = model_of("caps").native()
    wants = [(20, True, False), (1, False, True), (7, True, True), (5, False, True), (3, False, False)]
    runs, kept, err = ffi.new("pl_run[]", len(wants)), [], ffi.new("pl_error *")
    for run_, (n, states, rows) in zip(runs, wants, strict=True):
        session, ids = model.new_session(50), np.array(IDS[:n], np.int32)
        hidden, out = np.zeros((n, 64), np.float32), np.zeros((n, VOCAB), np.float32)
        run_.session, run_.n, run_.n_logits = session.pointer, n, n if states or rows else 0
        run_.tokens = ffi.from_buffer("int32_t[]", ids)
        run_.states = ffi.from_buffer("float[]", hidden) if states else ffi.NULL
        run_.logits = ffi.from_buffer("float[]", out) if rows else ffi.NULL
        kept.append((session, ids, hidden, out))
    _core.check(lib.pl_eval(model.pointer, runs, len(wants), 2, ffi.NULL, ffi.NULL, err), err)
    for (n, states, rows), (_, _, hidden, out) in zip(wants, kept, strict=True):
        assert np.array_equal(bits(hidden), bits(logits(model, IDS[:n], states=True) if states else 0 * hidden))
        assert np.array_equal(bits(out), bits(logits(model, IDS[:n]) if rows else 0 * out))


# ---- what cannot be --------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"hidden_dim": 0}, "hidden_dim is 0, but there are layers without experts"),
        ({"n_heads": 5}, "not a multiple"),
        ({"head_dim": 15}, "must be even"),
        ({"rope_dims": 18}, "not above the second"),
        ({"rope_dims": 0}, "layer 0 rotates, but rope_dims is 0"),
        ({"layers": (LayerConfig(rope="local"),) * 2}, "rope_local_base, which is 0"),
        ({"layers": (LayerConfig(window=-1),) * 2}, "layer 0: window -1"),
        ({"layers": (LayerConfig(), LayerConfig(experts=True))}, "layer 1 has experts, but n_experts is 0"),
        ({"rope_original": -1}, "rope_original is -1"),
        ({"activation": "silu_clamped"}, "a clamped activation needs a gate and an activation_limit"),
        ({"activation": "silu_clamped", "activation_limit": 1.0, "gated": False}, "needs a gate"),
        ({"n_experts": 4}, "do not fit together"),
        ({"n_experts": 4, "n_experts_used": 5, "expert_dim": 8}, "do not fit together"),
        ({"n_experts": 5000}, "n_experts is 5000"),
        (
            {"n_experts": 4096, "n_experts_used": 1, "expert_dim": 1, "n_layers": 65}
            | {"layers": (LayerConfig(experts=True),) * 65},
            "65 layers of 4096 experts",
        ),
        ({"shared_dim": -1}, "shared_dim is -1"),
        *(
            ({name: value}, f"{name} is ")
            for name in ("norm_eps", "rope_base", "rope_local_base", "rope_scale", "attention_scale", "logit_scale")
            for value in (NAN, INF, -1.0)
        ),
        *(
            ({name: value}, f"{name} is ")
            for name in ("embedding_scale", "residual_scale", "expert_scale")
            for value in (NAN, 0.0)
        ),
        *(
            ({name: value}, f"{name} is ")
            for name in ("attention_softcap", "logit_softcap", "activation_limit")
            for value in (NAN, -1.0)
        ),
    ],
)
def test_impossible_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(pyllm.ModelFormatError, match=message):
        _core.NativeModel(config(**change), planes=2, kv_type="f16", threads=1)


def test_experts_in_a_parallel_block_are_refused() -> None:
    with pytest.raises(pyllm.UnsupportedModelError, match="parallel"):
        _core.NativeModel(experts(parallel=True), planes=2, kv_type="f16", threads=1)


@pytest.mark.parametrize(
    ("name", "slot", "message"),
    [
        ("experts", "expert_down", r"'expert\.down' 5 of layer 2 is missing"),
        ("experts", "router", r"'router' of layer 0 is missing"),
        ("experts", "up", r"'dense\.up' of layer 1 is missing"),
        ("experts with a weighed shared one", "shared_gate", r"'shared\.gate' of layer 0 is missing"),
        ("qk norm of heads", "k_norm", r"'k_norm' of layer 0 is missing"),
        ("layer norms", "final_norm", r"'final_norm\.weight' is missing, though there is tensor 'final_norm\.bias'"),
        ("long rope", "rope_factors_long", "'rope_factors_long' is missing"),
    ],
)
def test_missing_tensors_are_named(name: str, slot: str, message: str) -> None:
    model = model_of(name)
    last = [t for t in model.tensors if t.slot == slot][-1] if slot == "expert_down" else None
    left = [t for t in model.tensors if t is not last and (last or t.slot != slot)]
    with pytest.raises(pyllm.ModelFormatError, match=message):
        RandomModel(model.config, left).native()


@pytest.mark.parametrize(
    ("name", "slot", "shape", "expert", "error"),
    [
        ("llama", "router", (6, 64), 0, "'router' of layer 0 has no place"),
        ("llama", "q_norm", (1, 16), 0, "'q_norm' of layer 0 has no place"),
        ("gelu", "gate", (96, 64), 0, r"'dense\.gate' of layer 0 has no place"),
        ("parallel", "ffn_post_norm", (1, 64), 0, "has no place"),
        ("llama", "rope_factors_long", (1, 8), 0, "has no place"),
        ("llama", "bq", (1, 63), 0, r"'wq\.bias' of layer 0 has shape \(1, 63\); expected \(1, 64\)"),
        ("experts", "up", (96, 64), 0, r"'dense\.up' of layer 0 has no place"),
        ("experts", "expert_up", (64, 63), 5, r"'expert\.up' 5 of layer 0 has shape \(64, 63\)"),
        ("experts", "expert_up", (64, 64), 6, "expert 6 of layer 0 cannot be bound"),
        ("experts", "expert_up", (64, 64), -1, "expert -1 of layer 0 cannot be bound"),
    ],
)
def test_tensors_without_a_place(name: str, slot: str, shape: tuple[int, int], expert: int, error: str) -> None:
    model = _core.NativeModel(model_of(name).config, planes=2, kv_type="f16", threads=1)
    with pytest.raises((pyllm.ModelFormatError, ValueError), match=error):
        model.bind(slot, 0, F32, *shape, bytes(4 * shape[0] * shape[1]), expert=expert)


def test_bytes_of_weights() -> None:
    """A token reads the experts it takes; the model holds all of them."""
    c = experts(shared_dim=32)
    model = random_model(c, NORMS).native()
    attention, expert, shared, dense = (
        4 * (2 * 64 * 64 + 2 * 32 * 64),
        4 * 3 * 64 * 64,
        4 * 3 * 32 * 64,
        4 * 3 * 96 * 64,
    )
    head, router = 4 * 96 * 64, 4 * 16 * 64  # rows in whole strips
    assert model.token_bytes == 3 * attention + dense + 2 * (router + shared + 2 * expert) + head
    assert model.nbytes == 3 * attention + dense + 2 * (router + shared + 6 * expert) + head
