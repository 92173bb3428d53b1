"""Pictures: a solution beside the true one, and errors of methods against CPU seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...func import Fit
from .methods import METHODS
from .problem import Problem, View
from .run import Record

# Okabe and Ito's colours, told apart by people with any colour vision
COLOURS = dict(zip(METHODS, ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"), strict=False))
DPI = 100


def draw_errors(runs: Mapping[str, Sequence[Record]], path: Path, title: str) -> None:
    """Draw relative errors against CPU seconds, a line a method.

    Args:
        runs: Records by name of a method.
        path: The picture's file, a PNG.
        title: Written above.
    """
    figure = _figure(6.4, 3.8)
    axes = figure.subplots()
    for name, records in runs.items():
        seconds, errors = [r.seconds for r in records], [r.error for r in records]
        axes.plot(seconds, errors, color=COLOURS.get(name), linewidth=1.5, label=f"{name}: {errors[-1]:.1e}")
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("CPU seconds")
    axes.set_ylabel("relative L2 error")
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title(title)
    figure.savefig(path, dpi=DPI)


def draw_fit(result: Fit, path: str | Path, title: str) -> None:
    """Draw the history of ``seng.func.fit``: residuals, and the number of points below, against seconds.

    Args:
        result: What ``fit`` returned.
        path: The picture's file, a PNG.
        title: Written above.
    """
    figure = _figure(6.4, 4.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    seconds = [record.seconds for record in result.history]
    judged = [(record.seconds, record.held_out) for record in result.history if record.held_out is not None]
    upper.plot(seconds, [record.residual for record in result.history], linewidth=1.2, label="at the points")
    if judged:
        upper.plot(*zip(*judged, strict=True), linewidth=1.2, label="held out")
    upper.set_yscale("log")
    upper.set_ylabel("residual")
    upper.legend()
    lower.plot(seconds, [record.points for record in result.history], color="#555555", drawstyle="steps-post")
    lower.set_ylabel("points")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("seconds")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=DPI)


def draw_solution(problem: Problem, net: nn.Module, path: Path, title: str) -> None:
    """Draw what a network gives, the true values and their difference; without a view, one against the other.

    Args:
        problem: What the network solves.
        net: The network.
        path: The picture's file, a PNG.
        title: Written above.
    """
    if problem.view is None:
        figure = _figure(4.2, 4.2)
        _scatter(figure.subplots(), problem.values(net, problem.test), problem.truth)
    else:
        figure = _figure(10, 3.1)
        got, true = problem.values(net, problem.view.points), problem.shown
        panels = figure.subplots(1, 3, sharey=True)
        low, high = float(true.min()), float(true.max())
        _map(panels[0], problem.view, got, "network", "viridis", (low, high))
        _map(panels[1], problem.view, true, "exact", "viridis", (low, high))
        worst = max(float((got - true).abs().max()), torch.finfo(got.dtype).tiny)
        _map(panels[2], problem.view, got - true, "difference", "RdBu_r", (-worst, worst))
        panels[0].set_ylabel(problem.view.axes[1])
    figure.suptitle(title)
    figure.savefig(path, dpi=DPI)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _map(axes: Axes, view: View, values: Tensor, title: str, colours: str, limits: tuple[float, float]) -> None:
    image = axes.imshow(
        values.numpy(), origin="lower", extent=view.extent, aspect="auto", cmap=colours, vmin=limits[0], vmax=limits[1]
    )
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes)
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(view.axes[0])


def _scatter(axes: Axes, got: Tensor, true: Tensor) -> None:
    axes.plot(true.numpy(), got.numpy(), "o", markersize=4, alpha=0.6, color=next(iter(COLOURS.values())))
    ends = [float(true.min()), float(true.max())]
    axes.plot(ends, ends, color="0.6", linewidth=1)
    axes.set_xlabel("true value")
    axes.set_ylabel("network")
    axes.grid(alpha=0.3)
