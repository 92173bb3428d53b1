"""An inverse problem: what conducts, from noisy temperatures."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ....func import taylor
from ..points import faces, inside, view
from ..problem import DTYPE, Points, Problem, true_values

MEASURED, NOISE = 400, 0.01  # how many values are measured, and their standard error; the largest value is 1


def inverse_poisson() -> Problem:
    """Recover a coefficient: a in -∇·(a∇u) = f, u = 0 on the edge, from 400 values of u with noise of 1%."""
    bounds = [(0.0, 1.0)] * 2
    generator = torch.Generator().manual_seed(0)  # the measurements are data, the same for every seed of a run
    where = inside(bounds, MEASURED, generator)
    measured = true_values(solution, where) + NOISE * torch.randn(MEASURED, generator=generator, dtype=DTYPE)

    def data(u: Any, sample: tuple[Tensor, Tensor]) -> Tensor:
        return u(sample[0])[0] - sample[1]

    def draw(generator: torch.Generator) -> Points:
        return {
            "equation": inside(bounds, 600, generator),
            "edge": faces(bounds, 120, generator),
            "data": (where, measured),
        }

    shown = view(bounds, ("x", "y"))
    test = shown.points.flatten(0, 1)
    return Problem(
        (2, 32, 32, 2), {"equation": equation, "edge": lambda u, x: u(x)[:1], "data": data}, draw, test,
        true_values(solution, test, judged=1), weights={"edge": 10.0, "data": 100.0}, solution=solution, judged=1,
        view=shown,
    )  # fmt: skip


def equation(u: Any, x: Tensor) -> Tensor:
    """Return a Δu + ∇a·∇u + f at a point, for a network of two outputs u and a."""
    at = taylor(u, x)
    return at.value[1] * at.second[:, 0].sum() + at.first[:, 1] @ at.first[:, 0] + source(x)


def solution(x: Tensor) -> Tensor:
    """Return u and a at a point: two smooth bumps in a material that conducts unevenly."""
    u = torch.sin(math.pi * x).prod(-1)
    a = 1 + 0.5 * torch.cos(math.pi * x[..., 0]) * torch.sin(2 * math.pi * x[..., 1])
    return torch.stack([u, a], -1)


def source(x: Tensor) -> Tensor:
    """Return f = -∇·(a∇u) of the solution, by hand."""
    px, py = math.pi * x[..., 0], math.pi * x[..., 1]
    slope_u = (px.cos() * py.sin(), px.sin() * py.cos())
    slope_a = (-0.5 * px.sin() * torch.sin(2 * py), px.cos() * torch.cos(2 * py))
    u, a = solution(x).unbind(-1)
    return math.pi**2 * (2 * a * u - slope_a[0] * slope_u[0] - slope_a[1] * slope_u[1])
