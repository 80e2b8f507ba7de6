"""`Adapter`: low-rank additions (LoRA) to a model's weights, which stay as they are (Hu et al., 2021)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllm import _core, architectures, formats
from pyllm.architectures import from_folder
from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats import adapter as files
from pyllm.formats import folder
from pyllm.loading import rows_of

if TYPE_CHECKING:
    from typing import TypeAlias

    from pyllm.architectures import Binding
    from pyllm.config import ModelConfig
    from pyllm.formats.checkpoint import Checkpoint, TensorSpec

    #: What `adapters=` takes: one, several, each with a scale or with 1.
    Adapters: TypeAlias = "Adapter | Sequence[Adapter | tuple[Adapter, float]]"

Array = np.ndarray[Any, np.dtype[np.float32]]

#: First parts of names that some folders have and others lack.
_BASES = ("", "model.", "transformer.")


class Adapter:
    """An adapter in memory, for the model that `Model.adapter` opened it with. Immutable; any number of sessions may
    use it, each with a scale of its own and several at once. It lives as long as anything uses it.

    path: where it came from. rank: its largest. matrices: how many of the model's matrices it changes.
    """

    def __init__(self, path: Path, native: _core.NativeAdapter, rank: int, matrices: int, fingerprint: str) -> None:
        self.path, self.rank, self.matrices = path, rank, matrices
        self.native, self.fingerprint = native, fingerprint

    def __repr__(self) -> str:
        return f"<pyllm.Adapter {self.path.name}, rank {self.rank} in {self.matrices} matrices>"


def open_adapter(
    path: str | os.PathLike[str],
    native: _core.NativeModel,
    base: Checkpoint,
    config: ModelConfig,
    fingerprint: Callable[[Iterable[Path]], str],
) -> Adapter:
    """Reads an adapter for the model whose file is open as `base`.

    Raises `ModelFormatError` for a damaged one, or one whose matrices are not the model's, and `UnsupportedModelError`
    for what is no plain LoRA.
    """
    bindings = architectures.bindings(base)
    places = _by_name(bindings)
    result, rank, count = _core.NativeAdapter(native), 0, 0
    opened = formats.open_adapter(path)
    try:
        _check_family(opened, base)
        for pair in files.pairs(opened):
            targets, reorder = _targets(pair.module, places, bindings, opened, base)
            a, b = _floats(opened, pair.a), _floats(opened, pair.b) * np.float32(pair.scale)
            for target in targets:
                result.bind(target.slot, target.layer, a, _own_rows(b, target, config, reorder), target.expert)
            rank, count = max(rank, len(a)), count + len(targets)
    finally:
        opened.close()
    return Adapter(Path(path).absolute(), result, rank, count, fingerprint(files.files_of(Path(path))))


def pairs_of(adapters: Adapters | None) -> tuple[tuple[Adapter, float], ...]:
    """`adapters=` as pairs of an adapter and its scale."""
    given: Iterable[Any] = (adapters,) if isinstance(adapters, Adapter) else adapters or ()
    result = tuple((item, 1.0) if isinstance(item, Adapter) else item for item in given)
    for item in result:
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Adapter)):
            raise TypeError(f"adapters must be those that Model.adapter() opens, alone or with a scale, not {item!r}")
        if not math.isfinite(item[1]):
            raise ValueError(f"the scale of an adapter must be a finite number, not {item[1]}")
    return result


# ---- which matrix a name means ---------------------------------------------------------------------------------------


def _by_name(bindings: Sequence[Binding]) -> dict[str, list[Binding]]:
    """The slots that a tensor of the model's files goes into, by its name without ".weight"."""
    places: dict[str, list[Binding]] = {}
    for b in bindings:
        if b.rows > 1 and not b.part.stacked and not b.more:
            places.setdefault(b.tensor.name.removesuffix(".weight"), []).append(b)
    return places


def _check_family(opened: Checkpoint, base: Checkpoint) -> None:
    mine, its = (c.metadata.get("general.architecture") for c in (base, opened))
    if opened.format != folder.FORMAT and base.format != folder.FORMAT and mine != its:
        raise ModelFormatError(f"{opened.path}: an adapter for {str(its)[:40]!r}, but the model is {mine!r}")


def _targets(
    module: str,
    places: dict[str, list[Binding]],
    bindings: Sequence[Binding],
    opened: Checkpoint,
    base: Checkpoint,
) -> tuple[list[Binding], bool]:
    """The slots that an addition goes into, and whether its rows are in transformers' order, not the file's."""
    for prefix in _BASES:
        for name in (prefix + module, module.removeprefix(prefix)):
            if name in places:
                return places[name], False
    if opened.format == folder.FORMAT and base.format == "gguf":
        slot, layer = _slot_of(module)
        found = [b for b in bindings if (b.slot, b.layer) == (slot, layer)]
        if found:
            return found, True
    raise UnsupportedModelError(f"{opened.path}: it changes {module[:80]!r}, which is no matrix of {base.path.name}")


def _slot_of(module: str) -> tuple[str, int]:
    """The slot that has this name in most families' folders."""
    for slot, name in from_folder.NAMES.items():
        pattern = re.escape(name.removesuffix(".weight")).replace(r"\{layer\}", r"(\d{1,5})")
        match = re.fullmatch(pattern, module)
        if match and name.endswith(".weight"):
            return slot, int(match[1]) if match.groups() else 0
    return "", 0


# ---- values ----------------------------------------------------------------------------------------------------------


def _floats(checkpoint: Checkpoint, spec: TensorSpec) -> Array:
    values: Array = _core.dequantize(spec.type_id, spec.shape[0], spec.shape[1], checkpoint.view(spec))
    return values


def _own_rows(b: Array, target: Binding, config: ModelConfig, reorder: bool) -> Array:
    """The rows of B (rows of the tensor, rank) that a slot takes, in the order of the model's own file."""
    runs = target.part.runs
    rows = runs.of if runs and not reorder else target.rows
    if len(b) != rows:
        raise ModelFormatError(f"an adapter has {len(b)} rows for {target.tensor.name!r}, which has {rows}")
    own: Array = b if reorder else rows_of(b, target)
    if reorder and config.rope_interleaved and target.slot in ("wq", "wk"):
        own = own[list(_interleaved(config, target.rows))]
    return own


def _interleaved(config: ModelConfig, rows: int) -> Iterator[int]:
    """Where the rows of a file that pairs dimensions (2i, 2i + 1) stand in transformers' order, (i, i + half)."""
    half = config.rope_dims // 2
    for head in range(0, rows, config.head_dim):
        for d in range(config.head_dim):
            yield head + (d // 2 + d % 2 * half if d < config.rope_dims else d)
