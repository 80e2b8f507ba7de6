"""Engines behind one small interface, so that every benchmark asks each of them the same thing.

An engine is named by a specification; "ENGINE@N" gives it N threads, whatever the others have:

    pyllm:high  pyllm:fast     this project, in either precision
    pyllm:high:q8_0  :f16  :f32         with keys and values of that type
    llama.cpp   llama.cpp:fa   llama-cpp-python, without and with flash attention
    transformers  transformers:bf16     Hugging Face transformers on a GGUF's dequantised weights, in fp32 or bf16
    onnxruntime-genai:int4     onnxruntime-genai, on a folder made by convert.py (as are the next)
    openvino:int8  openvino:int4        OpenVINO's runtime on the stateful model that OpenVINO GenAI runs
    openvino-genai:int8  :int4          OpenVINO GenAI's continuous batching, with paged attention
    ctranslate2:int8           CTranslate2
    llama-bench=PATH[,ARGUMENT...]      llama.cpp's own llama-bench, or that of ik_llama.cpp; "-fa,1" goes to it
    run.c=PATH                 llama2.c's run, on a .bin

Peers are no dependency of pyllm: each is imported when it is asked for, and says what to install where it is missing.
The first five are in `pyllm.measuring.peers`, where the interface is; a new peer is one file here and one line below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from peers.converted import SOURCE, folder_of
from peers.ctranslate2 import CTranslate2
from peers.onnxruntime_genai import OnnxruntimeGenai
from peers.openvino import OpenVino, OpenVinoGenai
from peers.programs import LlamaBench, RunC
from peers.transformers import Transformers
from pyllm.measuring import peers
from pyllm.measuring.peers import Engine, Setup

__all__ = ["ENGINES", "PROGRAMS", "SOURCE", "Engine", "Setup", "folder_of", "open_engine"]

#: Specification to what opens it.
ENGINES: dict[str, Callable[[Setup], Engine]] = peers.ENGINES | {
    "transformers": partial(Transformers, dtype="float32"),
    "transformers:bf16": partial(Transformers, dtype="bfloat16"),
    "onnxruntime-genai:int4": partial(OnnxruntimeGenai, weights="int4"),
    "openvino:int8": partial(OpenVino, weights="int8"),
    "openvino:int4": partial(OpenVino, weights="int4"),
    "openvino-genai:int8": partial(OpenVinoGenai, weights="int8"),
    "openvino-genai:int4": partial(OpenVinoGenai, weights="int4"),
    "ctranslate2:int8": partial(CTranslate2, weights="int8"),
}

#: Programs that are given by a path, "NAME=PATH[,ARGUMENT...]".
PROGRAMS: dict[str, Callable[..., Engine]] = {"llama-bench": LlamaBench, "run.c": RunC}


def open_engine(specification: str, setup: Setup) -> Engine:
    """Load the model of `setup` into an engine. Raises `ValueError` naming the engines there are."""
    name, _, command = specification.partition("=")
    if command and name in PROGRAMS:
        path, *arguments = command.split(",")
        return PROGRAMS[name](setup, path, arguments)
    if specification not in ENGINES:
        programs = (f"{name}=PATH" for name in PROGRAMS)
        raise ValueError(f"{specification!r} is no engine; there are {', '.join([*ENGINES, *programs])}")
    return ENGINES[specification](setup)
