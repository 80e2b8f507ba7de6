"""What a grammar costs: time per token with one and without, in pairs, in one process.

    python benchmarks/structured.py [MODEL] [--threads N] [--pairs N] [--json]

Free text and text under a grammar take turns, so that both meet the same machine, and the median of the ratios counts.
Time is CPU time of the whole process: with one thread it is the time of a token, whatever else the machine does. The
grammars have no end within the tokens that are drawn, and the free text may not end either.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import pyllm

TOKENS = 96
PROMPT = "Write a list of animals and what they eat:\n"
ANIMAL = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "kind": {"enum": ["cat", "dog", "bird"]}},
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def many(items: dict[str, Any]) -> pyllm.Grammar:
    """A list longer than any text here."""
    return pyllm.Grammar.json_schema({"type": "array", "minItems": 60, "items": items})


GRAMMARS = {
    "strings": pyllm.Grammar.json_schema(
        {"type": "array", "minItems": 60, "items": {"type": "string", "minLength": 5}}
    ),
    "objects": pyllm.Grammar.json_schema({"type": "array", "minItems": 60, "items": ANIMAL}),
    "words": pyllm.Grammar.regex("([a-z]+ ){200}"),
    "pairs": pyllm.Grammar.lark('start: (/[a-z]{2,9}/ "=" /[0-9]{1,4}/ "; "){80}'),
}


def per_token(model: pyllm.Model, grammar: pyllm.Grammar | None, sampler: pyllm.Sampler) -> float:
    """Seconds of CPU time for each token after the first."""
    generation = model.generate(PROMPT, max_tokens=TOKENS, grammar=grammar, sampler=sampler, seed=1, speculation=False)
    next(generation)
    started = time.process_time()
    drawn = len(generation.tokens)
    assert drawn == TOKENS, f"the text ended after {drawn} tokens"
    return (time.process_time() - started) / (TOKENS - 1)


def compare(model: pyllm.Model, grammar: pyllm.Grammar, sampler: pyllm.Sampler, pairs: int) -> dict[str, float]:
    """Medians over pairs, of which every second begins with the grammar."""
    per_token(model, grammar, sampler)  # compiled, and the machine warm
    free, kept = [], []
    for pair in range(pairs):
        for constrained in (pair % 2 == 0, pair % 2 == 1):
            (kept if constrained else free).append(per_token(model, grammar if constrained else None, sampler))
    ratios = [b / a for a, b in zip(free, kept, strict=True)]
    return {
        "free_us": 1e6 * statistics.median(free),
        "grammar_us": 1e6 * statistics.median(kept),
        "ratio": statistics.median(ratios),
    }


def main() -> None:
    """Every grammar, greedy and sampled."""
    parser = argparse.ArgumentParser(description="what a grammar costs")
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    with pyllm.load(arguments.model, threads=arguments.threads) as model:
        endless = dict.fromkeys(model.stop_ids, -1e9)
        for name, temperature in (("greedy", 0.0), ("sampled", 0.8)):
            sampler = pyllm.Sampler(temperature=temperature, logit_bias=endless)
            for kind, grammar in GRAMMARS.items():
                figures = compare(model, grammar, sampler, arguments.pairs)
                results.append({"sampler": name, "grammar": kind, **figures})
                if not arguments.json:
                    print(
                        "{sampler:8} {grammar:8} free {free_us:6.0f} us, grammar {grammar_us:6.0f} us, "
                        "ratio {ratio:.3f}".format(**results[-1]),
                        flush=True,
                    )
    if arguments.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
