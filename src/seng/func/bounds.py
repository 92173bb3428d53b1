"""Bounds on parameters: steps are projected onto them, and parameters that a step would take beyond theirs stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from ..errors import OptionError

Leaves = tuple[Tensor, ...]


@dataclass(frozen=True)
class Bounds:
    """Least and greatest values of parameters, in their shapes; infinite where there is none."""

    low: Leaves
    high: Leaves

    def project(self, values: Leaves) -> Leaves:
        """Return the nearest values within the bounds."""
        return tuple(v.maximum(low).minimum(high) for v, low, high in zip(values, self.low, self.high, strict=True))

    def free(self, values: Leaves, gradient: Float[Tensor, " p"]) -> Bool[Tensor, " p"]:
        """Return which parameters may move: all but those at a bound that a descent would take beyond it.

        Source: Bertsekas, "Projected Newton methods" (1982), section 2.
        """
        low, v, high = (torch.cat([leaf.reshape(-1) for leaf in part]) for part in (self.low, values, self.high))
        return ~(((v <= low) & (gradient > 0)) | ((v >= high) & (gradient < 0)))


def bounds_of(bounds: Any, names: tuple[str, ...], leaves: Leaves, call: str) -> Bounds | None:
    """Return bounds of parameters from a pair (low, high), each a number or a tree by names of parameters.

    Raises:
        OptionError: They are no such pair, name no parameter, or leave a parameter no room or out of them.
    """
    if bounds is None:
        return None
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        raise _refusal(call, "a pair (low, high)", type(bounds).__name__, "Pass a tuple of two")
    low, high = (_filled(side, names, leaves, infinite, call) for side, infinite in zip(bounds, (-1, 1), strict=True))
    for name, least, leaf, most in zip(names, low, leaves, high, strict=True):
        if not bool(((least < most) & (least <= leaf) & (leaf <= most)).all()):
            raise _refusal(call, f"low < high with {name or 'params'} between them", leaf.tolist(), "Move one of them")
    return Bounds(low, high)


def _filled(side: Any, names: tuple[str, ...], leaves: Leaves, sign: int, call: str) -> Leaves:
    """Return a bound of each parameter, infinite where none is given."""
    if isinstance(side, int | float):
        return tuple(torch.full_like(leaf, side) for leaf in leaves)
    if isinstance(side, Mapping) and set(side) <= set(names):
        given = dict(side)
    else:
        given = {keystr(path): leaf for path, leaf in tree_flatten_with_path(side)[0]}
    if not set(given) <= set(names):
        raise _refusal(call, f"names among {sorted(names)}", sorted(given), "Use the parameters' names")
    try:
        return tuple(
            torch.as_tensor(given.get(name, sign * torch.inf)).to(leaf).expand_as(leaf)
            for name, leaf in zip(names, leaves, strict=True)
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise _refusal(call, "numbers, or tensors of the parameters' shapes", str(error), "Pass those") from error


def _refusal(call: str, expected: str, got: object, fix: str) -> OptionError:
    return OptionError(call, "bounds cannot be used", expected=expected, got=got, fix=fix)
