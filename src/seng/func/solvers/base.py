"""What a solver of (K + lambda I) c = r answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from ..config import Settings
from ..rows import Rows

REFINEMENTS = 5


@dataclass(frozen=True)
class Damping:
    """A damping before it is known what it is relative to.

    Args:
        value: Number >= 0.
        relative: Whether it is a multiple of trace(K) / n.
    """

    value: float
    relative: bool

    def at(self, rows: Rows) -> float:
        """Return lambda."""
        return self.value * rows.trace / rows.n if self.relative else self.value


@dataclass(frozen=True)
class Solution:
    """(J^T J + lambda I)^-1 (J^T r + rest).

    Args:
        d: The solution.
        c: Coefficients with d = J^T c + rest / lambda, or None where it was not found through them.
        rhs: Right side of the system of c.
    """

    d: Float[Tensor, " p"]
    c: Float[Tensor, " n"] | None
    rhs: Float[Tensor, " n"]


class Solver(ABC):
    """A solver made for one set of rows, and for one damping after another.

    Laws every subclass obeys: ``solve`` gives (K + lambda I)^-1 r, or an approximation that is linear in r where no
    iterations refine it; ``damping`` is exact; all ranks get the same numbers. Where ``rank`` covers all rows the
    engine solves exactly in any case. After ``damp``, all is as if it had been made with that damping.

    Args:
        rows: J, finite and not all zero.
        damping: The first damping asked for.
        settings: ``rank``, ``iterations``, ``tolerance`` and ``solve_dtype`` are read.
        generator: Source of the sketch, in the same state on all ranks.

    Attributes:
        rows: J.
        trace: trace(K), exact.
        damping: lambda.
        rungs: Jitters that failed before a factorisation held.

    Raises:
        FactorisationError: No jitter helps.
    """

    rows: Rows
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
    def solve(self, r: Float[Tensor, " n"], rough: bool = False) -> Float[Tensor, " n"]:
        """Return c, nearly or exactly (K + lambda I)^-1 r; where ``rough``, digits lost to rounding stay lost."""

    @property
    def trace(self) -> float:
        """The exact trace of K."""
        return self.rows.trace

    def direction(
        self, r: Float[Tensor, " n"], rest: Float[Tensor, " p"] | None = None, rough: bool = False
    ) -> Solution:
        """Return (J^T J + lambda I)^-1 (J^T r + rest), nearly or exactly: here J^T (K + lambda I)^-1 r."""
        if rest is None:
            c = self.solve(r, rough)
            return Solution(self.rows.rmv(c), c, r)
        shift = rest / self.damping
        rhs = r - self.rows.mv(shift).to(r)
        c = self.solve(rhs, rough)
        return Solution(self.rows.rmv(c) + shift, c, rhs)


def refined(
    x: Tensor, left: Callable[[Tensor], Tensor], solve: Callable[[Tensor], Tensor],
    same: Callable[[Tensor], Tensor] = lambda size: size,
) -> Tensor:  # fmt: skip
    """Refine a solution with what it leaves of the right side, as long as that is halved.

    Args:
        x: A solution.
        left: The right side less the system times a solution, more exact than ``solve``.
        solve: The solution for a right side.
        same: What makes a number the same on all ranks.
    """
    best, least = x, inf
    for _ in range(REFINEMENTS):
        rest = left(x)
        size = float(same(rest.norm()))
        if size < least:
            best = x
        if not size < least / 2:
            break
        least, x = size, x + solve(rest)
    return best
