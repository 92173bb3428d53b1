"""The file that a fit goes on from, bit for bit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import StateError
from ...files import write_atomically
from .records import Record
from .stages import Stage

VERSION = 1


@dataclass
class State:
    """All that changes during a fit, beside the parameters and the optimizer.

    Args:
        size: Number of points that is asked for.
        draws: Number of times that points have been drawn.
        points: The present points.
        stage: What is known of the present stage.
        least: Least held-out residual so far.
        best: Parameters that had it, or None.
        idle: Stages without progress since the number of points is at its largest.
        failed: Steps in a row that were neither accepted nor converged.
        seconds: Seconds spent.
        history: A record for each step.
    """

    size: int
    draws: int = 0
    points: Any = None
    stage: Stage = field(default_factory=Stage)
    least: float = inf
    best: list[Tensor] | None = None
    idle: int = 0
    failed: int = 0
    seconds: float = 0.0
    history: list[Record] = field(default_factory=list)


def write(path: Path, state: State, leaves: tuple[Tensor, ...], optimizer: dict[str, Any]) -> None:
    """Write a state, the parameters and the optimizer's state; the file loads with ``weights_only=True``."""
    values = {key.name: getattr(state, key.name) for key in fields(State)}
    values["stage"] = asdict(state.stage)
    values["history"] = [list(asdict(record).values()) for record in state.history]
    whole = {"version": VERSION, "state": values, "params": list(leaves), "optimizer": optimizer}
    write_atomically(path, lambda file: torch.save(whole, file))


def read(path: Path, leaves: tuple[Tensor, ...]) -> tuple[State, list[Tensor], dict[str, Any]]:
    """Return the state, the parameters and the optimizer's state.

    Raises:
        StateError: The file is damaged, of another version, or of other parameters. Nothing changes.
    """
    try:
        whole = torch.load(path, map_location=leaves[0].device, weights_only=True)
        version, known = whole["version"], None
        if version == VERSION:
            layout = [(list(leaf.shape), leaf.dtype) for leaf in whole["params"]]
            known = _state(whole["state"]), whole["params"], whole["optimizer"], layout
    except Exception as error:  # torch, zipfile and pickle have no common one
        raise _refusal("the checkpoint cannot be read", "a file that fit() wrote", str(path)) from error
    if known is None:
        raise _refusal("the checkpoint is of another version", str(VERSION), version)
    state, params, optimizer, got = known
    expected = [(list(leaf.shape), leaf.dtype) for leaf in leaves]
    if expected != got:
        raise _refusal("the checkpoint is of other parameters", str(expected), got)
    return state, params, optimizer


def _state(values: dict[str, Any]) -> State:
    history = [Record(*record) for record in values["history"]]
    return State(**{**values, "stage": Stage(**values["stage"]), "history": history})


def _refusal(problem: str, expected: str, got: object) -> StateError:
    return StateError("fit()", problem, expected=expected, got=got, fix="Pass another checkpoint, or resume=False")
