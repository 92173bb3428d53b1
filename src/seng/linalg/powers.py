"""Powers of the damped Fisher through the eigenvalues of the Gram matrix."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def shrinkage(eigenvalues: Float[Tensor, " n"], damping: Float[Tensor, ""], power: float) -> Float[Tensor, " n"]:
    """Return ((1 + e / damping)^-power - 1) / e, the factor that a Gram eigenvalue e puts on a direction.

    With K = W E W^T, damping^power (F + damping I)^-power g = g + U W shrinkage(E) W^T U^T g. The quotient is
    formed with expm1 and log1p, and its limit -power / damping is used at e = 0.

    Cost: O(n). Source: the binomial form of (F + damping I)^-power on the range of U.
    """
    return shrinkages(eigenvalues, damping, power)[0]


def shrinkages(
    eigenvalues: Float[Tensor, " n"], damping: Float[Tensor, ""], *powers: float
) -> list[Float[Tensor, " n"]]:
    """Return ``shrinkage`` for several powers, which share a logarithm. Cost: O(n)."""
    ratio = eigenvalues.clamp(min=0) / damping
    positive = ratio > 0
    safe = torch.where(positive, ratio, torch.ones_like(ratio))
    log = torch.log1p(safe)
    return [
        torch.where(positive, torch.expm1(-power * log) / safe, torch.full_like(ratio, -power)) / damping
        for power in powers
    ]


def damped_power(
    matrix: Float[Tensor, "p p"], damping: float | Tensor, power: float, vector: Float[Tensor, " p"]
) -> Float[Tensor, " p"]:
    """Return (matrix + damping I)^-power vector by dense eigenvalues: the reference, O(p^3)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ ((values.clamp(min=0) + damping) ** -power * (vectors.T @ vector))
