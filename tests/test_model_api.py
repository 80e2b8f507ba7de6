"""Model, Session and score as a user meets them: on a tiny random model everywhere, on stories260K where it is."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinygguf import F32, Shape, llama_metadata, llama_tensors, tiny_llama, tiny_vocabulary, write_gguf

import pyllm
from pyllm import Sampler

VOCAB = 300
CONTEXT = 128
GREEDY = Sampler.greedy()


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(tiny_path, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def stories(stories260k: Path, tok512: Path) -> Iterator[pyllm.Model]:
    with pyllm.load(stories260k, tokenizer=tok512) as model:
        yield model


def greedy(model: pyllm.Model, prompt: str | list[int], n: int = 12) -> list[int]:
    return model.generate(prompt, max_tokens=n, sampler=GREEDY).tokens


# ---- the original --------------------------------------------------------------------------------------------------


def test_every_run_of_run_c_letter_for_letter(stories: pyllm.Model, run_c_reference: Path) -> None:
    """run.c's steps count positions: the last prompt token's is the first to give a new one."""
    for run in json.loads(run_c_reference.read_text())["runs"]:
        prompt = stories.encode_prompt(run["prompt"])
        sampler = Sampler(temperature=run["temperature"], top_p=run["top_p"], seed=run["seed"])
        generation = stories.generate(run["prompt"], max_tokens=run["steps"] - len(prompt) + 1, sampler=sampler)
        assert run["prompt"] + generation.text == run["stdout"], run


def test_a_run_c_text_ends_where_run_c_ends_it(stories: pyllm.Model) -> None:
    assert stories.stop_ids == {1}
    ended = stories.generate("", max_tokens=None, sampler=Sampler(seed=1))
    assert ended.finish_reason is None
    assert 1 not in ended.tokens
    assert ended.finish_reason == ("stop" if len(ended.tokens) < 512 else "length")


# ---- loading -------------------------------------------------------------------------------------------------------


def test_facts(tiny: pyllm.Model, tiny_path: Path) -> None:
    assert tiny.config.vocab_size == VOCAB
    assert tiny.context_length == CONTEXT
    assert tiny.threads == 1
    assert tiny.nbytes > 0
    assert tiny.path == tiny_path
    assert tiny.tokenizer is not None
    facts = json.loads(json.dumps(tiny.info()))
    assert facts["architecture"] == "llama"
    assert facts["dim"] == 64
    assert "tiny.gguf" in repr(tiny)


def test_parameters_are_counted(tiny: pyllm.Model) -> None:
    elements = sum(math.prod(shape) for _, shape, _ in llama_tensors(Shape()).values())
    assert tiny.info()["parameters"] == elements


def test_load_is_also_a_method_of_the_model() -> None:
    assert pyllm.Model.load is pyllm.load


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("threads", 0),
        ("threads", -1),
        ("threads", 100_000),
        ("precision", "low"),
        ("kv_dtype", "f64"),
        ("context_length", 0),
        ("context_length", CONTEXT + 1),
    ],
)
def test_bad_arguments(tiny_path: Path, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        pyllm.load(tiny_path, **{option: value})


def test_a_bias_outside_the_vocabulary_is_refused_before_anything_is_computed(tiny: pyllm.Model) -> None:
    with pytest.raises(ValueError, match="60000"):
        tiny.generate([5], sampler=Sampler(logit_bias={60000: 1.0}))


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    shape = Shape()
    tensors = llama_tensors(shape, F32)
    type_id, dims, data = tensors["output_norm.weight"]
    tensors["output_norm.weight"] = (type_id, dims, b"\x00\x00\xc0\x7f" + data[4:])
    path = write_gguf(tmp_path / "nan.gguf", llama_metadata(shape), tensors)
    with pyllm.load(path) as model, pytest.raises(pyllm.ModelFormatError, match="NaN"):
        model.generate([5], max_tokens=1).tokens  # noqa: B018


@pytest.mark.parametrize("factor", [1e-38, 0.0, math.nan, 0.1])
def test_rotations_too_fast_to_be_right(tmp_path: Path, factor: float) -> None:
    """Angles are exact up to the longest context times 1.5; a damaged file must not give other bits elsewhere."""
    shape = Shape()
    factors = np.full(shape.dim // shape.heads // 2, factor, np.float32)
    tensors = llama_tensors(shape, F32) | {"rope_freqs.weight": (F32, (len(factors),), factors.tobytes())}
    path = write_gguf(tmp_path / "fast.gguf", llama_metadata(shape), tensors)
    with pytest.raises(pyllm.ModelFormatError, match="RoPE frequency 0"):
        pyllm.load(path)


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(pyllm.ModelUnavailableError, match=r"nothing\.gguf"):
        pyllm.load(tmp_path / "nothing.gguf")


def test_keys_and_values_are_as_exact_as_the_weights(tiny_path: Path, stories: pyllm.Model, tmp_path: Path) -> None:
    """Halves only where activations are rounded anyway: beside quantised weights."""
    pyllm.quantize(tiny_path, tmp_path / "quantised.gguf", "q8_0")
    cases = [(tiny_path, None, "f32"), (tiny_path, "q8_0", "f16"), (tmp_path / "quantised.gguf", None, "f16")]
    for path, dtype, expected in cases:
        with pyllm.load(path, dtype=dtype) as model:
            assert model.kv_dtype == expected
    assert stories.kv_dtype == "f32"


@pytest.mark.parametrize("precision", ["high", "fast"])
@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "q8_0"])
def test_arithmetic_options(tiny_path: Path, precision: str, kv_dtype: str) -> None:
    with pyllm.load(tiny_path, precision=precision, kv_dtype=kv_dtype) as model:
        assert (model.precision, model.kv_dtype) == (precision, kv_dtype)
        assert len(greedy(model, [1, 5, 7])) > 0


def test_progress_is_reported_to_the_end(tiny_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    pyllm.load(tiny_path, progress=lambda done, total: seen.append((done, total))).close()
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    pyllm.load(tiny_path, progress=True).close()
    assert capfd.readouterr() == ("", "")  # a bar is for terminals


def test_an_error_in_progress_is_the_callers(tiny_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pyllm.load(tiny_path, progress=fail)


def test_a_model_without_a_tokenizer_works_on_ids(stories260k: Path) -> None:
    with pyllm.load(stories260k) as model:
        assert model.tokenizer is None
        generation = model.generate([1], max_tokens=4, sampler=GREEDY)
        assert generation.tokens == [403, 407, 261, 378]
        for use in (
            lambda: model.generate("text"),
            lambda: model.score("text"),
            lambda: model.generate([1], stop="x"),
            lambda: model.chat([{"role": "user", "content": "x"}]),
            lambda: generation.text,
        ):
            with pytest.raises(pyllm.TokenizerError, match="tokenizer="):
                use()


def test_another_models_tokenizer_is_refused(stories260k: Path, llama2_tokenizer_bin: Path) -> None:
    with pytest.raises(pyllm.TokenizerError, match=r"32000.*512"):
        pyllm.load(stories260k, tokenizer=llama2_tokenizer_bin)


def test_a_tokenizer_object(stories260k: Path, tok512: Path) -> None:
    with pyllm.load(stories260k, tokenizer=pyllm.Tokenizer.load(tok512)) as model:
        assert model.generate("", max_tokens=3, sampler=GREEDY).text == "Once upon a"


# ---- prompts -------------------------------------------------------------------------------------------------------


def test_an_empty_prompt_begins_a_text(tiny: pyllm.Model) -> None:
    assert greedy(tiny, "") == greedy(tiny, []) == greedy(tiny, [1])


def test_an_empty_prompt_without_bos_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "bare.gguf", llama_metadata(Shape()), llama_tensors(Shape()))
    with pyllm.load(path) as model, pytest.raises(ValueError, match="beginning-of-text"):
        model.generate([])


@pytest.mark.parametrize("token", [-1, VOCAB, 10_000_000, -(10**30)])
@pytest.mark.parametrize("use", ["generate", "logits", "score", "eval"])
def test_ids_outside_the_vocabulary(tiny: pyllm.Model, token: int, use: str) -> None:
    call: Callable[[list[int]], Any] = tiny.session().eval if use == "eval" else getattr(tiny, use)
    with pytest.raises(ValueError, match=rf"token id {token} .*\[0, {VOCAB}\)"):
        call([1, token])


@pytest.mark.parametrize("tokens", [[1.5], ["1"], [None], 5])
def test_ids_that_are_no_integers(tiny: pyllm.Model, tokens: Any) -> None:
    with pytest.raises(TypeError):
        tiny.generate(tokens)


def test_ids_may_be_an_array(tiny: pyllm.Model) -> None:
    ids = np.array([1, 9, 4], np.int64)
    assert greedy(tiny, ids) == greedy(tiny, [1, 9, 4])  # type: ignore[arg-type]
    assert np.array_equal(tiny.logits(ids), tiny.logits([1, 9, 4]))  # type: ignore[arg-type]


def test_a_prompt_longer_than_the_context(tiny: pyllm.Model) -> None:
    for call in (tiny.generate, tiny.logits, tiny.score, tiny.session().eval):
        started = time.monotonic()
        with pytest.raises(pyllm.ContextLengthError, match=r"(?s)9000.*128"):
            call([1] * 9000)
        assert time.monotonic() - started < 0.5
    with pytest.raises(pyllm.ContextLengthError, match=r"9.*8"):
        tiny.generate([1] * 9, context_length=8)


def test_the_context_can_be_filled_to_the_last_place(tiny: pyllm.Model) -> None:
    sampler = Sampler(seed=1, logit_bias=dict.fromkeys(tiny.stop_ids, -math.inf))
    generation = tiny.generate([1] * 5, max_tokens=None, context_length=8, sampler=sampler)
    assert len(generation.tokens) == 4
    assert generation.finish_reason == "length"
    assert len(tiny.generate([1] * 8, context_length=8, sampler=sampler).tokens) == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_tokens", -1), ("timeout", -1), ("timeout", math.nan), ("stop", ""), ("stop", ["a", ""]), ("seed", -1)],
)
def test_bad_generation_options(tiny: pyllm.Model, option: str, value: Any) -> None:
    for generate in (tiny.generate, tiny.session().generate):
        with pytest.raises(ValueError, match=option):
            generate([1], **{option: value})


# ---- generation ----------------------------------------------------------------------------------------------------


def test_the_same_again(tiny: pyllm.Model) -> None:
    """One seed, one text; and a sampler is not changed by being used."""
    sampler = Sampler(temperature=1.5, top_p=1.0, seed=11)
    first = tiny.generate([1, 2], max_tokens=30, sampler=sampler)
    assert first.tokens == tiny.generate([1, 2], max_tokens=30, sampler=sampler).tokens
    assert first.seed == 11
    again = tiny.generate([1, 2], max_tokens=30, sampler=Sampler(temperature=1.5, top_p=1.0))
    repeated = tiny.generate([1, 2], max_tokens=30, sampler=Sampler(temperature=1.5, top_p=1.0), seed=again.seed)
    assert again.tokens == repeated.tokens


def test_text_and_chunks_agree(tiny: pyllm.Model) -> None:
    assert tiny.tokenizer is not None
    generation = tiny.generate("the ", max_tokens=40, sampler=Sampler(seed=5, top_p=1.0))
    chunks = list(generation)
    assert "".join(chunk.text for chunk in chunks) == generation.text
    assert "".join(chunk.text for chunk in chunks).encode()  # whole characters
    assert [chunk.token for chunk in chunks][: len(generation.tokens)] == generation.tokens


def test_logprobs(tiny: pyllm.Model) -> None:
    generation = tiny.generate([1, 2, 3], max_tokens=6, sampler=Sampler(seed=2, temperature=3.0), logprobs=True)
    chunks = list(generation)
    score = tiny.score([1, 2, 3, *generation.tokens])
    assert [chunk.logprob for chunk in chunks][: len(generation.tokens)] == list(score.logprobs[2:])


def test_defaults_in_the_file_are_used(tmp_path: Path) -> None:
    metadata = llama_metadata(Shape()) | tiny_vocabulary(VOCAB) | {"general.sampling.temp": 0.0}
    path = write_gguf(tmp_path / "greedy.gguf", metadata, llama_tensors(Shape()))
    with pyllm.load(path) as model:
        assert model.default_sampler == Sampler(temperature=0.0)
        assert model.generate([1, 2], max_tokens=9).tokens == greedy(model, [1, 2], 9)


def test_stop_strings(stories: pyllm.Model) -> None:
    whole = stories.generate("", max_tokens=60, sampler=GREEDY).text
    for stop in ("Lily", [" named", "never"], ". She"):
        generation = stories.generate("", max_tokens=60, sampler=GREEDY, stop=stop)
        first = stop if isinstance(stop, str) else stop[0]
        assert generation.text == whole[: whole.index(first)]
        assert generation.finish_reason == "stop"


def test_timeout_and_stats(stories: pyllm.Model) -> None:
    generation = stories.generate("Once", max_tokens=20, sampler=GREEDY)
    generation.text  # noqa: B018
    stats = generation.stats
    assert stats.generated_tokens == 20
    assert stats.cached_tokens == 0
    assert stats.prompt_tokens == len(stories.encode_prompt("Once"))
    assert min(stats.prefill_tokens_per_second, stats.decode_tokens_per_second, stats.time_to_first_token) > 0
    cancelled = stories.generate("Once", timeout=0, sampler=GREEDY)
    assert cancelled.tokens == []
    assert cancelled.finish_reason == "cancelled"


# ---- logits and scores ---------------------------------------------------------------------------------------------


def test_logits_do_not_depend_on_how_they_were_asked_for(tiny: pyllm.Model) -> None:
    """All at once, one by one, in pieces: the same bits (law 1)."""
    ids = np.random.default_rng(0).integers(0, VOCAB, 100).tolist()
    whole = tiny.logits(ids)
    assert whole.shape == (100, VOCAB)
    assert whole.dtype == np.float32
    with tiny.session() as single, tiny.session() as pieces:
        for i, token in enumerate(ids):
            assert np.array_equal(single.eval([token]), whole[i])
        for start, end in itertools.pairwise([0, 1, 8, 41, 100]):
            assert np.array_equal(pieces.eval(ids[start:end]), whole[end - 1])


def test_score(tiny: pyllm.Model) -> None:
    ids = np.random.default_rng(1).integers(0, VOCAB, 80).tolist()
    score = tiny.score(ids)
    logits = tiny.logits(ids).astype(np.float64)
    log_p = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    log_p -= logits.max(1, keepdims=True)
    expected = [log_p[i, ids[i + 1]] for i in range(79)]
    assert score.tokens == tuple(ids)
    np.testing.assert_allclose(score.logprobs, expected, rtol=1e-6)
    assert score.perplexity == pytest.approx(math.exp(-np.mean(expected)))


def test_score_of_a_text(stories: pyllm.Model) -> None:
    story = stories.score("Once upon a time, there was a little girl named Lily.")
    assert story.tokens[0] == 1
    assert story.perplexity < stories.score("Lily named girl little a was there time, a upon Once.").perplexity / 4


def test_text_behind_a_text(stories: pyllm.Model) -> None:
    """SentencePiece puts a space before a text, but not before the rest of one."""
    assert stories.tokenizer is not None
    context, ending = "Once upon a time, there was a little", " girl"
    ids, whole = stories.tokenizer.encode(context), stories.tokenizer.encode(context + ending)
    assert whole[: len(ids)] == ids
    (score,) = stories.score_continuations(context, [ending])
    assert list(score.tokens) == whole[len(ids) - 1 :]
    assert score.logprobs == stories.score(context + ending).logprobs[len(ids) - 1 :]
    with stories.session() as session:
        session.eval(ids)
        session.generate(ending, max_tokens=1).tokens  # noqa: B018
        assert session.tokens[:-1] == whole
    with stories.session() as session:
        session.eval(ids[:1])  # BOS: there a text begins
        session.generate("Once", max_tokens=1).tokens  # noqa: B018
        assert session.tokens[:-1] == stories.tokenizer.encode("Once")


def test_a_lone_text_is_not_several(stories: pyllm.Model) -> None:
    with pytest.raises(TypeError, match="prompts must be several texts"):
        stories.generate_batch("Once")
    with pytest.raises(TypeError, match="continuations must be several texts"):
        stories.score_continuations("Once", " upon")


@pytest.mark.parametrize("ids", [[], [5]])
def test_a_score_needs_two_tokens(tiny: pyllm.Model, ids: list[int]) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        tiny.score(ids)


def test_logits_of_nothing(tiny: pyllm.Model) -> None:
    assert tiny.logits([]).shape == (0, VOCAB)


# ---- sessions ------------------------------------------------------------------------------------------------------


def test_session_moves(tiny: pyllm.Model) -> None:
    ids = list(range(20, 60))
    expected = tiny.logits(ids)
    session = tiny.session()
    assert np.array_equal(session.eval(ids), expected[-1])
    assert (session.tokens, session.position) == (ids, 40)
    session.truncate(10)
    assert (session.tokens, session.position) == (ids[:10], 10)
    assert np.array_equal(session.eval(ids[10:20]), expected[19])
    assert np.array_equal(session.eval([]), expected[19])
    session.truncate(0)
    assert np.array_equal(session.eval(ids[:5]), expected[4])


def test_logits_are_a_read_only_view(tiny: pyllm.Model) -> None:
    logits = tiny.session().eval([1])
    assert logits.shape == (VOCAB,)
    assert logits.dtype == np.float32
    assert not logits.flags.writeable


def test_a_fork_goes_its_own_way(tiny: pyllm.Model) -> None:
    base = list(range(30, 60))
    session = tiny.session()
    session.eval(base)
    forks = [session.fork() for _ in range(3)]
    for i, fork in enumerate(forks):
        assert np.array_equal(fork.eval([i, i + 1]), tiny.logits([*base, i, i + 1])[-1])
    session.close()
    forks[0].truncate(5)
    assert np.array_equal(forks[0].eval([9]), tiny.logits([*base[:5], 9])[-1])
    assert np.array_equal(forks[1].eval([7]), tiny.logits([*base, 1, 2, 7])[-1])


def test_an_empty_session_has_nothing_to_look_at(tiny: pyllm.Model) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        tiny.session().eval([])


@pytest.mark.parametrize("position", [-1, 4, 1000])
def test_truncate_out_of_range(tiny: pyllm.Model, position: int) -> None:
    session = tiny.session()
    session.eval([1, 2, 3])
    with pytest.raises(ValueError, match="position"):
        session.truncate(position)
    assert session.position == 3


def test_a_failed_eval_changes_nothing(tiny: pyllm.Model) -> None:
    session = tiny.session(context_length=10)
    session.eval([1, 2, 3])
    with pytest.raises(pyllm.ContextLengthError, match=r"8 tokens after 3.*10"):
        session.eval([1] * 8)
    with pytest.raises(ValueError, match="token id"):
        session.eval([4, VOCAB])
    assert session.tokens == [1, 2, 3]
    assert np.array_equal(session.eval([1] * 7), tiny.logits([1, 2, 3] + [1] * 7)[-1])


def test_generate_in_a_session(tiny: pyllm.Model) -> None:
    """What was generated is part of the session: two times five are ten."""
    ten = greedy(tiny, [1, 2, 3], 10)
    session = tiny.session()
    first = session.generate([1, 2, 3], max_tokens=5, sampler=GREEDY).tokens
    assert session.tokens == [1, 2, 3, *first]
    second = session.generate(max_tokens=5, sampler=GREEDY)
    assert [*first, *second.tokens] == ten
    assert second.stats.cached_tokens == 8
    assert np.array_equal(session.eval([]), tiny.logits([1, 2, 3, *ten])[-1])
    session.truncate(3 + 5)
    assert session.generate("", max_tokens=5, sampler=GREEDY).tokens == ten[5:]


def test_a_session_goes_on_after_an_abandoned_generation(tiny: pyllm.Model) -> None:
    session = tiny.session()
    generation = session.generate([1, 2, 3], max_tokens=50, sampler=GREEDY)
    token = next(generation).token
    assert np.array_equal(session.eval([7]), tiny.logits([1, 2, 3, token, 7])[-1])
    with pytest.raises(pyllm.SessionBusyError, match="something else"):
        next(generation)
    assert generation.finish_reason == "cancelled"
    assert session.position == 5


def test_a_fork_and_a_file_hold_the_last_token_too(tiny: pyllm.Model, tmp_path: Path) -> None:
    session = tiny.session()
    drawn = session.generate([1, 2, 3], max_tokens=4, sampler=GREEDY).tokens
    expected = tiny.logits([1, 2, 3, *drawn, 9])[-1]
    session.save(tmp_path / "s")
    assert np.array_equal(session.fork().eval([9]), expected)
    assert np.array_equal(tiny.restore(tmp_path / "s").eval([9]), expected)
    assert np.array_equal(session.eval([9]), expected)


def test_a_second_thread_is_refused(tiny: pyllm.Model) -> None:
    session = tiny.session()
    results: list[str] = []

    def use() -> None:
        for _ in range(300):
            try:
                session.eval([1])
                session.truncate(0)
                results.append("ok")
            except pyllm.SessionBusyError:
                results.append("busy")
            except ValueError:  # the other thread came between eval and truncate
                results.append("moved")

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "ok" in results
    session.truncate(0)
    assert np.array_equal(session.eval([1, 2]), tiny.logits([1, 2])[-1])


def test_a_generation_that_was_overtaken(tiny: pyllm.Model) -> None:
    """Where another one of its session was read meanwhile, it would go on behind a text that it does not know."""
    session = tiny.session()
    first, second = session.generate([5], max_tokens=3), session.generate([6], max_tokens=3)
    assert len(first.tokens) == 3
    with pytest.raises(pyllm.SessionBusyError, match="used for something else"):
        second.tokens  # noqa: B018
    assert session.position == 4


def test_entering_a_busy_session_raises(tiny: pyllm.Model) -> None:
    session = tiny.session()
    session.eval([1])
    session._enter()  # as another thread's call would
    for call in (lambda: session.eval([1]), lambda: session.truncate(0), session.fork, lambda: session.save("x")):
        with pytest.raises(pyllm.SessionBusyError, match="another thread"):
            call()
    session._latch.drop()
    assert session.eval([1]).shape == (VOCAB,)
    assert session.position == 2


# ---- saved sessions ------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tiny: pyllm.Model, tmp_path: Path) -> Path:
    with tiny.session(context_length=50) as session:
        session.eval(list(range(40)))
        session.save(tmp_path / "session")
    return tmp_path / "session"


def test_save_and_restore(tiny: pyllm.Model, saved: Path) -> None:
    session = tiny.restore(saved)
    assert (session.position, session.context_length) == (40, 50)
    assert np.array_equal(session.eval([3]), tiny.logits([*range(40), 3])[-1])
    assert [path.name for path in saved.parent.iterdir()] == ["session"]


def test_an_empty_session_can_be_kept(tiny: pyllm.Model, tmp_path: Path) -> None:
    tiny.session().save(tmp_path / "empty")
    assert np.array_equal(tiny.restore(tmp_path / "empty").eval([1, 2]), tiny.logits([1, 2])[-1])


def test_another_models_session(tmp_path: Path, tiny_path: Path, saved: Path) -> None:
    other_path = tiny_llama(tmp_path / "other.gguf", seed=1)
    for path, kv_dtype in ((other_path, "f32"), (tiny_path, "f16"), (tiny_path, "q8_0")):
        with pyllm.load(path, kv_dtype=kv_dtype) as other, pytest.raises(pyllm.ModelFormatError, match="belongs to"):
            other.restore(saved)


def test_damaged_sessions(tiny: pyllm.Model, saved: Path) -> None:
    """Every cut and every changed byte is noticed."""
    data = saved.read_bytes()
    rng = np.random.default_rng(0)
    for size in [0, 1, 7, 15, 16, 40, len(data) // 2, len(data) - 1]:
        saved.write_bytes(data[:size])
        with pytest.raises(pyllm.ModelFormatError):
            tiny.restore(saved)
    for at in [*range(16), *rng.integers(0, len(data), 60).tolist()]:
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(0, 8))
        saved.write_bytes(changed)
        with pytest.raises(pyllm.ModelFormatError):
            tiny.restore(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", 10**12),
        ("tokens", -1),
        ("tokens", 3),
        ("evaluated", 39),
        ("evaluated", 41),
        ("context_length", 10**9),
        ("context_length", 0),
        ("context_length", "many"),
        ("model", {}),
        ("model", None),
    ],
)
def test_hostile_headers(tiny: pyllm.Model, saved: Path, field: str, value: Any) -> None:
    """A right checksum proves nothing."""
    data = saved.read_bytes()
    magic, size, _ = struct.unpack_from("<8sII", data)
    header = json.loads(data[16 : 16 + size]) | {field: value}
    body = json.dumps(header).encode() + data[16 + size :]
    prefix = struct.pack("<8sII", magic, len(json.dumps(header).encode()), zlib.crc32(body))
    saved.write_bytes(prefix + body)
    with pytest.raises(pyllm.PyllmError):
        tiny.restore(saved)


# ---- lifetime ------------------------------------------------------------------------------------------------------


def test_use_after_close(tiny_path: Path) -> None:
    model = pyllm.load(tiny_path)
    session = model.session()
    session.eval([1, 2])
    generation = model.generate([1], max_tokens=5, sampler=GREEDY)
    next(generation)
    lazy = model.generate([1])
    model.close()
    model.close()
    for call in (
        lambda: model.generate([1]),
        lambda: model.logits([1]),
        lambda: model.score([1, 2]),
        lambda: model.chat([{"role": "user", "content": "x"}]),
        model.session,
        lambda: session.eval([1]),
        lambda: session.truncate(0),
        session.fork,
        lambda: next(generation),
        lambda: next(lazy),
        lambda: model.export("x"),
    ):
        with pytest.raises(pyllm.ClosedError, match="closed"):
            call()
    assert "closed" in repr(model)
    session.close()


def test_a_closed_session(tiny: pyllm.Model) -> None:
    session = tiny.session()
    session.eval([1])
    generation = session.generate(max_tokens=3)
    with session:
        pass
    for call in (lambda: session.eval([1]), lambda: session.truncate(0), session.fork, lambda: next(generation)):
        with pytest.raises(pyllm.ClosedError, match="session was closed"):
            call()
    assert "closed" in repr(session)


def test_close_stops_an_evaluation(tiny: pyllm.Model) -> None:
    """From another thread, while it runs: it ends with an error, and nothing is freed under it."""
    for _ in range(20):
        session = tiny.session()
        errors: list[BaseException] = []

        def use(session: pyllm.Session = session, errors: list[BaseException] = errors) -> None:
            try:
                while True:
                    session.eval(list(range(100)))
                    session.truncate(0)
            except pyllm.PyllmError as error:
                errors.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        time.sleep(0.005)
        session.close()
        thread.join(10)
        assert not thread.is_alive()
        assert isinstance(errors[0], pyllm.ClosedError)


def test_pickle(tiny: pyllm.Model) -> None:
    copy = pickle.loads(pickle.dumps(tiny))
    assert greedy(copy, [1, 2]) == greedy(tiny, [1, 2])
    assert copy.threads == tiny.threads
    copy.close()


def test_a_pickle_refuses_a_changed_file(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m.gguf")
    with pyllm.load(path) as model:
        pickled = pickle.dumps(model)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(pyllm.PyllmError, match=r"m\.gguf.*changed"):
        pickle.loads(pickled)


# ---- export --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1])
def test_export_and_back(stories: pyllm.Model, stories260k: Path, tmp_path: Path, version: int) -> None:
    stories.export(tmp_path / "out.bin", version=version)
    with pyllm.load(tmp_path / "out.bin") as copy:
        assert np.array_equal(copy.logits([1, 5, 9]), stories.logits([1, 5, 9]))
    if version == 0:  # the same file, but for the unused RoPE tables at its end
        tables = 2 * 4 * 512 * 8 // 2
        assert (tmp_path / "out.bin").read_bytes()[:-tables] == stories260k.read_bytes()[:-tables]


def test_export_quantised(stories: pyllm.Model, tmp_path: Path) -> None:
    stories.export(tmp_path / "q8.bin", version=2, group_size=4)
    with pyllm.load(tmp_path / "q8.bin") as copy:
        assert np.abs(copy.logits([1, 5, 9]) - stories.logits([1, 5, 9])).max() < 0.5


# ---- import --------------------------------------------------------------------------------------------------------


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def test_import_leaves_the_heavy_things_out() -> None:
    heavy = ("numpy", "tokenizers", "sentencepiece", "jinja2", "tqdm", "asyncio", "huggingface_hub", "urllib.request")
    code = f"import sys, pyllm; print([m for m in {heavy!r} if m in sys.modules])"
    assert run_python(code, PYLLM_ISA="").stdout.strip() == "[]"  # a chosen level loads the extension


def test_import_takes_less_than_a_tenth_of_a_second() -> None:
    """In CPU time, which a busy machine does not stretch much; the best of three, since a first run fills caches."""
    code = "import time; start = time.process_time(); import pyllm; print(time.process_time() - start)"
    assert min(float(run_python(code, PYLLM_ISA="").stdout) for _ in range(3)) < 0.1


def test_everything_in_all_exists() -> None:
    assert set(pyllm.__all__) <= set(dir(pyllm))
    assert all(hasattr(pyllm, name) for name in pyllm.__all__)
    assert pyllm.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="nonsense"):
        pyllm.nonsense  # noqa: B018


def test_pyllm_isa() -> None:
    code = "from pyllm import _core; print(_core.isa_current())"
    assert run_python(code, PYLLM_ISA="scalar").stdout.strip() == "scalar"
    refused = run_python(code, PYLLM_ISA="sse9")
    assert refused.returncode != 0
    assert "sse9" in refused.stderr
    assert "PYLLM_ISA" in refused.stderr
