"""Checkpoints: all of a run's state in one file of tensors and plain values, written atomically.

The data position needs no field of its own: the order of an epoch follows from the seed and the epoch
(``data.epoch_batches``), and the epoch from the step.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError
from .files import write_atomically
from .session import Session
from .settings import from_dict, to_dict

FORMAT = "seng-run"
VERSION = 1


@dataclass(frozen=True)
class Position:
    """How far a run is.

    Attributes:
        step: Steps done.
        seconds: Training time, without evaluation.
    """

    step: int
    seconds: float


def save_checkpoint(path: Path, session: Session, position: Position) -> None:
    """Write the state of model, optimizer (curvature included), schedule, random generators and position."""
    state = {
        "format": FORMAT,
        "version": VERSION,
        "config": to_dict(session.config),
        "model": session.model.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "schedule": session.schedule.state_dict(),
        "rng": {"cpu": torch.get_rng_state(), "cuda": _cuda_rng()},
        "position": {"step": position.step, "seconds": position.seconds},
    }
    write_atomically(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path, session: Session) -> Position:
    """Bring a session, built from the same settings, to the state that was saved.

    Raises:
        CheckpointError: the file is truncated, foreign, of another version, or of another run's settings or
            model. Nothing of the session has changed where the file is at fault as a whole.
    """
    state = _read(path)
    _check(path, state, session)
    try:
        position, generators = Position(**state["position"]), state["rng"]
        torch.set_rng_state(generators["cpu"])
        session.optimizer.load_state_dict(state["optimizer"])
        session.schedule.load_state_dict(state["schedule"])
        session.model.load_state_dict(state["model"])
        if generators["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(generators["cuda"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise _unusable(path, "incomplete", "a whole checkpoint", str(error)) from error
    return position


def _cuda_rng() -> list[torch.Tensor]:
    return list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else []


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _unusable(path, "unreadable", "a checkpoint written whole", reason) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        got = sorted(map(str, state))[:8] if isinstance(state, dict) else type(state).__name__
        raise _unusable(path, "not a checkpoint of seng train", f"format {FORMAT!r}", got)
    if state.get("version") != VERSION:
        raise _unusable(path, "of another version", f"version {VERSION}", state.get("version"))
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
    return CheckpointError("load_checkpoint", f"{path} is {problem}", expected=expected, got=got, fix=fix)
