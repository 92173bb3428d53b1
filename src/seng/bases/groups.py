"""Groups of parameters that come to bases after creation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import OptionError
from .muon import hidden_matrices


def add_group(bases: Sequence[Optimizer], group: dict[str, Any], model: nn.Module, spare: Collection[Tensor]) -> None:
    """Give the bases another group. Of Muon and AdamW, each takes the parameters it would have been built with.

    Args:
        bases: The bases.
        group: As ``Optimizer.add_param_group`` takes it.
        model: Which says what a hidden matrix is.
        spare: Parameters that were frozen when the bases were made. They leave the group they are in, unless they have
            been stepped with.

    Raises:
        OptionError: Muon alone cannot take a parameter.
        ValueError: Other parameters are in a group already.
    """
    given = group.get("params") if isinstance(group, dict) else None
    if given is None or isinstance(given, set):
        return bases[-1].add_param_group(group)  # which says what is wrong
    entries = [given] if isinstance(given, Tensor) else list(given)
    hidden = {id(p) for p in hidden_matrices(model)}
    parts: dict[int, list[Any]] = {}
    moved = {id(p) for p in map(_tensor_of, entries) if any(p is q for q in spare)}
    moved -= {id(p) for base in bases for p in base.state}
    for entry in entries:
        parts.setdefault(_home(bases, _tensor_of(entry), hidden), []).append(entry)
    before = [(own, own["params"], base, len(base.param_groups)) for base in bases for own in base.param_groups]
    try:
        for own, params, _, _ in before:
            own["params"] = [p for p in params if id(p) not in moved]
        for k, own in sorted(parts.items()):
            bases[k].add_param_group({**group, "params": own})
    except Exception:
        for own, params, base, count in before:
            own["params"] = params
            del base.param_groups[count:]
        raise


def _tensor_of(entry: Any) -> Any:
    """Return the parameter of an entry of a group, which may be a pair with its name."""
    return entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry


def _home(bases: Sequence[Optimizer], p: Any, hidden: Collection[int]) -> int:
    """Return the number of the base that a parameter belongs to."""
    for k, base in enumerate(bases):
        if any(p is q for group in base.param_groups for q in group["params"]):
            return k
    takes = [id(p) in hidden or not isinstance(base, getattr(torch.optim, "Muon", ())) for base in bases]
    if not any(takes):
        raise OptionError(
            "add_param_group()", "Muon takes hidden matrices only", expected="a weight of a hidden layer",
            got=list(p.shape) if isinstance(p, Tensor) else type(p).__name__, fix="Create the optimizer anew",
        )  # fmt: skip
    return takes.index(True)
