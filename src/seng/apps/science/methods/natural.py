"""The natural gradient in sample space: ``seng.func.NaturalGradient``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ....func import NaturalGradient
from ..problem import Points, Problem
from .base import Method, Step, Taken


@dataclass(frozen=True)
class Natural(Method):
    """Natural gradient, with damping by the gain ratio and steps that follow the residuals' curvature.

    Args:
        every: Steps between draws of new points; 0: the first ones serve all along.
        draws: Draws whose points are taken together.
        damping: At the first step, relative to the mean eigenvalue of K.
        damping_rule: How damping goes on.
        momentum: How much of the last step is kept where the rows say nothing.
        acceleration: Whether steps follow the curvature of the residuals.
        line_search: How step lengths are found.
        solver: "exact", or a sketch in sample space.
        rank: Columns of the sketch.
    """

    every: int = 20
    damping: float = 0.1
    damping_rule: str = "nielsen"
    momentum: float = 0.0
    acceleration: bool = True
    line_search: str = "none"
    solver: str = "exact"
    rank: int = 256
    tried = (
        {},
        {"every": 0},
        {"every": 5},
        {"acceleration": False},
        {"acceleration": False, "line_search": "grid", "momentum": 0.9},
    )

    def start(self, problem: Problem, net: nn.Module, seed: int) -> Step:
        optimizer = NaturalGradient(
            net, dict(problem.residuals), damping=self.damping, damping_rule=self.damping_rule,
            momentum=self.momentum, acceleration=self.acceleration, line_search=self.line_search, solver=self.solver,
            rank=self.rank, seed=seed, weights=dict(problem.weights), distributed="none",
        )  # fmt: skip

        def step(points: Points, spent: float) -> Taken:
            result = optimizer.step(points)
            return Taken(result.loss, result.damping, result.length)

        return step
