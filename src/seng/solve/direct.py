"""K itself, for the one use it has where every step refreshes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg import krylov_coefficients, pack_triangle, unpack_triangle
from .eigen import EigenState, eigen
from .state import LinAlgError, SolveState

ROUNDINGS = 1e3  # of the dtype, to which powers below 1 are approximated at best


@dataclass(frozen=True)
class DirectState(SolveState):
    """No factorisation is kept: one system solved at once costs less than a factor made, cleaned and solved with.

    Args:
        gram: K, [n, n].
    """

    name: ClassVar[str] = "direct"
    flops: ClassVar[float] = 2 / 3

    gram: Float[Tensor, "n n"]

    @classmethod
    def factorise(cls, gram: Float[Tensor, "n n"], damping: Tensor) -> tuple[SolveState, int]:
        """Keep K and factorise nothing."""
        return cls(gram), 0

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
            return self.to_eigen().coefficients(y, damping, power, tolerance)
        return coefficients_together([self], y[None], damping[None], power, tolerance)[0]

    def matvec(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.gram @ x

    def spectrum(self) -> Float[Tensor, " n"]:
        return self.to_eigen().values

    def to_vector(self) -> Float[Tensor, " m"]:
        return pack_triangle(self.gram)

    @classmethod
    def from_vector(cls, vector: Float[Tensor, " m"], n: int, damping: Tensor) -> DirectState:
        return cls(unpack_triangle(vector, n, symmetric=True))

    def to_eigen(self) -> EigenState:
        """Return the eigenvalues of K. Cost: n^3."""
        return eigen(self.gram)[0]


def coefficients_together(
    states: Sequence[DirectState], y: Float[Tensor, "b n"], damping: Float[Tensor, " b"], power: float, tolerance: float
) -> Float[Tensor, "b n"]:
    """Return ``coefficients`` of states of one size. Cost: the calls of one; memory for a second copy of K."""
    if power == 1.0:
        each = zip(states, y, damping, strict=True)
        return torch.stack([state.coefficients(own, amount, power, tolerance) for state, own, amount in each])
    least = ROUNDINGS * torch.finfo(y.dtype).eps
    grams = states[0].gram[None] if len(states) == 1 else torch.stack([state.gram for state in states])
    try:
        z, close = krylov_coefficients(grams, y, damping, power, max(tolerance, least))
    except LinAlgError:  # the small eigenvalue problems of all systems are one call
        z, close = torch.empty_like(y), torch.zeros_like(y[:, 0], dtype=torch.bool)
    for k in (~close).nonzero()[:, 0].tolist():
        z[k] = states[k].to_eigen().coefficients(y[k], damping[k], power)
    return z
