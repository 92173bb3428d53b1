"""Settings of the functional engine, validated once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

import torch

from ..checks import is_number, plain, require
from ..errors import OptionError, choose

DTYPES = (torch.float32, torch.float64)
MODES = {"relative": True, "absolute": False}


@dataclass(frozen=True)
class Settings:
    """How a direction is computed.

    Args:
        weights: Weight (> 0) of each term of the loss by name, a number or a tensor of one; terms left out weigh 1.
            They are read at every step, so that they may change.
        fisher: Name in ``seng.func.FISHERS``: what the rows are.
        damping_mode: "relative": lambda = damping * trace(K) / n. "absolute": lambda = damping.
        per_sample: Whether the residual function takes one sample. Otherwise it takes the whole batch.
        solver: Name in ``seng.func.SOLVERS``: "exact", or a sketch in sample space.
        rank: Columns (>= 1) of the sketch.
        iterations: Most conjugate gradient steps (>= 0) that refine a Nystrom solution.
        tolerance: Relative residual (> 0) at which those stop.
        memory: Bytes that rows may take at a time; K, n x n numbers, comes on top. Rows that fit are held.
        row_dtype: Precision of the rows; None: that of the parameters.
        solve_dtype: Precision of K and of the solution.
        distributed: Name in ``seng.func.RANKS``, or "auto": "joined" where several ranks run.
        seed: Seed (>= 0) of every random draw.

    Raises:
        OptionError: A value is of the wrong type or out of range.
    """

    weights: Mapping[str, float | torch.Tensor] | None = None
    fisher: str = "gauss_newton"
    damping_mode: str = "relative"
    per_sample: bool = True
    solver: str = "exact"
    rank: int = 256
    iterations: int = 20
    tolerance: float = 1e-6
    memory: int = 2**30
    row_dtype: torch.dtype | None = None
    solve_dtype: torch.dtype = torch.float64
    distributed: str = "auto"
    seed: int = 0

    @classmethod
    def build(cls, call: str, given: dict[str, Any], tables: Mapping[str, Mapping[str, Any]] | None = None) -> Settings:
        """Return validated settings; ``tables`` has the choices of those that are names."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                fix = f"Did you mean {close[0]!r}" if close else "Remove it"
                raise OptionError(call, "unknown option", expected="one of " + ", ".join(known), got=name, fix=fix)
        settings = cls(**{name: plain(value) for name, value in given.items()})
        for name, table in {"damping_mode": MODES, **(tables or {})}.items():
            choose(table, getattr(settings, name), call=call, option=name)
        settings.validate(call)
        return settings

    def with_(self, **changes: Any) -> Settings:
        """Return a copy with some values replaced."""
        return replace(self, **changes)

    def validate(self, call: str) -> None:
        """Raise OptionError at the first number that is out of range."""
        for name, least in (("rank", 1), ("iterations", 0), ("memory", 1), ("seed", 0)):
            value = getattr(self, name)
            good = isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63
            require(call, name, value, good, f"an integer >= {least}, below 2^63")
        require_number(call, "tolerance", self.tolerance, low=0.0, open_low=True)
        require(call, "per_sample", self.per_sample, isinstance(self.per_sample, bool), "True or False")
        for name, known in (("row_dtype", (*DTYPES, None)), ("solve_dtype", DTYPES)):
            value = getattr(self, name)
            good = any(value is dtype for dtype in known)
            require(call, name, value, good, "torch.float32 or torch.float64")
        weights_of(call, self.weights)


def require_number(
    call: str, name: str, value: Any, *, low: float, open_low: bool = False, below: float | None = None
) -> None:
    """Raise OptionError unless the value is a finite number >= low (> low if open), and < below if that is given."""
    good = is_number(value) and (value > low if open_low else value >= low) and (below is None or value < below)
    text = f"a number {'>' if open_low else '>='} {low:g}" + ("" if below is None else f" and < {below:g}")
    require(call, name, value, good, text)


def weights_of(call: str, weights: Any) -> dict[str, float]:
    """Return weights as plain numbers, as they are now.

    Raises:
        OptionError: They are no positive numbers, or tensors of one, by name.
    """
    named = {} if weights is None else weights
    good = isinstance(named, Mapping) and all(map(_positive, named.values()))
    require(call, "weights", weights, good, "positive numbers, or tensors of one, by name of a term, or None")
    return {name: float(_plain(weight)) for name, weight in named.items()}


def _positive(value: Any) -> bool:
    if isinstance(value, torch.Tensor) and (value.numel() != 1 or value.is_complex() or value.dtype == torch.bool):
        return False
    value = _plain(value)
    return is_number(value) and value > 0


def _plain(value: Any) -> Any:
    return value.detach().item() if isinstance(value, torch.Tensor) else value
