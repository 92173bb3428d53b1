"""State dicts of bases, loaded where the base can go on from them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checks import is_number
from ..packed import anywhere, refusal
from ..wrappers import own_part
from .rehearsal import rehearsable, rehearse
from .settings import value_of

FORMS = frozenset({"fused", "foreach", "capturable", "differentiable"})  # how a base computes: each run's own affair


def load_base(base: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state dict into a base, which goes on computing in the form it has.

    Raises:
        StateError: With this state the base could not take a step; it may have been loaded in part.
    """
    if not sound(base, state):
        raise refusal("the base's state is not finite", "finite numbers", "NaN or inf")
    if {"state", "param_groups"} <= state.keys():
        _load_groups(base, state)
    else:  # a form of the base's own
        base.load_state_dict(dict(state))


def sound(base: Optimizer, state: Any) -> bool:
    """Return whether a base can go on from these numbers; only those of strangers may hold what is infinite."""
    return not anywhere(state, (lambda x: ~x.isfinite()) if rehearsable(base) else torch.isnan)


def _load_groups(base: Optimizer, state: Mapping[str, Any]) -> None:
    groups, own = state["param_groups"], base.param_groups
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in own]:
        raise refusal("other groups of parameters", f"{len(own)} of their sizes", len(groups))
    known = {key for group in groups for key in group["params"]}
    if unknown := [key for key in state["state"] if isinstance(key, int) and key not in known]:
        raise refusal("state of unknown parameters", f"{len(known)} parameters", unknown)
    if not all(isinstance(key, str) for group in groups for key in group):
        raise refusal("settings of the base cannot be read", "names", [sorted(map(str, group)) for group in groups])
    forms = [{key: group[key] for key in FORMS & group.keys()} for group in own]
    base.load_state_dict({**state, "param_groups": [g | form for g, form in zip(groups, forms, strict=True)]})
    for group, mine in zip(base.param_groups, own, strict=True):
        for key, value in mine.items():
            kinds = (value, base.defaults.get(key, value))
            if key in base.defaults and not any(_of_a_kind(group.get(key), like) for like in kinds):
                raise refusal(f"{key} of the base cannot be used", f"something like {value!r}", group.get(key))
        if not _of_a_kind(group.get("lr", 0.0), 0.0) or group.get("lr", 0.0) < 0:
            raise refusal("lr of the base cannot be used", "a number >= 0", group["lr"])
        if rehearsable(base):
            _require_settings(base, group)
        for p in group["params"] if rehearsable(base) else ():
            if p.requires_grad or base.state.get(p):
                _require_usable(base, group, p)


def _of_a_kind(x: Any, like: Any) -> bool:
    """Return whether a setting may take the place of another."""
    if isinstance(like, tuple | list):
        return isinstance(x, tuple | list) and len(x) == len(like) and all(map(_of_a_kind, x, like))
    if isinstance(like, bool) or like is None or not isinstance(like, int | float | Tensor):
        return like is None or isinstance(x, type(like))
    return is_number(x) or (isinstance(x, Tensor) and x.numel() == 1 and bool(x.isfinite()))


def _require_settings(base: Optimizer, group: dict[str, Any]) -> None:
    """Raise StateError where no base could have been made with a group's settings."""
    known = signature(type(base)).parameters
    every = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known.values())
    names = [key for key in base.defaults if key not in FORMS and (every or key in known)]
    settings = {key: group[key] for key in names}
    try:
        type(base)([nn.Parameter(torch.zeros(2, 2))], **settings)  # pyright: ignore[reportCallIssue]
    except Exception as error:
        expected = f"settings of {type(base).__name__}"
        raise refusal(f"settings of the base cannot be used: {error}", expected, settings) from error


def _require_usable(base: Optimizer, group: dict[str, Any], p: Tensor) -> None:
    """Raise StateError where the base cannot go on from what it holds of a parameter."""
    step = value_of(base.state.get(p, {}).get("step", 0))
    if not is_number(step) or not 0 <= step < 2**53:
        raise refusal("the base's count of steps cannot be used", "a number >= 0, below 2^53", step)
    held = {key: copy.deepcopy(own_part(x) if isinstance(x, Tensor) else x) for key, x in base.state.get(p, {}).items()}
    probe = nn.Parameter(torch.zeros_like(own_part(p)))
    probe.grad = torch.zeros_like(probe)
    try:  # in the plain form, which compares shapes
        rehearse(base, {**group, **{form: None for form in ("fused", "foreach") if form in group}}, probe, held)
    except Exception as error:
        shapes = {key: list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for key, x in held.items()}
        raise refusal(f"the base could not take a step: {error}", f"state of {list(p.shape)}", shapes) from error
