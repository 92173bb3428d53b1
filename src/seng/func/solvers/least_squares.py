"""J itself, factorised on the first rank: for fewer parameters than rows, and without damping."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..config import Settings
from ..rows import Rows
from .base import Damping, Solution, Solver


class LeastSquares(Solver):
    """J = Q R by Householder reflections, and the same of R with sqrt(lambda) I below it for each damping.

    No square of J is formed, so that no digit is lost in one. Where columns depend on others and the damping is next
    to 0, R goes by its singular values, and those within rounding of 0 count as 0.

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
        self.damping = damping.at(self.rows)
        if self._q is None:
            return
        r, p = self._q[0][: self.rows.params.size].triu(), self.rows.params.size
        below = torch.eye(p, dtype=r.dtype, device=r.device) * self.damping**0.5
        self._damped = torch.geqrf(torch.cat([r, below]))
        self._r = self._damped[0][:p].triu()
        size = self._r.diagonal().abs()
        self._dependent = not size.min() > self._rounding * size.max()

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, S and V^T of R. Cost: about 20 p^3."""
        assert self._q is not None
        return torch.linalg.svd(self._q[0][: self.rows.params.size].triu(), full_matrices=False)

    @property
    def _rounding(self) -> float:
        """Relative error of singular values of J."""
        return max(self.rows.n, self.rows.params.size) * torch.finfo(self.rows.leaves[0].dtype).eps

    def direction(self, r: Float[Tensor, " n"], rest: Float[Tensor, " p"] | None = None) -> Solution:
        p = self.rows.params.size
        y = torch.zeros(p, 1, dtype=r.dtype, device=r.device)
        if self._q is not None:
            top = torch.ormqr(*self._q, r[:, None], transpose=True)[:p]
            y = self._solution(top, None if rest is None else rest.to(top)[:, None])
        return Solution(self.rows.ranks.broadcast(y[:, 0]).to(self.rows.leaves[0]), None, r)

    def _solution(self, top: Float[Tensor, "p 1"], rest: Float[Tensor, "p 1"] | None) -> Float[Tensor, "p 1"]:
        """Return (R^T R + lambda I)^-1 (R^T top + rest)."""
        if self._dependent:
            u, s, v = self._svd[0], self._svd[1][:, None], self._svd[2].mT
            kept = s > self._rounding * s.max()
            y = torch.where(kept, s * (u.mT @ top) / (s * s + self.damping), 0.0)
            return v @ (y if rest is None else y + v.mT @ rest / (s * s + self.damping))
        y = torch.ormqr(*self._damped, torch.cat([top, torch.zeros_like(top)]), transpose=True)[: len(top)]
        if rest is not None:
            y = y + torch.linalg.solve_triangular(self._r.mT, rest, upper=False)
        return torch.linalg.solve_triangular(self._r, y, upper=True)

    def solve(self, r: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return (r - self.rows.mv(self.direction(r).d).to(r)) / self.damping
