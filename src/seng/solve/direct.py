"""K itself, for the one use it has where every step refreshes first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg import krylov_coefficients
from .eigen import EigenState
from .state import SolveState

ROUNDINGS = 1e3  # of the dtype, to which powers below 1 are approximated at best


@dataclass(frozen=True)
class DirectState(SolveState):
    """No factorisation is kept: one system solved at once costs less than a factor made, cleaned and solved with.

    Args:
        gram: K, [n, n].
    """

    gram: Float[Tensor, "n n"]

    def coefficients(
        self, y: Float[Tensor, " n"], damping: Tensor, power: float, tolerance: float = 0.0
    ) -> Float[Tensor, " n"]:
        """Cost: 2 n^3 / 3 for power 1; for others some tens of products with K, or eigenvalues where those fail."""
        if power == 1.0:
            diagonal = self.gram.diagonal()
            kept = diagonal.clone()  # put back below: cheaper than a copy of K
            diagonal.add_(damping)
            solution, info = torch.linalg.solve_ex(self.gram.mT, y)  # K = K^T, and columns are LAPACK's own order
            diagonal.copy_(kept)
            if int(info) == 0:
                return solution.neg_()
        else:
            least = ROUNDINGS * torch.finfo(y.dtype).eps
            z = krylov_coefficients(self.gram, y, damping, power, max(tolerance, least))
            if z is not None:
                return z
        return self.to_eigen().coefficients(y, damping, power, tolerance)

    def matvec(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.gram @ x

    def spectrum(self) -> Float[Tensor, " n"]:
        return torch.linalg.eigvalsh(self.gram).clamp(min=0)

    def to_eigen(self) -> EigenState:
        """Return the eigenvalues of K. Cost: n^3."""
        values, vectors = torch.linalg.eigh(self.gram)
        return EigenState(values.clamp(min=0), vectors)
