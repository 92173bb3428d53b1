"""What a solve state answers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

LinAlgError: type[Exception] = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]


class FactorisationError(ArithmeticError):
    """Every rung failed: K is not finite, or its eigenvalues do not converge."""


class SolveState(ABC):
    """A factorisation of K [n, n].

    Laws: ``matvec(x)`` = K x; ``coefficients`` = -((K + damping I)^-power - damping^-power I) damping^power
    K^+ y up to sign, that is z with damping^power (F + damping I)^-power g = g + U z.
    """

    @abstractmethod
    def coefficients(
        self, y: Float[Tensor, " n"], damping: Tensor, power: float, tolerance: float = 0.0
    ) -> Float[Tensor, " n"]:
        """Return z for y = U^T g; ``tolerance`` is the relative error of z that is welcome where it saves time."""

    def with_metric(
        self, y: Float[Tensor, " n"], damping: Tensor, power: float, tolerance: float = 0.0
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return z, and the z of power 1: the one that ``linalg.metric_length`` takes."""
        z = self.coefficients(y, damping, power, tolerance)
        return z, z if power == 1.0 else self.coefficients(y, damping, 1.0)

    @abstractmethod
    def matvec(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return K x."""

    @abstractmethod
    def spectrum(self) -> Float[Tensor, " n"]:
        """Return the eigenvalues of K, ascending."""
