"""J itself, factorised on the first rank: for fewer parameters than rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...solve import FactorisationError
from ..config import Settings
from ..rows import Rows
from .base import Damping, Solution, Solver


class LeastSquares(Solver):
    """J = Q R by Householder reflections, and the same of R with sqrt(lambda) I below it for each damping.

    No square of J is formed, so that no digit is lost in one.

    Cost: 2 n p^2 - 2 p^3 / 3 multiply-adds, 10 p^3 / 3 for each damping; n p numbers.
    Source: Golub, Van Loan, "Matrix Computations", section 5.3; Björck, "Numerical Methods for Least Squares
    Problems" (1996), section 2.7.
    """

    def __init__(self, rows: Rows, damping: Damping, settings: Settings, generator: torch.Generator):
        self.rows, self.rungs = rows, 0
        own = rows.held if rows.held is not None else torch.cat([rows.tile(k) for k in range(len(rows.pieces))])
        whole = rows.ranks.collect(own.to(settings.solve_dtype), rows.lengths)
        self._q = None if whole is None else torch.geqrf(whole)
        self.damp(damping)

    def damp(self, damping: Damping) -> None:
        """Raises FactorisationError where a column depends on others and the damping is next to 0."""
        self.damping = damping.at(self.rows)
        fact = torch.zeros(1, device=self.rows.leaves[0].device)
        if self._q is not None:
            r = self._q[0][: self.rows.params.size].triu()
            below = torch.eye(len(r), dtype=r.dtype, device=r.device) * self.damping**0.5
            self._damped = torch.geqrf(torch.cat([r, below]))
            self._r = self._damped[0][: len(r)].triu()
            size = self._r.diagonal().abs()
            fact += size.min() > self.rows.n * torch.finfo(size.dtype).eps * size.max()
        if not self.rows.ranks.first(fact):
            raise FactorisationError("columns depend on others")

    def direction(self, r: Float[Tensor, " n"], rest: Float[Tensor, " p"] | None = None) -> Solution:
        p = self.rows.params.size
        y = torch.zeros(p, 1, dtype=r.dtype, device=r.device)
        if self._q is not None:
            top = torch.ormqr(*self._q, r[:, None], transpose=True)[:p]
            y = torch.ormqr(*self._damped, torch.cat([top, torch.zeros_like(top)]), transpose=True)[:p]
            if rest is not None:
                y = y + torch.linalg.solve_triangular(self._r.mT, rest.to(y)[:, None], upper=False)
            y = torch.linalg.solve_triangular(self._r, y, upper=True)
        return Solution(self.rows.ranks.first(y[:, 0]).to(self.rows.leaves[0]), None, r)

    def solve(self, r: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return (r - self.rows.mv(self.direction(r).d).to(r)) / self.damping
