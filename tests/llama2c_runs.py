"""Golden runs of llama2.c, and what its programs print, for the tests that repeat them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyllm

#: run.c's logits and ours: both are fp32 sums of the same products in other orders.
LOGITS_TOLERANCE = 2e-5


class Run(NamedTuple):
    """One call of run.c. `tokens`: all ids after BOS, prompt included; None where only the text is known."""

    temperature: float
    top_p: float
    seed: int
    steps: int
    prompt: str
    stdout: str
    tokens: list[int] | None

    @property
    def sampler(self) -> pyllm.Sampler:
        return pyllm.Sampler(temperature=self.temperature, top_p=self.top_p, seed=self.seed)


def read_runs(path: Path, key: str = "runs") -> list[tuple[Run, dict[str, Any]]]:
    """The runs of a JSON file, each with all that the file says of it."""
    facts = json.loads(path.read_text())[key]
    return [(Run(*(fact.get(name) for name in Run._fields)), fact) for fact in facts]


def tokens_of(model: pyllm.Model, run: Run) -> list[int]:
    """All ids after BOS, as run.c would go through them.

    Its steps count positions, prompt included, and each gives the next id: a prompt of n ids (with BOS) leaves
    steps - n + 1 to be drawn. A longer prompt is cut, and nothing is drawn.
    """
    prompt = model.encode_prompt(run.prompt)
    room = run.steps - len(prompt) + 1
    if room <= 0:
        return prompt[1 : run.steps + 1]
    return prompt[1:] + model.generate(prompt, max_tokens=room, sampler=run.sampler).tokens


def printed(tokenizer: pyllm.Tokenizer, tokens: Iterable[int]) -> str:
    """What run.c prints for the ids after BOS.

    It takes one space from the start of the first piece, and drops a piece of one byte that is neither printable
    ASCII nor white space: so characters that are spelt byte by byte vanish.
    """
    out = b""
    for i, token in enumerate(tokens):
        piece = tokenizer.token_bytes(token)
        piece = piece.removeprefix(b" ") if i == 0 else piece
        if len(piece) != 1 or 32 <= piece[0] < 127 or 9 <= piece[0] <= 13:
            out += piece
    return out.decode()


def check(model: pyllm.Model, run: Run) -> None:
    """Token for token where the tokens are known, and letter for letter."""
    tokens = tokens_of(model, run)
    assert model.tokenizer is not None
    if run.tokens is not None:
        assert tokens == run.tokens, run
    assert printed(model.tokenizer, tokens) == run.stdout, run
