"""A run's folder: what lies where, and who may write into it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...files import write_atomically
from .config import RunConfig
from .errors import CheckpointError
from .settings import from_dict, to_dict

try:
    import fcntl
except ImportError:  # pragma: no cover, a system without locks of this kind
    fcntl = None

PATIENCE = 2.0  # seconds; processes that prepared batches outlive a killed run for a moment


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings, as JSON; its presence makes the folder a run's."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """The records, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of states, ``step-00000123.pt`` after 123 steps."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's files, where asked for."""
        return self.path / "tensorboard"

    @property
    def curves(self) -> Path:
        """The picture of loss and accuracy."""
        return self.path / "curves.png"

    def files(self) -> list[Path]:
        """Return the files of a run that are there."""
        single = [path for path in (self.config, self.metrics, self.curves) if path.exists()]
        saved = [*self.checkpoints.glob("step-*.pt"), *self.checkpoints.glob(".step-*.partial")]
        return [*single, *saved, *self.tensorboard.glob("events.out.tfevents.*")]


def create_run(path: Path, config: RunConfig, *, overwrite: bool = False) -> RunFolder:
    """Make the folder of a new run and write its settings there, unless another process trains in it.

    Args:
        path: the folder; made where absent, with its parents.
        config: the run's settings.
        overwrite: remove the files of a run that is already there (and no others).

    Raises:
        CheckpointError: the folder holds a run, or cannot be made.
    """
    folder = RunFolder(path)
    try:
        if not overwrite and folder.files():
            raise CheckpointError(
                "seng train",
                "the folder already holds a run",
                expected="a new folder",
                got=str(path),
                fix="Continue it with --resume, replace it with --overwrite, or choose another --out",
            )
        path.mkdir(parents=True, exist_ok=True)
        with locked(path):
            for file in folder.files():
                file.unlink(missing_ok=True)
            text = json.dumps(to_dict(config), indent=2) + "\n"
            write_atomically(folder.config, lambda file: file.write(text.encode()))
    except OSError as error:
        problem, expected = "the folder cannot be written", "a folder to write into"
        fix = "Choose another --out"
        raise CheckpointError("seng train", problem, expected=expected, got=str(error), fix=fix) from error
    return folder


_locked: set[Path] = set()  # by this process


@contextmanager
def locked(path: Path, call: str = "seng train") -> Iterator[None]:
    """Keep other processes from training in a folder; the system forgets a lock when its process ends.

    Raises:
        CheckpointError: another process trains there, or there is no folder.
    """
    place = path.resolve()
    if fcntl is None or place in _locked:
        yield
        return
    try:
        handle = os.open(place, os.O_RDONLY)
    except OSError as error:
        problem, fix = "the folder cannot be opened", "Choose another --out"
        raise CheckpointError(call, problem, expected="a folder", got=str(error), fix=fix) from error
    try:
        _lock(handle, path, call)
        _locked.add(place)
        yield
    finally:
        _locked.discard(place)
        os.close(handle)


def _lock(handle: int, path: Path, call: str) -> None:
    assert fcntl is not None
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                problem, fix = "another process trains in the folder", "Stop it, or choose another --out"
                raise CheckpointError(
                    call, problem, expected="a folder of one run at a time", got=str(path), fix=fix
                ) from None
        except OSError:  # a file system without locks
            return None
        time.sleep(PATIENCE / 20)


def open_run(path: Path) -> tuple[RunFolder, RunConfig]:
    """Return the folder of a run that was begun, and its settings.

    Raises:
        CheckpointError: there is no run, or its settings cannot be read.
    """
    folder = RunFolder(path)
    try:
        return folder, from_dict(json.loads(folder.config.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        fix = "Start it without --resume"
        raise CheckpointError(
            "seng train", "there is no run to resume", expected=str(folder.config), got=None, fix=fix
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        problem = f"{folder.config} cannot be read"
        fix = "Start a new run"
        raise CheckpointError("seng train", problem, expected="a run's settings", got=str(error), fix=fix) from error
