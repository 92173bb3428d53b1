"""Checkpoints: all of a run's state in one file of tensors and plain values, written atomically.

Of the data only the position is kept: the order of an epoch follows from the seed and the epoch's number
(``data.epoch_batches``). With several processes each writes a file of its own, the first process last: its file makes
the checkpoint whole.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files import write_atomically
from ...optimizer import SENG
from ...pickles import load_tensors
from ...state import moved_state
from .errors import CheckpointError, DamagedError, DivergedError
from .ranks import Ranks
from .session import Session
from .settings import from_dict, to_dict

FORMAT = "seng-run"
VERSION = 2
MOST_VALUES, DEEPEST = 10**7, 50  # values and levels in a state
DAMAGES = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Position:
    """How far a run is.

    Attributes:
        step: steps done.
        epoch: epochs done, with their evaluation.
        seconds: training time, without evaluations and checkpoints.
        sums: the meter of the epoch that is under way (``Meter.sums``).
        metrics_bytes: length of the metrics file.
        ended: why nothing is left to do (``EndRecord.reason``); empty while something is.
    """

    step: int
    epoch: int
    seconds: float
    sums: tuple[float, ...]
    metrics_bytes: int
    ended: str


BEGINNING = Position(step=0, epoch=0, seconds=0.0, sums=(), metrics_bytes=0, ended="")


def checkpoint_path(folder: Path, step: int, rank: int = 0) -> Path:
    """Return the file of one process's state after a step."""
    return folder / (f"step-{step:08d}.rank{rank}.pt" if rank else f"step-{step:08d}.pt")


