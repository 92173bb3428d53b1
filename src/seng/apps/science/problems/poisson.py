"""Poisson's equation in a cube, in two and in five dimensions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ....func import laplacian
from ..points import faces, inside, view
from ..problem import DTYPE, Points, Problem, true_values

TEST = 4000  # random points that the solution in five dimensions is judged at


def poisson_2d() -> Problem:
    """Poisson's equation in the unit square: -Δu = 2π² sin(πx) sin(πy), u = 0 on the edge."""
    bounds = [(0.0, 1.0)] * 2

    def solution(x: Tensor) -> Tensor:
        return torch.sin(math.pi * x).prod(-1, keepdim=True)

    def equation(u: Any, x: Tensor) -> Tensor:
        return laplacian(u, x) + 2 * math.pi**2 * solution(x)

    def draw(generator: torch.Generator) -> Points:
        return {"equation": inside(bounds, 600, generator), "edge": faces(bounds, 120, generator)}

    shown = view(bounds, ("x", "y"))
    test = shown.points.flatten(0, 1)
    return Problem(
        (2, 48, 48, 1), {"equation": equation, "edge": lambda u, x: u(x)}, draw,
        test, true_values(solution, test), seconds=30.0, weights={"edge": 10.0}, solution=solution, view=shown,
        settings={"natural": {"every": 0}},
    )  # fmt: skip


def poisson_5d() -> Problem:
    """Poisson's equation in five dimensions: -Δu = π² Σ sin(πxᵢ), u known on the faces of the unit cube."""
    bounds = [(0.0, 1.0)] * 5

    def solution(x: Tensor) -> Tensor:
        return torch.sin(math.pi * x).sum(-1, keepdim=True)

    def equation(u: Any, x: Tensor) -> Tensor:
        return laplacian(u, x) + math.pi**2 * solution(x)

    def edge(u: Any, x: Tensor) -> Tensor:
        return u(x) - solution(x)

    def draw(generator: torch.Generator) -> Points:
        return {"equation": inside(bounds, 800, generator), "edge": faces(bounds, 400, generator)}

    test = torch.rand(TEST, 5, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    return Problem(
        (5, 48, 48, 1), {"equation": equation, "edge": edge}, draw, test,
        true_values(solution, test), weights={"edge": 10.0}, solution=solution,
        view=view(bounds, ("x₁, the others at 1/2", "x₂")),
    )  # fmt: skip
