"""What a method is: settings, and a function that starts it on a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..problem import Points, Problem


@dataclass(frozen=True)
class Taken:
    """What a step did.

    Args:
        loss: Loss before the step, on the points it was given.
        damping: Damping of the step, where the method has one.
        length: Step length or learning rate.
    """

    loss: float
    damping: float | None
    length: float


Step = Callable[[Points, float], Taken]  # points, share of the budget spent so far


@dataclass(frozen=True)
class Method(ABC):
    """Settings of a method. Subclasses are frozen dataclasses whose fields can all be set from the command line.

    Args:
        every: Steps between draws of new points; 0: the first ones serve all along.
        draws: Draws whose points are taken together.

    Attributes:
        tried: The settings that comparisons try, by their differences from the defaults.
    """

    every: int = 1
    draws: int = 1
    tried: ClassVar[tuple[dict[str, Any], ...]] = ()

    @abstractmethod
    def start(self, problem: Problem, net: nn.Module, seed: int) -> Step:
        """Return the function that takes one step; it changes the network's parameters in place."""
