"""From a described model to the slots of the forward pass, with nothing missing, misshapen or left over."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pyllm.architectures.draft import Description, Part
from pyllm.config import ModelConfig
from pyllm.errors import ModelFormatError, UnsupportedModelError
from pyllm.formats.checkpoint import Checkpoint, TensorSpec
from pyllm.formats.weight_types import F32, FLOATS, U8, is_runnable, type_name

WHOLE = Part("")


@dataclass(frozen=True)
class Binding:
    """One slot and what goes into it. `slot` is a name of `csrc/pyllm_api.h`, lower case, without PL_SLOT_.

    `rows` and `cols` are what the slot needs; a vector is (1, n). `layer` is 0 for slots that are not per layer,
    `expert` for those that are not per expert. Where `part` says nothing else they are the tensor's own shape;
    `loading.stored` carries out the rest. `scales` is the tensor of scales that `part` names, `row` the one whose first
    row is added to every row, `more` are the second and later pieces.
    """

    slot: str
    layer: int
    tensor: TensorSpec
    rows: int
    cols: int
    expert: int = 0
    part: Part = WHOLE
    scales: TensorSpec | None = None
    row: TensorSpec | None = None
    more: tuple[TensorSpec, ...] = ()

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """All tensors that go into the slot."""
        return (self.tensor, *self.more, *(spec for spec in (self.scales, self.row) if spec))


# In the order of the forward pass.
BEFORE = ("embedding", "position_embedding", "embedding_norm", "embedding_norm_bias")
ATTENTION = (
    *("attention_norm", "attention_norm_bias", "wq", "wk", "wv", "bq", "bk", "bv", "q_norm", "k_norm", "sinks"),
    *("wo", "bo", "attention_post_norm", "attention_post_norm_bias", "ffn_norm", "ffn_norm_bias"),
)
DENSE = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")
ROUTING = ("router", "router_bias", "choice_bias")
PER_EXPERT = tuple(f"expert_{name}" for name in DENSE)
SHARED = ("shared_gate", "shared_up", "shared_down", "shared_router")
POST_FFN = ("ffn_post_norm", "ffn_post_norm_bias")
AFTER = ("final_norm", "final_norm_bias", "head", "head_bias", "rope_factors", "rope_factors_long")
SLOTS = (*BEFORE, *ATTENTION, *DENSE, *ROUTING, *PER_EXPERT, *SHARED, *POST_FFN, *AFTER)
SINGLE = frozenset((*BEFORE, *AFTER))
MATRICES = frozenset((*BEFORE[:2], "head", "wq", "wk", "wv", "wo", *DENSE[:3], "router", *PER_EXPERT[:3], *SHARED[:3]))
SPARSE = frozenset((*ROUTING, *PER_EXPERT, *SHARED))  # only in layers with experts, where those of DENSE are not


def slot_shape(slot: str, config: ModelConfig) -> tuple[int, int]:
    """(rows, cols) that a slot needs."""
    c, dim = config, config.dim
    q, kv, half = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.rope_dims // 2
    hidden, expert, shared = c.hidden_dim, c.expert_dim, c.shared_dim
    each = {"head": (c.head_dim, c.head_dim)}.get(c.qk_norm, (q, kv))
    shapes = {
        "embedding": (c.vocab_size, dim),
        "head": (c.vocab_size, dim),
        "head_bias": (1, c.vocab_size),
        "position_embedding": (c.context_length, dim),
        "rope_factors": (1, half),
        "rope_factors_long": (1, half),
        "wq": (q, dim),
        "wk": (kv, dim),
        "wv": (kv, dim),
        "wo": (dim, q),
        "bq": (1, q),
        "bk": (1, kv),
        "bv": (1, kv),
        "sinks": (1, c.n_heads),
        "q_norm": (1, each[0]),
        "k_norm": (1, each[1]),
        "gate": (hidden, dim),
        "up": (hidden, dim),
        "down": (dim, hidden),
        "gate_bias": (1, hidden),
        "up_bias": (1, hidden),
        "router": (c.n_experts, dim),
        "router_bias": (1, c.n_experts),
        "choice_bias": (1, c.n_experts),
        "expert_gate": (expert, dim),
        "expert_up": (expert, dim),
        "expert_down": (dim, expert),
        "expert_gate_bias": (1, expert),
        "expert_up_bias": (1, expert),
        "shared_gate": (shared, dim),
        "shared_up": (shared, dim),
        "shared_down": (dim, shared),
    }
    return shapes.get(slot, (1, dim))


def bind(checkpoint: Checkpoint, description: Description) -> list[Binding]:
    """Finds a tensor for every slot.

    Raises `ModelFormatError` for a tensor that is missing or has another shape, `UnsupportedModelError` for a weight
    type without kernels and for a tensor that no slot wants: running without it would be another model.
    """
    config = description.config
    found: list[Binding] = []
    for slot in SLOTS:
        if slot in description.constants:
            found.append(_constant(slot, description))
        elif (part := _existing(checkpoint, description, slot)) is not None:
            for layer in _layers(config, slot):
                found.extend(_bind_one(checkpoint, config, slot, layer, part))
    used = {spec.name for b in found for spec in b.tensors} | description.ignored
    unused = [name for name in checkpoint.tensors if name not in used]
    if unused:
        raise UnsupportedModelError(
            f"{checkpoint.path}: the {config.architecture!r} model has a tensor {unused[0]!r} (and {len(unused) - 1} "
            "more) that pyllm has no use for; without it the answers would be wrong"
        )
    return found


def _constant(slot: str, description: Description) -> Binding:
    """A vector that the file's fields stand for."""
    values = description.constants[slot]
    inline = values.astype("<f4").tobytes()
    spec = TensorSpec(slot, F32, (len(values),), 0, len(inline), inline=inline)
    return Binding(slot, 0, spec, 1, len(values))


