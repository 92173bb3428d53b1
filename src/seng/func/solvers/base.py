"""What a solver of (K + lambda I) c = r answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...solve import FactorisationError
from ..rows import Rows

if TYPE_CHECKING:
    from ..config import Settings


@dataclass(frozen=True)
class Damping:
    """A damping before it is known what it is relative to.

    Args:
        value: Number >= 0.
        relative: Whether it is a multiple of trace(K) / n.
    """

    value: float
    relative: bool

    def at(self, trace: float, n: int) -> float:
        """Return lambda."""
        return self.value * trace / n if self.relative else self.value


class Solver(ABC):
    """A solver made for one set of rows, and for one damping after another.

    Laws every subclass obeys: ``solve`` gives (K + lambda I)^-1 r, or an approximation that is linear in r where no
    iterations refine it; ``trace`` and ``damping`` are exact; all ranks get the same coefficients. Where ``rank``
    covers all rows the engine takes ``Exact`` in any case. After ``damp``, all is as if it had been made with that
    damping.

    Args:
        rows: J.
        damping: The first damping asked for.
        settings: ``rank``, ``iterations``, ``tolerance`` and ``solve_dtype`` are read.
        generator: Source of the sketch, in the same state on all ranks.

    Attributes:
        trace: trace(K), exact.
        damping: lambda.
        rungs: Jitters that failed before a factorisation held.

    Raises:
        FactorisationError: K is not finite, or no jitter helps.
    """

    trace: float
    damping: float
    rungs: int

    @abstractmethod
    def __init__(self, rows: Rows, damping: Damping, settings: Settings, generator: torch.Generator): ...

    @abstractmethod
    def damp(self, damping: Damping) -> None:
        """Take another damping; K, or what is known of it, is not made again.

        Raises:
            FactorisationError: No jitter helps.
        """

    @abstractmethod
    def solve(self, r: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return c, nearly or exactly (K + lambda I)^-1 r."""


def require_rows(trace: float) -> None:
    """Raise FactorisationError if K is zero, which no jitter relative to K can mend."""
    if trace == 0:
        raise FactorisationError("K = 0: no output depends on a parameter")
