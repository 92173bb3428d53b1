"""Steps of a base that are tried before they count, and steps that are taken back."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import OptionError

OWN = __name__.rpartition(".")[0]  # the package of this library's bases


def rehearsable(base: Optimizer) -> bool:
    """Return whether a base's steps depend on groups and state alone, as those of torch's own do."""
    return type(base).__module__.startswith(("torch.optim", OWN))


def rehearse(base: Optimizer, group: dict[str, Any], p: nn.Parameter, held: dict[str, Any]) -> None:
    """Take two steps, as the base would, with one parameter in place of a group's and with its state.

    Raises:
        Exception: Whatever a step raises; ArithmeticError where it leaves a parameter that is not finite.
    """
    double = object.__new__(type(base))
    state, groups = defaultdict(dict, {p: held} if held else {}), [{**group, "params": [p]}]
    double.__setstate__({"defaults": base.defaults, "state": state, "param_groups": groups})
    for _ in range(2):  # the first may be another: momentum begins with it
        double.step()
    if not bool(p.isfinite().all()):
        raise ArithmeticError("its step gives parameters that are not finite")


@contextmanager
def taken_back(bases: Sequence[Optimizer], go_back: Callable[[], None]) -> Iterator[None]:
    """Take back what was done within where it raises: parameters, gradients, states of bases, and what is told.

    Cost: a copy of each, while the step lasts.
    """
    parameters = [p for base in bases for group in base.param_groups for p in group["params"]]
    values = [p.detach().clone() for p in parameters]
    grads = [None if p.grad is None else (p.grad, p.grad.clone()) for p in parameters]
    states = [{key: copy.deepcopy(held) for key, held in base.state.items()} for base in bases]
    groups = [[dict(group) for group in base.param_groups] for base in bases]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for p, value, kept in zip(parameters, values, grads, strict=True):
                p.copy_(value)
                p.grad = None if kept is None else kept[0]
                if kept is not None:
                    kept[0].copy_(kept[1])
        for base, state, own in zip(bases, states, groups, strict=True):
            base.state.clear()
            base.state.update(state)
            for group, before in zip(base.param_groups, own, strict=True):
                group.update(before)
        go_back()
        raise


def require_no_closure(base: Optimizer) -> None:
    """Raise OptionError where the base's steps take arguments."""
    needed = [
        name
        for name, parameter in signature(base.step).parameters.items()
        if parameter.default is Parameter.empty
        and parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    ]
    if needed:
        raise OptionError(
            "SENG()", f"base {type(base).__name__} cannot step alone", expected="a step() without arguments",
            got=f"step({', '.join(needed)})", fix="Choose a base that takes one gradient a step",
        )  # fmt: skip


def require_steps(base: Optimizer) -> None:
    """Raise OptionError where the base cannot take steps with one parameter of each kind it has."""
    for group in base.param_groups:
        kinds = {(p.dtype, p.device, p.dim()) for p in group["params"] if p.requires_grad and not p.is_meta}
        for dtype, device, axes in kinds:
            p = nn.Parameter(torch.ones([1] * axes, dtype=dtype, device=device))
            p.grad = torch.ones_like(p)
            try:
                rehearse(base, group, p, {})
            except Exception as error:
                raise OptionError(
                    "SENG()", f"base {type(base).__name__} cannot take a step",
                    expected=f"options that serve {dtype} on {device}", got=type(error).__name__,
                    fix=f"Correct base_options: {error}",
                ) from error  # fmt: skip
