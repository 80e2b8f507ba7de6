"""Golden answers for Gemma 3 270M: transformers in fp32 on the dequantised weights of its GGUF.

The file mixes Q4_K, Q5_0, Q6_K and Q8_0. Needs what ``make_smollm2.py`` needs. Run it as

    python make_gemma3.py gemma-3-270m-q4_k_m.gguf

It takes the texts of ``smollm2_texts.json`` and writes ``gemma3_greedy.json`` and ``gemma3_logits.npz`` beside itself,
with what those of SmolLM2 hold. The first text is three of them in a row, longer than the window of 512 positions that
15 of the 18 layers have. Token ids are those of the tokenizer that transformers makes from the GGUF, BOS in front.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from make_smollm2 import greedy_run, load, logits, write_runs
from transformers import AutoTokenizer

HERE = Path(__file__).parent
STEPS = 32
LONG = ("prose", "python", "explanation")
SHORT = ("french", "russian", "chinese", "structured")


def main() -> None:
    """Run the reference over the prompts and the texts."""
    path = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    model = load(path)
    wanted = json.loads((HERE / "smollm2_texts.json").read_text())
    named = {text["name"]: text["text"] for text in wanted["texts"]}
    texts = {"long": "\n\n".join(named[name] for name in LONG)} | {name: named[name] for name in SHORT}
    prompts = [prompt for prompt in wanted["greedy"] if "<|" not in prompt]  # one is a chat of SmolLM2's
    with torch.inference_mode():
        ids = {name: tokenizer(text).input_ids for name, text in texts.items()}
        np.savez_compressed(HERE / "gemma3_logits.npz", **logits(model, ids))
        runs = [{"prompt": text, **greedy_run(model, tokenizer(text).input_ids, STEPS)} for text in prompts]
    for run in runs:
        run["text"] = tokenizer.decode(run["ids"], skip_special_tokens=False)
    write_runs(HERE / "gemma3_greedy.json", path, runs)


if __name__ == "__main__":
    main()
