"""What a run measures, and its file: one JSON object a line and record."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class StepRecord:
    """One training step.

    Attributes:
        epoch: Epochs begun, from 1.
        step: Steps done, from 1.
        loss: Mean loss of this step's batch.
        accuracy: Share of the epoch's training samples so far that were classified rightly; None without classes.
        lr: Learning rate of this step.
        seconds: Training time so far, without evaluation.
        samples_per_second: Speed over the epoch so far.
        parts: Seconds a step, mean since the record before, by part: "data", "forward", "backward", "optimizer" and,
            of the optimizer's, "refresh" (mean over all steps, refreshed or not).
    """

    epoch: int
    step: int
    loss: float
    accuracy: float | None
    lr: float
    seconds: float
    samples_per_second: float
    parts: dict[str, float] = field(default_factory=dict)
    kind: Literal["step"] = "step"


@dataclass(frozen=True)
class EpochRecord:
    """One epoch with its evaluation; times as in ``StepRecord``, accuracies None without classes.

    Attributes:
        test_accuracy5: Share of the test samples whose class is among the five likeliest; None below ten classes.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float | None
    test_loss: float
    test_accuracy: float | None
    seconds: float
    samples_per_second: float
    test_accuracy5: float | None = None
    kind: Literal["epoch"] = "epoch"


@dataclass(frozen=True)
class CurvatureRecord:
    """State of the curvature after a step.

    Attributes:
        layers: By block, the numbers of ``seng.diagnostics.LayerStats`` by name: trace, effective_dimension,
            top_eigenvalues, damping, refresh_age, cosine, samples, nbytes.
        spectra: By block, eigenvalues of F descending, thinned to at most 64 (the first and the last are kept);
            given at an epoch's last step, empty else.
        counters: The optimizer's counters: skipped steps, failed refreshes and others.
    """

    epoch: int
    step: int
    seconds: float
    layers: dict[str, dict[str, Any]]
    spectra: dict[str, list[float]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    kind: Literal["curvature"] = "curvature"


@dataclass(frozen=True)
class StartRecord:
    """A process took the run up, from its beginning or from a checkpoint; written after its first step.

    Attributes:
        startup: Seconds from the start of the process to the end of its first step.
        environment: What the numbers depend on: versions, where the data came from, device, threads, ranks.
    """

    epoch: int
    step: int
    seconds: float
    startup: float
    environment: dict[str, str | int]
    kind: Literal["start"] = "start"


@dataclass(frozen=True)
class EndRecord:
    """The run is over: nothing is left to do.

    Attributes:
        reason: "epochs" if all were done, else the target that was reached, as ``test_accuracy=0.97``.
    """

    epoch: int
    step: int
    seconds: float
    reason: str
    kind: Literal["end"] = "end"


Record = StartRecord | StepRecord | EpochRecord | CurvatureRecord | EndRecord


class Watcher(Protocol):
    """Something that follows a run: a file, a progress bar."""

    def advanced(self, samples: int) -> None:
        """Take notice that so many more samples were trained on."""
        ...

    def logged(self, record: Record) -> None:
        """Take notice of a record."""
        ...


class MetricsFile:
    """Appends each record to a file as it is made.

    Args:
        path: the file.
        keep: bytes of it to keep: what a resumed run wrote after its checkpoint is cut off, to be written again.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self._path = path
        with path.open("ab") as file:
            file.truncate(min(keep, file.tell()))

    def advanced(self, samples: int) -> None:
        """Do nothing: only records are written."""

    def logged(self, record: Record) -> None:
        """Append the record as one line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n")

    def sync(self) -> int:
        """Bring the file to the disk and return its length in bytes."""
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a metrics file's records; a last line that a killed run left incomplete is passed over."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
