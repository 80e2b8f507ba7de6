"""Writes grid_tables.h: the codebooks of the IQ1, IQ2 and IQ3 types, which are facts of the formats.

Needs ``pip install numpy gguf``, whose tables these are. Run it as ``python make_grid_tables.py``, then clang-format.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, quants

HERE = Path(__file__).parent
HEAD = """/* Codebooks of the IQ types: written by make_grid_tables.py from the tables of the gguf package.
 *
 * An entry is a point of the grid: 8 digits of 2 bits (IQ1, IQ2) or 4 of 3 bits (IQ3), the first weight in the lowest
 * bits. grids.c says which number each digit stands for. */
#ifndef PL_QUANT_GRID_TABLES_H
#define PL_QUANT_GRID_TABLES_H

#include <stdint.h>
"""
#: type -> bits of a digit in the table written here
GRIDS = {"IQ1_S": 2, "IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 2, "IQ3_XXS": 3, "IQ3_S": 3}


def entries(name: str, bits: int) -> list[int]:
    """The grid's points, each as one number."""
    kind = quants._type_traits[GGMLQuantizationType[name]]
    kind.init_grid()
    points = kind.grid.reshape(kind.grid_shape)
    digits = np.searchsorted(np.array(kind.grid_map, np.float32), points)
    shifts = bits * np.arange(kind.grid_shape[1])
    return [int(point) for point in (digits << shifts).sum(axis=1)]


def main() -> None:
    """Write the header."""
    out = [HEAD]
    for name, bits in GRIDS.items():
        points = entries(name, bits)
        out.append(f"\nstatic const uint16_t grid_{name.lower()}[{len(points)}] = {{\n")
        for i in range(0, len(points), 16):
            out.append("    " + ", ".join(f"{point:5d}" for point in points[i : i + 16]) + ",\n")
        out.append("};\n")
    out.append("\n#endif\n")
    (HERE / "grid_tables.h").write_text("".join(out))


if __name__ == "__main__":
    main()
