"""K itself, for the one use it has where every step refreshes first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .eigen import EigenState
from .state import SolveState


@dataclass(frozen=True)
class DirectState(SolveState):
    """No factorisation is kept: one system solved at once costs less than a factor made, cleaned and solved with.

    Args:
        gram: K, [n, n].
    """

    gram: Float[Tensor, "n n"]

    def coefficients(self, y: Float[Tensor, " n"], damping: Tensor, power: float) -> Float[Tensor, " n"]:
        """Cost: 2 n^3 / 3 for power 1, else eigenvalues."""
        if power == 1.0:
            diagonal = self.gram.diagonal()
            kept = diagonal.clone()  # put back below: cheaper than a copy of K
            diagonal.add_(damping)
            solution, info = torch.linalg.solve_ex(self.gram.mT, y)  # K = K^T, and columns are LAPACK's own order
            diagonal.copy_(kept)
            if int(info) == 0:
                return solution.neg_()
        return self.to_eigen().coefficients(y, damping, power)

    def matvec(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.gram @ x

    def spectrum(self) -> Float[Tensor, " n"]:
        return torch.linalg.eigvalsh(self.gram).clamp(min=0)

    def to_eigen(self) -> EigenState:
        """Return the eigenvalues of K. Cost: n^3."""
        values, vectors = torch.linalg.eigh(self.gram)
        return EigenState(values.clamp(min=0), vectors)
