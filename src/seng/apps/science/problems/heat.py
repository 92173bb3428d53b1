"""The heat equation in a rod."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ....func import taylor
from ..points import faces, inside, start, view
from ..problem import Points, Problem, true_values

DIFFUSIVITY = 0.05
MODES = {1: 1.0, 3: 0.5}  # amplitudes at time 0 of sin(kπx)


def heat() -> Problem:
    """Heat in a rod with cold ends: u_t = 0.05 u_xx, from sin(πx) + sin(3πx)/2 at time 0 on to time 1."""
    bounds = [(0.0, 1.0), (0.0, 1.0)]  # x, t

    def solution(z: Tensor) -> Tensor:
        x, t = z[..., :1], z[..., 1:]
        parts = [
            size * torch.exp(-DIFFUSIVITY * (k * math.pi) ** 2 * t) * torch.sin(k * math.pi * x)
            for k, size in MODES.items()
        ]
        return torch.stack(parts).sum(0)

    def equation(u: Any, z: Tensor) -> Tensor:
        at = taylor(u, z)
        return at.first[1] - DIFFUSIVITY * at.second[0]

    def draw(generator: torch.Generator) -> Points:
        return {
            "equation": inside(bounds, 600, generator),
            "start": start(bounds, 60, generator),
            "ends": faces(bounds, 60, generator, axes=[0]),
        }

    shown = view(bounds, ("x", "t"))
    test = shown.points.flatten(0, 1)
    residuals = {"equation": equation, "start": lambda u, z: u(z) - solution(z), "ends": lambda u, z: u(z)}
    return Problem(
        (2, 32, 32, 1), residuals, draw, test, true_values(solution, test), weights={"start": 10.0, "ends": 10.0},
        solution=solution, view=shown,
    )  # fmt: skip
