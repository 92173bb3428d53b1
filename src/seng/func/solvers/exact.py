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
        facts = rows.leaves[0].new_zeros(3, dtype=torch.float64)
        self._factor, self._ranks = None, rows.ranks
        if k is not None:
            facts[0] = k.diagonal().sum()
            try:
                self._factor = InPlaceFactor(k, damping.at(float(facts[0]), rows.n))
                facts[1] = self._factor.rungs
            except FactorisationError:
                facts[2] = 1
        self.trace, rungs, failed = rows.ranks.first(facts).tolist()
        self.damping, self.rungs = damping.at(self.trace, rows.n), int(rungs)
        require_rows(self.trace)
        if failed:
            raise FactorisationError("the Gram matrix is not finite, or no jitter made it positive definite")

    def solve(self, r: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self._ranks.first(torch.empty_like(r) if self._factor is None else self._factor.solve(r))
