"""The report: tables in Markdown, and the same numbers as JSON, from the lines alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...files import write_atomically
from .summary import Cell, Line, Row, summarise

HEAD = (
    "optimizer", "tuned values", "median loss", "ratio [95%]", "reach the target", "steps", "epochs", "CPU seconds",
    "ms a step", "tuning lost",
)  # fmt: skip
MISS = "—"


def write_report(lines: Iterable[Line], folder: Path, protocol: str) -> tuple[Path, Path]:
    """Write ``report.md`` and ``summary.json`` from the lines of a protocol; return their paths."""
    chosen = [line for line in lines if line["protocol"] == protocol]
    cells = summarise(chosen)
    page, numbers = folder / "report.md", folder / "summary.json"
    found = {"protocol": protocol, "cells": [_plain(asdict(cell)) for cell in cells]}
    for path, text in ((page, markdown(cells, chosen)), (numbers, json.dumps(found, indent=1, allow_nan=False) + "\n")):
        write_atomically(path, lambda file, text=text: file.write(text.encode()))
    return page, numbers


def markdown(cells: Sequence[Cell], lines: Sequence[Line]) -> str:
    """Return the report: an overview of each budget, then a table for each workload."""
    parts = ["# Results", _environments(lines)]
    for budget in dict.fromkeys(cell.budget for cell in cells):
        parts += [f"## Equal {_unit(budget)}", _overview([cell for cell in cells if cell.budget == budget])]
    for cell in cells:
        parts += [f"## {cell.workload}, {cell.amount:g} {_unit(cell.budget)}", _told_target(cell), _table(cell)]
    return "\n\n".join(parts) + "\n"


def _overview(cells: Sequence[Cell]) -> str:
    """Return the ratio of each optimizer's median loss to the best first-order one's, by workload."""
    names = dict.fromkeys(row.optimizer for cell in cells for row in cell.rows)
    found = {(cell.workload, row.optimizer): row for cell in cells for row in cell.rows}
    rows = [[name, *(_short(found.get((cell.workload, name))) for cell in cells)] for name in sorted(names)]
    text = "Median loss over that of the best first-order method; below 1 is better. ∞: most runs diverged."
    return f"{text}\n\n{_as_table(['optimizer', *(cell.workload for cell in cells)], rows)}"


def _short(row: Row | None) -> str:
    if row is None:
        return ""
    if row.ratio is not None:
        return f"{row.ratio:.3g}"
    return "∞" if not math.isfinite(row.loss) else "some diverged"


def _told_target(cell: Cell) -> str:
    if cell.target is None:
        return "No first-order method ended with a loss: there is no target."
    kind = "accuracy" if cell.of_accuracy else "median loss of the best first-order method"
    return f"Target: {cell.target:.4g}, the {kind}. {MISS}: half of the runs or more miss it."


def _table(cell: Cell) -> str:
    rows = [
        [
            row.optimizer,
            ", ".join(f"{name} {value:g}" for name, value in row.values.items()) or MISS,
            _number(row.loss),
            MISS if row.ratio is None or row.interval is None
            else f"{row.ratio:.3g} [{row.interval[0]:.3g}, {row.interval[1]:.3g}]",
            f"{row.reached} of {len(row.losses)}",
            *map(_number, row.to_target),
            _number(row.milliseconds),
            f"{row.lost} of {row.tuning}" + (f" ({'; '.join(row.errors)})" if row.errors else ""),
        ]
        for row in cell.rows
    ]  # fmt: skip
    return _as_table(HEAD, rows)


def _as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([text.replace("|", "\\|") for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else MISS


def _unit(budget: str) -> str:
    return "CPU seconds" if budget == "seconds" else budget


def _environments(lines: Sequence[Line]) -> str:
    """Return where the lines were made, each environment once, without its date."""
    places = [{name: value for name, value in line["environment"].items() if name != "date"} for line in lines]
    told = dict.fromkeys("; ".join(f"{name} {value}" for name, value in place.items()) for place in places)
    return f"{len(lines)} trials. " + " / ".join(told)


def _plain(value: Any) -> Any:
    """Return values with None for numbers that JSON has no form for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
