"""K as a whole and its Cholesky factor, on the first rank."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...solve import FactorisationError
from ..config import Settings
from ..gram import InPlaceFactor, gram
from ..rows import Rows
from .base import Damping, Solver, refined

ROUGH = 1e-10  # bound on a solution's relative error, above which it is refined


class Exact(Solver):
    """Exact coefficients; where the damping is small, refined with products of rows.

    K holds squares of J's singular values, so that digits are lost in it; refined with products J J^T c, which lose
    half as many, the direction is as exact as one from J itself.

    Cost: n^2 p / 2 + n^3 / 3 multiply-adds; n^2 numbers.
    Source: Higham, "Accuracy and Stability of Numerical Algorithms" (2002), section 12.
    """

    def __init__(self, rows: Rows, damping: Damping, settings: Settings, generator: torch.Generator):
        self.rows, self._k, self._factor = rows, gram(rows, settings.solve_dtype), None
        self.damp(damping)

    def damp(self, damping: Damping) -> None:
        """Cost: n^3 / 3 multiply-adds."""
        self.damping = damping.at(self.rows)
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
        rungs, failed = self.rows.ranks.broadcast(facts).tolist()
        self.rungs = int(rungs)
        if failed:
            raise FactorisationError("the Gram matrix is not finite, or no jitter made it positive definite")

    def solve(self, r: Float[Tensor, " n"], rough: bool = False) -> Float[Tensor, " n"]:
        c, exact = self._solve(r), torch.finfo(r.dtype).eps * self.rows.trace <= ROUGH * self.damping
        if rough or exact or self.rows.leaves[0].dtype != r.dtype:
            return c
        return refined(
            c, lambda x: r - self.rows.mv(self.rows.rmv(x)) - self.damping * x, self._solve, self.rows.ranks.broadcast
        )

    def _solve(self, r: Tensor) -> Tensor:
        return self.rows.ranks.broadcast(torch.empty_like(r) if self._factor is None else self._factor.solve(r))
