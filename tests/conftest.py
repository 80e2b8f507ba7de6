"""Fixtures: real models where they can be had, and a reason to skip where they cannot.

Tests run against the installed package (`pip install ".[test]" && pytest`). The source tree beside them has no compiled
extension, so it must not be what `import pyllm` finds: `python -m pytest` would put it first on the path.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports numpy: the references multiply small matrices, and the threads that OpenBLAS would do it with
# spin between them on the cores that are to be tested.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"

if not list((ROOT / "pyllm").glob("_native*.so")):  # an editable or in-place build has one, and is meant
    sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != ROOT]

#: Seconds without a byte after which the model's download is given up, and its tests skip.
DOWNLOAD_STALL = 60.0


def shared_folder() -> Path:
    """Where the small real models lie: beside the repository, or where PYLLM_SHARED says."""
    return Path(os.environ.get("PYLLM_SHARED") or ROOT.parent / "shared")


def shared_file(*parts: str) -> Path:
    """A file of the shared folder; the test that asks is skipped where there is none."""
    path = shared_folder().joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"{path.name} is not on this machine (set PYLLM_SHARED to the folder that holds models/)")
    return path


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Work in an empty folder: a Python that a test starts looks for modules in its working folder first."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden data, which is part of the repository."""
    return GOLDEN


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """llama2.c's smallest model: v0, fp32, 5 layers, vocabulary of 512."""
    return shared_file("models", "stories260K.bin")


@pytest.fixture(scope="session")
def tok512() -> Path:
    """The tokenizer.bin of `stories260k`."""
    return shared_file("models", "tok512.bin")


@pytest.fixture(scope="session")
def llama2_tokenizer_bin() -> Path:
    """Llama 2's 32,000 pieces in llama2.c's format."""
    return shared_file("models", "llama2-tokenizer.bin")


@pytest.fixture(scope="session")
def llama2_tokenizer_model() -> Path:
    """Llama 2's 32,000 pieces in SentencePiece's format."""
    return shared_file("models", "llama2-tokenizer.model")


@pytest.fixture(scope="session")
def run_c_reference() -> Path:
    """What the original run.c prints for stories260K, as JSON."""
    return shared_file("reference", "stories260K-run-c.json")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, from the cache or fetched into it as a user's first run would."""
    from pyllm import catalogue
    from pyllm.errors import ModelUnavailableError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "STALL", DOWNLOAD_STALL)
        try:
            return catalogue.pull(catalogue.DEFAULT)
        except ModelUnavailableError as error:
            pytest.skip(str(error))
