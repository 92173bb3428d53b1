"""Eigenvalues of K: any power, any damping, and the spectrum for free."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..linalg import eigen_coefficients
from .state import SolveState


@dataclass(frozen=True)
class EigenState(SolveState):
    """K = W E W^T.

    Args:
        values: Eigenvalues, ascending, >= 0, [n].
        vectors: Orthonormal columns W, [n, n].
    """

    values: Float[Tensor, " n"]
    vectors: Float[Tensor, "n n"]

    def coefficients(
        self, y: Float[Tensor, " n"], damping: Tensor, power: float, tolerance: float = 0.0
    ) -> Float[Tensor, " n"]:
        """Cost: 2 n^2."""
        return eigen_coefficients(self.values, self.vectors, y, damping, power)

    def matvec(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.vectors @ (self.values * (self.vectors.T @ x))

    def spectrum(self) -> Float[Tensor, " n"]:
        return self.values
