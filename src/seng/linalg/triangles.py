"""Half of a symmetric or triangular matrix as one vector: n (n + 1) / 2 numbers in place of n^2."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def triangle_size(n: int) -> int:
    """Return the numbers in the lower triangle of an n x n matrix, its diagonal included."""
    return n * (n + 1) // 2


def pack_triangle(matrix: Float[Tensor, "n n"]) -> Float[Tensor, " m"]:
    """Return the lower triangle row by row. Cost: n^2 / 2 copies."""
    rows, columns = torch.tril_indices(*matrix.shape, device=matrix.device)
    return matrix[rows, columns]


def unpack_triangle(packed: Float[Tensor, " m"], n: int, symmetric: bool) -> Float[Tensor, "n n"]:
    """Undo ``pack_triangle``: the other half is the mirror image, or zero. Cost: n^2 copies."""
    rows, columns = torch.tril_indices(n, n, device=packed.device)
    matrix = packed.new_zeros(n, n)
    matrix[rows, columns] = packed
    if symmetric:
        matrix[columns, rows] = packed
    return matrix
