"""The tables of a report: a quantity a row, a run a column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..train.target import Target
from . import words
from .runs import Run
from .summary import METRICS, Summary


@dataclass(frozen=True)
class Row:
    """A quantity by run.

    Attributes:
        name: the quantity, in plain words.
        cells: a text a column.
        best: the columns with the best value, where there is a best and not all are equal.
    """

    name: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


def result_rows(summaries: Sequence[Summary], targets: Sequence[Target]) -> list[Row]:
    """Return what came of the runs: progress, times, last and best values, time to targets."""
    rows = [
        Row("Progress", tuple(summary.status for summary in summaries)),
        _row("Training time", [summary.seconds for summary in summaries], words.duration),
        _row("Time a step", [summary.seconds / summary.steps for summary in summaries], words.milliseconds, min),
        _row("Samples a second", [summary.samples_per_second for summary in summaries], words.speed, max),
    ]
    for name in ("test_accuracy", "test_accuracy5", "test_loss", "train_loss"):
        best = min if name.endswith("loss") else max
        lasts = [getattr(summary.last, name) if summary.last else None for summary in summaries]
        title = METRICS[name][:1].upper() + METRICS[name][1:]
        rows.append(_row(f"{title}, last", lasts, lambda value, name=name: words.metric(name, value), best))
        if name.startswith("test"):
            rows.append(_best_row(f"{title}, best", name, summaries))
    rows += [_target_row(target, [summary.targets[k] for summary in summaries]) for k, target in enumerate(targets)]
    return [row for row in rows if any(cell != words.NONE for cell in row.cells)]


def setting_rows(runs: Sequence[Run]) -> tuple[list[Row], list[Row], list[Row]]:
    """Return the settings in three lists: those that differ, those that only some runs have, and all."""
    differing, partial, every = [], [], []
    paths = dict.fromkeys(path for run in runs for path in run.settings)
    for path in paths:
        if any(other.startswith(f"{path}.") for other in paths):
            continue  # None where other runs have settings of their own, as optimizer.seng
        values = [run.settings[path] for run in runs if path in run.settings]
        cells = (words.setting(run.settings[path]) if path in run.settings else words.NONE for run in runs)
        row = Row(path, tuple(cells))
        every.append(row)
        if any(value != values[0] for value in values):
            differing.append(row)
        elif len(values) < len(runs):
            partial.append(row)
    return differing, partial, every


def counter_rows(summaries: Sequence[Summary]) -> list[Row]:
    """Return what the optimizers counted, such as skipped steps."""
    return _by_name([summary.counters for summary in summaries])


def environment_rows(runs: Sequence[Run]) -> list[Row]:
    """Return what the numbers depend on besides the settings, as recorded when a run was last taken up."""
    return _by_name([run.starts[-1].environment if run.starts else {} for run in runs])


def layer_rows(run: Run) -> tuple[tuple[str, ...], list[Row]]:
    """Return headings and a row a layer: the state of a run's curvature at the last record."""
    heads = ("effective dimension", "damping", "largest eigenvalue", "trace", "cosine", "samples", "age", "memory")
    rows = []
    for layer, state in run.curvature[-1].layers.items():
        values = (
            f"{state['effective_dimension']:.4g}",
            f"{state['damping']:.3g}",
            *[f"{value:.3g}" for value in state["top_eigenvalues"][:1] or [float("nan")]],
            f"{state['trace']:.3g}",
            words.NONE if state["cosine"] is None else f"{state['cosine']:.3f}",
            f"{state['samples']:,}",
            f"{state['refresh_age']:,}",
            words.memory(state["nbytes"]),
        )
        rows.append(Row(layer, values))
    return heads, rows


def _by_name(values: Sequence[dict[str, Any]]) -> list[Row]:
    names = dict.fromkeys(name for column in values for name in column)
    return [
        Row(name.replace("_", " "), tuple(words.setting(column.get(name, words.NONE)) for column in values))
        for name in names
    ]


def _row(
    name: str,
    values: Sequence[float | None],
    write: Callable[[Any], str],
    best: Callable[[Iterable[float]], float] | None = None,
) -> Row:
    known = [value for value in values if value is not None]
    cells = tuple(words.NONE if value is None else write(value) for value in values)
    if best is None or len(set(known)) < 2:
        return Row(name, cells)
    return Row(name, cells, frozenset(k for k, value in enumerate(values) if value == best(known)))


def _best_row(title: str, name: str, summaries: Sequence[Summary]) -> Row:
    epochs = [summary.best.get(name) for summary in summaries]
    values = [getattr(epoch, name) if epoch else None for epoch in epochs]
    row = _row(title, values, lambda value: words.metric(name, value), min if name.endswith("loss") else max)
    places = [f" (epoch {epoch.epoch})" if epoch else "" for epoch in epochs]
    return Row(title, tuple(cell + place for cell, place in zip(row.cells, places, strict=True)), row.best)


def _target_row(target: Target, epochs: Sequence[Any]) -> Row:
    sign = "≤" if target.metric.endswith("loss") else "≥"
    title = f"To {METRICS[target.metric]} {sign} {words.metric(target.metric, target.value)}"
    row = _row(title, [epoch.seconds if epoch else None for epoch in epochs], words.duration, min)
    cells = [
        f"{cell} (step {epoch.step:,})" if epoch else "not reached"
        for cell, epoch in zip(row.cells, epochs, strict=True)
    ]
    return Row(title, tuple(cells), row.best)
