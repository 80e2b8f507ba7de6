"""Sessions in files: a prefix with a checksum, a JSON header, the tokens, and their keys and values."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pyllm.adapters import pairs_of
from pyllm.errors import ModelFormatError
from pyllm.formats.replacing import replacing

if TYPE_CHECKING:
    from pyllm.adapters import Adapter, Adapters
    from pyllm.model import Model
    from pyllm.session import Session

_MAGIC = b"PLSESS\x00\x02"
_PREFIX = struct.Struct("<8sII")  # magic, bytes of the JSON header, CRC-32 of all that follows this prefix
_HEADER_LIMIT = 1 << 16


def write_session(path: Path, header: Mapping[str, Any], tokens: Sequence[int], state: bytes) -> None:
    """Write a session: what `header` says of it and its model, its tokens, its keys and values."""
    parts = json.dumps(header).encode(), struct.pack(f"<{len(tokens)}i", *tokens), state
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    with replacing(path) as file:
        file.write(_PREFIX.pack(_MAGIC, len(parts[0]), crc))
        file.writelines(parts)


def identity_of(model: Model, adapters: Sequence[tuple[Adapter, float]]) -> dict[str, Any]:
    """What must be equal for a saved session to be of use."""
    facts = [[adapter.fingerprint, scale] for adapter, scale in adapters]
    return model.identity | ({"adapters": facts} if facts else {})


def restore_session(model: Model, path: str | os.PathLike[str], adapters: Adapters | None) -> Session:
    """The session that `Session.save` wrote. Raises `ModelFormatError` where the file is damaged or another model's."""
    with open(path, "rb") as file:
        header, tokens, state = _read_file(file)
    identity = identity_of(model, model.adapters if adapters is None else pairs_of(adapters))
    if header["model"] != identity:
        raise ModelFormatError(f"{path}: the session belongs to {header['model']}, not to {identity}")
    session = model.session(header["context_length"], adapters=adapters)
    try:
        session.load(model.check_tokens(tokens), state, header["evaluated"])
    except ValueError as error:
        session.close()
        raise ModelFormatError(f"{path}: {error}") from error
    return session


def _read_file(file: IO[bytes]) -> tuple[dict[str, Any], tuple[int, ...], bytes]:
    """(header, tokens, state) with every length checked before it is used."""
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
        raise ModelFormatError(f"{file.name}: not a pyllm session")
    _, header_bytes, crc = _PREFIX.unpack(prefix)
    if header_bytes > _HEADER_LIMIT:
        raise ModelFormatError(f"{file.name}: a header of {header_bytes} bytes is more than {_HEADER_LIMIT}")
    body = file.read()
    if zlib.crc32(body) != crc:
        raise ModelFormatError(f"{file.name}: the checksum is wrong, the session is damaged or cut short")
    header = _parse_header(file.name, body[:header_bytes])
    rest = memoryview(body)[header_bytes:]
    if 4 * header["tokens"] > len(rest):
        raise ModelFormatError(f"{file.name}: {header['tokens']} tokens do not fit into {len(rest)} bytes")
    tokens = struct.unpack_from(f"<{header['tokens']}i", rest)
    return header, tokens, bytes(rest[4 * header["tokens"] :])


def _parse_header(name: str, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{name}: the header is not JSON ({error})") from error
    counts = ("context_length", "tokens", "evaluated")
    if not isinstance(header, dict) or not all(type(header.get(key)) is int and header[key] >= 0 for key in counts):
        raise ModelFormatError(f"{name}: the header lacks one of {', '.join(counts)}")
    if header["context_length"] < 1 or not header["evaluated"] <= header["tokens"] <= header["context_length"] + 1:
        raise ModelFormatError(f"{name}: the header's counts contradict each other")
    if "model" not in header:
        raise ModelFormatError(f"{name}: the header does not name its model")
    return header
