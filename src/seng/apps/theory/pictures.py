"""Pictures of the studies: measured curves beside what was predicted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .ntk import THINNED

# Okabe and Ito's colours, told apart by people with any colour vision
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DPI = 100


def draw_ntk(found: dict[str, Any], path: Path) -> None:
    """Draw residuals for several condition numbers, and rates against the width and the size of the sketch."""
    figure, (curves, widths, ranks) = _panels(3)
    for row, colour in zip(found["lengths"], COLOURS, strict=False):
        label = f"condition {row['condition']:.0e}"
        curves.plot(_relative(row["residuals"]), color=colour, label=label)
        shown = _relative(row["descents"])[: 1 + len(row["residuals"]) // THINNED]
        curves.plot(range(0, THINNED * len(shown), THINNED), shown, "--", color=colour)
    steps = range(len(found["lengths"][0]["residuals"]))
    curves.plot(steps, [(1 - found["length"]) ** k for k in steps], ":", color="black", label="predicted")
    _finish(curves, "steps (dashed: gradient descent)", "residual over first residual", log="y")
    rows = found["widths"]
    _measured(widths, rows, "width")
    widths.axhline(1 - found["length"], linestyle=":", color="black", label="predicted: 1 - η")
    _finish(widths, "width", "contraction a step", log="x")
    rows = found["ranks"]
    _measured(ranks, rows, "rank")
    ranks.plot([row["rank"] for row in rows], [row["predicted"] for row in rows], ":", color="black", label="bound")
    _finish(ranks, f"rows of the sketch, {found['samples']} samples", "contraction a step")
    figure.savefig(path, dpi=DPI)


def draw_stationarity(found: dict[str, Any], path: Path) -> None:
    """Draw the least mean squared gradient so far and its bound."""
    figure, (axes,) = _panels(1)
    axes.plot(found["k"], found["least"], color=COLOURS[0], label=f"measured: order {found['order']:.2f}")
    axes.plot(found["k"], found["bound"], ":", color="black", label=f"bound: order {found['predicted_order']:.2f}")
    _finish(axes, "steps", "least mean |∇f|² so far", log="xy")
    figure.savefig(path, dpi=DPI)


def draw_sketches(found: dict[str, Any], path: Path) -> None:
    """Draw errors of directions against the size of each sketch; dashed, what the embedding error allows."""
    _draw_errors(found, f"rows of the sketch, {found['parameters']} parameters", path)


def draw_solvers(found: dict[str, Any], path: Path) -> None:
    """Draw the same of sketches in sample space."""
    _draw_errors(found, f"size of the sketch, {found['samples']} samples", path)


def _draw_errors(found: dict[str, Any], sizes: str, path: Path) -> None:
    figure, (axes,) = _panels(1)
    for name, colour in zip(dict.fromkeys(row["sketch"] for row in found["rows"]), COLOURS, strict=False):
        rows = [row for row in found["rows"] if row["sketch"] == name]
        bounded = [row for row in rows if row["bound"] is not None]
        axes.plot([row["size"] for row in rows], [row["error"] for row in rows], "o-", color=colour, label=name)
        axes.plot([row["size"] for row in bounded], [row["bound"] for row in bounded], "--", color=colour)
    _finish(axes, sizes, "relative error of the direction", log="xy")
    figure.savefig(path, dpi=DPI)


PICTURES: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "ntk": draw_ntk,
    "stationarity": draw_stationarity,
    "sketches": draw_sketches,
    "solvers": draw_solvers,
}


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(5.2, 4.2 * count), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _measured(axes: Axes, rows: list[dict[str, Any]], against: str) -> None:
    rates = [row["natural"] for row in rows]
    axes.plot([row[against] for row in rows], rates, "o-", color=COLOURS[0], label="measured")


def _finish(axes: Axes, x: str, y: str, log: str = "") -> None:
    axes.set_xscale("log" if "x" in log else "linear")
    axes.set_yscale("log" if "y" in log else "linear")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _relative(values: list[float]) -> list[float]:
    return [value / values[0] for value in values]
