"""The command line. Text goes to stdout as it comes; everything else to stderr; bars only on a terminal.

Exit codes: 0; 1 for what pyllm refuses (one line on stderr); 2 for wrong usage; 130 after Ctrl-C; 141 when the reader
of the output went away.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm.errors import PyllmError

# Models, numpy and the extension are imported by the command that needs them: --help must answer at once.
if TYPE_CHECKING:
    from pyllm.generation import Generation
    from pyllm.measuring.bench import Plan
    from pyllm.model import Model
    from pyllm.sampling import Sampler

SAMPLER_OPTIONS = ("temperature", "top_p", "top_k", "min_p")
MODEL_SUFFIXES = (".gguf", ".bin")


@dataclass(frozen=True)
class Command:
    """A word after `pyllm`: how it is called, what it does, its options, and the function that does it."""

    usage: str
    summary: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. `argv` defaults to the arguments of the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="pyllm: %(message)s")  # the library's warnings, on stderr
    if sys.stdout is None:  # started with a closed standard output
        print("pyllm: there is no standard output to write to", file=sys.stderr)
        return 1
    try:
        _never_fail_to_print()
        command, options = _parse(arguments)
        command.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader is gone. Python flushes stdout once more at exit: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except (PyllmError, OSError, ValueError) as error:
        print(f"pyllm: {error}", file=sys.stderr)
        return 1
    return 0


def _never_fail_to_print() -> None:
    """Characters that the terminal's encoding lacks become question marks instead of exceptions."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # a replaced stdout may be any text stream
    if reconfigure is not None:
        reconfigure(errors="replace")


def _parse(arguments: list[str]) -> tuple[Command, argparse.Namespace]:
    top = argparse.ArgumentParser(
        prog="pyllm",
        usage="pyllm COMMAND ...",
        description=OVERVIEW,
        add_help=True,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="show the version and exit")
    top.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    first = top.parse_args(arguments[:1])
    if first.version:
        _print_version()
        raise SystemExit(0)
    if first.command is None:
        top.error("a COMMAND is missing")
    name, command = first.command, COMMANDS[first.command]
    parser = argparse.ArgumentParser(
        prog=f"pyllm {name}",
        usage=f"pyllm {name} {command.usage}",
        description=command.summary,
        formatter_class=_HelpFormatter,
    )
    command.options(parser)
    # Intermixed, so that options may stand between MODEL and PROMPT.
    return command, parser.parse_intermixed_args(arguments[1:])


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says what is taken where an option is not given, if that is a value."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or action.default is False or action.default == []
        return action.help if plain else super()._get_help_string(action)


def _print_version() -> None:
    import pyllm

    print(f"pyllm {pyllm.__version__}")


# ---- options that several commands share ---------------------------------------------------------------------------


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, metavar="N", help="threads to use; by default all this process may use")
    parser.add_argument("--precision", choices=("high", "fast"), default="high", help="arithmetic of the activations")
    parser.add_argument("--kv-dtype", choices=("f16", "f32", "q8_0"), help="type of keys and values; q8_0 is smallest")
    parser.add_argument("--context", type=int, metavar="N", help="positions; by default what the model was made for")
    parser.add_argument("-z", "--tokenizer", metavar="FILE", help="tokenizer, where the model's file holds none")
    parser.add_argument("--adapter", action="append", default=[], metavar="PATH", help="a LoRA adapter; repeatable")
    parser.add_argument("--dtype", metavar="TYPE", help="quantise float weights while loading: q8_0, q4_k, ...")


def _generation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--max-tokens", type=int, default=256, metavar="N", help="tokens to generate at most")
    parser.add_argument("-t", "--temperature", type=float, metavar="X", help="0 is greedy")
    parser.add_argument("-p", "--top-p", type=float, metavar="X", help="nucleus: the likeliest tokens that sum to X")
    parser.add_argument("--top-k", type=int, metavar="N", help="only the N likeliest tokens")
    parser.add_argument("--min-p", type=float, metavar="X", help="only tokens X times as likely as the likeliest")
    parser.add_argument("-s", "--seed", type=int, metavar="N", help="makes a sampled text repeatable")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("-v", "--stats", action="store_true", help="counts and speeds, on stderr")


