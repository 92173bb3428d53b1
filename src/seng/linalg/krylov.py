"""A power of the damped Gram matrix times one vector, from products with the matrix alone.

n samples; K [n, n] the Gram matrix; y [n]; Q [k, n] an orthonormal basis of span(y, K y, ..., K^(k-1) y).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .powers import shrinkage

FIRST, MORE = 12, 6  # steps before the first look at the error, and between looks: a look costs as much as 3 steps


def krylov_coefficients(
    gram: Float[Tensor, "n n"], y: Float[Tensor, " n"], damping: Float[Tensor, ""], power: float, tolerance: float
) -> Float[Tensor, " n"] | None:
    """Return z with damping^power (F + damping I)^-power g = g + U z for y = U^T g, by Lanczos' method.

    With K Q^T = Q^T T + residual, T tridiagonal, z ~ |y| Q^T shrinkage(T) e_1. Steps are added until the last
    coordinate in the basis is below ``tolerance`` |z|. No step is orthogonalised anew: for functions of a matrix
    rounding only delays convergence.

    Args:
        gram: K, symmetric.
        y: U^T g.
        damping: > 0, 0-d.
        power: In (0, 1].
        tolerance: Of the last coordinate, relative to z, > 0.

    Returns:
        z, or None where n / 4 steps do not reach the tolerance: eigenvalues are cheaper then.

    Cost: k n^2 multiply-adds, k about sqrt(e_max / damping) log(1 / tolerance) or less; against about 10 n^3 of
    eigenvalues.

    Source: Druskin and Knizhnerman, Two polynomial methods of calculating functions of symmetric matrices, 1989.
    """
    most, tiny = len(y) // 4, torch.finfo(y.dtype).tiny
    rows = y.new_empty(most + 1, len(y)).unbind()
    diagonal, beside = [], [torch.linalg.vector_norm(y)]
    floor = torch.finfo(y.dtype).eps * gram.diagonal().sum() + tiny
    torch.div(y, beside[0].clamp(min=tiny), out=rows[0])
    w = torch.empty_like(y)
    for k, q in enumerate(rows[:-1]):
        torch.mv(gram.mT, q, out=w)  # K = K^T, and columns are BLAS's faster order
        if k:
            w.addcmul_(rows[k - 1], beside[k], value=-1)
        diagonal.append(torch.dot(w, q))
        w.addcmul_(q, diagonal[k], value=-1)
        beside.append(torch.linalg.vector_norm(w))
        torch.div(w, beside[-1].clamp(min=floor), out=rows[k + 1])  # where the space is used up, next to nothing
        if k + 1 >= FIRST and (k + 1 - FIRST) % MORE == 0:
            z = _in_basis(torch.stack(diagonal), torch.stack(beside[1:-1]), damping, power)
            if bool(z[-1].abs() <= tolerance * torch.linalg.vector_norm(z)):
                return beside[0] * (z @ torch.stack(rows[: k + 1]))
    return None


def _in_basis(diagonal: Float[Tensor, " k"], beside: Float[Tensor, " l"], damping: Tensor, power: float) -> Tensor:
    """Return shrinkage(T) e_1."""
    tridiagonal = torch.diag(diagonal)
    tridiagonal.diagonal(-1).copy_(beside)
    values, vectors = torch.linalg.eigh(tridiagonal)  # reads the lower triangle
    return vectors @ (shrinkage(values, damping, power) * vectors[0])
