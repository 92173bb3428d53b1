"""The progress bar of a run, and a line for each epoch."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .metrics import EpochRecord, Record, StepRecord


class ProgressBar:
    """Shows epoch, loss, accuracy, speed, share of refreshes and time left; a context manager and a ``Watcher``.

    Args:
        epochs: epochs of the run.
        samples: training samples in an epoch.
        console: where to draw.
    """

    def __init__(self, epochs: int, samples: int, console: Console) -> None:
        self._epochs = epochs
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            refresh_per_second=2,  # a drawing takes one or two milliseconds
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=epochs * samples, numbers="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advanced(self, samples: int) -> None:
        """Move the bar on."""
        self._progress.advance(self._task, samples)

    def logged(self, record: Record) -> None:
        """Show a step's numbers in the bar, and print an epoch's on a line of its own."""
        if isinstance(record, EpochRecord):
            losses = f"loss {record.train_loss:.4f}  test loss {record.test_loss:.4f}"
            accuracy = _percent("test accuracy", record.test_accuracy, 2)
            line = f"{self._epoch(record)}  {losses}{accuracy}  {_speed(record)}"
            self._progress.console.print(line, highlight=False, soft_wrap=True)
        elif isinstance(record, StepRecord):
            loss, accuracy = f"loss {record.loss:.4f}", _percent("accuracy", record.accuracy, 1)
            refresh = _percent("refresh", refresh_share(record), 0)
            numbers = f"{loss}{accuracy}  {_speed(record)}{refresh}"
            self._progress.update(self._task, description=self._epoch(record), numbers=numbers)

    def _epoch(self, record: StepRecord | EpochRecord) -> str:
        return f"epoch {record.epoch:>{len(str(self._epochs))}}/{self._epochs}"


def refresh_share(record: StepRecord) -> float | None:
    """Return the share of a step's time that goes into refreshing curvature; None where there is none."""
    if "refresh" not in record.parts:
        return None
    return record.parts["refresh"] / sum(seconds for part, seconds in record.parts.items() if part != "refresh")


def _percent(name: str, share: float | None, digits: int) -> str:
    return "" if share is None else f"  {name} {share:.{digits}%}"


def _speed(record: StepRecord | EpochRecord) -> str:
    return f"{record.samples_per_second:,.0f} samples/s"