def _words(parser: argparse.ArgumentParser, metavar: str) -> None:
    parser.add_argument("words", nargs="*", metavar=metavar, help=argparse.SUPPRESS)


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _take(options: argparse.Namespace, least: int, most: int, usage: str) -> list[str]:
    """The positional words, between `least` and `most` of them; wrong usage ends the process with code 2."""
    words: list[str] = options.words
    if not least <= len(words) <= most:
        _wrong_usage(f"expected {usage}, got {len(words)} argument{'s' * (len(words) != 1)}")
    return words


def _wrong_usage(sentence: str) -> None:
    print(f"pyllm: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def _open(options: argparse.Namespace, source: str) -> Model:
    import pyllm

    return pyllm.load(
        source,
        threads=options.threads,
        context_length=options.context,
        precision=options.precision,
        kv_dtype=options.kv_dtype,
        tokenizer=options.tokenizer,
        dtype=options.dtype,
        adapters=options.adapter,
        progress=True,
    )


def _sampler(options: argparse.Namespace) -> Sampler | None:
    """None, which leaves the choice to the model's own defaults, unless an option says otherwise."""
    from pyllm.sampling import Sampler

    given = {name: getattr(options, name) for name in SAMPLER_OPTIONS if getattr(options, name) is not None}
    return Sampler(**given) if given else None


def _generation_arguments(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "max_tokens": options.max_tokens,
        "sampler": _sampler(options),
        "stop": tuple(options.stop),
        "seed": options.seed,
    }


def _stream(generation: Generation, *, stats: bool = False) -> str:
    """Print a generation as it comes; returns its text."""
    for chunk in generation:
        print(chunk.text, end="", flush=True)
    print(flush=True)
    if stats:
        print(_table(dataclasses.asdict(generation.stats) | {"seed": str(generation.seed)}), file=sys.stderr)
    return generation.text


def _read(file: str) -> str:
    """The text of a file, or of stdin for "-"."""
    return sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _table(values: dict[str, Any]) -> str:
    """One `name  value` line each, numbers grouped in thousands."""
    width = max(map(len, values), default=0)
    return "\n".join(f"{name:<{width}}  {_readable(value)}" for name, value in values.items())


def _readable(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(item)}" for name, item in value.items())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 100 else f"{value:,.1f}"


# ---- text ----------------------------------------------------------------------------------------------------------


def _run_options(parser: argparse.ArgumentParser) -> None:
    _words(parser, "[MODEL] PROMPT")
    _generation_options(parser)
    _model_options(parser)
    _json_option(parser)


def _run(options: argparse.Namespace) -> None:
    """Continue a prompt. Like run.c it prints the prompt and then, as it comes, the continuation."""
    from pyllm import catalogue

    words = _take(options, 1, 2, "[MODEL] PROMPT")
    if len(words) == 1 and words[0].endswith(MODEL_SUFFIXES) and Path(words[0]).is_file():
        _wrong_usage(f"{words[0]} is a file; to run it give a prompt too: pyllm run {words[0]} PROMPT")
    prompt = _read("-") if words[-1] == "-" else words[-1]
    with _open(options, words[0] if len(words) == 2 else catalogue.DEFAULT) as model:
        generation = model.generate(prompt, **_generation_arguments(options))
        if options.json:
            _print_json(_generation_record(prompt, generation))
            return
        print(prompt, end="", flush=True)
        _stream(generation, stats=options.stats)


def _generation_record(prompt: str, generation: Generation) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "text": generation.text,
        "tokens": list(generation.tokens),
        "finish_reason": generation.finish_reason,
        "seed": generation.seed,
        "stats": dataclasses.asdict(generation.stats),
    }


def _chat_options(parser: argparse.ArgumentParser) -> None:
    _words(parser, "[MODEL]")
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    _generation_options(parser)
    _model_options(parser)


def _chat(options: argparse.Namespace) -> None:
    """Talk, one line a turn. /reset forgets the conversation; /exit or the end of the input leaves."""
    from pyllm import catalogue

    words = _take(options, 0, 1, "[MODEL]")
    beginning = [{"role": "system", "content": options.system}] if options.system else []
    with _open(options, words[0] if words else catalogue.DEFAULT) as model, model.session() as session:
        messages = list(beginning)  # of which the session keeps what it has read
        for line in _lines():
            if line == "/exit":
                break
            if line == "/reset":
                messages = list(beginning)
            elif line.strip():
                messages.append({"role": "user", "content": line})
                answer = session.chat(messages, **_generation_arguments(options))
                messages.append({"role": "assistant", "content": _stream(answer, stats=options.stats)})


