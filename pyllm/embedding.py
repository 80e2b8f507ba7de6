"""Texts as vectors: the states that a model's head would read, pooled to one for each text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm._core import Interrupted, NativeModel, NativeSession, Part
from pyllm.errors import ClosedError
from pyllm.formats.folder import FORMAT, read_json
from pyllm.scheduler import CHUNK

if TYPE_CHECKING:
    import numpy.typing as npt

    from pyllm.formats.checkpoint import Checkpoint

    States = npt.NDArray[np.float32]

#: One vector of a text's: their mean, that of the first token, or that of the last.
POOLINGS = ("mean", "cls", "last")
MOST_TEXTS = 64  # in one forward pass

_GGUF_POOLINGS = {0: "mean", 1: "mean", 2: "cls", 3: "last"}
_FOLDER_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_MODULES = ("Transformer", "Pooling", "Normalize")


def embed(
    native: NativeModel,
    open_session: Callable[[int], NativeSession],
    texts: Sequence[Sequence[int]],
    *,
    pooling: str,
    normalize: bool,
    whole: bool,
    poll: Callable[[], bool],
) -> npt.NDArray[np.float32]:
    """A vector for each of `texts`, token ids that fit the model: float32 (n, dim).

    `open_session`: a new one for so many positions.
    `whole`: the model sees a text at once, so it cannot be read in chunks. A text's vector does not depend on the
    others. Raises `ClosedError` where `poll` says that the model was closed meanwhile.
    """
    out = np.empty((len(texts), native.dim), np.float32)
    wanted = 1 if pooling == "last" else None  # of a text's states
    try:
        for start, end in _groups(texts):
            sessions = [open_session(len(ids)) for ids in texts[start:end]]
            try:
                states = _states(native, sessions, texts[start:end], wanted, whole, poll)
            finally:
                for session in sessions:
                    session.close()
            for i, rows in enumerate(states, start):
                out[i] = rows.mean(axis=0, dtype=np.float64) if pooling == "mean" else rows[0]
    except Interrupted:
        raise ClosedError("the model was closed during embed()") from None
    if normalize:
        lengths = np.sqrt((out.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
        out = (out / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return out


def _groups(texts: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Ranges of texts that share a forward pass: about CHUNK tokens, or a single text."""
    start, tokens = 0, 0
    for i, ids in enumerate(texts):
        if i > start and (tokens + len(ids) > CHUNK or i - start == MOST_TEXTS):
            yield start, i
            start, tokens = i, 0
        tokens += len(ids)
    if texts:
        yield start, len(texts)


def _states(
    native: NativeModel,
    sessions: Sequence[NativeSession],
    texts: Sequence[Sequence[int]],
    wanted: int | None,
    whole: bool,
    poll: Callable[[], bool],
) -> list[States]:
    """What the head would read after each token of each text, or after the last `wanted`: (n, dim) each."""
    if len(texts) > 1 or whole or len(texts[0]) <= CHUNK:
        parts = zip(sessions, texts, strict=True)
        return native.eval([Part(s, ids, wanted or len(ids), states=True) for s, ids in parts], poll)
    ids, rows = texts[0], []
    for at in range(0, len(ids), CHUNK):
        chunk = ids[at : at + CHUNK]
        rows.append(sessions[0].eval(chunk, wanted or len(chunk), poll, states=True))
    return [rows[-1] if wanted else np.concatenate(rows)]


# ---- what a model's files say ----------------------------------------------------------------------------------------


def pooling_of(checkpoint: Checkpoint) -> tuple[str, str]:
    """How the model's files pool, "mean" where they say nothing; or "", and what they ask for that is not to be had."""
    if checkpoint.format == FORMAT:
        return _pooling_of_folder(checkpoint.path)
    name = f"{checkpoint.metadata.get('general.architecture')}.pooling_type"
    kind = checkpoint.metadata.get(name, 0)
    if type(kind) is int and kind in _GGUF_POOLINGS:
        return _GGUF_POOLINGS[kind], ""
    return "", f"{name} is {str(kind)[:40]}"


def _pooling_of_folder(folder: Path) -> tuple[str, str]:
    """From what the sentence-transformers library puts beside a model."""
    modules: list[Any] = read_json(folder / "modules.json", list) if (folder / "modules.json").is_file() else []
    types = [str(module.get("type")).rpartition(".")[2] if isinstance(module, dict) else "?" for module in modules]
    if not set(types) <= set(_MODULES):
        return "", f"modules.json has {next(kind for kind in types if kind not in _MODULES)[:40]!r}"
    if not (folder / "1_Pooling" / "config.json").is_file():
        return "mean", ""
    config: dict[str, Any] = read_json(folder / "1_Pooling" / "config.json")
    on = [name for name, value in config.items() if name.startswith("pooling_mode") and value is True]
    if len(on) == 1 and on[0] in _FOLDER_POOLINGS:
        return _FOLDER_POOLINGS[on[0]], ""
    return "", f"1_Pooling/config.json has {', '.join(on)[:80] or 'no mode that is on'}"
