"""Helmholtz' equation: a wave that stands in a square."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ....func import laplacian
from ..points import faces, inside, view
from ..problem import Points, Problem, true_values

WAVES = (1.0, 4.0)  # half waves along each axis and unit of length


def helmholtz() -> Problem:
    """Helmholtz' equation: Δu + u = f in a square of side 2, u = 0 on its edge, so that u = sin(πx) sin(4πy)."""
    bounds = [(-1.0, 1.0)] * 2
    waves = math.pi * torch.tensor(WAVES, dtype=torch.float64)
    factor = 1 - float(waves.square().sum())

    def solution(x: Tensor) -> Tensor:
        return torch.sin(waves * x).prod(-1, keepdim=True)

    def equation(u: Any, x: Tensor) -> Tensor:
        return laplacian(u, x) + u(x) - factor * solution(x)

    def draw(generator: torch.Generator) -> Points:
        return {"equation": inside(bounds, 800, generator), "edge": faces(bounds, 200, generator)}

    shown = view(bounds, ("x", "y"))
    test = shown.points.flatten(0, 1)
    return Problem(
        (2, 32, 32, 1), {"equation": equation, "edge": lambda u, x: u(x)}, draw, test, true_values(solution, test),
        seconds=40.0, weights={"edge": 100.0}, solution=solution, view=shown,
    )  # fmt: skip