def _lines() -> Iterator[str]:
    """Lines of stdin; on a terminal with a prompt and line editing."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401  importing it is what gives input() its line editing

    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        yield line


def _tokenize_options(parser: argparse.ArgumentParser) -> None:
    _words(parser, "TEXT")
    parser.add_argument("-m", "--model", metavar="MODEL", help="a model, by default the default one")
    parser.add_argument("-z", "--tokenizer", metavar="FILE", help="a tokenizer's own file instead")
    parser.add_argument("--special", action="store_true", help="read control tokens in the text as such")
    _json_option(parser)


def _tokenize(options: argparse.Namespace) -> None:
    """Show the token ids of a text ("-" reads stdin) and their pieces."""
    from pyllm import catalogue
    from pyllm.tokenizers import Tokenizer

    text = _take(options, 1, 1, "TEXT")[0]
    source = options.tokenizer or catalogue.resolve(options.model or catalogue.DEFAULT, progress=True)
    tokenizer = Tokenizer.load(source)
    ids = tokenizer.encode(_read("-") if text == "-" else text, special=options.special)
    pieces = [tokenizer.id_to_piece(token) for token in ids]
    if options.json:
        _print_json({"ids": ids, "pieces": pieces})
    else:
        print("\n".join(f"{token:>7}  {piece!r}" for token, piece in zip(ids, pieces, strict=True)))


# ---- models --------------------------------------------------------------------------------------------------------


def _info_options(parser: argparse.ArgumentParser) -> None:
    _words(parser, "MODEL")
    _model_options(parser)
    _json_option(parser)


def _info(options: argparse.Namespace) -> None:
    """Describe a model."""
    with _open(options, _take(options, 1, 1, "MODEL")[0]) as model:
        facts = model.info()
    if options.json:
        _print_json(facts)
    else:
        print(_table(facts))


def _perplexity_options(parser: argparse.ArgumentParser) -> None:
    _words(parser, "MODEL FILE")
    _model_options(parser)
    _json_option(parser)


def _perplexity(options: argparse.Namespace) -> None:
    """Measure how well a model predicts a text ("-" reads stdin), in windows of the context length."""
    from pyllm.measuring.perplexity import measure
    from pyllm.progress import bar

    source, file = _take(options, 2, 2, "MODEL FILE")
    text = _read(file)
    with _open(options, source) as model, bar("perplexity", " tokens") as report:
        result = measure(model, text, report)
    if options.json:
        _print_json(dataclasses.asdict(result))
    else:
        print(_table(dataclasses.asdict(result)))


def _bench_options(parser: argparse.ArgumentParser) -> None:
    _words(parser, "MODEL")
    parser.add_argument("--prompt", type=int, default=512, metavar="N", help="tokens of the prefill test")
    parser.add_argument("--generate", type=int, default=128, metavar="N", help="tokens of the decode test")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each test, after a warm-up")
    parser.add_argument("--compare", action="store_true", help="measure another engine too, each in turn")
    parser.add_argument("--peer", action="append", metavar="ENGINE", help="which: llama.cpp, llama.cpp:fa; repeatable")
    _model_options(parser)
    _json_option(parser)


def _bench(options: argparse.Namespace) -> None:
    """Measure loading, prefill and decode, beside the memory bandwidth of this machine at this moment."""
    from pyllm.measuring import bench

    source = _take(options, 1, 1, "MODEL")[0]
    plan = bench.Plan(prompt=options.prompt, generate=options.generate, repeats=options.repeats)
    if options.compare or options.peer:
        _compare(options, source, plan)
        return
    result = bench.run(lambda: _open(options, source), plan)
    if options.json:
        _print_json(dataclasses.asdict(result))
    else:
        print(bench.report(result))


def _compare(options: argparse.Namespace, source: str, plan: Plan) -> None:
    for name in ("context", "tokenizer", "adapter", "dtype"):
        if getattr(options, name):
            _wrong_usage(f"--{name} does nothing for other engines, so it cannot be compared")
    from pyllm.machine import available_threads
    from pyllm.measuring import bench
    from pyllm.model import find
    from pyllm.progress import bar

    ours, peers = f"pyllm:{options.precision}", options.peer or ["llama.cpp"]
    ours += f":{options.kv_dtype}" if options.kv_dtype else ""
    threads = available_threads() if options.threads is None else options.threads
    with bar("comparing", " samples") as progress:
        found = bench.compare(find(source, progress=True), ours, peers, threads, plan, progress)
    if options.json:
        _print_json(found)
    else:
        print(bench.report_comparison(found))


def _pull_options(parser: argparse.ArgumentParser) -> None:
    _words(parser, "NAME")


def _pull(options: argparse.Namespace) -> None:
    """Fetch a catalogue model, or hf:OWNER/REPO/FILE, into the cache, and print where it is."""
    from pyllm import catalogue

    print(catalogue.pull(_take(options, 1, 1, "NAME")[0], progress=True))


def _models_options(parser: argparse.ArgumentParser) -> None:
    _words(parser, "")
    _json_option(parser)


def _models(options: argparse.Namespace) -> None:
    """List the catalogue, with sizes, licences, and what is on this machine."""
    from pyllm import catalogue

    _take(options, 0, 0, "no argument")
    records = [
        {
            "name": entry.name,
            "title": entry.title,
            "bytes": entry.nbytes,
            "licence": entry.licence,
            "path": str(entry.path) if entry.cached else None,
        }
        for entry in catalogue.models()
    ]
    if options.json:
        _print_json(records)
        return
    for entry in catalogue.models():
        where = str(entry.path) if entry.cached else "not fetched yet"
        print(f"{entry.name}  {entry.title}  {entry.nbytes / 1e6:,.1f} MB  {entry.licence}  {where}")


def _export_options(parser: argparse.ArgumentParser) -> None:
    _words(parser, "IN OUT")
    parser.add_argument("--version", type=int, choices=(0, 1, 2), default=0, help="of llama2.c's formats")
    parser.add_argument("--group-size", type=int, default=64, metavar="N", help="weights that share a scale, version 2")


def _export(options: argparse.Namespace) -> None:
    """Write a model in a format of llama2.c, for run.c (version 0) or runq.c (version 2)."""
    import pyllm

    source, target = _take(options, 2, 2, "IN OUT")
    with pyllm.load(source, progress=True) as model:
        model.export(target, version=options.version, group_size=options.group_size)


def _quantize_options(parser: argparse.ArgumentParser) -> None:
    _words(parser, "IN OUT")
    parser.add_argument("--type", default="q4_k_m", metavar="TYPE", help="q8_0, q4_k_m, f16, copy, llama2c-v2, ...")
    parser.add_argument("--threads", type=int, metavar="N", help="threads to use; by default all this process may use")
    parser.add_argument("-z", "--tokenizer", metavar="FILE", help="tokenizer, where the model's file holds none")
    _json_option(parser)


def _quantize(options: argparse.Namespace) -> None:
    """Write a model with other weight types, as GGUF or as a llama2.c file."""
    import pyllm

    source, target = _take(options, 2, 2, "IN OUT")
    result = pyllm.quantize(
        source, target, options.type, threads=options.threads, tokenizer=options.tokenizer, progress=True
    )
    facts = dataclasses.asdict(result) | {"path": str(result.path)}
    if options.json:
        _print_json(facts)
    else:
        print(_table(facts))


COMMANDS = {
    "run": Command("[options] [MODEL] PROMPT", "continue a text", _run_options, _run),
    "chat": Command("[options] [MODEL]", "talk, one line a turn", _chat_options, _chat),
    "info": Command("[options] MODEL", "describe a model", _info_options, _info),
    "tokenize": Command("[options] TEXT", "show the tokens of a text", _tokenize_options, _tokenize),
    "perplexity": Command("[options] MODEL FILE", "how well a model predicts a text", _perplexity_options, _perplexity),
    "bench": Command("[options] MODEL", "measure loading, prefill and decode", _bench_options, _bench),
    "pull": Command("NAME", "fetch a model into the cache", _pull_options, _pull),
    "models": Command("[options]", "list the models that have names", _models_options, _models),
    "quantize": Command("[options] IN OUT", "write a model with smaller weights", _quantize_options, _quantize),
    "export": Command("[options] IN OUT", "write a model as a llama2.c file", _export_options, _export),
}


def _overview() -> str:
    width = max(len(f"{name} {command.usage}") for name, command in COMMANDS.items())
    lines = [f"  pyllm {f'{name} {c.usage}':<{width}}  {c.summary}" for name, c in COMMANDS.items()]
    return "\n".join(["Language models on the CPU.", "", *lines, "", FOOTER])


FOOTER = """\
MODEL is a file (.gguf, llama2.c's .bin), a Hugging Face folder, a name that `pyllm models` lists, or
hf:OWNER/REPO/FILE.
`pyllm COMMAND --help` lists the options of a command."""

#: What `pyllm --help` begins with; README.md holds the same text.
OVERVIEW = _overview()
