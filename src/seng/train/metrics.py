"""What a run measures, and its file: one JSON object a line, a line a logged step and a line an epoch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from .files import write_atomically


@dataclass(frozen=True)
class StepRecord:
    """One training step.

    Attributes:
        epoch: Epochs begun, from 1.
        step: Steps done, from 1.
        loss: Mean loss of this step's batch.
        accuracy: Share of the epoch's training samples so far that were classified rightly.
        lr: Learning rate of this step.
        seconds: Training time so far, without evaluation.
        images_per_second: Speed over the epoch so far.
    """

    epoch: int
    step: int
    loss: float
    accuracy: float
    lr: float
    seconds: float
    images_per_second: float
    kind: Literal["step"] = "step"


@dataclass(frozen=True)
class EpochRecord:
    """One epoch with its evaluation; times as in ``StepRecord``."""

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    images_per_second: float
    kind: Literal["epoch"] = "epoch"


Record = StepRecord | EpochRecord


class Watcher(Protocol):
    """Something that follows a run: a file, a progress bar."""

    def advanced(self, samples: int) -> None:
        """Take notice that so many more samples were trained on."""
        ...

    def logged(self, record: Record) -> None:
        """Take notice of a record."""
        ...


class MetricsFile:
    """Appends each record to a file as it is made."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def advanced(self, samples: int) -> None:
        """Do nothing: only records are written."""

    def logged(self, record: Record) -> None:
        """Append the record as one line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n")


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a metrics file's records; a last line that a killed run left incomplete is passed over."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def trim_metrics(path: Path, step: int) -> None:
    """Drop the records after a step, which a resumed run is going to write again."""
    kept = [record for record in read_metrics(path) if record["step"] <= step] if path.exists() else []
    text = "".join(json.dumps(record) + "\n" for record in kept)
    write_atomically(path, lambda file: file.write(text.encode()))
