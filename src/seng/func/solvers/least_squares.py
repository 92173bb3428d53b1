"""J^T J + lambda I or J itself, factorised on the first rank: for fewer parameters than rows, and without damping."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ..config import Settings
from ..gram import InPlaceFactor, lower_square, mirror_
from ..rows import Rows
from .base import Damping, Solution, Solver, refined

SQUARED = 1e-2  # bound on a solution's relative error, up to which J^T J is factorised


class LeastSquares(Solver):
    """J^T J + lambda I by Cholesky's method, refined with products of J; J = Q R where the damping is next to 0.

    Refinement with J gives back the digits that are lost in its square, as long as there are some. Below that damping,
    J = Q R by Householder reflections, and the same of R with sqrt(lambda) I below it for each damping. Where columns
    depend on others, R goes by its singular values, and those within rounding of 0 count as 0.

    Cost: n p^2 / 2 multiply-adds, p^3 / 3 for each damping; next to 0, 2 n p^2 - 2 p^3 / 3, and 10 p^3 / 3 for each
    damping. n p numbers.
    Source: Golub, Van Loan, "Matrix Computations", section 5.3; Björck, "Numerical Methods for Least Squares
    Problems" (1996), sections 2.7 and 2.9.
    """

    def __init__(self, rows: Rows, damping: Damping, settings: Settings, generator: torch.Generator):
        self.rows, self.rungs = rows, 0
        own = rows.held if rows.held is not None else torch.cat([rows.tile(k) for k in range(len(rows.pieces))])
        self._j = rows.ranks.collect(own.to(settings.solve_dtype), rows.lengths)
        self._factor: InPlaceFactor | None = None
        self.damp(damping)

    def damp(self, damping: Damping) -> None:
        self.damping = damping.at(self.rows)
        if self._j is None:
            return
        if self._factor is not None:
            self._factor.restore()
            self._factor = None
        if torch.finfo(self._j.dtype).eps * self.rows.trace <= SQUARED * self.damping:
            self._factor = InPlaceFactor(self._square, self.damping)
            return
        r, p = self._q[0][: self.rows.params.size].triu(), self.rows.params.size
        below = torch.eye(p, dtype=r.dtype, device=r.device) * self.damping**0.5
        self._damped = torch.geqrf(torch.cat([r, below]))
        self._r = self._damped[0][:p].triu()
        size = self._r.diagonal().abs()
        self._dependent = not size.min() > self._rounding * size.max()

    @cached_property
    def _square(self) -> Float[Tensor, "p p"]:
        """J^T J, in the place of which it is factorised. Cost: n p^2 / 2."""
        assert self._j is not None
        out = self._j.new_empty(self._j.shape[1], self._j.shape[1])
        lower_square(self._j, out)
        return mirror_(out)

    @cached_property
    def _q(self) -> tuple[Tensor, Tensor]:
        """Q and R of J as ``geqrf`` has them. Cost: 2 n p^2 - 2 p^3 / 3."""
        assert self._j is not None
        return torch.geqrf(self._j)

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, S and V^T of R. Cost: about 20 p^3."""
        return torch.linalg.svd(self._q[0][: self.rows.params.size].triu(), full_matrices=False)

    @property
    def _rounding(self) -> float:
        """Relative error of singular values of J."""
        return max(self.rows.n, self.rows.params.size) * torch.finfo(self.rows.leaves[0].dtype).eps

    def direction(
        self, r: Float[Tensor, " n"], rest: Float[Tensor, " p"] | None = None, rough: bool = False
    ) -> Solution:
        p = self.rows.params.size
        y = torch.zeros(p, dtype=r.dtype, device=r.device)
        if self._j is not None:
            y = self._from_square(r, rest, rough) if self._factor is not None else self._from_r(r, rest)
        return Solution(self.rows.ranks.broadcast(y).to(self.rows.leaves[0]), None, r)

    def _from_square(
        self, r: Float[Tensor, " n"], rest: Float[Tensor, " p"] | None, rough: bool
    ) -> Float[Tensor, " p"]:
        assert self._j is not None
        assert self._factor is not None
        j, solve = self._j, self._factor.solve

        def left(x: Tensor) -> Tensor:
            total = j.mT @ (r - j @ x) - self.damping * x
            return total if rest is None else total + rest.to(total)

        x = solve(left(r.new_zeros(j.shape[1])))
        return x if rough else refined(x, left, solve)

    def _from_r(self, r: Float[Tensor, " n"], rest: Float[Tensor, " p"] | None) -> Float[Tensor, " p"]:
        top = torch.ormqr(*self._q, r[:, None], transpose=True)[: self.rows.params.size]
        return self._solution(top, None if rest is None else rest.to(top)[:, None])[:, 0]

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

    def solve(self, r: Float[Tensor, " n"], rough: bool = False) -> Float[Tensor, " n"]:
        return (r - self.rows.mv(self.direction(r).d).to(r)) / self.damping
