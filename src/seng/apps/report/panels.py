"""What is drawn, apart from how: the page and the pictures show the same panels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ..train.metrics import CurvatureRecord
from .runs import Run
from .summary import best_epoch

T = TypeVar("T")
Role = Literal["training", "test", "layer", "setting"]
Points = list[tuple[float, float | None]]

MOST_POINTS = 1000  # of a line: about as many as a picture has columns
MOST_STATES = 300  # of a layer's line: there are many layers
SPECTRUM = 64  # eigenvalues that a record holds at most, as CurvatureRecord says
MOST_LAYERS = 12  # shown together; more cannot be told apart
ROUNDING = 1e-12  # eigenvalues this far below the largest mean nothing, even in float64
MARGIN = 0.05  # of an axis, beyond the outermost values
BELOW_TEST = 20.0  # the axis of the loss ends this factor below the best test loss: single batches go far below


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        run: the run's number, which decides the colour.
        role: whether it shows training, the test, the state of a layer, or a setting that changes.
        x: horizontal values, as recorded but for the unit of time.
        y: vertical values, as recorded.
        layer: the layer's name, where it shows one.
    """

    run: int
    role: Role
    x: list[float]
    y: list[float]
    layer: str | None = None


@dataclass(frozen=True)
class Panel:
    """Curves that share their axes.

    Attributes:
        key: a name, unique in a report.
        title: what is shown, in plain words.
        x_label: the horizontal axis with its unit.
        note: what the reader should know besides.
        log_x: whether the horizontal axis is logarithmic; ``log_y`` likewise.
        percent: whether the vertical values are shares, shown as percentages.
        span: what the vertical axis shows unless zoomed; None: all values.
    """

    key: str
    title: str
    x_label: str
    lines: tuple[Line, ...]
    note: str = ""
    log_x: bool = False
    log_y: bool = False
    percent: bool = False
    span: tuple[float, float] | None = None

    def as_plain(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


def curve_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return loss and accuracy, each against steps and against time; only those that some run has."""
    panels = []
    for key, title, log in (("loss", "Loss", True), ("accuracy", "Accuracy", False)):
        for axis, label, x in _axes(runs):
            lines = tuple(line for number, run in enumerate(runs) for line in _curves(run, number, key, x))
            span = _loss_span(runs, lines) if log else _accuracy_span(runs)
            name = f"{title} against {axis}"
            panels.append(Panel(f"{key}-{axis}", name, label, lines, log_y=log, percent=not log, span=span))
    return [panel for panel in panels if panel.lines]


def rate_panel(runs: Sequence[Run]) -> Panel:
    """Return the learning rate against steps."""
    lines = []
    for number, run in enumerate(runs):
        points: Points = [(step.step, step.lr) for step in thin(run.steps, MOST_POINTS)]
        lines += _line(number, "setting", points)
    return Panel("rate", "Learning rate", "steps", tuple(lines))


def state_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return the states of the layers' curvature over time, and their last spectra; none without SENG."""

    def top(state: dict[str, Any]) -> float | None:
        return next(iter(state["top_eigenvalues"]), None)

    panels = [
        _state_panel(runs, "dimension", "Effective dimension", lambda state: state["effective_dimension"]),
        _state_panel(runs, "damping", "Damping", lambda state: state["damping"], log=True),
        _state_panel(runs, "top", "Largest eigenvalue", top, log=True),
        _state_panel(runs, "cosine", "Cosine of direction and gradient", lambda state: state["cosine"]),
        _spectrum_panel(runs),
    ]
    return [panel for panel in panels if panel.lines]


def shown_layers(layers: Sequence[str]) -> tuple[str, ...]:
    """Return the layers shown together: all, or ``MOST_LAYERS`` evenly spaced with the first and the last."""
    return tuple(thin(layers, MOST_LAYERS))


def thin(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def time_unit(runs: Sequence[Run]) -> tuple[str, float]:
    """Return the unit of time that suits the longest run, and its seconds."""
    longest = max(run.last.seconds for run in runs)
    units = (("hours", 3600.0, 3 * 3600.0), ("minutes", 60.0, 600.0), ("seconds", 1.0, 0.0))
    return next((name, seconds) for name, seconds, least in units if longest >= least)


def _axes(runs: Sequence[Run]) -> list[tuple[str, str, Callable[[Any], float]]]:
    unit, seconds = time_unit(runs)
    return [
        ("steps", "steps", lambda record: record.step),
        ("time", f"{unit} of training", lambda record: record.seconds / seconds),
    ]


def _curves(run: Run, number: int, key: str, x: Callable[[Any], float]) -> list[Line]:
    """Return a run's training and test curves; a step's accuracy is a mean over the epoch so far, so epochs serve."""
    training: Points = [(x(record), getattr(record, key)) for record in thin(run.steps, MOST_POINTS)]
    if key == "accuracy" and run.epochs:
        training = [(x(record), record.train_accuracy) for record in run.epochs]
    test: Points = [(x(record), getattr(record, f"test_{key}")) for record in run.epochs]
    return _line(number, "training", training) + _line(number, "test", test)


def _line(run: int, role: Role, points: Points, layer: str | None = None) -> list[Line]:
    """Return the line through the points that have a value, or nothing."""
    kept = [(x, y) for x, y in points if y is not None]
    return [Line(run, role, [x for x, _ in kept], [y for _, y in kept], layer)] if kept else []


def _loss_span(runs: Sequence[Run], lines: Sequence[Line]) -> tuple[float, float] | None:
    """Return what the axis of the loss shows: not the single batches far below every test loss."""
    tested = [epoch.test_loss for run in runs if (epoch := best_epoch(run, "test_loss"))]
    values = [y for line in lines for y in line.y if y > 0]
    return _log_span(values, min(tested) / BELOW_TEST / max(values) if values and tested else 0.0)


def _log_span(values: Sequence[float], least: float) -> tuple[float, float] | None:
    """Return what a logarithmic axis shows of positive values: those not below ``least`` times the largest."""
    if not values:
        return None
    high = max(values)
    low = max(min(values), least * high)
    margin = max((high / low) ** MARGIN, 1.01)
    return low / margin, high * margin


def _accuracy_span(runs: Sequence[Run]) -> tuple[float, float] | None:
    """Return what the axis of the accuracy shows: not the first steep quarter, which would flatten the others."""
    later = [epoch for run in runs for epoch in run.epochs[len(run.epochs) // 4 :]]
    shares = [share for epoch in later for share in (epoch.test_accuracy, epoch.train_accuracy) if share is not None]
    tested = [epoch.test_accuracy for epoch in later if epoch.test_accuracy is not None]
    if not tested or min(tested) == max(shares):
        return None
    low, high = min(tested), max(shares)
    return max(0.0, low - (high - low) / 4), high + MARGIN * (high - low)


def _state_panel(
    runs: Sequence[Run], key: str, title: str, value: Callable[[dict[str, Any]], float | None], *, log: bool = False
) -> Panel:
    lines = []
    for number, run in enumerate(runs):
        records = thin(run.curvature, MOST_STATES)
        for layer in run.layers:
            points: Points = [(r.step, value(r.layers[layer])) for r in records if layer in r.layers]
            lines += _line(number, "layer", points, layer)
    return Panel(key, title, "steps", tuple(lines), log_y=log)


def _spectrum_panel(runs: Sequence[Run]) -> Panel:
    lines = []
    for number, run in enumerate(runs):
        for layer, (values, samples) in last_spectra(run.curvature).items():
            points: Points = list(zip(eigenvalue_ranks(len(values), samples), values, strict=True))
            lines += _line(number, "layer", [(rank, value) for rank, value in points if value], layer)
    note = "Of the latest epoch; those far below the largest are rounding errors, and zeros have no place here."
    span = _log_span([y for line in lines for y in line.y], ROUNDING)
    return Panel("spectrum", "Eigenvalues", "rank", tuple(lines), note, log_x=True, log_y=True, span=span)


def last_spectra(records: Sequence[CurvatureRecord]) -> dict[str, tuple[list[float], int]]:
    """Return each layer's latest eigenvalues and the number of samples behind them."""
    return {
        layer: (values, record.layers[layer]["samples"])
        for record in records
        for layer, values in record.spectra.items()
        if values
    }


def eigenvalue_ranks(count: int, samples: int) -> list[int]:
    """Return which of a layer's eigenvalues a record holds, the largest being 1.

    A record holds at most ``SPECTRUM`` of them, evenly spaced; there are as many as samples, but for curvature that
    was truncated, which is held whole where it has fewer.
    """
    return thin(range(1, samples + 1), count) if count == SPECTRUM < samples else list(range(1, count + 1))
