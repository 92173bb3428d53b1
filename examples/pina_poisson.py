# pyright: reportMissingImports=false
"""Poisson's equation in the unit square, in PINA with natural gradients.

pip install 'seng[pina]'
python examples/pina_poisson.py [epochs]
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from pina import Condition, LabelTensor, Trainer
from pina.domain import CartesianDomain
from pina.equation import Equation
from pina.model import FeedForward
from pina.operator import laplacian
from pina.problem import SpatialProblem
from pina.solver import PhysicsInformedSingleModelSolver

from seng.integrations.pina import use_natural_gradient

torch.set_default_dtype(torch.float64)


def equation(points: Any, u: Any) -> Any:
    """-Delta u = 2 pi^2 sin(pi x) sin(pi y)."""
    source = torch.sin(math.pi * points.extract(["x"])) * torch.sin(math.pi * points.extract(["y"]))
    return laplacian(u, points, components=["u"], d=["x", "y"]) + 2 * math.pi**2 * source


def edge(points: Any, u: Any) -> Any:
    """U = 0 on the edge."""
    return u


class Poisson(SpatialProblem):
    """The problem in PINA's form."""

    output_variables = ["u"]  # noqa: RUF012
    spatial_domain = CartesianDomain({"x": [0, 1], "y": [0, 1]})
    domains = {"inside": spatial_domain, "edge": spatial_domain.partial()}  # noqa: RUF012
    conditions = {  # noqa: RUF012
        "inside": Condition(domain="inside", equation=Equation(equation)),
        "edge": Condition(domain="edge", equation=Equation(edge)),
    }


def main(epochs: int) -> float:
    """Solve the problem, and return the largest error on a grid."""
    torch.manual_seed(0)
    problem = Poisson()
    problem.discretise_domain(100, mode="random", domains=["inside"])
    problem.discretise_domain(40, mode="random", domains=["edge"])
    model = FeedForward(2, 1, inner_size=16, n_layers=2, func=torch.nn.Tanh)
    solver = use_natural_gradient(PhysicsInformedSingleModelSolver(problem, model))
    Trainer(
        solver, max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).train()  # fmt: skip
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 21)] * 2)
    with torch.no_grad():
        got = solver(LabelTensor(grid, ["x", "y"])).as_subclass(torch.Tensor)[:, 0]
    error = float((got - torch.sin(math.pi * grid).prod(1)).abs().max())
    print(f"largest error {error:.1e}")
    return error


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
