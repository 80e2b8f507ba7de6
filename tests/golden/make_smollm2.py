"""Golden answers for SmolLM2-135M-Instruct: transformers in fp32 on the dequantised weights of the GGUF.

Needs ``pip install torch==2.13.0 transformers accelerate gguf tokenizers sentencepiece numpy``. Run it as

    python make_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf

It reads ``smollm2_texts.json`` (all of it written for this purpose) and writes beside itself:

``smollm2_greedy.json``
    ``runs``: per prompt ``prompt``, ``prompt_ids``, 40 greedy ``ids``, at each step the ``gap`` between the two best
    logits, and the ``text``. A correct engine gives the same ids up to the first step whose gap is within its error.
``smollm2_logits.npz``
    N positions of all texts, one after the other. ``names`` (T,); ``starts`` (T + 1,) int32, where each text begins;
    ``ids`` (N,) int32; ``top_ids`` (N, 12) int32 and ``top_logprobs`` (N, 12) float32, best first, after reading ids
    up to and including this position; ``nll`` (N,) float32, the negative log-probability of the next id of the text
    (NaN at the last position of each text). Every text starts in an empty context, without BOS.

Token ids come from ``make_tokens.py``, since the tokenizer that transformers rebuilds from this GGUF does not take
digits apart. In fp64 (``--double``) the ids are all the same, and no log-probability moves by more than 5e-5.

The figures of fidelity follow from these: top-1 kept is the share of positions whose best id is the reference's; a
clear miss is one not kept although the reference's two best are more than 0.25 apart; mean abs. dlogp is the mean over
positions of sum_i p_i |dlogp_i| over the 12 best.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_tokens import encode, smollm2_tokenizer
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
STEPS = 40
BEST = 12


def greedy_run(model: Any, prompt_ids: list[int], steps: int) -> dict[str, Any]:
    """Continue a prompt by the best token, end-of-text or not."""
    ids: list[int] = []
    gaps: list[float] = []
    fed, cache = torch.tensor([prompt_ids]), None
    for _ in range(steps):
        output = model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        best = torch.topk(output.logits[0, -1].double(), 2)
        ids.append(int(best.indices[0]))
        gaps.append(round(float(best.values[0] - best.values[1]), 5))
        fed, cache = best.indices[:1][None], output.past_key_values
    return {"prompt_ids": prompt_ids, "ids": ids, "gap": gaps}


def logits(model: Any, texts: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Find the best ids of every position of every text, and how likely the text's own next id is."""
    starts, all_ids, top_ids, top_logprobs, nll = [0], [], [], [], []
    for text in texts.values():
        ids = torch.tensor(text)
        logprobs = torch.log_softmax(model(ids[None]).logits[0].double(), -1)
        top = torch.topk(logprobs, BEST, -1)
        missed = -logprobs[:-1].gather(1, ids[1:, None])[:, 0]
        starts.append(starts[-1] + len(ids))
        all_ids.append(ids.numpy())
        top_ids.append(top.indices.numpy())
        top_logprobs.append(top.values.numpy())
        nll.append(np.append(missed.numpy(), np.nan))
    return {
        "names": np.array(list(texts)),
        "starts": np.array(starts, np.int32),
        "ids": np.concatenate(all_ids).astype(np.int32),
        "top_ids": np.concatenate(top_ids).astype(np.int32),
        "top_logprobs": np.concatenate(top_logprobs).astype(np.float32),
        "nll": np.concatenate(nll).astype(np.float32),
    }


def load(path: Path) -> Any:
    """The model of a GGUF, its weights dequantised to fp32."""
    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def write_runs(path: Path, model: Path, runs: list[dict[str, Any]]) -> None:
    """Greedy runs as JSON, one a line."""
    lines = ",\n".join("  " + json.dumps(run) for run in runs)
    path.write_text(f'{{\n "model": "{model.name}",\n "runs": [\n{lines}\n ]\n}}\n')


def main() -> None:
    """Run the reference over the prompts and the texts."""
    parser = argparse.ArgumentParser(description="make the golden answers of SmolLM2")
    parser.add_argument("model", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--double", action="store_true", help="compute in fp64, to see how exact fp32 is")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    arguments = parser.parse_args()
    path: Path = arguments.model
    tokenizer = smollm2_tokenizer(path)
    model = load(path).double() if arguments.double else load(path)
    wanted = json.loads((HERE / "smollm2_texts.json").read_text())
    texts = {text["name"]: encode(tokenizer, text["text"], special=True) for text in wanted["texts"]}
    runs = []
    with torch.inference_mode():
        np.savez_compressed(arguments.out / "smollm2_logits.npz", **logits(model, texts))
        for prompt in wanted["greedy"]:
            run = greedy_run(model, encode(tokenizer, prompt, special=True), STEPS)
            text = tokenizer.decode(run["ids"], skip_special_tokens=False)
            runs.append({"prompt": prompt, **run, "text": text})
    write_runs(arguments.out / "smollm2_greedy.json", path, runs)


if __name__ == "__main__":
    main()
