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

    @abstractmethod
    def matvec(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return K x."""

    @abstractmethod
    def spectrum(self) -> Float[Tensor, " n"]:
        """Return the eigenvalues of K, ascending."""


def coefficients(
    state: SolveState, y: Float[Tensor, " n"], damping: Tensor, power: float, tolerance: float = 0.0
) -> Float[Tensor, " n"]:
    """Return z with damping^power (F + damping I)^-power g = g + U z."""
    return state.coefficients(y, damping, power, tolerance)


def spectrum(state: SolveState) -> Float[Tensor, " n"]:
    """Return the eigenvalues of K, ascending."""
    return state.spectrum()
