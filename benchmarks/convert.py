"""A GGUF model in other programs' formats, made from the weights that the file means, so that peers run the same model.

    python benchmarks/convert.py MODEL.gguf FOLDER [--to openvino:int8 ...]

FOLDER gets one folder per format, each with a `source.json` that says what it was made from; engines refuse a folder
made from another model. All starts from `hf`: transformers' own reading of the file, in fp32. Nothing is fetched.
Besides torch, transformers, accelerate and gguf this needs the peer's own converter:

    onnxruntime-genai:int4          onnxruntime-genai, onnx, onnx-ir
    openvino:int8, openvino:int4    optimum-intel, nncf, openvino, openvino-tokenizers
    ctranslate2:int8                ctranslate2

Rounding weights that a file has already rounded once costs fidelity that is not the engine's: their figures say so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import conditions
from peers import SOURCE, folder_of

BLOCK = "32"  # weights that share a scale in int4, as in most GGUF types


def to_hf(model: Path, folder: Path) -> None:
    """A Hugging Face folder in fp32, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(model.parent), "gguf_file": model.name}
    AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def to_onnx(hf: Path, folder: Path) -> None:
    """onnxruntime-genai's model builder; accuracy level 4 is its fastest, with int8 activations."""
    options = ["-m", "hf", "-i", hf, "-o", folder, "-p", "int4", "-e", "cpu", "-c", folder / "cache"]
    extra = ["--extra_options", "int4_accuracy_level=4", f"int4_block_size={BLOCK}"]
    call(sys.executable, "-m", "onnxruntime_genai.models.builder", *options, *extra)


def to_openvino(weights: str) -> Callable[[Path, Path], None]:
    """optimum-intel's export, with weights compressed by nncf."""

    def convert(hf: Path, folder: Path) -> None:
        grouping = ["--group-size", BLOCK, "--ratio", "1.0"] if weights == "int4" else []
        task = ["--task", "text-generation-with-past", "--weight-format", weights, *grouping]
        call(Path(sys.executable).parent / "optimum-cli", "export", "openvino", "-m", hf, *task, folder)

    return convert


def to_ctranslate2(hf: Path, folder: Path) -> None:
    """CTranslate2's converter of transformers models."""
    tool = Path(sys.executable).parent / "ct2-transformers-converter"
    call(tool, "--model", hf, "--quantization", "int8", "--output_dir", folder, "--force")


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "onnxruntime-genai:int4": to_onnx,
    "openvino:int8": to_openvino("int8"),
    "openvino:int4": to_openvino("int4"),
    "ctranslate2:int8": to_ctranslate2,
}


def call(*command: str | Path) -> None:
    """Run a program; its failure is ours."""
    subprocess.run([str(word) for word in command], check=True)


def make(folder: Path, convert: Callable[[Path], None], sha256: str) -> Path:
    """A folder that `convert` fills: it appears whole, or not at all; one that is there already is kept."""
    if (folder / SOURCE).is_file() and json.loads((folder / SOURCE).read_text())["sha256"] == sha256:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    convert(unfinished)
    (unfinished / SOURCE).write_text(json.dumps({"sha256": sha256, "date": conditions.today()}) + "\n")
    return unfinished.rename(folder)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="convert a GGUF model for other programs")
    parser.add_argument("model", type=Path, help="a GGUF file that transformers reads")
    parser.add_argument("folder", type=Path, help="where the converted models go")
    parser.add_argument("--to", action="append", choices=CONVERTERS, help="may be given again (all)")
    arguments = parser.parse_args(argv)
    sha256 = conditions.sha256(arguments.model)
    hf = make(folder_of(arguments.folder, "hf"), lambda folder: to_hf(arguments.model, folder), sha256)
    failed = []
    for name in arguments.to or CONVERTERS:
        print(f"{name} ...", file=sys.stderr)
        try:
            make(folder_of(arguments.folder, name), lambda folder, name=name: CONVERTERS[name](hf, folder), sha256)
        except (OSError, subprocess.CalledProcessError) as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
