"""What a run measures, and its file: one JSON object a line and record."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, Union, get_args, get_origin, get_type_hints

from ...errors import shown
from .errors import CheckpointError, DivergedError

LONGEST_LINE = 2**26  # bytes; a record of the curvature has about 1,500 a layer
STATE: dict[str, Any] = {
    "trace": float,
    "effective_dimension": float,
    "top_eigenvalues": list[float],
    "damping": float,
    "refresh_age": int,
    "cosine": float | None,
    "samples": int,
    "nbytes": int,
}  # numbers of a layer in a record, by name, with their types


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

    Raises:
        CheckpointError: the file cannot be written.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self._path = path
        try:
            with path.open("ab+") as file:
                kept = min(keep, file.tell())
                file.seek(max(0, kept - LONGEST_LINE))
                last = file.read(min(kept, LONGEST_LINE))
                file.truncate(kept - len(last) + last.rfind(b"\n") + 1)  # a record begins a line
        except OSError as error:
            raise self._unwritten(error) from error

    def advanced(self, samples: int) -> None:
        """Do nothing: only records are written."""

    def logged(self, record: Record) -> None:
        """Append the record as one line.

        Raises:
            DivergedError: a number of it is not finite.
            CheckpointError: the file cannot be written.
        """
        try:
            line = json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n"
        except ValueError as error:
            problem, fix = f"the record of step {record.step} is not finite", "Lower --lr or raise --damping"
            raise DivergedError("seng train", problem, expected="finite numbers", got=str(error), fix=fix) from error
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise self._unwritten(error) from error

    def sync(self) -> int:
        """Bring the file to the disk and return its length in bytes."""
        try:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
                return file.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> CheckpointError:
        problem, fix = (
            f"{self._path} cannot be written",
            "Make room or correct permissions; the last checkpoint is kept",
        )
        return CheckpointError("seng train", problem, expected="a file to append to", got=str(error), fix=fix)


def read_records(path: Path, damaged: Callable[[str], object] | None = None) -> list[Record]:
    """Return a metrics file's records, each field of its type; a last line that is incomplete is passed over.

    Args:
        path: the file; without one there are no records.
        damaged: told of each line that is no record, which is passed over; None: the first one is an error.

    Raises:
        ValueError: a line is no record; its number is given.
        OSError: the file cannot be read.
    """
    found: list[Record] = []
    lines = enumerate(_lines(path), 1) if path.exists() else ()
    for number, line in lines:
        try:
            found.append(_record(_parsed(line)))
        except ValueError as error:
            if damaged is None:
                raise ValueError(f"line {number}: {error}") from error
            damaged(f"line {number}: {error}")
    return found


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines that are whole; of one that is too long, its beginning."""
    if not path.is_file():
        raise OSError(f"{path} is no file")
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE):
            if line.endswith(b"\n") or len(line) == LONGEST_LINE:
                yield line
            while not line.endswith(b"\n") and line:
                line = file.readline(LONGEST_LINE)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("containers in containers without end") from None
    if not isinstance(found, dict):
        raise ValueError(f"{shown(found, 40)} is no record")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _record(values: dict[str, Any]) -> Record:
    kind = _kinds().get(values.get("kind", "")) if isinstance(values.get("kind"), str) else None
    if kind is None:
        raise ValueError(f"no kind of record: {shown(values.get('kind'), 40)}")
    hints = get_type_hints(kind)
    needed = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
    if wrong := sorted(needed - values.keys()) or sorted(values.keys() - hints.keys()):
        raise ValueError(f"{kind.__name__} has other fields: {shown(wrong, 80)}")
    for name, value in values.items():
        if not _fits(hints[name], value):
            raise ValueError(f"bad value for {name}: {shown(value, 40)}")
    if kind is CurvatureRecord and not _whole_states(values):
        raise ValueError("a layer lacks numbers of its state")
    return kind(**values)


@cache
def _kinds() -> dict[str, type[Record]]:
    return {kind.kind: kind for kind in get_args(Record)}


def _whole_states(values: dict[str, Any]) -> bool:
    states = values["layers"]
    whole = all(name in state and _fits(hint, state[name]) for state in states.values() for name, hint in STATE.items())
    return whole and values.get("spectra", {}).keys() <= states.keys()


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value from JSON is of a type; numbers have to be finite, and whole ones to fit into 64 bits."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(kind, value) for kind in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is dict:
        return isinstance(value, dict) and all(_fits(inner[1], item) for item in value.values())
    if origin is list:
        return isinstance(value, list) and all(_fits(inner[0], item) for item in value)
    if hint is int or type(value) is int:
        return hint in (int, float, Any) and type(value) is int and abs(value) < 2**63
    if hint is float:
        return type(value) is float and math.isfinite(value)
    return hint is Any or isinstance(value, hint)
