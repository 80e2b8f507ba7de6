"""What a stored tensor means: `dequantize` against golden values of the `gguf` package, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bits import LLAMA2C_Q8, ODD_FLOATS, TYPES, any_bytes, bits, blocks_of, group_of, llama2c_q8, same_bits, type_ids
from tinygguf import F32, random_weights

from pyllm import ModelFormatError, UnsupportedModelError, _core
from pyllm.formats.weight_types import WEIGHT_TYPES

EVERY_TYPE = pytest.mark.parametrize("type_id", type_ids(), ids=type_ids(names=True))
#: Their values are computed below.
COMPUTED = (F32, LLAMA2C_Q8)


def valid(type_id: int, rows: int, cols: int) -> bytes:
    rng = np.random.default_rng(type_id)
    return llama2c_q8(rng, rows, cols) if type_id == LLAMA2C_Q8 else random_weights(rng, type_id, rows, cols)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_id", [t for t in TYPES if t not in COMPUTED], ids=lambda t: TYPES[t][0])
def test_golden_values(golden: Path, type_id: int) -> None:
    """Every type of the table; one that is new there fails until it has golden data."""
    with np.load(golden / "quants.npz") as arrays:
        name = TYPES[type_id][0]
        raw, values = arrays[f"{name}_raw"], arrays[f"{name}_values"]
    assert np.array_equal(bits(_core.dequantize(type_id, len(values), values.shape[1], raw)), bits(values))


@pytest.mark.parametrize("type_id", [t for t in TYPES if t not in COMPUTED], ids=lambda t: TYPES[t][0])
def test_golden_values_that_are_no_numbers(golden: Path, type_id: int) -> None:
    """Infinite and NaN scales, and what comes of them."""
    with np.load(golden / "quants.npz") as arrays:
        name = TYPES[type_id][0]
        raw, values = arrays[f"{name}_hostile_raw"], arrays[f"{name}_hostile_values"]
    assert same_bits(_core.dequantize(type_id, *values.shape, raw), values)


def test_f32_is_copied() -> None:
    values = np.random.default_rng(0).standard_normal((3, 21)).astype("<f4")
    values[1, : len(ODD_FLOATS)] = ODD_FLOATS
    assert np.array_equal(bits(_core.dequantize(F32, 3, 21, values)), bits(values))


@pytest.mark.parametrize(
    ("rows", "cols", "group"), [(4, 64, 64), (4, 64, 32), (6, 20, 24), (6, 20, 40), (6, 20, 120), (5, 7, 7), (3, 10, 1)]
)
def test_llama2c_groups_run_over_the_flat_tensor(rows: int, cols: int, group: int) -> None:
    """Also where a group holds the end of one row and the beginning of the next."""
    data = llama2c_q8(np.random.default_rng(group), rows, cols, group)
    codes = np.frombuffer(data, np.int8, rows * cols).astype(np.float32)
    scales = np.frombuffer(data, "<f4", offset=rows * cols)
    expected = (codes.reshape(-1, group) * scales[:, None]).reshape(rows, cols)
    assert np.array_equal(bits(_core.dequantize(LLAMA2C_Q8, rows, cols, data, group)), bits(expected))


@EVERY_TYPE
def test_rows_follow_one_another(type_id: int) -> None:
    """Rows of one tensor mean what each means alone, and so do blocks."""
    _, elements, _ = TYPES[type_id]
    cols = 3 * max(elements, 32)
    data = valid(type_id, 4, cols)
    whole = _core.dequantize(type_id, 4, cols, data, group_of(type_id))
    flat = _core.dequantize(type_id, 1, 4 * cols, data, group_of(type_id))
    assert np.array_equal(bits(whole).reshape(-1), bits(flat).reshape(-1))


@EVERY_TYPE
def test_data_needs_no_alignment(type_id: int) -> None:
    data = valid(type_id, 2, 256)
    expected = _core.dequantize(type_id, 2, 256, data, group_of(type_id))
    for shift in (1, 2, 3, 7):
        moved = memoryview(bytes(shift) + data)[shift:]
        assert np.array_equal(bits(_core.dequantize(type_id, 2, 256, moved, group_of(type_id))), bits(expected))


@EVERY_TYPE
def test_any_bits_are_some_weights(type_id: int) -> None:
    """No pattern of bits is an error, and the same bits mean the same weights."""
    data = any_bytes(np.random.default_rng(1), type_id, 8, 256)
    first = _core.dequantize(type_id, 8, 256, data, group_of(type_id))
    assert first.shape == (8, 256)
    assert np.array_equal(bits(first), bits(_core.dequantize(type_id, 8, 256, data, group_of(type_id))))


def test_the_tables_of_python_and_c_agree() -> None:
    python = {row.id: (row.name, row.block_elements, row.block_bytes) for row in WEIGHT_TYPES.values() if row.runnable}
    assert python == {type_id: row for type_id, row in TYPES.items() if type_id != LLAMA2C_Q8}


# ---- errors ----------------------------------------------------------------------------------------------------------


@EVERY_TYPE
@pytest.mark.parametrize("wrong", [-1, 1, 4096])
def test_wrong_number_of_bytes(type_id: int, wrong: int) -> None:
    data = valid(type_id, 2, 256)
    resized = data[:wrong] if wrong < 0 else data + bytes(wrong)
    with pytest.raises(ModelFormatError, match=rf"\(2, 256\) takes {len(data)} bytes, not {len(data) + wrong}"):
        _core.dequantize(type_id, 2, 256, resized, group_of(type_id))


@EVERY_TYPE
def test_no_bytes(type_id: int) -> None:
    with pytest.raises(ModelFormatError):
        _core.dequantize(type_id, 2, 256, b"", group_of(type_id))


@pytest.mark.parametrize("type_id", [t for t, row in TYPES.items() if row[1] > 1], ids=lambda t: TYPES[t][0])
@pytest.mark.parametrize("off", [-1, 1, 16])
def test_rows_that_are_not_whole_blocks(type_id: int, off: int) -> None:
    """Even where all weights together would be whole blocks."""
    name, elements, _ = TYPES[type_id]
    cols = 2 * elements + off
    count, nbytes = blocks_of(type_id, elements, cols)
    with pytest.raises(ModelFormatError, match=rf"{cols} weights are not whole blocks of {elements} as {name} needs"):
        _core.dequantize(type_id, elements, cols, bytes(count * nbytes), 0)


@pytest.mark.parametrize("type_id", [-1, 4, 9, 24, 43, 31, 99, 999, 1001, 2**31 - 1])
def test_unknown_types(type_id: int) -> None:
    """Also those that files may name, but that nothing here computes with."""
    with pytest.raises(UnsupportedModelError, match=f"weight type {type_id} is unknown"):
        _core.dequantize(type_id, 1, 256, bytes(1024))


@pytest.mark.parametrize("group", [0, -1, -32, 48, 513, 1 << 40])
def test_groups_that_do_not_divide(group: int) -> None:
    with pytest.raises(ModelFormatError, match=f"group size {group} does not divide 512 weights"):
        _core.dequantize(LLAMA2C_Q8, 2, 256, bytes(512 + 64), group)


@pytest.mark.parametrize("type_id", [t for t in TYPES if t != LLAMA2C_Q8], ids=lambda t: TYPES[t][0])
def test_groups_belong_to_llama2c(type_id: int) -> None:
    with pytest.raises(ModelFormatError, match="group size 32"):
        _core.dequantize(type_id, 2, 256, valid(type_id, 2, 256), 32)


@EVERY_TYPE
@pytest.mark.parametrize(("rows", "cols"), [(0, 256), (256, 0), (0, 0), (2**31, 0)])
def test_empty_shapes(type_id: int, rows: int, cols: int) -> None:
    with pytest.raises(ModelFormatError, match="out of range"):
        _core.dequantize(type_id, rows, cols, b"", group_of(type_id))


def run_matmul(**changed: Any) -> Any:
    arguments: dict[str, Any] = {"isa": "scalar", "type_id": F32, "rows": 2, "cols": 8, "data": bytes(64)}
    arguments |= {"x": np.ones((1, 8)), "planes": 2}
    return _core.matmul_once(**arguments | changed)


def test_the_product_checks_its_arguments_too() -> None:
    assert run_matmul().tolist() == [[0.0, 0.0]]
    for changed, message in (
        ({"isa": "sse9"}, "'sse9' is unknown"),
        ({"planes": 0}, "columns in 0 planes"),
        ({"planes": 3}, "columns in 3 planes"),
        ({"x": np.ones((0, 8))}, "0 columns in"),
        ({"x": np.ones((1, 9))}, r"expected \(n, 8\)"),
        ({"data": bytes(63)}, "takes 64 bytes, not 63"),
    ):
        with pytest.raises(ValueError, match=message):
            run_matmul(**changed)
