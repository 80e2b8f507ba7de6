"""Charts of records that compare.py wrote: PNG and SVG.

    python benchmarks/plot.py RECORD.json ... --out FOLDER [--threads 2]

One picture per record, `FOLDER/NAME.png` and `.svg`: a panel for each test, a bar for each engine, with its lowest and
highest sample as a line and, where it is known, the share of positions whose likeliest token is the model's own. What
was measured on a busy machine is hatched, and the title says so. Needs matplotlib, which pyllm itself does not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OURS, OTHERS = "#1f6f5c", "#b4b9bd"
HATCH = "////"
COLUMNS = 3
PANEL_WIDTH, BAR_HEIGHT, AROUND = 4.6, 0.3, 0.95  # inches
DOTS_PER_INCH = 150


def read(path: Path) -> dict[str, Any]:
    """A record of compare.py's. `SystemExit` for anything else."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("results"), list):
        raise SystemExit(f"{path} is no record of compare.py's: it has no results")
    return record


def panels(record: dict[str, Any], threads: int) -> dict[str, list[dict[str, Any]]]:
    """Test to its rows, best first: those with so many threads, and those of engines that were given fewer."""
    found: dict[str, list[dict[str, Any]]] = {r["test"]: [] for r in record["results"] if r["threads"] == threads}
    for row in record["results"]:
        if row["test"] in found and (row["threads"] == threads or "@" in row["engine"]):
            found[row["test"]].append(row)
    return {
        test: sorted(rows, key=lambda row: row["median"], reverse=row_unit(rows[0]) != "s")
        for test, rows in found.items()
    }


def row_unit(row: dict[str, Any]) -> str:
    """What a row's figures are in."""
    return row.get("unit", "tokens/s")


def label(row: dict[str, Any], fidelity: dict[str, Any]) -> str:
    """An engine's name, and how close it is."""
    close = fidelity.get(row["engine"].partition("@")[0])
    return f"{row['engine']}\n{close['top1_kept']:.2%} kept" if close else row["engine"]


def draw_panel(axes: Any, test: str, rows: Sequence[dict[str, Any]], fidelity: dict[str, Any]) -> None:
    """One test: horizontal bars, best on top."""
    unit, places = row_unit(rows[0]), range(len(rows))
    medians = [row["median"] for row in rows]
    spread = [[row["median"] - row["low"] for row in rows], [row["high"] - row["median"] for row in rows]]
    bars = axes.barh(places, medians, color=[OURS if row["engine"].startswith("pyllm") else OTHERS for row in rows])
    axes.errorbar(medians, places, xerr=spread, fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
    for bar, row in zip(bars, rows, strict=True):
        bar.set_hatch(HATCH if row["condition"] == "busy" else "")
        bar.set_edgecolor("white")
        number = f"{row['median']:.2f} s" if unit == "s" else f"{row['median']:,.0f}"
        axes.text(
            max(row["high"], row["median"]), bar.get_y() + bar.get_height() / 2, f"  {number}", va="center", fontsize=8
        )
    axes.set_yticks(places, [label(row, fidelity) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * max(row["high"] for row in rows))
    axes.set_title(f"{test}, {unit}" + (" (less is better)" if unit == "s" else ""), fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)


def draw(record: dict[str, Any], threads: int) -> Any:
    """The picture of a record. `SystemExit` where nothing was measured with so many threads."""
    import matplotlib

    matplotlib.use("Agg")
    # Words stay words, and the same record gives the same bytes.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pyllm"})
    from matplotlib import pyplot

    tests = panels(record, threads)
    if not tests:
        raise SystemExit(f"nothing was measured with {threads} threads")
    columns = min(COLUMNS, len(tests))
    lines = -(-len(tests) // columns)
    height = max(map(len, tests.values())) * BAR_HEIGHT * 1.5 + AROUND
    figure, grid = pyplot.subplots(
        lines, columns, figsize=(PANEL_WIDTH * columns, height * lines + 0.5), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(tests) :]:
        axes.set_visible(False)
    for axes, (test, rows) in zip(grid.flat, tests.items(), strict=False):
        draw_panel(axes, test, rows, record.get("fidelity", {}))
    busy = any(row["condition"] == "busy" for rows in tests.values() for row in rows)
    facts = [record["model"]["file"], record["machine"]["cpu"], f"{threads} threads", record["date"]]
    figure.suptitle(", ".join(facts) + ("; hatched: on a busy machine" if busy else ""), fontsize=11)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="draw the records of compare.py")
    parser.add_argument("record", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path(), help="the folder for the pictures (.)")
    parser.add_argument("--threads", type=int, default=2, help="the number of threads that is drawn (2)")
    arguments = parser.parse_args(argv)
    for path in arguments.record:
        figure = draw(read(path), arguments.threads)
        for suffix in (".png", ".svg"):
            metadata = {"Date": None} if suffix == ".svg" else None
            figure.savefig(arguments.out / f"{path.stem}{suffix}", dpi=DOTS_PER_INCH, metadata=metadata)


if __name__ == "__main__":
    main()
