"""How far to go along a direction. One function a search; adding one is a line in the table.

A search maps (losses at step lengths, first length, present loss, slope g . d) to a length >= 0 and the loss there.
0 says that no length was found.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite

import torch
from jaxtyping import Float
from torch import Tensor

LossesAt = Callable[[Float[Tensor, " k"]], Float[Tensor, " k"]]
Search = Callable[[LossesAt, float, float, float], tuple[float, float]]

GRID = 10  # lengths tried at once: down to 2^-9 of the first
HALVINGS = 20  # before backtracking gives up
ARMIJO = 1e-4  # fraction of the promised decrease that must come true. Source: Nocedal, Wright (2006), section 3.1


def fixed(losses_at: LossesAt, first: float, loss: float, slope: float) -> tuple[float, float]:
    """Take the first length as it is, unless the loss there is not finite. Cost: one forward pass."""
    after = losses_at(torch.tensor([first])).item()
    return (first, after) if isfinite(after) else (0.0, loss)


def backtracking(losses_at: LossesAt, first: float, loss: float, slope: float) -> tuple[float, float]:
    """Halve the length until the loss falls by ARMIJO * length * slope. Cost: a forward pass a trial."""
    length = first
    for _ in range(HALVINGS):
        after = losses_at(torch.tensor([length])).item()
        if isfinite(after) and after <= loss - ARMIJO * length * abs(slope):
            return length, after
        length /= 2
    return 0.0, loss


def grid(losses_at: LossesAt, first: float, loss: float, slope: float) -> tuple[float, float]:
    """Take the best of GRID lengths, first * 2^-k, all tried at once. Cost: GRID forward passes, vectorised."""
    lengths = first * 0.5 ** torch.arange(GRID, dtype=torch.float64)
    after = losses_at(lengths).double().cpu().nan_to_num(inf, inf, inf)
    best = int(after.argmin())
    return (lengths[best].item(), after[best].item()) if after[best] < loss else (0.0, loss)


LINE_SEARCHES: dict[str, Search] = {"none": fixed, "backtracking": backtracking, "grid": grid}
