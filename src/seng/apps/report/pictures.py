"""The panels as PNGs, for places where a page cannot go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, log10
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from . import words
from .content import Content
from .palette import LIGHT, along
from .panels import Line, Panel, shown_layers
from .runs import Run

Draw = Callable[[Axes], None]

WIDTH, HEIGHT = 3.5, 2.7  # inches of a panel: three side by side are read at the width of a README
DPI = 180
LONGEST = 28  # letters of a name in a picture
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": LIGHT.rule,
    "axes.labelcolor": LIGHT.faint,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT.rule,
    "text.color": LIGHT.ink,
    "xtick.color": LIGHT.faint,
    "ytick.color": LIGHT.faint,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Picture:
    """One PNG: panels in rows, under a title, or under a legend of the runs where it has none."""

    name: str
    draws: tuple[Draw, ...]
    columns: int
    title: str | None = None


def draw_pictures(content: Content, page: Path) -> list[Path]:
    """Draw the pictures of a report beside its page.

    Args:
        content: what the report says.
        page: the page's file, whose name the pictures' names begin with.

    Returns:
        The pictures: an overview, the curves, the time of a step, and the curvature of each run with SENG; only
        those that have something to show.
    """
    paths = []
    with rc_context(STYLE):
        for picture in list_pictures(content):
            paths.append(page.with_name(f"{page.stem}-{picture.name}.png"))
            draw_figure(picture, content.runs).savefig(paths[-1])
    return paths


def list_pictures(content: Content) -> list[Picture]:
    """Return the pictures that have something to show, before they are drawn."""
    curves = tuple(partial(draw_panel, panel=panel, content=content) for panel in content.curves)
    times = (partial(draw_parts, content=content),) if any(summary.parts for summary in content.summaries) else ()
    states = {
        number: tuple(partial(draw_panel, panel=panel, content=content, run=number) for panel in content.states)
        for number, run in enumerate(content.runs)
        if run.layers
    }
    first = tuple(_named(content, number) for number in list(states)[:1])
    by_axis = curves[::2] + first + curves[1::2] + times  # steps above time
    overview = by_axis if len(by_axis) > 4 else curves + first + times
    pictures = [
        Picture("overview", overview, 3 if len(overview) > 4 else 2),
        Picture("curves", curves, 2),
        Picture("time", times, 1),
        *(
            Picture(_numbered("curvature", k, len(states)), draws, 3, f"Curvature of {label(content.runs[number])}")
            for k, (number, draws) in enumerate(states.items(), 1)
        ),
    ]
    return [picture for picture in pictures if picture.draws]


def _named(content: Content, run: int) -> Draw:
    """Return the first of a run's panels of the curvature, under a title that names the run."""
    panel = replace(content.states[0], title=literal(f"{content.states[0].title}, {content.runs[run].name}"))
    return partial(draw_panel, panel=panel, content=content, run=run)


def _numbered(name: str, number: int, count: int) -> str:
    return name if count == 1 else f"{name}-{number}"


def label(run: Run) -> str:
    """Return a run's name and optimizer, the name's beginning left out where it is long."""
    name = run.name if len(run.name) <= LONGEST else f"…{run.name[1 - LONGEST :]}"
    return literal(f"{name} ({run.optimizer})")


def literal(text: str) -> str:
    """Return a text in which dollars do not begin mathematics."""
    return text.replace("$", r"\$")


def draw_panel(axes: Axes, panel: Panel, content: Content, run: int | None = None) -> None:
    """Draw one panel; of layers, those of one run, coloured by depth."""
    for line in panel.lines:
        layers = content.runs[line.run].layers
        if line.layer is None:
            _draw_run(axes, line)
        elif line.run == run and line.layer in shown_layers(layers):
            depth = layers.index(line.layer) / max(1, len(layers) - 1)
            marker = "." if len(line.x) == 1 else ""
            name = literal(f"layer {line.layer}") if depth in (0, 1) else None
            axes.plot(line.x, line.y, color=along(LIGHT.depth, depth), linewidth=1.3, marker=marker, label=name)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7.5, handlelength=1)  # the first layer and the last; the others lie between
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log", nonpositive="mask")
        if _decades(panel) < 2:
            subs = (1, 2, 5) if _decades(panel) > 0.8 else range(1, 10)
            axes.yaxis.set_major_locator(LogLocator(subs=subs))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if panel.span is not None:
        axes.set_ylim(panel.span)


def _decades(panel: Panel) -> float:
    """Return how many powers of ten the vertical axis covers."""
    values = panel.span or [y for line in panel.lines for y in line.y if y > 0]
    return log10(max(values) / min(values)) if values else 0.0


def draw_parts(axes: Axes, content: Content) -> None:
    """Draw the time of a mean step, part by part, a bar a run."""
    numbers = [number for number, summary in enumerate(content.summaries) if summary.parts]
    left = [0.0] * len(numbers)
    for colour, (part, name) in zip(LIGHT.parts, words.PARTS.items(), strict=True):
        widths = [1000 * content.summaries[number].parts.get(part, 0.0) for number in numbers]
        axes.barh(range(len(numbers)), widths, 0.5, left=left, color=colour, label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, number in enumerate(numbers):
        axes.text(
            0, row - 0.32, label(content.runs[number]), verticalalignment="bottom", fontsize=min(9, 40 / len(numbers))
        )
    axes.set_yticks([])
    axes.set_ylim(1.3 * len(numbers), -0.8)  # below the bars is room for the legend
    axes.grid(axis="y", visible=False)
    axes.set_title("Time of a mean step")
    axes.set_xlabel("milliseconds")
    axes.legend(loc="lower left", ncols=2, fontsize=7.5, handlelength=1, borderaxespad=0, columnspacing=1)


def _draw_run(axes: Axes, line: Line) -> None:
    faint = line.role == "training"
    axes.plot(
        line.x,
        line.y,
        color=_colour(line.run),
        linestyle=_dashes(line.run),
        linewidth=0.8 if faint else 1.7,
        alpha=0.38 if faint else 1.0,
        marker="o" if len(line.x) <= (1 if faint else 30) else "",
        markersize=2.5,
        zorder=2 if faint else 3,
    )


def draw_figure(picture: Picture, runs: Sequence[Run]) -> Figure:
    """Draw one picture; the figure is not saved yet."""
    columns = min(picture.columns, len(picture.draws))
    rows = ceil(len(picture.draws) / columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows + 0.35), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, draw in zip(grid, picture.draws, strict=False):
        draw(axes)
    for axes in grid[len(picture.draws) :]:
        axes.set_axis_off()
    if picture.title is None:
        figure.legend(handles=_handles(runs), loc="outside upper left", ncols=min(len(runs), 2 * columns))
    else:
        figure.suptitle(picture.title, fontsize=10.5)
    return figure


def _handles(runs: Sequence[Run]) -> list[Line2D]:
    return [
        Line2D([], [], color=_colour(number), linestyle=_dashes(number), linewidth=2, label=label(run))
        for number, run in enumerate(runs)
    ]


def _colour(number: int) -> str:
    return LIGHT.runs[number % len(LIGHT.runs)]


def _dashes(number: int) -> Literal["-", "--"]:
    return "-" if number < len(LIGHT.runs) else "--"
