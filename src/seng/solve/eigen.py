"""Eigenvalues of K: any power, any damping, and the spectrum for free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg import shrinkages
from .state import FactorisationError, LinAlgError, SolveState, require_finite


@dataclass(frozen=True)
class EigenState(SolveState):
    """K = W E W^T.

    Args:
        values: Eigenvalues, ascending, >= 0, [n].
        vectors: Orthonormal columns W, [n, n].
    """

    name: ClassVar[str] = "eigen"
    flops: ClassVar[float] = 20.0  # they run at half the speed of a large product

    values: Float[Tensor, " n"]
    vectors: Float[Tensor, "n n"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", (None, []))  # no field: it is neither saved nor moved

    def shrinkages(self, damping: Tensor, *powers: float) -> list[Float[Tensor, " n"]]:
        """Return ``linalg.shrinkages`` of the eigenvalues; the last ones are kept, since most dampings stay.

        On a GPU they are computed each time: reading the damping would wait for the device.
        """
        if damping.is_cuda:
            return shrinkages(self.values, damping, *powers)
        asked = float(damping), powers
        if self._known[0] != asked:  # type: ignore[attr-defined]
            object.__setattr__(self, "_known", (asked, shrinkages(self.values, damping, *powers)))
        return self._known[1]  # type: ignore[attr-defined]

    @classmethod
    def factorise(cls, gram: Float[Tensor, "n n"], damping: Tensor) -> tuple[SolveState, int]:
        """Cost: 10 n^3 multiply-adds."""
        require_finite(gram)
        return eigen(gram)

    def coefficients(
        self, y: Float[Tensor, " n"], damping: Tensor, power: float, tolerance: float = 0.0
    ) -> Float[Tensor, " n"]:
        """Cost: 2 n^2."""
        (own,) = self.shrinkages(damping, power)
        return self.vectors @ (own * (self.vectors.T @ y))

    def with_metric(
        self, y: Float[Tensor, " n"], damping: Tensor, power: float, tolerance: float = 0.0
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Cost: 3 n^2."""
        seen = self.vectors.T @ y
        own, metric = self.shrinkages(damping, power, 1.0)
        z = self.vectors @ (own * seen)
        return z, z if power == 1.0 else self.vectors @ (metric * seen)

    def matvec(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.vectors @ (self.values * (self.vectors.T @ x))

    def spectrum(self) -> Float[Tensor, " n"]:
        return self.values

    @classmethod
    def vector_size(cls, n: int) -> int:
        return n + n * n

    def to_vector(self) -> Float[Tensor, " m"]:
        return torch.cat([self.values, self.vectors.reshape(-1)])

    @classmethod
    def from_vector(cls, vector: Float[Tensor, " m"], n: int, damping: Tensor) -> EigenState:
        return cls(vector[:n].clone(), vector[n:].view(n, n).clone())


def eigen(gram: Float[Tensor, "n n"], dtype: torch.dtype | None = None) -> tuple[EigenState, int]:
    """Return the eigenvalues of K, computed in its own dtype or else in float64, and how many of these failed.

    Args:
        gram: K, symmetric positive semidefinite up to rounding.
        dtype: Of the state; None: that of K.

    Raises:
        FactorisationError: K is not finite, or the eigenvalues do not converge.

    Cost: about 10 n^3 / 3 multiply-adds.
    """
    kept = dtype or gram.dtype
    for failed, working in enumerate(dict.fromkeys((gram.dtype, torch.float64))):
        try:
            values, vectors = torch.linalg.eigh(gram.to(working))
        except LinAlgError:
            continue
        if bool(values.isfinite().all()):
            return EigenState(values.clamp(min=0).to(kept), vectors.to(kept)), failed
    raise FactorisationError("no factorisation of the Gram matrix converged")
