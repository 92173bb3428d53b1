"""The picture of a run: loss and accuracy against steps and against seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

AXES = (("step", "steps"), ("seconds", "seconds of training"))


def draw_curves(records: Iterable[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the records of a metrics file as a PNG; accuracy is left out where there is none.

    Args:
        records: those of ``metrics.read_records``, as dicts.
        path: the picture's file.
        title: written above.
    """
    records = list(records)
    steps = [record for record in records if record["kind"] == "step"]
    epochs = [record for record in records if record["kind"] == "epoch"]
    right = any(record["test_accuracy"] is not None for record in epochs)
    rows = ("loss", "accuracy") if right or not epochs else ("loss",)
    figure = Figure(figsize=(10, 0.5 + 3 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), 2, sharex="col", sharey="row", squeeze=False)
    for row, quantity in zip(panels, rows, strict=True):
        for axes, (key, label) in zip(row, AXES, strict=True):
            _draw(axes, steps, key, quantity, "-", color="0.7", linewidth=1, label="training")
            _draw(axes, epochs, key, f"test_{quantity}", "o-", markersize=3, label="test")
            axes.grid(alpha=0.3)
            axes.set_xlabel(label if quantity == rows[-1] else "")
        row[0].set_ylabel(quantity)
    panels[0][0].set_yscale("log")
    panels[0][0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _draw(axes: Axes, records: Sequence[dict[str, Any]], x: str, y: str, style: str, **look: Any) -> None:
    points = [(record[x], record[y]) for record in records if record[y] is not None]
    axes.plot([point[0] for point in points], [point[1] for point in points], style, **look)
