"""What a scientific problem is: a network, residuals in terms, points, and a solution to be judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from ...func.trees import BoundModule

DTYPE = torch.float64  # the last digits of a residual decide where losses fall to 1e-12

Residual = Callable[[Any, Any], Tensor]  # the network as a function, one sample -> numbers that should be zero
Points = dict[str, Any]  # samples of each term


@dataclass(frozen=True)
class View:
    """A rectangle of points that is shown.

    Args:
        axes: Names of the horizontal and the vertical axis.
        points: The points, [rows, columns, d]; rows go up.
        extent: Left, right, bottom and top.
    """

    axes: tuple[str, str]
    points: Float[Tensor, "rows columns d"]
    extent: tuple[float, float, float, float]


@dataclass(frozen=True)
class Problem:
    """A problem whose loss is sum_t weight_t * mean(residual_t^2) / 2 over the points of each term t.

    Args:
        sizes: Widths of the tanh network, from inputs to outputs.
        residuals: Residual of one sample by term.
        draw: Generator to the points of a step.
        test: Where the solution is judged, [m, d].
        truth: The judged quantity there, [m].
        seconds: Seconds of CPU time that a run is given by default.
        weights: Weight of each term; 1 where left out.
        solution: The exact solution as a function of one point, as the network is; None where nobody knows it.
        judged: Which output of the network is judged.
        view: What a picture shows; None: judged values against true ones.
        settings: Settings of methods, by name, where this problem wants others than the defaults.
    """

    sizes: tuple[int, ...]
    residuals: Mapping[str, Residual]
    draw: Callable[[torch.Generator], Points]
    test: Float[Tensor, "m d"]
    truth: Float[Tensor, " m"]
    seconds: float = 20.0
    weights: Mapping[str, float] = field(default_factory=dict)
    solution: Callable[[Tensor], Tensor] | None = None
    judged: int = 0
    view: View | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def network(self, seed: int) -> nn.Sequential:
        """Return a new network, in float64, with Xavier's initial weights and biases of zero."""
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(self.sizes):
            layers += [nn.Linear(inputs, outputs, dtype=DTYPE), nn.Tanh()]
            nn.init.xavier_normal_(layers[-2].weight, generator=generator)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layers[-2].bias)  # pyright: ignore[reportArgumentType]
        return nn.Sequential(*layers[:-1])

    def loss(self, net: nn.Module, points: Points) -> Float[Tensor, ""]:
        """Return the loss on points, differentiable in the network's parameters."""
        u = BoundModule(net, dict(net.named_parameters()))
        parts = []
        for term, residual in self.residuals.items():
            values = vmap(lambda sample: residual(u, sample))(points[term])  # noqa: B023
            parts.append(self.weights.get(term, 1.0) * values.square().mean() / 2)
        return torch.stack(parts).sum()

    @torch.no_grad()
    def values(self, net: nn.Module, points: Float[Tensor, "*m d"]) -> Float[Tensor, " *m"]:
        """Return the judged output of the network at points."""
        return net(points)[..., self.judged]

    def error(self, net: nn.Module) -> float:
        """Return |values - truth| / |truth|: the relative L2 error."""
        return float((self.values(net, self.test) - self.truth).norm() / self.truth.norm())

    @cached_property
    def shown(self) -> Float[Tensor, "rows columns"]:
        """The true values at the points of the view."""
        assert self.view is not None
        assert self.solution is not None
        return true_values(self.solution, self.view.points.flatten(0, 1), self.judged).reshape(
            self.view.points.shape[:2]
        )


def true_values(
    solution: Callable[[Tensor], Tensor], points: Float[Tensor, "m d"], judged: int = 0
) -> Float[Tensor, " m"]:
    """Return one output of a solution at many points."""
    return vmap(solution)(points)[:, judged]
