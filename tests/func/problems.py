"""Residuals of each kind, written twice: for the engine, and for ordinary autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seng.func import gradient, laplacian, partial

from .reference import derivative


@dataclass(frozen=True)
class Residual:
    """One residual: ``ours(net, sample)``, and ``theirs(net)(sample)`` for the reference."""

    ours: Callable[[Any, Tensor], Tensor]
    theirs: Callable[[nn.Module], Callable[[Tensor], Tensor]]


def _value(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: net(x) - x.prod()


def _first(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def residual(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return derivative(net(x)[0], x) - 1

    return residual


def _second(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def residual(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        g = derivative(net(x)[0], x)
        return derivative(g[0], x)[0] + derivative(g[1], x)[1] + x.sin().prod()

    return residual


def _mixed(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def residual(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        u = net(x)[0]
        g = derivative(u, x)
        xy = derivative(g[0], x)[1]
        return derivative(xy, x)[0] + u * g[1]

    return residual


RESIDUALS: dict[str, Residual] = {
    "value": Residual(lambda u, x: u(x) - x.prod(), _value),
    "first": Residual(lambda u, x: gradient(u, x)[0] - 1, _first),
    "second": Residual(lambda u, x: laplacian(u, x) + x.sin().prod(), _second),
    "mixed": Residual(lambda u, x: partial(u, x, 0, 1, 0) + u(x) * partial(u, x, 1), _mixed),
}


def unbatched(ours: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """The same residual as a function of the whole batch."""
    return lambda net, batch: torch.func.vmap(lambda x: ours(net, x))(batch)
