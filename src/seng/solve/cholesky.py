"""Cholesky factor of K + damping I: power 1 and one damping."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from ..linalg import cholesky_coefficients
from .eigen import EigenState, eigen
from .state import SolveState


@dataclass(frozen=True)
class CholeskyState(SolveState):
    """L with L L^T = K + damping I. About ten times cheaper to make than eigenvalues.

    Args:
        factor: L, lower triangular, [n, n].
        damping: The damping inside L, 0-d; jitter that a failing factorisation needed comes on top, unnamed.
    """

    factor: Float[Tensor, "n n"]
    damping: Float[Tensor, ""]

    def coefficients(
        self, y: Float[Tensor, " n"], damping: Tensor, power: float, tolerance: float = 0.0
    ) -> Float[Tensor, " n"]:
        """Cost: n^2; another damping or power costs eigenvalues first, n^3."""
        if power == 1.0 and (damping is self.damping or bool(damping == self.damping)):
            return cholesky_coefficients(self.factor, y)
        return self.to_eigen().coefficients(y, damping, power, tolerance)

    def matvec(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.factor @ (self.factor.T @ x) - self.damping * x

    def spectrum(self) -> Float[Tensor, " n"]:
        return self._values

    @cached_property
    def _values(self) -> Float[Tensor, " n"]:
        """The eigenvalues, computed once a refresh at most."""
        return self.to_eigen().values

    def to_eigen(self) -> EigenState:
        """Return the eigenvalues of K. Cost: n^3."""
        gram = (self.factor @ self.factor.T).double()
        gram.diagonal().sub_(self.damping)
        return eigen(gram, self.factor.dtype)[0]
