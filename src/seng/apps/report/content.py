"""Everything a report says, gathered from the runs before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .panels import Panel, curve_panels, rate_panel, state_panels
from .runs import Run, read_runs
from .summary import Summary, Target, choose_targets, summarize


@dataclass(frozen=True)
class Content:
    """What page and pictures show.

    Attributes:
        runs: in the order given, which decides their colours.
        notes: what is remarkable about their choice, in whole sentences.
        targets: values whose times are compared.
        summaries: one a run.
        curves: loss and accuracy.
        rate: the learning rate.
        states: of the layers' curvature; empty without SENG.
    """

    runs: tuple[Run, ...]
    notes: tuple[str, ...]
    targets: tuple[Target, ...]
    summaries: tuple[Summary, ...]
    curves: tuple[Panel, ...]
    rate: Panel
    states: tuple[Panel, ...]

    @property
    def title(self) -> str:
        """The recipes that were trained."""
        return ", ".join(dict.fromkeys(run.recipe for run in self.runs))


def gather(folders: Sequence[Path], targets: Iterable[Target] = ()) -> Content:
    """Read runs and work out what a report says about them.

    Args:
        folders: folders that ``seng train`` wrote.
        targets: values whose times to compare, beside those found in the runs.

    Raises:
        ReportError: as ``runs.read_runs``.
    """
    runs, notes = read_runs(folders)
    chosen = choose_targets(runs, targets)
    return Content(
        runs=runs,
        notes=notes,
        targets=chosen,
        summaries=tuple(summarize(run, chosen) for run in runs),
        curves=tuple(curve_panels(runs)),
        rate=rate_panel(runs),
        states=tuple(state_panels(runs)),
    )
