"""Makes encoders.json and encoders.npz: tiny encoders, and the last hidden states that `transformers` gives them.

    python tests/golden/make_encoders.py      (needs torch, transformers)

Weights come from `tinyfolder.weights`, so only shapes are kept; states (float32) are those of fp32 arithmetic.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel

sys.path.append(str(Path(__file__).resolve().parent.parent))
import tinyfolder

HERE = Path(__file__).resolve().parent
VOCAB, LENGTH = 64, 23
TOKENS = [2 + int(n) % (VOCAB - 2) for n in tinyfolder.integers("tokens", LENGTH)]  # neither 0 nor 1, which pad
SIZES = {"vocab_size": VOCAB, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 32, "layer_norm_eps": 0.01}
MODELS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"type_vocab_size": 1, "pad_token_id": 1},
    "xlm-roberta": {"type_vocab_size": 1, "pad_token_id": 1, "hidden_act": "gelu_new"},
}


def make(name: str) -> tuple[dict[str, Any], np.ndarray]:
    config = AutoConfig.for_model(name, **(SIZES | MODELS[name]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        AutoModel.from_config(config).save_pretrained(folder)
        shapes = tinyfolder.shapes_of(folder / "model.safetensors")
        written = json.loads((folder / "config.json").read_text())
        tinyfolder.write_folder(folder, written, shapes)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            states = model(torch.tensor([TOKENS])).last_hidden_state[0].numpy()
    print(f"{name}: states from {states.min():.2f} to {states.max():.2f}")
    return {"config": written, "tensors": {key: list(shape) for key, shape in shapes.items()}}, states


def main() -> None:
    made = {name: make(name) for name in MODELS}
    lines = ",\n".join(f'"{name}": {json.dumps(entry)}' for name, (entry, _) in made.items())
    (HERE / "encoders.json").write_text(f'{{\n"tokens": {TOKENS},\n"models": {{\n{lines}\n}}\n}}\n')
    np.savez_compressed(HERE / "encoders.npz", **{name: states for name, (_, states) in made.items()})


if __name__ == "__main__":
    main()
