"""Where models in other programs' formats lie, and from which model they were made."""

from __future__ import annotations

import json
from pathlib import Path

import conditions

from pyllm.measuring.peers import Setup

#: The file in each converted folder that names its origin.
SOURCE = "source.json"


def folder_of(root: Path, name: str) -> Path:
    """The folder of a format, as in "openvino:int8"."""
    return root / name.replace(":", "-")


def converted(setup: Setup, name: str) -> Path:
    """The folder of a format made from this very model. Raises `FileNotFoundError` where there is none."""
    advice = f"python benchmarks/convert.py {setup.model} FOLDER --to {name}, then --converted FOLDER"
    if setup.converted is None:
        raise FileNotFoundError(f"the model must be converted first: {advice}")
    folder = folder_of(setup.converted, name)
    if not (folder / SOURCE).is_file():
        raise FileNotFoundError(f"{folder} is not there: {advice}")
    if json.loads((folder / SOURCE).read_text())["sha256"] != conditions.sha256(setup.model):
        raise FileNotFoundError(f"{folder} was made from another model than {setup.model}: {advice}")
    return folder
