"""Three standard problems in PINA, for ``integrations.py``."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning  # pyright: ignore[reportMissingImports]
import torch
from pina import Condition, Trainer  # pyright: ignore[reportMissingImports]
from pina.domain import CartesianDomain  # pyright: ignore[reportMissingImports]
from pina.equation import Equation  # pyright: ignore[reportMissingImports]
from pina.model import FeedForward  # pyright: ignore[reportMissingImports]
from pina.operator import grad, laplacian  # pyright: ignore[reportMissingImports]
from pina.optim import TorchOptimizer  # pyright: ignore[reportMissingImports]
from pina.problem import SpatialProblem, TimeDependentProblem  # pyright: ignore[reportMissingImports]
from pina.solver import PhysicsInformedSingleModelSolver  # pyright: ignore[reportMissingImports]
from pina.weighting import ScalarWeighting  # pyright: ignore[reportMissingImports]
from torch import Tensor

from seng.integrations.pina import use_natural_gradient

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
Run = Callable[[str, float], dict[str, float]]


class Limit(lightning.pytorch.Callback):
    """Ends training after so many CPU seconds."""

    def __init__(self, seconds: float):
        self.end, self.steps = time.process_time() + seconds, 0

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.steps += 1
        trainer.should_stop = time.process_time() >= self.end


def solve(
    problem: Any, counts: dict[str, int], weights: dict[str, float], sizes: tuple[int, int],
    solution: Callable[[Tensor], Tensor], points: Tensor, seed: int,
) -> Run:  # fmt: skip
    """Return the function that trains a network on a problem by a method."""
    torch.manual_seed(seed)
    for domain, count in counts.items():
        problem.discretise_domain(count, mode="random", domains=[domain])
    model = FeedForward(2, 1, inner_size=sizes[0], n_layers=sizes[1], func=torch.nn.Tanh).double()

    def phase(optimizer: Any, seconds: float) -> int:
        solver = PhysicsInformedSingleModelSolver(problem, model, optimizer, weighting=ScalarWeighting(weights))
        if optimizer is None:
            use_natural_gradient(solver)
        limit = Limit(seconds)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Trainer(
                solver, max_epochs=-1, accelerator="cpu", callbacks=[limit], logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            ).train()  # fmt: skip
        return limit.steps

    def run(method: str, seconds: float) -> dict[str, float]:
        begun = time.process_time()
        if method == "natural":
            steps = phase(None, seconds)
        else:
            steps = phase(TorchOptimizer(torch.optim.Adam, lr=1e-3), seconds / 2)
            left = begun + seconds - time.process_time()
            steps += 20 * phase(
                TorchOptimizer(
                    torch.optim.LBFGS, lr=1.0, max_iter=20, history_size=100, tolerance_grad=0.0, tolerance_change=0.0,
                    line_search_fn="strong_wolfe",
                ),
                left,
            )  # fmt: skip
        spent = round(time.process_time() - begun, 2)
        with torch.no_grad():
            got, true = model(points)[:, 0], solution(points)
        return {"error": float((got - true).norm() / true.norm()), "seconds": spent, "steps": steps}

    return run


def zero(points: Any, u: Any) -> Any:
    return u


def square(equation: Callable[[Any, Any], Any]) -> Any:
    """Return a problem in the unit square whose solution is 0 on the edge."""

    class Square(SpatialProblem):
        output_variables = ["u"]  # noqa: RUF012
        spatial_domain = CartesianDomain({"x": [0, 1], "y": [0, 1]})
        domains = {"inside": spatial_domain, "edge": spatial_domain.partial()}  # noqa: RUF012
        conditions = {  # noqa: RUF012
            "inside": Condition(domain="inside", equation=Equation(equation)),
            "edge": Condition(domain="edge", equation=Equation(zero)),
        }

    return Square()


def grid() -> Tensor:
    return torch.cartesian_prod(torch.linspace(0, 1, 51), torch.linspace(0, 1, 51))


def waves(points: Any, k: float) -> Any:
    return torch.sin(k * points.extract(["x"])) * torch.sin(k * points.extract(["y"]))


def poisson(seed: int) -> Run:
    """-Delta u = 2 pi^2 sin(pi x) sin(pi y)."""

    def equation(points: Any, u: Any) -> Any:
        return laplacian(u, points, components=["u"], d=["x", "y"]) + 2 * math.pi**2 * waves(points, math.pi)

    counts, weights = {"inside": 400, "edge": 100}, {"inside": 1.0, "edge": 10.0}
    return solve(square(equation), counts, weights, (32, 2), lambda x: torch.sin(math.pi * x).prod(1), grid(), seed)


def helmholtz(seed: int) -> Run:
    """Delta u + k^2 u = -k^2 sin(k x) sin(k y), k = 2 pi."""
    k = 2 * math.pi

    def equation(points: Any, u: Any) -> Any:
        return laplacian(u, points, components=["u"], d=["x", "y"]) + k**2 * u + k**2 * waves(points, k)

    counts, weights = {"inside": 400, "edge": 100}, {"inside": 1.0, "edge": 10.0}
    return solve(square(equation), counts, weights, (32, 2), lambda x: torch.sin(k * x).prod(1), grid(), seed)


def diffusion_reaction(seed: int) -> Run:
    """u_t = u_xx + f on [-pi, pi], with u = exp(-t) sum_m a_m sin(m x), m = 1, 2, 3, 4, 8."""
    parts = {1: 1.0, 2: 1 / 2, 3: 1 / 3, 4: 1 / 4, 8: 1 / 8}

    def series(x: Any, t: Any, factor: Callable[[int], float] = lambda m: 1.0) -> Any:
        return torch.exp(-t) * sum(factor(m) * a * torch.sin(m * x) for m, a in parts.items())

    def equation(points: Any, u: Any) -> Any:
        x, t = points.extract(["x"]), points.extract(["t"])
        source = series(x, t, lambda m: m**2 - 1.0)
        return grad(u, points, components=["u"], d=["t"]) - laplacian(u, points, components=["u"], d=["x"]) - source

    def beginning(points: Any, u: Any) -> Any:
        return u - series(points.extract(["x"]), points.extract(["t"]))

    class Diffusion(TimeDependentProblem, SpatialProblem):
        output_variables = ["u"]  # noqa: RUF012
        spatial_domain = CartesianDomain({"x": [-math.pi, math.pi]})
        temporal_domain = CartesianDomain({"t": [0, 1]})
        domains = {  # noqa: RUF012
            "inside": CartesianDomain({"x": [-math.pi, math.pi], "t": [0, 1]}),
            "start": CartesianDomain({"x": [-math.pi, math.pi], "t": 0.0}),
            "left": CartesianDomain({"x": -math.pi, "t": [0, 1]}),
            "right": CartesianDomain({"x": math.pi, "t": [0, 1]}),
        }
        conditions = {  # noqa: RUF012
            "inside": Condition(domain="inside", equation=Equation(equation)),
            "start": Condition(domain="start", equation=Equation(beginning)),
            "left": Condition(domain="left", equation=Equation(zero)),
            "right": Condition(domain="right", equation=Equation(zero)),
        }

    counts = {"inside": 600, "start": 100, "left": 25, "right": 25}
    points = torch.cartesian_prod(torch.linspace(-math.pi, math.pi, 101), torch.linspace(0, 1, 26))
    weights = {"inside": 1.0, "start": 10.0, "left": 10.0, "right": 10.0}
    return solve(Diffusion(), counts, weights, (32, 2), lambda x: series(x[:, 0], x[:, 1]), points, seed)


PROBLEMS = {"poisson": poisson, "helmholtz": helmholtz, "diffusion-reaction": diffusion_reaction}
