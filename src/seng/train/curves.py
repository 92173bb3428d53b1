"""The picture of a run: loss and accuracy against steps and against seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

AXES = (("step", "steps"), ("seconds", "seconds of training"))


def draw_curves(records: Iterable[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the records of a metrics file as a PNG.

    Args:
        records: as ``metrics.read_metrics`` yields them.
        path: the picture's file.
        title: written above.
    """
    records = list(records)
    steps = [record for record in records if record["kind"] == "step"]
    epochs = [record for record in records if record["kind"] == "epoch"]
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for row, quantity in zip(panels, ("loss", "accuracy"), strict=True):
        for axes, (key, label) in zip(row, AXES, strict=True):
            points = [(record[key], record[quantity]) for record in steps]
            axes.plot(*_columns(points), color="0.7", linewidth=1, label="training")
            points = [(record[key], record[f"test_{quantity}"]) for record in epochs]
            axes.plot(*_columns(points), "o-", markersize=3, label="test")
            axes.grid(alpha=0.3)
            axes.set_xlabel(label if quantity == "accuracy" else "")
        row[0].set_ylabel(quantity)
    panels[0][0].set_yscale("log")
    panels[0][0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
