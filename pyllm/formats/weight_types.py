"""The table of weight types: what a tensor's type number means and how many bytes its blocks take.

Ids are GGUF's; 1000 and above are pyllm's own (`csrc/pyllm_api.h`). The table holds every type that files may name,
so that sizes can be checked and a type that pyllm cannot run is named rather than numbered.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightType:
    """`block_elements` consecutive weights of one row share a block of `block_bytes` bytes."""

    id: int
    name: str
    block_elements: int
    block_bytes: int
    runnable: bool = False

    def nbytes(self, elements: int) -> int:
        """Bytes of `elements` weights, which must be whole blocks."""
        return elements // self.block_elements * self.block_bytes


F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = 0, 1, 2, 3, 6, 7, 8
Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = 10, 11, 12, 13, 14
IQ4_NL, BF16, MXFP4 = 20, 30, 39
LLAMA2C_Q8 = 1000  # int8[n], then fp32 scales[n / group]; the group size stands in the file's header
U8 = 1001

_RUNNABLE = (
    WeightType(F32, "F32", 1, 4, True),
    WeightType(F16, "F16", 1, 2, True),
    WeightType(Q4_0, "Q4_0", 32, 18, True),
    WeightType(Q4_1, "Q4_1", 32, 20, True),
    WeightType(Q5_0, "Q5_0", 32, 22, True),
    WeightType(Q5_1, "Q5_1", 32, 24, True),
    WeightType(Q8_0, "Q8_0", 32, 34, True),
    WeightType(10, "Q2_K", 256, 84, True),
    WeightType(11, "Q3_K", 256, 110, True),
    WeightType(Q4_K, "Q4_K", 256, 144, True),
    WeightType(Q5_K, "Q5_K", 256, 176, True),
    WeightType(Q6_K, "Q6_K", 256, 210, True),
    WeightType(15, "Q8_K", 256, 292, True),
    WeightType(16, "IQ2_XXS", 256, 66, True),
    WeightType(17, "IQ2_XS", 256, 74, True),
    WeightType(18, "IQ3_XXS", 256, 98, True),
    WeightType(19, "IQ1_S", 256, 50, True),
    WeightType(20, "IQ4_NL", 32, 18, True),
    WeightType(21, "IQ3_S", 256, 110, True),
    WeightType(22, "IQ2_S", 256, 82, True),
    WeightType(23, "IQ4_XS", 256, 136, True),
    WeightType(29, "IQ1_M", 256, 56, True),
    WeightType(BF16, "BF16", 1, 2, True),
    WeightType(34, "TQ1_0", 256, 54, True),
    WeightType(35, "TQ2_0", 256, 66, True),
    WeightType(MXFP4, "MXFP4", 32, 17, True),
    WeightType(40, "NVFP4", 64, 36, True),
    WeightType(41, "Q1_0", 128, 18, True),
    WeightType(42, "Q2_0", 64, 18, True),
)

_KNOWN = (
    WeightType(9, "Q8_1", 32, 36),
    WeightType(24, "I8", 1, 1),
    WeightType(25, "I16", 1, 2),
    WeightType(26, "I32", 1, 4),
    WeightType(27, "I64", 1, 8),
    WeightType(28, "F64", 1, 8),
)

WEIGHT_TYPES = {row.id: row for row in (*_RUNNABLE, *_KNOWN)}

# What safetensors files may hold besides GGUF's types; there are no kernels for these.
_FOREIGN = (
    WeightType(U8, "U8", 1, 1),
    WeightType(1002, "BOOL", 1, 1),
    WeightType(1003, "F8_E4M3", 1, 1),
    WeightType(1004, "F8_E5M2", 1, 1),
    WeightType(1005, "F8_E8M0", 1, 1),
    WeightType(1006, "U16", 1, 2),
    WeightType(1007, "U32", 1, 4),
    WeightType(1008, "U64", 1, 8),
)

#: The types of a safetensors header, by the names they have there.
SAFETENSORS_TYPES = {row.name: row for row in (*(WEIGHT_TYPES[i] for i in (0, 1, 30, 24, 25, 26, 27, 28)), *_FOREIGN)}

FLOATS = (F32, F16, BF16)

#: The types that weights can be quantised to, by the names that users give.
MAKEABLE = {WEIGHT_TYPES[i].name.lower(): i for i in (*FLOATS, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1)}
MAKEABLE |= {WEIGHT_TYPES[i].name.lower(): i for i in (Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL)}

#: What takes the place of types with blocks of 256 where rows are not made of them: blocks of 32, no less exact.
_SUBSTITUTES = {Q2_K: IQ4_NL, Q3_K: IQ4_NL, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0}

# Numbers that GGUF once used and then withdrew: their block layouts are no longer defined anywhere.
WITHDRAWN = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"}
WITHDRAWN |= {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}


def type_name(type_id: int) -> str:
    """A type's name for people: "Q4_K", "LLAMA2C_Q8", or "number 77" where nothing is known about it."""
    if type_id == LLAMA2C_Q8:
        return "LLAMA2C_Q8"
    row = WEIGHT_TYPES.get(type_id) or next((row for row in _FOREIGN if row.id == type_id), None)
    return row.name if row else WITHDRAWN.get(type_id, f"number {type_id}")


def is_runnable(type_id: int) -> bool:
    """Whether the C library has kernels for the type."""
    return type_id == LLAMA2C_Q8 or (type_id in WEIGHT_TYPES and WEIGHT_TYPES[type_id].runnable)


def fitting_type(type_id: int, cols: int) -> int:
    """The type itself if it can hold rows of `cols` weights, else the next that can: F16 in the end."""
    while cols % WEIGHT_TYPES[type_id].block_elements:
        type_id = _SUBSTITUTES.get(type_id, F16)
    return type_id
