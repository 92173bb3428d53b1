"""The numbers of a run that people compare: last, best, and the time to a target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..train.errors import ConfigError
from ..train.metrics import EpochRecord
from ..train.target import Target
from .errors import ReportError
from .runs import Run

METRICS = {
    "test_accuracy": "test accuracy",
    "test_accuracy5": "test accuracy in five guesses",
    "test_loss": "test loss",
    "train_accuracy": "training accuracy",
    "train_loss": "training loss",
}  # fields of an EpochRecord, in plain words


@dataclass(frozen=True)
class Summary:
    """The numbers of one run; None where it has none.

    Attributes:
        name: the run's name; ``optimizer``, ``recipe`` and ``status`` likewise.
        steps: steps done, which took ``seconds`` of training.
        samples_per_second: speed over the last epoch, or over the one that is going on.
        last: the last finished epoch.
        best: by metric, the epoch with the best value (the first of equals).
        targets: for each target the first epoch that reached it.
        parts: seconds a step, by part; see ``step_parts``.
    """

    name: str
    optimizer: str
    recipe: str
    status: str
    steps: int
    seconds: float
    samples_per_second: float
    last: EpochRecord | None
    best: dict[str, EpochRecord]
    targets: tuple[EpochRecord | None, ...]
    parts: dict[str, float]
    counters: dict[str, int]


def summarize(run: Run, targets: Sequence[Target]) -> Summary:
    """Return the numbers of a run."""
    return Summary(
        name=run.name,
        optimizer=run.optimizer,
        recipe=run.recipe,
        status=run.status,
        steps=run.last.step,
        seconds=run.last.seconds,
        samples_per_second=run.last.samples_per_second,
        last=run.epochs[-1] if run.epochs else None,
        best={metric: epoch for metric in METRICS if (epoch := best_epoch(run, metric))},
        targets=tuple(next((epoch for epoch in run.epochs if target.reached(epoch)), None) for target in targets),
        parts=step_parts(run),
        counters=dict(run.curvature[-1].counters) if run.curvature else {},
    )


def best_epoch(run: Run, metric: str) -> EpochRecord | None:
    """Return the first epoch with the best value of a metric; None where no epoch has one."""
    epochs = [epoch for epoch in run.epochs if getattr(epoch, metric) is not None]
    sign = 1 if metric.endswith("loss") else -1
    return min(epochs, key=lambda epoch: sign * getattr(epoch, metric), default=None)


def parse_target(text: str) -> Target:
    """Read a target as ``test_accuracy=0.97``.

    Raises:
        ReportError: no such metric, or no number.
    """
    try:
        return Target.parse(text)
    except ConfigError as error:
        raise ReportError(
            "seng report", "the target is out of range", expected=error.expected, got=text, fix=error.fix
        ) from error


def choose_targets(runs: Sequence[Run], asked: Iterable[Target] = ()) -> tuple[Target, ...]:
    """Return the targets asked for, those that should end a run, and of several runs the best values that all reach."""
    until = [parse_target(text) for run in runs if (text := run.settings.get("until"))]
    common = []
    for metric in ("test_accuracy", "test_loss") if len(runs) > 1 else ():
        bests = [getattr(epoch, metric) for run in runs if (epoch := best_epoch(run, metric))]
        if len(bests) == len(runs):
            common.append(Target(metric, min(bests) if "accuracy" in metric else max(bests)))
    return tuple(dict.fromkeys((*asked, *until, *common)))


def step_parts(run: Run) -> dict[str, float]:
    """Return the seconds of a mean step by part; "optimizer" is without "refresh", so that the parts add up."""
    sums: dict[str, float] = {}
    before, total = 0, 0
    for record in run.steps:
        if record.parts:
            total += record.step - before
            for part, seconds in record.parts.items():
                sums[part] = sums.get(part, 0.0) + seconds * (record.step - before)
        before = record.step
    means = {part: value / total for part, value in sums.items() if total > 0}  # in order, unless a file was changed
    if "refresh" in means and "optimizer" in means:
        means["optimizer"] = max(0.0, means["optimizer"] - means["refresh"])
    return means


def as_plain(summary: Summary, targets: Sequence[Target]) -> dict[str, Any]:
    """Return a summary as plain values for JSON."""
    reached = zip(targets, summary.targets, strict=True)
    return {
        "name": summary.name,
        "optimizer": summary.optimizer,
        "recipe": summary.recipe,
        "status": summary.status,
        "steps": summary.steps,
        "seconds": summary.seconds,
        "samples_per_second": summary.samples_per_second,
        "last": {metric: getattr(summary.last, metric) for metric in METRICS} if summary.last else None,
        "best": {
            metric: {"value": getattr(epoch, metric), "epoch": epoch.epoch, "step": epoch.step}
            for metric, epoch in summary.best.items()
        },
        "targets": [
            {
                "metric": target.metric,
                "value": target.value,
                "step": epoch.step if epoch else None,
                "seconds": epoch.seconds if epoch else None,
            }
            for target, epoch in reached
        ],
        "seconds_per_step": summary.parts,
        "counters": summary.counters,
    }