def checkpoints(folder: Path) -> list[Path]:
    """Return the first process's files in a folder, the newest first."""
    found = (path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", path.name))
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    found = re.match(r"step-(\d+)\.", path.name)
    return int(found[1]) if found else -1


def write_checkpoint(folder: Path, session: Session, position: Position) -> None:
    """Save all processes' state and remove all but the newest ``keep`` checkpoints. A collective call.

    Raises:
        DivergedError: a process's state is not finite: it would take the place of one that a run can go on from.
        CheckpointError: a file cannot be written; the checkpoints before are kept.
    """
    ranks, state = session.ranks, state_of(session, position)  # all at once: an optimizer may gather its state
    if not ranks.agree(finite(state["model"]) and finite(state["optimizer"])):
        raise DivergedError(
            "seng train",
            f"the state is not finite after step {position.step}",
            expected="finite parameters, momentum and curvature",
            got="NaN or infinity",
            fix="Lower --lr or raise --damping; the last checkpoint is kept",
        )
    _in_turn(ranks, ranks.first, lambda: folder.mkdir(exist_ok=True))
    path = checkpoint_path(folder, position.step, ranks.rank)
    _in_turn(ranks, not ranks.first, lambda: _save(path, state))
    _in_turn(ranks, ranks.first, lambda: _save(path, state))
    if ranks.first:
        kept = {_step(path) for path in checkpoints(folder)[: session.config.keep]}
        for path in (*folder.glob("step-*.pt"), *folder.glob(".step-*.partial")):  # the latter of a killed process
            if _step(path) not in kept and not path.is_dir():
                path.unlink(missing_ok=True)


def finite(state: Any) -> bool:
    """Return whether all real numbers in a state's tensors are finite.

    Raises:
        ValueError: containers lie in containers without end.
    """
    left, seen = [(state, 0)], 0
    while left:
        value, depth = left.pop()
        seen += 1
        if seen > MOST_VALUES or depth > DEEPEST:
            raise ValueError("containers in containers without end")
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            return False
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        left.extend((item, depth + 1) for item in items)
    return True


def _in_turn(ranks: Ranks, own: bool, write: Callable[[], None]) -> None:
    """Let some processes write, and all wait for them; where one cannot, it is an error on all."""
    failure: Exception | None = None
    try:
        if own:
            write()
    except (OSError, RuntimeError) as error:  # torch gives the latter for a full disk
        failure = error
    if not ranks.agree(failure is None):
        got = str(failure).splitlines()[0] if failure else "another process cannot write its part"
        fix = "Make room or correct permissions, then go on with --resume; the last checkpoint is kept"
        problem, expected = "the checkpoint cannot be written", "a folder to write into"
        raise CheckpointError("seng train", problem, expected=expected, got=got, fix=fix) from failure


def restore_newest(folder: Path, session: Session) -> Position | None:
    """Bring a session to its newest checkpoint that can be read, warning of those passed over. A collective call.

    Other numbers of processes than saved it may take it up: SENG's curvature then goes where it belongs, and what is
    another process's in all else, random numbers say, is taken from the saved ones in turn.

    Returns:
        The position, or None where there is no checkpoint.

    Raises:
        CheckpointError: none can be read, or the newest that can is of another run.
    """
    passed: DamagedError | None = None
    for path in checkpoints(folder):
        try:
            state, damage = _own_state(path, session), None
        except DamagedError as error:
            state, damage = {}, error
        if session.ranks.agree(damage is None):
            if passed is not None:
                warnings.warn(f"seng: {passed} Going on from {path.name}.", stacklevel=2)
            return _restore(path, state, session)
        passed = passed or damage or _damaged(path, "another process cannot read its part")
    if passed is not None:
        raise passed
    return None


def _own_state(path: Path, session: Session) -> dict[str, Any]:
    """Return what this process is to take up of a checkpoint, whose first file is given.

    Raises:
        DamagedError: A process's file is missing or cannot be read.
    """
    first, ranks, step = _read(path), session.ranks, _step(path)
    found = len(list(path.parent.glob(f"step-{step:08d}.rank*.pt")))
    paths = [path, *(checkpoint_path(path.parent, step, rank) for rank in range(1, first.get("processes", 1 + found)))]
    if missing := [other.name for other in paths if not other.exists()]:
        raise _damaged(path, f"{', '.join(missing)} beside it is missing")
    if len(paths) == ranks.world:
        return first if ranks.first else _read(paths[ranks.rank])
    states = [first, *map(_read, paths[1:])]
    state = states[ranks.rank % len(states)]
    if not isinstance(session.optimizer, SENG):
        return state
    offered = session.optimizer.preconditioner.strategy.candidates()
    try:
        preconditioner = moved_state([other["optimizer"]["preconditioner"] for other in states], offered)
    except (AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    return {**state, "optimizer": {"bases": state["optimizer"]["bases"], "preconditioner": preconditioner}}


def _save(path: Path, state: dict[str, Any]) -> None:
    write_atomically(path, lambda file: torch.save(state, file))


def state_of(session: Session, position: Position) -> dict[str, Any]:
    """Return the state of model, optimizer (curvature included), schedule, scaler, random generators and position."""
    cuda = session.device.type == "cuda"
    return {
        "format": FORMAT,
        "version": VERSION,
        "processes": session.ranks.world,
        "config": to_dict(session.config),
        "model": session.model.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "schedule": session.schedule.state_dict(),
        "scaler": session.scaler.state_dict(),
        "rng": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(session.device) if cuda else None,
        },
        "position": asdict(position),
    }


def _restore(path: Path, state: dict[str, Any], session: Session) -> Position:
    _check(path, state, session)
    try:
        position, generators = Position(**state["position"]), state["rng"]
        torch.set_rng_state(generators["cpu"])
        session.optimizer.load_state_dict(state["optimizer"])
        session.schedule.load_state_dict(state["schedule"])
        session.model.load_state_dict(state["model"])
        if state["scaler"]:
            session.scaler.load_state_dict(state["scaler"])
        if generators["cuda"] is not None and session.device.type == "cuda":
            torch.cuda.set_rng_state(generators["cuda"], session.device)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise _unusable(path, "incomplete", "a whole checkpoint", str(error)) from error
    return position


def _read(path: Path) -> dict[str, Any]:
    try:
        state = load_tensors(path)
        sound = finite(state)
    except DAMAGES as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _damaged(path, reason) from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), str) or state["format"] != FORMAT:
        got = list(islice(state, 8)) if isinstance(state, dict) else type(state).__name__
        raise _unusable(path, "not a checkpoint of seng train", f"format {FORMAT!r}", got)
    if state.get("version") != VERSION:
        raise _unusable(path, "of another version", f"version {VERSION}", state.get("version"))
    if not sound:
        raise _damaged(path, "parameters, momentum or curvature that are not finite")
    return state


def _check(path: Path, state: dict[str, Any], session: Session) -> None:
    """Refuse the state of other settings or of another model."""
    try:
        config = from_dict(state["config"])
        found = {name: tuple(tensor.shape) for name, tensor in state["model"].items()}
    except (KeyError, AttributeError, ValueError) as error:
        raise _unusable(path, "incomplete", "settings and a model", str(error)) from error
    if config != session.config:
        raise _unusable(path, "of a run with other settings", str(session.config), config)
    wanted = {name: tuple(tensor.shape) for name, tensor in session.model.state_dict().items()}
    if found != wanted:
        different = sorted(set(found.items()) ^ set(wanted.items()))
        raise _unusable(path, "of another model", f"{len(wanted)} tensors of its shapes", different[:4])


def _unusable(path: Path, problem: str, expected: str, got: object) -> CheckpointError:
    fix = "Resume the run that wrote it, or start again with --overwrite"
    return CheckpointError("seng train", f"{path} is {problem}", expected=expected, got=got, fix=fix)


def _damaged(path: Path, reason: str) -> DamagedError:
    fix = "Start again with --overwrite"
    problem, expected = f"{path} is unreadable", "a checkpoint written whole"
    return DamagedError("seng train", problem, expected=expected, got=reason, fix=fix)
