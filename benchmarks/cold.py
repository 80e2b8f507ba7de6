"""From the start of a process to its first token: what a user waits for who types a command or starts a worker.

Each engine gets the script that its own documentation would have one write. The files are in the page cache. Time ends
when the first byte arrives at the other end of the pipe.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from typing import Any

from peers.converted import converted

from pyllm.measuring.comparing import Trial
from pyllm.measuring.peers import Setup, Taken

PROMPT = "The capital of France is"
TRIAL = Trial("cold start", "cold", ())

PYLLM = """
import pyllm
model = pyllm.load({model!r}, threads={threads}, precision={kind!r}, tokenizer={tokenizer!r})
for chunk in model.generate({prompt!r}, max_tokens=1, sampler=pyllm.Sampler.greedy()):
    print(chunk.text, flush=True)
"""
LLAMA_CPP = """
from llama_cpp import Llama
model = Llama({model!r}, n_ctx=512, n_threads={threads}, flash_attn={kind!r} == "fa", verbose=False)
for part in model({prompt!r}, max_tokens=1, temperature=0.0, stream=True):
    print(part["choices"][0]["text"], flush=True)
"""
TRANSFORMERS = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads({threads})
tokenizer = AutoTokenizer.from_pretrained({hf!r})
model = AutoModelForCausalLM.from_pretrained({hf!r}, dtype=getattr(torch, {kind!r} or "float32"))
ids = tokenizer({prompt!r}, return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1:]), flush=True)
"""
ONNXRUNTIME_GENAI = """
import onnxruntime_genai as og
model = og.Model({folder!r})
tokenizer = og.Tokenizer(model)
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=64, do_sample=False)
generator = og.Generator(model, parameters)
generator.append_tokens(tokenizer.encode({prompt!r}))
generator.generate_next_token()
print(tokenizer.decode(generator.get_next_tokens()), flush=True)
"""
OPENVINO_GENAI = """
import openvino_genai
pipeline = openvino_genai.LLMPipeline({folder!r}, "CPU", INFERENCE_NUM_THREADS={threads})
print(pipeline.generate({prompt!r}, max_new_tokens=1, do_sample=False, apply_chat_template=False), flush=True)
"""
CTRANSLATE2 = """
import ctranslate2, tokenizers
model = ctranslate2.Generator({folder!r}, compute_type={kind!r}, intra_threads={threads}, inter_threads=1)
tokenizer = tokenizers.Tokenizer.from_file({hf!r} + "/tokenizer.json")
tokens = tokenizer.encode({prompt!r}).tokens
made = model.generate_batch([tokens], max_length=1, sampling_topk=1, include_prompt_in_result=False)
print(tokenizer.decode(made[0].sequences_ids[0]), flush=True)
"""
SCRIPTS = {
    "pyllm": PYLLM,
    "llama.cpp": LLAMA_CPP,
    "transformers": TRANSFORMERS,
    "onnxruntime-genai": ONNXRUNTIME_GENAI,
    "openvino-genai": OPENVINO_GENAI,
    "ctranslate2": CTRANSLATE2,
}
KINDS = {"bf16": "bfloat16"}


class Starter:
    """An "engine" whose one test starts a process."""

    costs = None

    def __init__(self, specification: str, setup: Setup) -> None:
        name, _, kind = specification.partition(":")
        self.version = self.script = ""
        self.tests = frozenset({"cold"} if name in SCRIPTS else set())
        if self.tests:
            facts = {"model": str(setup.model), "threads": setup.threads, "kind": KINDS.get(kind, kind)}
            facts["tokenizer"] = str(setup.tokenizer) if setup.tokenizer else None
            self.script = SCRIPTS[name].format(**facts, prompt=PROMPT, **folders(specification, setup))

    def cold(self) -> Taken:
        """Start a process, and wait for its first byte. Raises `RuntimeError` with its last words where none comes."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", self.script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        first = os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - start
        _, errors = process.communicate()
        if not first or process.returncode != 0:
            last = errors.decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"no token came: {''.join(last)}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Taken(1, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    def close(self) -> None:
        """Nothing is open."""


def folders(specification: str, setup: Setup) -> dict[str, str]:
    """Where the converted model lies, and its tokenizer, for the engines that need one."""
    name, _, kind = specification.partition(":")
    if name in ("pyllm", "llama.cpp"):
        return {"folder": "", "hf": ""}
    source = {"openvino-genai": f"openvino:{kind}", "transformers": "hf"}.get(name, specification)
    return {"folder": str(converted(setup, source)), "hf": str(converted(setup, "hf"))}


def open_starter(specification: str, setup: Setup) -> Starter:
    """What `comparing.workers` opens."""
    return Starter(specification, setup)


def seconds(row: dict[str, Any]) -> dict[str, Any]:
    """A summary of such samples: seconds instead of starts per second."""
    turned = {"median": 1 / row["median"], "low": 1 / row["high"], "high": 1 / row["low"]}
    return {**row, **turned, "unit": "s", "per_cpu_second": None}
