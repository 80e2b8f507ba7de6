"""From a file's tensor names to the slots of the forward pass, with nothing missing, misshapen or left over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pyllm.config import ModelConfig
from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats.checkpoint import Checkpoint, TensorSpec
from pyllm.formats.weight_types import is_runnable, type_name


@dataclass(frozen=True)
class Binding:
    """One tensor and the place it belongs to. `slot` is a name of `csrc/pyllm_api.h`, lower case, without PL_SLOT_.

    `rows` and `cols` are what the slot needs, equal to the tensor's own shape; a vector is (1, n). `layer` is 0 for
    slots that are not per layer, `expert` for those that are not per expert.
    """

    slot: str
    layer: int
    tensor: TensorSpec
    rows: int
    cols: int
    expert: int = 0


# In the order of the forward pass.
SLOTS = (
    *("embedding", "attention_norm", "wq", "wk", "wv", "wo"),
    *("ffn_norm", "gate", "up", "down", "final_norm", "head", "rope_factors"),
)
SINGLE = frozenset(("embedding", "final_norm", "head", "rope_factors"))  # all others exist once per layer
OPTIONAL = frozenset(("head", "rope_factors"))


def slot_shape(slot: str, config: ModelConfig) -> tuple[int, int]:
    """(rows, cols) that a slot needs."""
    dim, hidden = config.dim, config.hidden_dim
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    if slot == "rope_factors":
        return 1, config.rope_dims // 2
    if slot in ("embedding", "head"):
        return config.vocab_size, dim
    matrices = {"wq": (q, dim), "wk": (kv, dim), "wv": (kv, dim), "wo": (dim, q)}
    matrices |= {"gate": (hidden, dim), "up": (hidden, dim), "down": (dim, hidden)}
    return matrices.get(slot, (1, dim))


def bind(checkpoint: Checkpoint, config: ModelConfig, names: Mapping[str, str]) -> list[Binding]:
    """Finds a tensor for every slot.

    `names` maps slots to the file's names, with "{layer}" where there is one per layer. Raises `ModelFormatError` for
    a tensor that is missing or has another shape, `UnsupportedModelError` for a weight type without kernels and for a
    tensor that no slot wants: running without it would be another model.
    """
    found = [_bind_one(checkpoint, config, *place) for place in _places(checkpoint, config, names)]
    used = {binding.tensor.name for binding in found}
    unused = [name for name in checkpoint.tensors if name not in used]
    if unused:
        raise UnsupportedModelError(
            f"{checkpoint.path}: the {config.architecture!r} model has a tensor {unused[0]!r} (and {len(unused) - 1} "
            "more) that pyllm has no use for; without it the answers would be wrong"
        )
    return found


def _places(checkpoint: Checkpoint, config: ModelConfig, names: Mapping[str, str]) -> Iterator[tuple[str, int, str]]:
    """(slot, layer, tensor name) of everything the model needs, and of the optional tensors it has."""
    for slot in SLOTS:
        if slot in OPTIONAL and names[slot] not in checkpoint.tensors:
            continue
        for layer in range(1 if slot in SINGLE else config.n_layers):
            yield slot, layer, names[slot].format(layer=layer)


def _bind_one(checkpoint: Checkpoint, config: ModelConfig, slot: str, layer: int, name: str) -> Binding:
    rows, cols = slot_shape(slot, config)
    spec = checkpoint.tensors.get(name)
    if spec is None:
        raise ModelFormatError(f"{checkpoint.path}: tensor {name!r}, {rows} x {cols}, is missing from the file")
    if _without_ones(spec.shape) != _without_ones((rows, cols)):
        raise ModelFormatError(
            f"{checkpoint.path}: tensor {name!r} has the shape {spec.shape}, expected {(rows, cols)} from the file's "
            "own metadata"
        )
    if not is_runnable(spec.type_id):
        raise UnsupportedModelError(
            f"{checkpoint.path}: tensor {name!r} has weight type {type_name(spec.type_id)}, which pyllm cannot run; "
            "take another quantisation of the model, for example Q4_K_M or Q8_0"
        )
    return Binding(slot, layer, spec, rows, cols)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without leading ones: a vector (n,) is the matrix (1, n)."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
