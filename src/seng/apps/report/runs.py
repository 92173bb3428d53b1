"""What a run's folder tells: its settings and its records, checked and typed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ..train.folder import RunFolder
from ..train.metrics import CurvatureRecord, EndRecord, EpochRecord, Record, StartRecord, StepRecord, read_records
from .errors import ReportError

R = TypeVar("R")

OPTIMIZERS = {"seng": "SENG", "sgd": "SGD", "adamw": "AdamW", "muon": "Muon"}  # as people write them


@dataclass(frozen=True)
class Run:
    """One run as read from its folder.

    Attributes:
        path: the folder, absolute.
        name: the folder's name, with as many parents as tell it from the other runs.
        settings: every setting by its path, as ``optimizer.lr``.
        records: everything it measured, in order.
    """

    path: Path
    name: str
    settings: dict[str, Any]
    records: tuple[Record, ...]

    @cached_property
    def steps(self) -> tuple[StepRecord, ...]:
        """The logged steps."""
        return self._of(StepRecord)

    @cached_property
    def epochs(self) -> tuple[EpochRecord, ...]:
        """The finished epochs."""
        return self._of(EpochRecord)

    @cached_property
    def curvature(self) -> tuple[CurvatureRecord, ...]:
        """The states of the curvature; none without SENG."""
        return self._of(CurvatureRecord)

    @cached_property
    def starts(self) -> tuple[StartRecord, ...]:
        """The processes that took the run up."""
        return self._of(StartRecord)

    @property
    def status(self) -> str:
        """How far the run is, and why it ended."""
        epochs = f"{len(self.epochs)} of {self.settings.get('epochs', '?')} epochs"
        ends = self._of(EndRecord)
        if ends and ends[-1].reason != "epochs":
            return f"{epochs}, ended by {ends[-1].reason}"
        return epochs if ends or len(self.epochs) == self.settings.get("epochs") else f"{epochs}, not finished"

    @property
    def optimizer(self) -> str:
        """The optimizer's name as people write it, with the base that SENG stands in front of."""
        name, base = (str(self.settings.get(key, "")) for key in ("optimizer.name", "optimizer.seng.base"))
        label = OPTIMIZERS.get(name, name)
        return f"{label} + {OPTIMIZERS.get(base, base)}" if base not in ("", "sgd", "None") else label

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return str(self.settings.get("recipe", ""))

    @property
    def last(self) -> StepRecord | EpochRecord:
        """The record of the latest step."""
        return max((*self.steps[-1:], *self.epochs[-1:]), key=lambda record: record.step)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that any record of the curvature names, in the order of the model."""
        return tuple(dict.fromkeys(layer for record in self.curvature for layer in record.layers))

    def _of(self, kind: type[R]) -> tuple[R, ...]:
        return tuple(record for record in self.records if isinstance(record, kind))


def read_runs(folders: Sequence[Path]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """Read runs and say what is remarkable about their choice.

    Args:
        folders: folders that ``seng train`` wrote, at least one; one that is given again is read once.

    Returns:
        The runs in the order given, and notes for the reader in whole sentences.

    Raises:
        ReportError: a folder holds no run, no records yet, or a file that cannot be read; the file is named.
    """
    times = Counter(folder.resolve() for folder in folders)
    names = short_names(list(times))
    runs = tuple(read_run(path, name) for path, name in zip(times, names, strict=True))
    notes = [f"{run.name} was given {times[run.path]} times and is shown once." for run in runs if times[run.path] > 1]
    recipes = list(dict.fromkeys(run.recipe for run in runs))
    if len(recipes) > 1:
        notes.append(f"The runs are of different recipes ({', '.join(recipes)}): their losses do not compare.")
    return runs, tuple(notes)


def read_run(path: Path, name: str) -> Run:
    """Read one run.

    Raises:
        ReportError: as ``read_runs``.
    """
    folder = RunFolder(path)
    settings = _read_settings(folder.config)
    run = Run(path, name, settings, tuple(_read_records(folder.metrics)))
    if not run.steps and not run.epochs:
        problem, fix = f"{folder.metrics} has no records yet", "Wait for the run's first logged step, or leave it out"
        raise ReportError("seng report", problem, expected="a logged step or an epoch", got=len(run.records), fix=fix)
    return run


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return each folder's name with as many of its parents as tell it from the others."""
    names = []
    for path in paths:
        others = [other for other in paths if other != path]
        lengths = range(1, len(path.parts) + 1)
        length = next((k for k in lengths if all(o.parts[-k:] != path.parts[-k:] for o in others)), len(path.parts))
        names.append("/".join(path.parts[-length:]))
    return names


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as ``{path: value}``, in order."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _read_settings(path: Path) -> dict[str, Any]:
    """Read the settings as they stand, so that runs of other versions can be shown too."""
    fix = "Give the --out folder of a `seng train`"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ReportError("seng report", "this is no run", expected=str(path), got=None, fix=fix) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(values, Mapping) or not isinstance(values.get("optimizer"), Mapping):
        raise ReportError("seng report", f"{path} holds no settings of a run", expected="a run", got=values, fix=fix)
    return flatten(values)


def _read_records(path: Path) -> list[Record]:
    try:
        return read_records(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, got: str) -> ReportError:
    fix = "Mend or remove the line, or leave the run out" if got.startswith("line") else "Leave the run out"
    return ReportError("seng report", f"{path} is damaged", expected="what `seng train` wrote", got=got, fix=fix)
