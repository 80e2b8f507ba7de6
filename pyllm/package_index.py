"""Fetch one wheel through the package index settings of the user, where the running Python has no pip.

Environments made by uv have none. The settings are read from where pip and uv keep them: their environment variables
and configuration files. Only what is needed for one pinned, pure-Python wheel is here: no resolver, no build.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import ssl
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from pyllm.progress import Progress

TIMEOUT = 30.0  # seconds for a connection or for one read
MAX_PAGE = 32 << 20  # bytes; an index page of one project is far smaller
DEFAULT_INDEX = "https://pypi.org/simple"
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


class WheelNotFound(OSError):
    """No configured index has the wheel; the message says why, for each place that was asked."""


@dataclass(frozen=True)
class IndexSettings:
    """Where wheels come from: simple-API indexes, and pages or folders of links."""

    indexes: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    certificates: str | None = None  # a PEM file or a folder; None: the system's
    proxy: str | None = None  # None: http_proxy and its kin


# ---- settings ------------------------------------------------------------------------------------------------------


def read_settings(environ: Mapping[str, str] = os.environ) -> IndexSettings:
    """The settings in force: variables of uv and pip first, then uv's files, then pip's, then the public index."""
    pip = {**_pip_files(environ), **_pip_variables(environ)}
    uv = {**_uv_files(environ), **_uv_variables(environ)}
    index = [uv["index-url"]] if "index-url" in uv else [pip.get("index-url") or DEFAULT_INDEX]
    extra = [*uv.get("extra-index-url", "").split(), *pip.get("extra-index-url", "").split()]
    links = [*uv.get("find-links", "").replace(",", " ").split(), *pip.get("find-links", "").split()]
    certificates = pip.get("cert") or environ.get("SSL_CERT_FILE") or environ.get("REQUESTS_CA_BUNDLE")
    offline = pip.get("no-index", "").lower() in {"1", "true", "yes", "on"}
    return IndexSettings(
        indexes=() if offline else tuple(dict.fromkeys(index + extra)),
        find_links=tuple(dict.fromkeys(links)),
        certificates=certificates or environ.get("CURL_CA_BUNDLE"),
        proxy=pip.get("proxy"),
    )


def _pip_variables(environ: Mapping[str, str]) -> dict[str, str]:
    names = ("index-url", "extra-index-url", "find-links", "no-index", "cert", "proxy")
    variables = {name: environ.get("PIP_" + name.upper().replace("-", "_"), "") for name in names}
    return {name: value for name, value in variables.items() if value}


def _pip_files(environ: Mapping[str, str]) -> dict[str, str]:
    """The `[global]` and `[download]` sections of pip's configuration files, later files winning."""
    if environ.get("PIP_CONFIG_FILE") == os.devnull:  # pip's own way to say: no files
        return {}
    values: dict[str, str] = {}
    for path in _pip_file_names(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise WheelNotFound(f"cannot read pip's settings in {path}: {error}") from None
        for section in ("global", "download"):
            if parser.has_section(section):
                values.update({key.replace("_", "-").lstrip("-"): value for key, value in parser.items(section)})
    return values


def _pip_file_names(environ: Mapping[str, str]) -> Iterator[Path]:
    home = Path(environ.get("HOME") or Path.home())
    for folder in reversed((environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")):
        yield Path(folder, "pip", "pip.conf")
    yield Path("/etc/pip.conf")
    if sys.platform == "darwin":
        yield Path("/Library/Application Support/pip/pip.conf")
    yield home / ".pip" / "pip.conf"
    if sys.platform == "darwin":
        yield home / "Library" / "Application Support" / "pip" / "pip.conf"
    yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config", "pip", "pip.conf")
    yield Path(sys.prefix, "pip.conf")
    if environ.get("PIP_CONFIG_FILE"):
        yield Path(environ["PIP_CONFIG_FILE"])


def _uv_variables(environ: Mapping[str, str]) -> dict[str, str]:
    named = [
        entry.partition("=")[2] if re.match(r"[\w.-]+=", entry) else entry for entry in _words(environ, "UV_INDEX")
    ]
    variables = {
        "index-url": environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL", ""),
        "extra-index-url": " ".join([*named, *_words(environ, "UV_EXTRA_INDEX_URL")]),
        "find-links": environ.get("UV_FIND_LINKS", ""),
    }
    return {name: value for name, value in variables.items() if value}


def _words(environ: Mapping[str, str], name: str) -> list[str]:
    return environ.get(name, "").split()


def _uv_files(environ: Mapping[str, str]) -> dict[str, str]:
    """The index settings of uv's system and user files, later files winning."""
    home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or Path.home(), ".config"))
    values: dict[str, str] = {}
    for path in (Path("/etc/uv/uv.toml"), home / "uv" / "uv.toml", Path(environ.get("UV_CONFIG_FILE") or os.devnull)):
        table = _read_toml(path)
        indexes = [entry for entry in table.get("index", []) if isinstance(entry, dict) and "url" in entry]
        default = [entry["url"] for entry in indexes if entry.get("default")] or [table.get("index-url")]
        extra = [entry["url"] for entry in indexes if not entry.get("default")] + table.get("extra-index-url", [])
        found = {"index-url": default[0], "extra-index-url": " ".join(extra)}
        values.update({name: value for name, value in found.items() if value})
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    """A TOML file; nothing where there is none, and on Python 3.10, which cannot read one."""
    if sys.version_info >= (3, 11) and path.is_file():
        import tomllib

        try:
            return tomllib.loads(path.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise WheelNotFound(f"cannot read uv's settings in {path}: {error}") from None
    return {}


# ---- finding and fetching ------------------------------------------------------------------------------------------


def download(project: str, version: str, folder: Path, limit: int, report: Progress) -> Path:
    """Put the pure-Python wheel of `project` at exactly `version` into `folder`; returns its path.

    At most `limit` bytes are read. Raises `WheelNotFound`, or `OSError` where `folder` cannot be written.
    """
    settings = read_settings()
    reasons = []
    for place in _places(settings, project):
        try:
            for url in _links(place, settings):
                if _is_wheel(url, project, version):
                    return _save(url, settings, folder / f"{project}.whl", limit, report)
            reasons.append(f"{_without_password(place)} has no {project} {version}")
        except (urllib.error.URLError, HTTPException, TimeoutError, ValueError) as error:
            reasons.append(f"{_without_password(place)}: {_reason(error)}")
    raise WheelNotFound("; ".join(reasons) or "no package index is configured")


def _places(settings: IndexSettings, project: str) -> Iterator[str]:
    for link in settings.find_links:
        yield link if urlsplit(link).scheme else Path(link).expanduser().absolute().as_uri()
    for index in settings.indexes:
        base = index if urlsplit(index).scheme else Path(index).expanduser().absolute().as_uri()
        yield f"{base.rstrip('/')}/{_normalised(project)}/"


def _normalised(project: str) -> str:
    return re.sub(r"[-_.]+", "-", project).lower()


def _is_wheel(url: str, project: str, version: str) -> bool:
    parts = unquote(urlsplit(url).path).rsplit("/", 1)[-1].split("-")
    return parts[-1] == "any.whl" and _normalised(parts[0]) == _normalised(project) and parts[1] == version


def _links(place: str, settings: IndexSettings) -> Iterable[str]:
    """Absolute addresses of the files that a page, or a local folder, offers."""
    if urlsplit(place).scheme == "file":
        path = Path(unquote(urlsplit(place).path))
        if not (path / "index.html").is_file():
            return [file.as_uri() for file in path.glob("*.whl")]
        place = (path / "index.html").as_uri()
    with _open(place, settings) as response:
        page = response.read(MAX_PAGE)
        if "json" in response.headers.get("Content-Type", ""):
            links = [urljoin(response.url, file["url"]) for file in json.loads(page)["files"]]
        else:
            parser = _Anchors(response.url)
            parser.feed(page.decode("utf-8", "replace"))
            links = parser.links
    return [_with_password_of(place, link) for link in links]


class _Anchors(HTMLParser):
    """The href of every <a> on a page, made absolute."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the address of an anchor, or of the page's own <base>."""
        href = dict(attrs).get("href")
        if href and tag == "base":
            self.base = urljoin(self.base, href)
        elif href and tag == "a":
            self.links.append(urljoin(self.base, href))


def _save(url: str, settings: IndexSettings, target: Path, limit: int, report: Progress) -> Path:
    done = 0
    with _open(url, settings) as response, target.open("wb") as out:
        total = int(response.headers.get("Content-Length") or 0)
        while block := response.read(1 << 20):
            done += len(block)
            if done > limit:
                raise ValueError(f"the wheel is larger than the {limit:,} bytes expected")
            out.write(block)
            report(done, total)
    if done < total:
        raise ValueError(f"the connection ended after {done:,} of {total:,} bytes")
    return target


def _open(url: str, settings: IndexSettings) -> HTTPResponse:
    """A GET request with the user's certificates, proxy and password; file: addresses too."""
    where = settings.certificates
    folder = where if where and os.path.isdir(where) else None
    context = ssl.create_default_context(cafile=None if folder else where, capath=folder)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if settings.proxy:
        handlers.append(urllib.request.ProxyHandler({"http": settings.proxy, "https": settings.proxy}))
    request = urllib.request.Request(_without_password(url), headers={"Accept": ACCEPT, "User-Agent": "pyllm"})
    parts = urlsplit(url)
    if parts.username is not None:
        password = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", "Basic " + b64encode(password.encode()).decode())
    response: HTTPResponse = urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT)
    return response


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _with_password_of(place: str, url: str) -> str:
    """`url` with the user and password of `place`, where both are of one host."""
    mine, theirs = urlsplit(place), urlsplit(url)
    if "@" not in mine.netloc or mine.netloc.rpartition("@")[2] != theirs.netloc:
        return url
    return urlunsplit(theirs._replace(netloc=mine.netloc))


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"HTTP {error.code}"
    return str(getattr(error, "reason", error)) or type(error).__name__
