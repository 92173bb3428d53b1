"""Methods that see the loss and its gradient alone, with a learning rate that ends at zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from ..problem import Points, Problem
from .base import Method, Step, Taken
from .soap import SOAP


@dataclass(frozen=True)
class FirstOrder(Method):
    """A torch optimizer; its learning rate follows half a cosine over the budget, down to zero.

    Args:
        every: Steps between draws of new points; 0: the first ones serve all along.
        lr: Learning rate at the start.
    """

    lr: float = 3e-2
    tried = ({"lr": 1e-1}, {"lr": 3e-2}, {"lr": 1e-2}, {"lr": 3e-3}, {"lr": 1e-3})

    def optimizer(self, net: nn.Module) -> Optimizer:
        """Return the optimizer."""
        raise NotImplementedError

    def start(self, problem: Problem, net: nn.Module, seed: int) -> Step:
        optimizer = self.optimizer(net)

        def step(points: Points, spent: float) -> Taken:
            rate = self.lr * (1 + math.cos(math.pi * min(spent, 1.0))) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = problem.loss(net, points)
            loss.backward()
            optimizer.step()
            return Taken(loss.item(), None, rate)

        return step


@dataclass(frozen=True)
class Adam(FirstOrder):
    """Adam. Source: Kingma, Ba (2015)."""

    def optimizer(self, net: nn.Module) -> Optimizer:
        return torch.optim.Adam(net.parameters(), self.lr)


@dataclass(frozen=True)
class Soap(FirstOrder):
    """Adam in the eigenbasis of Shampoo's matrices. See ``SOAP``.

    Args:
        every: Steps between draws of new points; 0: the first ones serve all along.
        lr: Learning rate at the start.
        refresh_every: Steps between refreshes of the eigenbasis.
    """

    lr: float = 3e-3
    refresh_every: int = 10

    def optimizer(self, net: nn.Module) -> Optimizer:
        return SOAP(net.parameters(), self.lr, refresh_every=self.refresh_every)


__all__ = ["Adam", "FirstOrder", "Soap"]
