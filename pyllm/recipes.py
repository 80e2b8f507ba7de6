"""Which weight type each tensor of a model gets when it is quantised.

A recipe has one type for matrices, a better one for the head, and in the mixes better ones where errors cost most:
values and the way out of the feed-forward block. The mixes are llama.cpp's, so that a name means the same in both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pyllm.formats.weight_types import (
    BF16,
    F16,
    F32,
    FLOATS,
    IQ4_NL,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    fitting_type,
)

#: The name of no recipe: every tensor keeps its type.
COPY = "copy"

# The type of a kind of tensor in layer i of n; None leaves it to the recipe's base.
Rule = Callable[[int, int], int | None]


def _always(type_id: int) -> Rule:
    return lambda i, n: type_id


def _often(type_id: int) -> Rule:
    """In the first and the last eighth of the layers, and in every third between them."""
    return lambda i, n: type_id if i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2 else None


def _first(type_id: int, count: Callable[[int], int], then: int | None = None) -> Rule:
    return lambda i, n: type_id if i < count(n) else then


@dataclass(frozen=True)
class Recipe:
    """`file_type` is GGUF's name of the whole (general.file_type); `rules` go by its names of a layer's tensors."""

    base: int
    file_type: int
    rules: Mapping[str, Rule] = field(default_factory=dict)

    @property
    def head(self) -> int:
        """The type of the output matrix, or of the embedding where that serves as one."""
        return self.base if self.base in (*FLOATS, Q8_0) else Q6_K


RECIPES = {
    "f32": Recipe(F32, 0),
    "f16": Recipe(F16, 1),
    "bf16": Recipe(BF16, 32),
    "q8_0": Recipe(Q8_0, 7),
    "q4_0": Recipe(Q4_0, 2),
    "q4_1": Recipe(Q4_1, 3),
    "q5_0": Recipe(Q5_0, 8),
    "q5_1": Recipe(Q5_1, 9),
    "iq4_nl": Recipe(IQ4_NL, 25, {"attn_v": _always(Q5_K), "ffn_down": _first(Q5_K, lambda n: n // 8)}),
    "q2_k_s": Recipe(Q2_K, 21, {"attn_v": _always(Q4_K), "ffn_down": _first(Q4_K, lambda n: n // 8)}),
    "q2_k": Recipe(Q2_K, 10, {"attn_v": _always(Q4_K), "ffn_down": _always(Q3_K), "attn_output": _always(Q3_K)}),
    "q3_k": Recipe(Q3_K, 11),
    "q3_k_s": Recipe(Q3_K, 11),
    "q3_k_m": Recipe(
        Q3_K,
        12,
        {
            "attn_v": _first(Q5_K, lambda n: 2, then=Q4_K),
            "ffn_down": _first(Q5_K, lambda n: n // 16, then=Q4_K),
            "attn_output": _always(Q4_K),
            "attn_qkv": _always(Q4_K),
        },
    ),
    "q3_k_l": Recipe(
        Q3_K,
        13,
        {"attn_v": _always(Q5_K), "ffn_down": _always(Q5_K), "attn_output": _always(Q5_K), "attn_qkv": _always(Q5_K)},
    ),
    "q4_k": Recipe(Q4_K, 14),
    "q4_k_s": Recipe(Q4_K, 14, {"attn_v": _first(Q5_K, lambda n: 4), "ffn_down": _first(Q5_K, lambda n: n // 8)}),
    "q4_k_m": Recipe(Q4_K, 15, {"attn_v": _often(Q6_K), "ffn_down": _often(Q6_K), "attn_qkv": _always(Q5_K)}),
    "q5_k": Recipe(Q5_K, 16),
    "q5_k_s": Recipe(Q5_K, 16),
    "q5_k_m": Recipe(Q5_K, 17, {"attn_v": _often(Q6_K), "ffn_down": _often(Q6_K), "attn_qkv": _always(Q6_K)}),
    "q6_k": Recipe(Q6_K, 18),
}

_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
# Small, or read in ways that are no matrix product: they keep their type.
_KEPT = re.compile(
    r"_norm|ffn_gate_inp|ssm_|shortconv|position_embd|token_types|rope_|altup|laurel|per_layer_model_proj"
)


def is_kept(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor stays as it is: all that is not a matrix of weights."""
    matrix = len(shape) > 1 and min(shape[-2:]) > 1 and name.endswith(".weight")
    return not matrix or _KEPT.search(name) is not None


@dataclass(frozen=True)
class Traits:
    """What recipes ask of a model. `tied`: it has no output matrix of its own."""

    n_layers: int
    tied: bool
    n_experts: int = 0


def traits_of(shapes: Mapping[str, tuple[int, ...]]) -> Traits:
    """The traits of a model whose tensors have these names and shapes."""
    n_layers = max((int(match[1]) + 1 for match in map(_LAYER.fullmatch, shapes) if match), default=0)
    n_experts = max((shape[0] for name, shape in shapes.items() if "_exps." in name and len(shape) > 2), default=0)
    return Traits(n_layers, "output.weight" not in shapes, n_experts)


def type_of(recipe: Recipe, name: str, shape: tuple[int, ...], traits: Traits) -> int:
    """The weight type that the matrix `name` gets."""
    if name == "output.weight" or (traits.tied and name == "token_embd.weight"):
        return fitting_type(recipe.head, shape[-1])
    match, chosen = _LAYER.fullmatch(name), None
    if match:
        kind = match[2].removesuffix("_exps")
        if traits.n_experts == 8 and recipe.base not in FLOATS and kind in ("attn_k", "attn_v"):
            chosen = Q8_0  # small beside eight experts, and all of them depend on it
        elif kind in recipe.rules:
            chosen = recipe.rules[kind](int(match[1]), traits.n_layers)
    return fitting_type(recipe.base if chosen is None else chosen, shape[-1])


def guessed_file_type(type_ids: Iterable[int]) -> int:
    """GGUF's name of a whole whose tensors have these types: the most frequent type decides."""
    by_base = {recipe.base: recipe.file_type for recipe in reversed(RECIPES.values())}
    counts = Counter(type_id for type_id in type_ids if type_id in by_base and type_id != F32)
    return by_base[counts.most_common(1)[0][0] if counts else F32]
