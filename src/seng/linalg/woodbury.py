"""Directions from n x n systems (Sherman, Morrison, Woodbury).

Legend: U [p, n], F = U U^T, K = U^T U, y = U^T g, z coefficients with d' = g + U z and d' = damping^power d.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

CANCELLATION = 16.0  # roundings of g.g, and of z.K z, that the difference of g.g and y.z may be off by


def cholesky_coefficients(factor: Float[Tensor, "n n"], y: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return z = -(K + damping I)^-1 y from the lower Cholesky factor of K + damping I.

    Then damping (F + damping I)^-1 g = g + U z. Cost: n^2 multiply-adds. Source: PAPER section 1.
    """
    return torch.cholesky_solve(y[:, None], factor)[:, 0].neg_()


def metric_length(
    squared_norm: Float[Tensor, ""],
    y: Float[Tensor, " n"],
    z: Float[Tensor, " n"],
    damping: Float[Tensor, ""],
    trace: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return q with q^2 = g^T (F + damping I)^-1 g = (g.g + y.z) / damping, where z are the coefficients of power 1.

    The two terms cancel where g lies in the range of U, and K = U^T U is factorised up to rounding. What that may have
    left of them is added, so that q is an upper bound in any dtype. At most 1, up to that, when g is the mean gradient
    of the samples in U. The z of power 1/2 with 2 y + K z in place of y gives the same q, the length of that direction.
    Cost: O(n).

    Args:
        squared_norm: g.g.
        y: U^T g.
        z: -(K + damping I)^-1 y.
        damping: > 0.
        trace: Of K, or a bound of it: the size of its rounding errors.
    """
    rounding = CANCELLATION * torch.finfo(z.dtype).eps * (squared_norm + trace * torch.dot(z, z))
    remainder = (squared_norm + torch.dot(y, z)).clamp(min=0) + rounding
    return remainder.sqrt() / damping.sqrt()  # the quotient of squares would overflow first
