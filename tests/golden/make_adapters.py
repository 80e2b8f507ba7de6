"""Makes adapters.json and adapters.npz: low-rank adapters for tiny models of families.json, and what `peft` answers.

    python tests/golden/make_adapters.py      (needs torch, transformers, peft)

As for the models, weights come from `tinyfolder.weights`, so only names and shapes are kept, and log-probabilities
(float32) of the adapted model in fp32 for the tokens and positions of families.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

sys.path.append(str(Path(__file__).resolve().parent.parent))
import tinyfolder

HERE = Path(__file__).resolve().parent
FAMILIES = json.loads((HERE / "families.json").read_text())
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

#: name -> (model of families.json, options of LoraConfig)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": ALL}),
    "llama-patterns": (
        "llama",
        {"r": 4, "lora_alpha": 3, "target_modules": ALL[:4], "use_rslora": True}
        | {"alpha_pattern": {"q_proj": 5}, "rank_pattern": {"v_proj": 2}},
    ),
    "phi3": ("phi3", {"r": 3, "lora_alpha": 6, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj"]}),
    "gpt2": ("gpt2", {"r": 4, "lora_alpha": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "gpt_neox": ("gpt_neox", {"r": 2, "lora_alpha": 4, "target_modules": ["query_key_value"]}),
}


def base_of(name: str, path: Path) -> Any:
    entry = FAMILIES["models"][name]
    shapes = {key: shape for key, (shape, _) in tinyfolder.expand(entry["tensors"]).items()}
    folder = tinyfolder.write_folder(path, entry["config"], shapes)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def make(name: str) -> tuple[dict[str, Any], np.ndarray]:
    family, options = CASES[name]
    with tempfile.TemporaryDirectory() as temporary:
        base, adapter = Path(temporary, "base"), Path(temporary, "adapter")
        get_peft_model(base_of(family, base), LoraConfig(task_type="CAUSAL_LM", **options)).save_pretrained(adapter)
        shapes = tinyfolder.shapes_of(adapter / "adapter_model.safetensors")
        written = json.loads((adapter / "adapter_config.json").read_text())
        config = {
            key: value for key, value in written.items() if key != "base_model_name_or_path" and value is not None
        }
        config["target_modules"] = sorted(config["target_modules"])
        tinyfolder.write_adapter(adapter, config, shapes)
        model = PeftModel.from_pretrained(base_of(family, base), adapter).eval()
        with torch.no_grad():
            tokens = torch.tensor([FAMILIES["tokens"]])
            logits, plain = model(tokens).logits[0], base_of(family, base)(tokens).logits[0]
    logprobs = torch.log_softmax(logits.double(), -1)[FAMILIES["positions"]].numpy().astype(np.float32)
    print(f"{name}: {len(shapes)} tensors, logits move by {float((logits - plain).abs().max()):.2f}")
    return {
        "family": family,
        "config": config,
        "tensors": {key: list(shape) for key, shape in shapes.items()},
    }, logprobs


def main() -> None:
    made = {name: make(name) for name in CASES}
    lines = ",\n".join(f'"{name}": {json.dumps(entry)}' for name, (entry, _) in made.items())
    (HERE / "adapters.json").write_text(f"{{\n{lines}\n}}\n")
    np.savez_compressed(HERE / "adapters.npz", **{name: logprobs for name, (_, logprobs) in made.items()})


if __name__ == "__main__":
    main()
