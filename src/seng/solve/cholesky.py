"""Cholesky factor of K + damping I: power 1 and one damping."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg import cholesky_coefficients, pack_triangle, unpack_triangle
from .eigen import EigenState, eigen
from .state import SolveState, require_finite

JITTERS = (0.0, 1e-6, 1e-4)  # multiples of the mean eigenvalue added to the diagonal, one after the other


@dataclass(frozen=True)
class CholeskyState(SolveState):
    """L with L L^T = K + damping I. About ten times cheaper to make than eigenvalues.

    Args:
        factor: L, lower triangular, [n, n].
        damping: The damping inside L, 0-d; jitter that a failing factorisation needed comes on top, unnamed.
    """

    name: ClassVar[str] = "cholesky"
    flops: ClassVar[float] = 1 / 3

    factor: Float[Tensor, "n n"]
    damping: Float[Tensor, ""]

    @classmethod
    def factorise(cls, gram: Float[Tensor, "n n"], damping: Tensor) -> tuple[SolveState, int]:
        """Try growing jitters, then float64, then eigenvalues. Cost: n^3 / 3 multiply-adds an attempt."""
        require_finite(gram)
        failed = 0
        for dtype in dict.fromkeys((gram.dtype, torch.float64)):
            for jitter in JITTERS:
                state = _try(gram, damping, jitter, dtype)
                if state is not None:
                    return state, failed
                failed += 1
        state, more = eigen(gram)
        return state, failed + more

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

    def to_vector(self) -> Float[Tensor, " m"]:
        return pack_triangle(self.factor)

    @classmethod
    def from_vector(cls, vector: Float[Tensor, " m"], n: int, damping: Tensor) -> CholeskyState:
        return cls(unpack_triangle(vector, n, symmetric=False), damping)

    def to_eigen(self) -> EigenState:
        """Return the eigenvalues of K. Cost: n^3."""
        gram = (self.factor @ self.factor.T).double()
        gram.diagonal().sub_(self.damping)
        return eigen(gram, self.factor.dtype)[0]


def _try(gram: Tensor, damping: Tensor, jitter: float, dtype: torch.dtype) -> CholeskyState | None:
    shift = damping.to(dtype) + jitter * gram.diagonal().mean().to(dtype) if jitter else damping.to(dtype)
    shifted = gram.to(dtype, copy=True)
    shifted.diagonal().add_(shift)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if int(info) != 0:
        return None
    # the jitter stays unnamed: coefficients are asked for at `damping`, and off by the jitter alone
    return CholeskyState(factor.to(gram.dtype), damping)
