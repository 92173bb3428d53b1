"""K as a whole and its Cholesky factor, on the first rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...solve import FactorisationError
from ..gram import InPlaceFactor, gram
from ..rows import Rows
from .base import Damping, Solver, require_rows

if TYPE_CHECKING:
    from ..config import Settings


class Exact(Solver):
    """Exact coefficients. Cost: n^2 p / 2 + n^3 / 3 multiply-adds; n^2 numbers."""

    def __init__(self, rows: Rows, damping: Damping, settings: Settings, generator: torch.Generator):
        k = gram(rows, settings.solve_dtype)
        trace = rows.leaves[0].new_zeros((), dtype=torch.float64) if k is None else k.diagonal().sum().double()
        self._k, self._factor, self._ranks, self._n = k, None, rows.ranks, rows.n
        self.trace = float(rows.ranks.first(trace))
        require_rows(self.trace)
        self.damp(damping)

    def damp(self, damping: Damping) -> None:
        """Cost: n^3 / 3 multiply-adds."""
        self.damping = damping.at(self.trace, self._n)
        facts = torch.zeros(2, dtype=torch.float64)
        if self._k is not None:
            if self._factor is not None:
                self._k, self._factor = self._factor.restore(), None
            facts = facts.to(self._k.device)
            try:
                self._factor = InPlaceFactor(self._k, self.damping)
                facts[0] = self._factor.rungs
            except FactorisationError:
                facts[1] = 1
        rungs, failed = self._ranks.first(facts).tolist()
        self.rungs = int(rungs)
        if failed:
            raise FactorisationError("the Gram matrix is not finite, or no jitter made it positive definite")

    def solve(self, r: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self._ranks.first(torch.empty_like(r) if self._factor is None else self._factor.solve(r))
