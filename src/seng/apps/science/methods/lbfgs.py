"""L-BFGS with a line search that obeys the strong Wolfe conditions: ``torch.optim.LBFGS``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..problem import Points, Problem
from .base import Method, Step, Taken

ITERATIONS = 20  # that torch's optimizer takes between looks at the clock: here a step


@dataclass(frozen=True)
class LBFGS(Method):
    """L-BFGS. A step is 20 iterations.

    Points are the same for all iterations of a step. By default they never change; where they do, the history is
    forgotten with them, as differences of gradients on other points say nothing about curvature.

    Args:
        every: Steps between draws of new points; 0: the first ones serve all along.
        history: Differences of gradients that are kept.

    Source: Nocedal, Wright (2006), sections 7.2 and 3.1.
    """

    every: int = 0
    history: int = 100
    tried = ({"history": 20}, {}, {"history": 300}, {"every": 10}, {"every": 50})

    def start(self, problem: Problem, net: nn.Module, seed: int) -> Step:
        def begin() -> torch.optim.LBFGS:
            return torch.optim.LBFGS(
                net.parameters(), 1.0, max_iter=ITERATIONS, history_size=self.history, tolerance_grad=0.0,
                tolerance_change=0.0, line_search_fn="strong_wolfe",
            )  # fmt: skip

        optimizer, drawn = begin(), None

        def step(points: Points, spent: float) -> Taken:
            nonlocal optimizer, drawn
            if drawn is not None and points is not drawn:
                optimizer = begin()
            drawn = points

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = problem.loss(net, points)
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            return Taken(float(loss.detach()), None, float(optimizer.state_dict()["state"][0].get("t", 1.0)))

        return step
