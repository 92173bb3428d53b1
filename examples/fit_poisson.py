"""Poisson's equation in the unit square by ``seng.func.fit``: points are drawn, and their number is found.

python examples/fit_poisson.py [steps]
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

from seng import func


def equation(u: Any, x: Tensor) -> Tensor:
    """-Delta u = 2 pi^2 sin(pi x) sin(pi y) at one point x [2]; u is the network."""
    return func.laplacian(u, x) + 2 * math.pi**2 * torch.sin(math.pi * x).prod()


def edge(u: Any, x: Tensor) -> Tensor:
    """U = 0 on the edge."""
    return u(x)


def draw(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return about n points, a fifth of them on the edge."""
    points = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    on_edge = points[: n // 5].clone()
    k = torch.arange(len(on_edge))
    on_edge[k, k % 2] = (k % 4 // 2).double()
    return {"equation": points[n // 5 :], "edge": on_edge}


def main(steps: int) -> float:
    """Solve the problem, and return the largest error on a grid."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)).double()
    result = func.fit(net, {"equation": equation, "edge": edge}, draw, weights={"edge": 10.0}, steps=steps, target=1e-5)
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 21, dtype=torch.float64)] * 2)
    with torch.no_grad():
        error = float((net(grid)[:, 0] - torch.sin(math.pi * grid).prod(1)).abs().max())
    print(f"{result.reason} after {result.steps} steps with {result.points} points: largest error {error:.1e}")
    return error


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
