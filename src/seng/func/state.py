"""The state of NaturalGradient as tensors and plain values, and back."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import StateError
from .trees import Params

VERSION = 1


@dataclass(frozen=True)
class Held:
    """What is carried from step to step.

    Args:
        step: Steps taken or tried.
        damping: Damping of the next step.
        seed: Seed of every random draw.
        counters: Events by name.
        previous: The last direction, flat [p], or None.
    """

    step: int
    damping: float
    seed: int
    counters: dict[str, int]
    previous: Float[Tensor, " p"] | None


def write(held: Held, params: Params) -> dict[str, Any]:
    """Return a state that loads with weights_only=True."""
    return {
        "version": VERSION,
        "layout": _layout(params),
        "step": held.step,
        "damping": held.damping,
        "seed": held.seed,
        "counters": dict(held.counters),
        "previous": None if held.previous is None else held.previous.clone(),
    }


def read(state: Any, params: Params, events: set[str]) -> Held:
    """Undo ``write``.

    Raises:
        StateError: The state is truncated, foreign, of another version or of other parameters.
    """
    keys = {"version", "layout", "step", "damping", "seed", "counters", "previous"}
    if not isinstance(state, dict) or set(state) != keys:
        got = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise _refusal("not a whole state of NaturalGradient", sorted(keys), got)
    if state["version"] != VERSION:
        raise _refusal("another version", VERSION, state["version"])
    if state["layout"] != _layout(params):
        raise _refusal("a state of other parameters", _layout(params), state["layout"])
    for key in ("step", "seed"):
        if not _count(state[key]):
            raise _refusal(f"{key} cannot be read", "an integer >= 0", state[key])
    damping, counters, previous = state["damping"], state["counters"], state["previous"]
    if not isinstance(damping, float) or not isfinite(damping) or damping <= 0:
        raise _refusal("damping cannot be read", "a number > 0", damping)
    if not isinstance(counters, dict) or set(counters) != events or not all(map(_count, counters.values())):
        raise _refusal("counters cannot be read", f"integers by {sorted(events)}", counters)
    if previous is not None:
        leaf = params.leaves[0]
        if not isinstance(previous, Tensor) or previous.shape != (params.size,) or previous.dtype != leaf.dtype:
            raise _refusal("the last direction cannot be read", f"{leaf.dtype} [{params.size}] or None", type(previous))
        previous = previous.to(leaf.device, copy=True)
        if not torch.isfinite(previous).all():
            raise _refusal("the last direction cannot be read", "finite numbers", "numbers that are not")
    return Held(state["step"], damping, state["seed"], dict(counters), previous)


def _layout(params: Params) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in zip(params.names, params.leaves, strict=True)}


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _refusal(problem: str, expected: object, got: object) -> StateError:
    return StateError(
        "load_state_dict()", problem, expected=str(expected), got=got, fix="Load a state saved from the same parameters"
    )
