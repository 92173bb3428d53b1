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
        largest: Largest norm of each column of J so far, flat [p], or None.
        stuck: Loss of a batch that no step lowered, and the damping for a new one; or None.
    """

    step: int
    damping: float
    seed: int
    counters: dict[str, int]
    previous: Float[Tensor, " p"] | None
    largest: Float[Tensor, " p"] | None
    stuck: tuple[float, float] | None


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
        "largest": None if held.largest is None else held.largest.clone(),
        "stuck": held.stuck,
    }


def read(state: Any, params: Params, events: set[str]) -> Held:
    """Undo ``write``.

    Raises:
        StateError: The state is truncated, foreign, of another version or of other parameters.
    """
    keys = {"version", "layout", "step", "damping", "seed", "counters", "previous", "largest", "stuck"}
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
    damping, counters, stuck = state["damping"], state["counters"], state["stuck"]
    if not _finite(damping) or damping <= 0:
        raise _refusal("damping cannot be read", "a number > 0", damping)
    if not isinstance(counters, dict) or set(counters) != events or not all(map(_count, counters.values())):
        raise _refusal("counters cannot be read", f"integers by {sorted(events)}", counters)
    if stuck is not None and not (isinstance(stuck, tuple) and len(stuck) == 2 and all(map(_finite, stuck))):
        raise _refusal("the loss of a batch cannot be read", "(loss, damping) or None", stuck)
    leaf = params.leaves[0]
    previous = _vector(state["previous"], "the last direction", params.size, leaf.dtype, leaf.device)
    largest = _vector(state["largest"], "the columns' norms", params.size, torch.float64, leaf.device)
    return Held(state["step"], damping, state["seed"], dict(counters), previous, largest, stuck)


def _vector(value: Any, name: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.shape != (size,) or value.dtype != dtype:
        raise _refusal(f"{name} cannot be read", f"{dtype} [{size}] or None", type(value))
    if not torch.isfinite(value).all():
        raise _refusal(f"{name} cannot be read", "finite numbers", "numbers that are not")
    return value.to(device, copy=True)


def _finite(value: object) -> bool:
    return isinstance(value, float) and isfinite(value)


def _layout(params: Params) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in zip(params.names, params.leaves, strict=True)}


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _refusal(problem: str, expected: object, got: object) -> StateError:
    return StateError(
        "load_state_dict()", problem, expected=str(expected), got=got, fix="Load a state saved from the same parameters"
    )
