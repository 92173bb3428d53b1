"""What a solve state is: it makes itself from K, solves, and travels between ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg import triangle_size

LinAlgError: type[Exception] = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]


class FactorisationError(ArithmeticError):
    """Every attempt failed: K is not finite, or its eigenvalues do not converge."""


class SolveState(ABC):
    """A factorisation of K [n, n].

    Laws: ``matvec(x)`` = K x; ``coefficients`` = -((K + damping I)^-power - damping^-power I) damping^power
    K^+ y up to sign, that is z with damping^power (F + damping I)^-power g = g + U z. ``from_vector`` undoes
    ``to_vector``. A new subclass is one file: states are saved and loaded by the name of their class.

    Attributes:
        name: What plans call this way to solve.
        flops: What ``factorise`` and a first solution take, in n^3 operations of a large product.
    """

    TYPES: ClassVar[dict[str, type[SolveState]]] = {}
    name: ClassVar[str]
    flops: ClassVar[float]

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        SolveState.TYPES[cls.__name__] = cls

    @classmethod
    @abstractmethod
    def factorise(cls, gram: Float[Tensor, "n n"], damping: Tensor) -> tuple[SolveState, int]:
        """Return a state of K, and how many attempts failed before one held: then it may be of a more robust type.

        Args:
            gram: K, symmetric positive semidefinite up to rounding.
            damping: > 0, 0-d.

        Raises:
            FactorisationError: No attempt held.
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

    @classmethod
    def vector_size(cls, n: int) -> int:
        """Return the length of ``to_vector``: of a triangle, unless a subclass needs more."""
        return triangle_size(n)

    @abstractmethod
    def to_vector(self) -> Float[Tensor, " m"]:
        """Return the state as a vector of known length, for another rank."""

    @classmethod
    @abstractmethod
    def from_vector(cls, vector: Float[Tensor, " m"], n: int, damping: Tensor) -> SolveState:
        """Undo ``to_vector``."""


def require_finite(gram: Float[Tensor, "n n"]) -> None:
    """Raise FactorisationError where K is not finite. Cost: n."""
    if not bool(gram.diagonal().sum().isfinite()):
        raise FactorisationError("the Gram matrix is not finite")
