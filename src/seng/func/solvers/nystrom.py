"""Conjugate gradients on K + lambda I, preconditioned with a randomised Nystrom approximation of K."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..config import Settings
from ..rows import Rows
from .base import Damping, Solver
from .sketched import sketched


class Nystrom(Solver):
    """K is seen through K Omega, with Omega [n, q] orthonormal, and through products K x.

    The approximation K^ = (K Omega)(Omega^T K Omega)^-1 (K Omega)^T = V E V^T is never larger than K, so that
    ``tail`` = trace(K) - trace(K^) bounds what it misses. With ``iterations=0`` the preconditioner alone is applied.

    Attributes:
        tail: trace(K) - trace(K^), >= 0 up to rounding.
        iterations: Conjugate gradient steps of the last solution.

    Cost: 2 n p q multiply-adds and rows made twice, where they are not held; a step of conjugate gradients costs a
    reverse and a forward pass. (n + p) q numbers.
    Source: Frangella, Tropp, Udell, "Randomized Nystrom preconditioning" (2023), algorithms 2.1 and 5.1.
    """

    def __init__(self, rows: Rows, damping: Damping, settings: Settings, generator: torch.Generator):
        self.rows, self._settings, self.rungs, self.iterations = rows, settings, 0, 0
        dtype = settings.solve_dtype
        omega = torch.linalg.qr(torch.randn(rows.n, settings.rank, generator=generator, dtype=torch.float64)).Q
        omega = omega.to(rows.leaves[0].device, dtype)
        through = sketched(rows, omega.mT)
        parts = [rows.tile(k).to(dtype) @ through.mT for k in range(len(rows.pieces))]
        product = rows.ranks.join(torch.cat(parts), rows.lengths)
        self._vectors, self._values = _eigenpairs(omega, product)
        self.tail = rows.trace - float(self._values.sum())
        self.damp(damping)

    def damp(self, damping: Damping) -> None:
        """Cost: nothing; eigenvalues are shifted where they are used."""
        self.damping = damping.at(self.rows)

    def solve(self, r: Float[Tensor, " n"], rough: bool = False) -> Float[Tensor, " n"]:
        most, same = self._settings.iterations, self.rows.ranks.broadcast
        self.iterations = 0
        if most == 0:
            return self._precondition(r) / self.floor
        x, residual = torch.zeros_like(r), r
        enough = self._settings.tolerance * float(r.norm())
        z = self._precondition(residual)
        direction, energy = z, torch.dot(residual, z)
        while self.iterations < most and float(same(residual.norm())) > enough:
            image = self.rows.mv(self.rows.rmv(direction)).to(r.dtype) + self.damping * direction
            length = energy / torch.dot(direction, image)
            x, residual = x + length * direction, residual - length * image
            z = self._precondition(residual)
            fresh = torch.dot(residual, z)
            direction, energy = z + fresh / energy * direction, fresh
            self.iterations += 1
        return same(x)

    @property
    def floor(self) -> Tensor:
        """Least eigenvalue of K^ + lambda on the columns of V, and of the preconditioner beside them."""
        return self._values.min() + self.damping

    def _precondition(self, x: Tensor) -> Tensor:
        """Apply floor * (V (E + lambda)^-1 V^T + (I - V V^T) / floor)."""
        inside = self._vectors.mT @ x
        return x + self._vectors @ ((self.floor / (self._values + self.damping) - 1) * inside)


def _eigenpairs(omega: Float[Tensor, "n q"], product: Float[Tensor, "n q"]) -> tuple[Tensor, Tensor]:
    """Return V and E of the Nystrom approximation from Omega and K Omega, shifted so that rounding does no harm."""
    shift = len(omega) ** 0.5 * torch.finfo(omega.dtype).eps * torch.linalg.matrix_norm(product)
    shifted = product + shift * omega
    core = omega.mT @ shifted
    factor, _ = torch.linalg.cholesky_ex((core + core.mT) / 2)
    root = torch.linalg.solve_triangular(factor.mT, shifted, upper=True, left=False)
    vectors, singular, _ = torch.linalg.svd(root, full_matrices=False)
    return vectors, (singular.square() - shift).clamp(min=0)