def _layers(config: ModelConfig, slot: str) -> Iterator[int]:
    """The layers that have a slot."""
    if slot in SINGLE:
        yield 0
        return
    for layer in range(config.n_layers):
        if (slot not in SPARSE and slot not in DENSE) or config.layer(layer).experts == (slot in SPARSE):
            yield layer


def _existing(checkpoint: Checkpoint, description: Description, slot: str) -> Part | None:
    """The part that holds a slot: the first whose tensor exists in any layer; None if it may be absent, and is."""
    parts = description.places.get(slot, ())
    for part in parts:
        if any(_name(part, layer) in checkpoint.tensors for layer in _layers(description.config, slot)):
            return part
    return parts[0] if parts and slot not in description.optional else None


def _name(part: Part, layer: int, expert: int = 0, piece: int = 0) -> str:
    return part.name.format(layer=layer, expert=expert, piece=piece)


def _bind_one(checkpoint: Checkpoint, config: ModelConfig, slot: str, layer: int, part: Part) -> Iterator[Binding]:
    rows, cols = slot_shape(slot, config)
    for expert in range(config.n_experts if slot in PER_EXPERT else 1):
        specs = [_find(checkpoint, _name(part, layer, expert, piece), rows, cols) for piece in range(part.pieces)]
        scales = _scales(checkpoint, config, part, layer, specs[0], (rows, cols)) if part.scales else None
        for spec in specs if scales is None else ():
            if spec.type_id != specs[0].type_id:
                raise ModelFormatError(f"{checkpoint.path}: {spec.name!r} and {specs[0].name!r} have different types")
            _check(checkpoint, spec, _expected(config, slot, part, rows, cols), part)
        row = _row(checkpoint, part, cols) if part.every_plus else None
        yield Binding(slot, layer, specs[0], rows, cols, expert, part, scales, row, tuple(specs[1:]))


def _find(checkpoint: Checkpoint, name: str, rows: int, cols: int) -> TensorSpec:
    spec = checkpoint.tensors.get(name)
    if spec is None:
        raise ModelFormatError(f"{checkpoint.path}: tensor {name!r}, {rows} x {cols}, is missing from the file")
    return spec


def _expected(config: ModelConfig, slot: str, part: Part, rows: int, cols: int) -> tuple[int, ...]:
    """The shape that the tensor of a part has if the slot needs (rows, cols)."""
    of = part.runs.of if part.runs else None
    shape = (of or rows, cols) if slot in MATRICES else ((of or cols) // part.pieces,)
    shape = shape[::-1] if part.transposed else shape
    return (config.n_experts, *shape) if part.stacked else shape


def _check(checkpoint: Checkpoint, spec: TensorSpec, expected: tuple[int, ...], part: Part) -> None:
    """The shape and the type of a tensor that a slot takes."""
    flat = len(expected) == 1 and len(spec.shape) == 2 and math.prod(spec.shape) == expected[0]  # a vector per head
    if _without_ones(spec.shape) != _without_ones(expected) and not flat:
        raise ModelFormatError(
            f"{checkpoint.path}: tensor {spec.name!r} has the shape {spec.shape}, expected {expected} from the file's "
            "own metadata"
        )
    if not is_runnable(spec.type_id):
        raise UnsupportedModelError(
            f"{checkpoint.path}: tensor {spec.name!r} has weight type {type_name(spec.type_id)}, which pyllm cannot "
            "run; take another quantisation of the model, for example Q4_K_M or Q8_0"
        )
    rearranged = (
        part.transposed or part.plus or part.every_plus or ((part.runs or part.pieces > 1) and len(expected) == 1)
    )
    if rearranged and spec.type_id not in FLOATS:
        raise UnsupportedModelError(
            f"{checkpoint.path}: tensor {spec.name!r} has weight type {type_name(spec.type_id)}, but must be made of "
            "floats, because it is stored in another order than it is used"
        )


def _scales(
    checkpoint: Checkpoint, config: ModelConfig, part: Part, layer: int, blocks: TensorSpec, shape: tuple[int, int]
) -> TensorSpec:
    """The scales of blocks of 32 four-bit floats, (experts, rows, cols / 32, 16) and (experts, rows, cols / 32)."""
    name = part.scales.format(layer=layer)
    scales = checkpoint.tensors.get(name)
    if scales is None:
        raise ModelFormatError(f"{checkpoint.path}: tensor {name!r}, the scales of {blocks.name!r}, is missing")
    rows = part.runs.of if part.runs else shape[0]
    expected = (config.n_experts, rows, shape[1] // 32)
    for spec, wanted in ((blocks, (*expected, 16)), (scales, expected)):
        if spec.shape != wanted or spec.type_id != U8 or shape[1] % 32:
            raise ModelFormatError(
                f"{checkpoint.path}: tensor {spec.name!r} is {type_name(spec.type_id)} {spec.shape}, expected U8 "
                f"{wanted}"
            )
    return scales


def _row(checkpoint: Checkpoint, part: Part, cols: int) -> TensorSpec:
    """The tensor whose first row is added to every row of a part: (any number, cols)."""
    spec = _find(checkpoint, part.every_plus, 1, cols)
    if len(spec.shape) > 2 or spec.shape[-1] != cols or spec.type_id not in FLOATS:
        raise ModelFormatError(
            f"{checkpoint.path}: tensor {spec.name!r} is {type_name(spec.type_id)} {spec.shape}, expected floats of "
            f"{cols} columns"
        )
    return spec


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without leading ones: a vector (n,) is the matrix (1, n)."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
