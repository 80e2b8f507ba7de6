"""The command line: what goes to stdout and to stderr, exit codes, and the README's word about it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tinygguf import Shape, llama_metadata, llama_tensors, tiny_vocabulary, write_gguf

import pyllm
from pyllm import catalogue, cli
from pyllm.measuring import bench

TEMPLATE = """\
{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that runs, with a vocabulary and a chat template; its words mean nothing."""
    shape = Shape()
    metadata = llama_metadata(shape) | tiny_vocabulary(shape.vocab) | {"tokenizer.chat_template": TEMPLATE}
    return str(write_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", metadata, llama_tensors(shape)))


@pytest.fixture
def default_model(tiny: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes the tiny model the one that is used where none is named."""
    monkeypatch.setattr(catalogue, "DEFAULT", tiny)
    return tiny


def pyllm_command(*arguments: str, **options: object) -> subprocess.Popen[str]:
    """`python -m pyllm`, far from the source tree."""
    return subprocess.Popen(
        [sys.executable, "-m", "pyllm", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(pyllm.__file__).parent.parent,
        **options,  # type: ignore[call-overload]
    )


# ---- run -----------------------------------------------------------------------------------------------------------


def test_run_prints_prompt_and_continuation(tiny: str, capsys: Captured) -> None:
    assert cli.main(["run", tiny, "the", "--max-tokens", "8", "-t", "0"]) == 0
    printed = capsys.readouterr()
    with pyllm.load(tiny) as model:
        expected = model.generate("the", max_tokens=8, sampler=pyllm.Sampler.greedy()).text
    assert printed.out == f"the{expected}\n"
    assert printed.err == ""


@pytest.mark.usefixtures("default_model")
def test_run_with_one_word_is_the_default_model(capsys: Captured) -> None:
    assert cli.main(["run", "the", "-n", "2"]) == 0
    assert capsys.readouterr().out.startswith("the")


def test_options_may_stand_between_model_and_prompt(tiny: str, capsys: Captured) -> None:
    assert cli.main(["run", tiny, "-n", "4", "-s", "7", "the"]) == 0
    first = capsys.readouterr().out
    assert cli.main(["run", "--seed", "7", "--max-tokens", "4", tiny, "the"]) == 0
    assert capsys.readouterr().out == first


def test_prompt_from_stdin(tiny: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the end"))
    assert cli.main(["run", tiny, "-", "-n", "1"]) == 0
    assert capsys.readouterr().out.startswith("the end")


def test_run_json(tiny: str, capsys: Captured) -> None:
    assert cli.main(["run", tiny, "the", "-n", "5", "--seed", "3", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompt"] == "the"
    assert record["seed"] == 3
    assert record["stats"]["generated_tokens"] == len(record["tokens"]) == 5
    assert record["finish_reason"] == "length"


def test_every_sampling_option_reaches_the_sampler(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    seen = {}
    generate = pyllm.Model.generate

    def spy(model: pyllm.Model, prompt: str, **options: object) -> object:
        seen.update(options)
        return generate(model, prompt, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pyllm.Model, "generate", spy)
    options = [
        "-n",
        "1",
        "-t",
        "0.5",
        "-p",
        "0.8",
        "--top-k",
        "4",
        "--min-p",
        "0.1",
        "-s",
        "9",
        "--stop",
        "a",
        "--stop",
        "b",
    ]
    assert cli.main(["run", tiny, "the", *options]) == 0
    assert seen["sampler"] == pyllm.Sampler(temperature=0.5, top_p=0.8, top_k=4, min_p=0.1)
    assert (seen["max_tokens"], seen["seed"], seen["stop"]) == (1, 9, ("a", "b"))
    assert cli.main(["run", tiny, "the", "-n", "1"]) == 0
    assert seen["sampler"] is None  # the model's own defaults


def test_stats_go_to_stderr(tiny: str, capsys: Captured) -> None:
    assert cli.main(["run", tiny, "the", "-n", "3", "--stats"]) == 0
    printed = capsys.readouterr()
    assert "decode_tokens_per_second" in printed.err
    assert "decode_tokens_per_second" not in printed.out


# ---- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["run"], 2, "expected [MODEL] PROMPT, got 0 arguments"),
        (["run", "a", "b", "c"], 2, "got 3 arguments"),
        (["run", "TINY"], 2, "give a prompt too"),
        (["run", "/nowhere/x.gguf", "the"], 1, "/nowhere/x.gguf"),
        (["run", "TINY", "the", "-t", "-1"], 1, "temperature"),
        (["run", "TINY", "the", "--threads", "0"], 1, "threads"),
        (["run", "TINY", "the " * 200], 1, "context"),
        (["run", __file__, "the"], 1, "test_cli.py"),
        (["perplexity", "TINY", "/nowhere/text"], 1, "/nowhere/text"),
        (["pull", "nothing-of-that-name"], 1, "nothing-of-that-name"),
        (["models", "x"], 2, "got 1 argument"),
        (["bench", "TINY", "--repeats", "0"], 1, "repeats must be at least 1"),
    ],
)
def test_failures_are_one_line(arguments: list[str], code: int, sentence: str, tiny: str, capsys: Captured) -> None:
    try:
        found = cli.main([tiny if argument == "TINY" else argument for argument in arguments])
    except SystemExit as end:
        found = end.code  # type: ignore[assignment]
    printed = capsys.readouterr()
    assert found == code
    assert printed.out == ""
    assert printed.err.startswith("pyllm: ")
    assert printed.err.count("\n") == 1
    assert sentence in printed.err


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["run", "--no-such-option"]])
def test_argparse_errors_are_usage_errors(arguments: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: pyllm" in capsys.readouterr().err


def test_reader_that_goes_away(tiny: str) -> None:
    process = pyllm_command("run", tiny, "the", "-n", "100", "-t", "0")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_ctrl_c_is_quiet(tmp_path: Path) -> None:
    shape = Shape(dim=512, hidden=2048, layers=8, heads=8, kv_heads=8, vocab=300, context=8192)
    metadata = llama_metadata(shape) | tiny_vocabulary(shape.vocab)
    model = write_gguf(tmp_path / "slow.gguf", metadata, llama_tensors(shape, 1, seed=2))  # talks for many seconds
    # A shell starts background jobs with SIGINT ignored, and children inherit that: ask for the usual again.
    process = pyllm_command(
        "run",
        str(model),
        "the",
        "-n",
        "8000",
        "-t",
        "0",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.read(4).startswith("the")  # and the text has begun
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == ""
    assert time.monotonic() - start < 5


def test_stdout_that_lacks_the_characters(tiny: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    out, errors = pyllm_command("run", tiny, "caf\u00e9", "-n", "1", env=environment).communicate(timeout=60)
    assert (out[:4], errors) == ("caf?", "")


# ---- the other commands --------------------------------------------------------------------------------------------


def test_chat_in_a_pipe(tiny: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nand more\n/reset\nhello\n/exit\nnever\n"))
    assert cli.main(["chat", tiny, "-n", "4", "-t", "0", "--system", "be"]) == 0
    printed = capsys.readouterr().out
    with pyllm.load(tiny) as model:
        begin = [{"role": "system", "content": "be"}, {"role": "user", "content": "hello"}]
        greedy = pyllm.Sampler.greedy()
        first = model.chat(begin, max_tokens=4, sampler=greedy).text
        turns = [*begin, {"role": "assistant", "content": first}, {"role": "user", "content": "and more"}]
        second = model.chat(turns, max_tokens=4, sampler=greedy).text
    assert printed == f"{first}\n{second}\n{first}\n"


def test_chat_evaluates_only_what_is_new(tiny: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nand more\n"))
    assert cli.main(["chat", tiny, "-n", "2", "-t", "0", "--stats"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cached_tokens")]
    assert [int(line.split()[1]) > 0 for line in lines] == [False, True]


def test_info(tiny: str, capsys: Captured) -> None:
    assert cli.main(["info", tiny, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["architecture"], facts["dim"], facts["n_layers"]) == ("llama", 64, 2)
    assert cli.main(["info", tiny]) == 0
    assert "n_layers" in capsys.readouterr().out


def test_tokenize(tiny: str, capsys: Captured) -> None:
    assert cli.main(["tokenize", "--model", tiny, "the cat", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    tokenizer = pyllm.Tokenizer.load(tiny)
    assert record["ids"] == tokenizer.encode("the cat")
    assert record["pieces"] == [tokenizer.id_to_piece(token) for token in record["ids"]]
    assert cli.main(["tokenize", "-z", tiny, "the cat"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(record["ids"])


def test_perplexity_is_that_of_score(tiny: str, tmp_path: Path, capsys: Captured) -> None:
    text = tmp_path / "text"
    text.write_text("the cat sat")
    assert cli.main(["perplexity", tiny, str(text), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    with pyllm.load(tiny) as model:
        score = model.score("the cat sat")
    assert record["perplexity"] == pytest.approx(score.perplexity, rel=1e-12)
    assert record["tokens"] == len(score.logprobs)


def test_perplexity_of_a_text_longer_than_the_context(tiny: str, tmp_path: Path, capsys: Captured) -> None:
    text = tmp_path / "text"
    text.write_text("the cat sat on a mat " * 40)
    assert cli.main(["perplexity", tiny, str(text), "--context", "32", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    tokens = len(pyllm.Tokenizer.load(tiny).encode(text.read_text(), bos=False))
    assert record["tokens"] == tokens  # each window begins with BOS, so every token is predicted
    assert record["windows"] == -(-tokens // 31)


def test_bench(tiny: str, capsys: Captured) -> None:
    arguments = ["bench", tiny, "--prompt", "16", "--generate", "8", "--repeats", "3", "--threads", "1"]
    assert cli.main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["threads"], record["precision"]) == (1, "high")
    assert (record["prefill"]["tokens"], len(record["prefill"]["runs"])) == (16, 3)
    assert min(record["prefill"]["runs"]) <= record["prefill"]["median"] <= max(record["prefill"]["runs"])
    assert record["decode"]["median"] > 0
    kv_per_position = 2 * 2 * 2 * 16 * 4  # keys and values, layers, KV heads, head size, bytes of f32
    with pyllm.load(tiny) as model:
        assert record["bytes_per_token"] == model.token_bytes + kv_per_position * 9 // 2
    assert cli.main(arguments) == 0
    assert "of the ceiling" in capsys.readouterr().out


def test_bench_counts_the_keys_and_values_that_there_are(tiny: str, capsys: Captured) -> None:
    arguments = ["bench", tiny, "--prompt", "4", "--generate", "8", "--repeats", "1", "--threads", "1", "--json"]
    assert cli.main([*arguments, "--kv-dtype", "q8_0"]) == 0
    with pyllm.load(tiny) as model:  # keys and values, layers, KV heads, one block of 34 bytes, at half of 9 positions
        assert json.loads(capsys.readouterr().out)["bytes_per_token"] == model.token_bytes + 2 * 2 * 2 * 34 * 9 // 2


def test_bench_share_is_of_the_ceiling_it_measured(tiny: str) -> None:
    result = bench.run(lambda: pyllm.load(tiny), bench.Plan(prompt=4, generate=4, repeats=1))
    assert result.decode_gb_per_second == pytest.approx(result.decode.median * result.bytes_per_token / 1e9)
    assert result.share_of_ceiling == pytest.approx(result.decode_gb_per_second / max(result.ceiling_gb_per_second))


def test_models_and_pull(capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_CACHE", str(tmp_path))
    assert cli.main(["models", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["name"], record["licence"], record["path"]) == ("smollm2-135m", "Apache-2.0", None)
    monkeypatch.setattr(catalogue, "pull", lambda name, progress: tmp_path / name)
    assert cli.main(["pull", "smollm2-135m"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'smollm2-135m'}\n"


@pytest.mark.parametrize("version", [0, 1, 2])
def test_export(version: int, tiny: str, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "model.bin"
    assert cli.main(["export", tiny, str(out), "--version", str(version)]) == 0
    with pyllm.load(out) as model:
        assert (model.info()["version"], model.config.dim) == (version, 64)


# ---- whole programs ------------------------------------------------------------------------------------------------


def test_nothing_is_printed_beside_the_text(tiny: str) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1"}
    out, errors = pyllm_command("run", tiny, "the", "-n", "4", env=environment).communicate(timeout=60)
    assert errors == ""
    assert out.startswith("the")


def test_a_closed_standard_output_is_said_in_one_line(tiny: str) -> None:
    process = pyllm_command("run", tiny, "the", "-n", "4", preexec_fn=lambda: os.close(1))
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, "pyllm: there is no standard output to write to\n")


def test_warnings_reach_the_terminal(tiny: str, tmp_path: Path) -> None:
    arguments = ("export", tiny, str(tmp_path / "model.bin"), "--version", "2", "--group-size", "7")
    process = pyllm_command(*arguments)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (0, 1)
    assert errors.startswith("pyllm: group size 7 does not divide dim 64")


def test_help_answers_without_loading_anything(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    for name in ("pyllm.measuring.bench", "pyllm.catalogue", "pyllm.measuring.perplexity"):
        monkeypatch.setitem(sys.modules, name, None)  # importing one would raise
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    assert cli.OVERVIEW in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_each_command_has_help(command: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: pyllm {command}" in printed
    assert not any(f"(default: {nothing})" in printed for nothing in ("None", "False", "[]"))


@pytest.mark.parametrize("option", [("--dtype", "q8_0"), ("--adapter", "x"), ("--tokenizer", "x"), ("--context", "9")])
def test_what_other_engines_would_not_get_is_refused(tiny: str, option: tuple[str, str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", tiny, "--compare", *option])
    assert end.value.code == 2
    assert f"{option[0]} does nothing for other engines" in capsys.readouterr().err


def test_version(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"pyllm {pyllm.__version__}\n"


def test_readme_shows_the_real_help() -> None:
    readme = Path(__file__).parent.parent / "README.md"
    assert cli.OVERVIEW in readme.read_text("utf-8"), "README.md and `pyllm --help` differ: copy the new text over"


def test_run_as_run_c_does(stories260k: Path, tok512: Path, run_c_reference: Path, capsys: Captured) -> None:
    run = next(r for r in json.loads(run_c_reference.read_text())["runs"] if r["temperature"] == 0 and r["prompt"])
    arguments = ["run", str(stories260k), run["prompt"], "-z", str(tok512), "-t", "0", "-n", str(run["steps"])]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith(run["stdout"])  # -n counts new tokens here, all positions there


def test_default_model_tells_a_story(smollm2: Path, capsys: Captured) -> None:
    assert cli.main(["run", "Once upon a time", "-n", "12", "-t", "0"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("Once upon a time, the city of")
    assert printed.err == ""
