"""The progress bar of a run, and a line for each epoch."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .metrics import EpochRecord, Record, StepRecord


class ProgressBar:
    """Shows epoch, loss, accuracy, speed and time left; a context manager and a ``Watcher``.

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
            refresh_per_second=4,
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
        if not isinstance(record, StepRecord | EpochRecord):
            return
        speed = f"{record.samples_per_second:,.0f} samples/s"
        epoch = f"epoch {record.epoch:>{len(str(self._epochs))}}/{self._epochs}"
        if isinstance(record, EpochRecord):
            losses = f"loss {record.train_loss:.4f}  test loss {record.test_loss:.4f}"
            accuracy = f"test accuracy {record.test_accuracy:.2%}"
            line = f"{epoch}  {losses}  {accuracy}  {speed}"
            self._progress.console.print(line, highlight=False, soft_wrap=True)
        else:
            numbers = f"loss {record.loss:.4f}  accuracy {record.accuracy:.1%}  {speed}"
            self._progress.update(self._task, description=epoch, numbers=numbers)
