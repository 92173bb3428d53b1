"""Powers of damped Gram matrices times vectors, from products with the matrices alone, for a batch of systems at once.

b systems of n samples; K [b, n, n] their Gram matrices; y [b, n]; per system Q [k, n] is an orthonormal basis of
span(y, K y, ..., K^(k-1) y).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .powers import shrinkage

FIRST, MORE = 8, 4  # steps before the first look at the errors, and between looks: a look costs as much as 2 steps


def krylov_coefficients(
    grams: Float[Tensor, "b n n"], y: Float[Tensor, "b n"], damping: Float[Tensor, " b"], power: float, tolerance: float
) -> tuple[Float[Tensor, "b n"], Bool[Tensor, " b"]]:
    """Return z with damping^power (F + damping I)^-power g = g + U z for y = U^T g, by Lanczos' method.

    With K Q^T = Q^T T + residual, T tridiagonal, z ~ |y| Q^T shrinkage(T) e_1. Steps are added until the last
    coordinate in the basis is below ``tolerance`` |z| for every system. No step is orthogonalised anew: for functions
    of a matrix rounding only delays convergence.

    Args:
        grams: K, symmetric.
        y: U^T g.
        damping: > 0.
        power: In (0, 1].
        tolerance: Of the last coordinate, relative to z, > 0.

    Returns:
        z; and for which systems n / 4 steps reach the tolerance: for the others eigenvalues are cheaper.

    Cost: k n^2 multiply-adds a system, k about sqrt(e_max / damping) log(1 / tolerance) or less; against about 10 n^3
    of eigenvalues. Systems go together because a step's vectors are so short that calls cost more than sums.

    Source: Druskin and Knizhnerman, Two polynomial methods of calculating functions of symmetric matrices, 1989.
    """
    most, tiny, eps = max(1, y.shape[-1] // 4), torch.finfo(y.dtype).tiny, torch.finfo(y.dtype).eps
    # products with K and y are scaled by powers of 2, which is exact: their squares could leave the range of float32
    shrink = _inverse_magnitude(grams.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True))
    shorter = _inverse_magnitude(y.abs().amax(-1, keepdim=True))
    scaled, inverse = y * shorter, shrink[..., None]
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    rows, diagonal, beside = [(scaled / norm.clamp(min=tiny))[:, None]], [], []  # [b, 1, n] and [b, 1, 1]
    z, close = torch.zeros_like(y), torch.zeros_like(y[:, 0], dtype=torch.bool)
    for k in range(1, most + 1):
        q = rows[-1]
        w = torch.bmm(q, grams).mul_(inverse)  # K = K^T
        if beside:
            w.addcmul_(rows[-2], beside[-1], value=-1)
        diagonal.append(torch.bmm(w, q.mT))
        w.addcmul_(q, diagonal[-1], value=-1)
        if k == most or (k >= FIRST and (k - FIRST) % MORE == 0):
            coordinates = _in_basis(torch.cat(diagonal, 1)[..., 0], beside, damping * shrink[:, 0], power)
            z = torch.bmm(coordinates[:, None], torch.cat(rows, 1))[:, 0] * norm / shorter * shrink
            close = coordinates[:, -1].abs() <= tolerance * torch.linalg.vector_norm(coordinates, dim=-1)
            if bool(close.all()):
                break
        beside.append(torch.linalg.vector_norm(w, dim=-1, keepdim=True))
        rows.append(w.div_(beside[-1].clamp(min=eps)))  # where the space is used up, next to nothing
    return z, close


def _inverse_magnitude(x: Tensor) -> Tensor:
    """Return the power of 2 that brings x to between 1/2 and 1."""
    x = x.clamp(min=torch.finfo(x.dtype).tiny)
    return torch.frexp(x).mantissa / x


def _in_basis(diagonal: Float[Tensor, "b k"], beside: list[Tensor], damping: Tensor, power: float) -> Tensor:
    """Return shrinkage(T) e_1."""
    tridiagonal = torch.diag_embed(diagonal)
    if beside:
        tridiagonal.diagonal(-1, 1, 2).copy_(torch.cat(beside, 1)[..., 0])
    values, vectors = torch.linalg.eigh(tridiagonal)  # reads the lower triangle
    first = shrinkage(values, damping[:, None], power) * vectors[:, 0]
    return torch.matmul(vectors, first[..., None])[..., 0]
