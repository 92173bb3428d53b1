"""What the lines of a file come to: for each workload and budget, each optimizer beside the best first-order one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .statistics import median, ratio_interval

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """An optimizer at one workload and budget.

    Args:
        optimizer: Its name.
        values: The tuned settings of its runs.
        tuning: How many tuning trials there are.
        lost: How many of them diverged or failed.
        losses: Last losses of the runs, by seed; infinite where one diverged or failed.
        seeds: Their seeds.
        accuracy: Median share of right answers, where there are classes.
        first_order: Whether the target may be its result.
        milliseconds: Median CPU time of a step.
        ratio: Its median loss over that of the best first-order method; None where there is no such number.
        interval: Of the ratio.
        reached: How many runs reach the target.
        to_target: Median steps, epochs and seconds to the target; infinite where less than half of the runs reach it.
        errors: Why trials failed.
    """

    optimizer: str
    values: Mapping[str, float]
    tuning: int
    lost: int
    losses: tuple[float, ...]
    seeds: tuple[int, ...]
    accuracy: float | None
    first_order: bool
    milliseconds: float
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    reached: int = 0
    to_target: tuple[float, float, float] = (math.inf, math.inf, math.inf)
    errors: tuple[str, ...] = ()

    @property
    def loss(self) -> float:
        """The median loss; infinite where there is none."""
        return median(self.losses) if self.losses else math.inf


@dataclass(frozen=True)
class Cell:
    """A workload at one budget.

    Args:
        workload: Its name.
        budget: Kind of the budget.
        amount: Steps or CPU seconds.
        target: The loss to reach, or the accuracy; None where no first-order method has one.
        of_accuracy: Whether it is an accuracy.
        rows: The optimizers, the best loss first.
    """

    workload: str
    budget: str
    amount: float
    target: float | None
    of_accuracy: bool
    rows: tuple[Row, ...]


def summarise(lines: Iterable[Line]) -> list[Cell]:
    """Return the cells in the order in which they were begun; equal seconds before equal steps.

    Args:
        lines: Of one protocol.
    """
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["workload"], line["budget"]), []).append(line)
    order = {workload: place for place, (workload, _) in enumerate(groups)}
    keys = sorted(groups, key=lambda key: (key[1] != "seconds", order[key[0]]))
    return [_cell(*key, groups[key]) for key in keys]


def _cell(workload: str, budget: str, lines: list[Line]) -> Cell:
    by_name: dict[str, list[Line]] = {}
    for line in lines:
        by_name.setdefault(line["optimizer"], []).append(line)
    rows = [_row(name, own) for name, own in by_name.items()]
    best = min((row for row in rows if row.first_order), key=lambda row: row.loss, default=None)
    wanted = lines[-1]["target_accuracy"]
    target = wanted if wanted is not None else best.loss if best and math.isfinite(best.loss) else None
    compared = [_beside(row, by_name[row.optimizer], best, target, wanted is not None) for row in rows]
    ordered = tuple(sorted(compared, key=lambda row: row.loss))
    return Cell(workload, budget, lines[-1]["amount"], target, wanted is not None, ordered)


def _row(name: str, lines: list[Line]) -> Row:
    tuning = [line for line in lines if line["stage"] == "tuning"]
    runs = sorted((line for line in lines if line["stage"] == "evaluation"), key=lambda line: line["seed"])
    right = [line["accuracy"] for line in runs if line["accuracy"] is not None]
    times = [1000 * line["seconds"] / line["steps"] for line in (*runs, *tuning) if line["steps"]]
    return Row(
        name, runs[0]["values"] if runs else {}, len(tuning), sum(line["ended"] != "budget" for line in tuning),
        tuple(line["loss"] if line["ended"] == "budget" else math.inf for line in runs),
        tuple(line["seed"] for line in runs), median(right) if right else None, lines[-1]["first_order"],
        median(times) if times else math.nan,
        errors=tuple(dict.fromkeys(line["error"] for line in lines if line["ended"] == "failed")),
    )  # fmt: skip


def _beside(row: Row, lines: list[Line], best: Row | None, target: float | None, of_accuracy: bool) -> Row:
    """Return a row with what compares it with the best first-order one."""
    if target is not None:
        runs = [line for line in lines if line["stage"] == "evaluation"]
        times = [_time_to(line, target, of_accuracy) for line in runs]
        reached = [time for time in times if time is not None]
        every = [*reached, *[(math.inf,) * 3] * (len(times) - len(reached))]
        middle = tuple(median(part) for part in zip(*every, strict=True)) if every else row.to_target
        row = replace(row, reached=len(reached), to_target=middle)
    if best is None or not best.losses or not row.losses or not all(map(math.isfinite, (*row.losses, *best.losses))):
        return row
    interval = ratio_interval(row.losses, best.losses, paired=row.seeds == best.seeds)
    return replace(row, ratio=row.loss / best.loss, interval=interval)


def _time_to(line: Line, target: float, of_accuracy: bool) -> tuple[float, float, float] | None:
    """Return the steps, epochs and seconds to the first evaluation at the target; None where a run misses it."""
    for steps, seconds, loss, accuracy in line["curve"]:
        value = accuracy if of_accuracy else loss
        if value is not None and (value >= target if of_accuracy else value <= target):
            return steps, steps / line["steps_per_epoch"], seconds
    return None
