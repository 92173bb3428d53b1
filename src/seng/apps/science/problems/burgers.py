"""Burgers' equation with little viscosity: a wave steepens into a front."""

from __future__ import annotations

import math
from typing import Any

import numpy
import torch
from jaxtyping import Float
from torch import Tensor

from ....func import taylor
from ..points import faces, inside, start, view
from ..problem import Points, Problem, true_values

VISCOSITY = 0.01 / math.pi
NODES = 120  # of the quadrature: 60 give the same to 1e-9 at times up to 1


def burgers() -> Problem:
    """Burgers' equation, viscosity 0.01/π: u_t + u u_x = ν u_xx, from -sin(πx) at time 0, u = 0 at x = -1 and 1."""
    bounds = [(-1.0, 1.0), (0.0, 1.0)]  # x, t

    def equation(u: Any, z: Tensor) -> Tensor:
        at = taylor(u, z)
        return at.first[1] + at.value * at.first[0] - VISCOSITY * at.second[0]

    def beginning(u: Any, z: Tensor) -> Tensor:
        return u(z) + torch.sin(math.pi * z[:1])

    def draw(generator: torch.Generator) -> Points:
        return {
            "equation": denser(inside(bounds, 1500, generator)),
            "start": start(bounds, 100, generator),
            "ends": faces(bounds, 40, generator, axes=[0]),
        }

    shown = view(bounds, ("x", "t"))
    test = shown.points.flatten(0, 1)
    residuals = {"equation": equation, "start": beginning, "ends": lambda u, z: u(z)}
    return Problem(
        (2, 20, 20, 20, 1), residuals, draw, test, true_values(cole_hopf, test), seconds=120.0,
        weights={"start": 10.0, "ends": 10.0}, solution=cole_hopf, view=shown,
        settings={"natural": {"every": 0, "draws": 2}},  # 921 parameters over-fit 1,640 points
    )  # fmt: skip


def denser(points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Move points towards x = 0, where the front stands: x becomes x |x|, the density 1 / (2 sqrt|x|) of even points'.

    The front is about 4ν = 0.013 wide; of evenly spread points 1 in 150 would see it, so it is 1 in 12.
    """
    x, t = points.unbind(1)
    return torch.stack([x * x.abs(), t], 1)


def cole_hopf(z: Tensor) -> Tensor:
    """Return the exact solution [1] at a point z = (x, t), also at t = 0.

    By the transformation of Cole and Hopf it is a mean over the heat kernel,

        u = -∫ sin(π(x - y)) w(y) dy / ∫ w(y) dy,   w = exp(-cos(π(x - y)) / (2πν) - y² / (4νt)),

    by Gauss and Hermite's quadrature in y / sqrt(4νt); weights through a softmax, as exponents reach 1/(πν) = 100.

    Source: Basdevant et al., "Spectral and finite difference solutions of the Burgers equation" (1986).
    """
    nodes, weights = (torch.from_numpy(array).to(z) for array in numpy.polynomial.hermite.hermgauss(NODES))
    angle = math.pi * (z[0] - (4 * VISCOSITY * z[1].clamp(min=0)).sqrt() * nodes)
    share = torch.softmax(weights.log() - angle.cos() / (2 * math.pi * VISCOSITY), 0)
    return -(share * angle.sin()).sum(0, keepdim=True)
