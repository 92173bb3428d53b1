"""Per-sample gradients written out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg.gram import SCRATCH, gram_of_rows
from ..types import Grads, Product, Rows
from .base import Factor


@dataclass(frozen=True)
class Explicit(Factor):
    """U^T as one matrix a parameter.

    Args:
        parts: Rows of U^T for each parameter, [n, p_k].
        shapes: Canonical shape of each parameter's gradient.
    """

    parts: tuple[Float[Tensor, "n _"], ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def n(self) -> int:
        return self.parts[0].shape[0]

    def tile(self, slot: int, start: int, stop: int) -> Float[Tensor, "n rows columns"]:
        return self.parts[slot].view(self.n, *self.shapes[slot])[:, start:stop]

    def gram(self) -> Float[Tensor, "n n"]:
        """Cost: n^2 p multiply-adds."""
        total = gram_of_rows(self.parts[0])
        for part in self.parts[1:]:
            total.add_(gram_of_rows(part))
        return total

    def mv(self, v: Grads) -> Float[Tensor, " n"]:
        """Cost: n p multiply-adds, bound by memory."""
        return sum((part @ x.view(-1) for part, x in zip(self.parts, v, strict=True)), self.parts[0].new_zeros(()))

    def add_rmv_(self, v: Grads, c: Float[Tensor, " n"], beta: float = 1.0) -> None:
        """Cost: n p multiply-adds, bound by memory."""
        for part, x in zip(self.parts, v, strict=True):
            x.view(-1).addmv_(part.T, c, beta=beta)

    @staticmethod
    def from_rows(rows: Float[Tensor, "n p"], shapes: tuple[tuple[int, ...], ...]) -> Explicit:
        """Split a matrix of flattened rows by parameter."""
        sizes = [r * k for r, k in shapes]
        return Explicit(tuple(part.contiguous() for part in rows.split(sizes, 1)), shapes)


def explicit(io: Product | Rows, scale: float, dtype: torch.dtype) -> Explicit:
    """Write out the per-sample gradients, in chunks of samples.

    Cost: n s d_in d_out c multiply-adds; memory n p.
    """
    if isinstance(io, Rows):
        return Explicit(tuple(part.to(dtype) * scale for part in io.parts), io.shapes)
    return Explicit(_product_rows(io, scale, dtype), io.shapes)


def _product_rows(io: Product, scale: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    c, n, s, d_out = io.g.shape
    weight = torch.empty(n, c, d_out, io.d_in, dtype=dtype, device=io.g.device)
    step = max(1, SCRATCH // max(1, c * s * io.d_in))
    for i in range(0, n, step):
        a, g = io.chunk(i, min(n, i + step))
        left = g.to(dtype).mT * scale
        if c == 1:
            torch.bmm(left[0], a[0].to(dtype), out=weight[i : i + step, 0])
        else:
            weight[i : i + step] = (left @ a.to(dtype)).transpose(0, 1)
    if not io.bias:
        return (weight.view(n, -1),)
    bias = io.g.sum(2, dtype=dtype).transpose(0, 1).reshape(n, -1).mul_(scale)
    return weight.view(n, -1), bias


def thin(factor: Explicit) -> Explicit:
    """Return a factor of the same F with at most p columns: the triangular one of a QR decomposition of U^T.

    The columns no longer belong to samples. Cost: 2 n p^2 multiply-adds where p < n, else nothing.
    """
    if sum(part.shape[1] for part in factor.parts) >= factor.n:
        return factor
    rows = torch.linalg.qr(torch.cat(factor.parts, 1), mode="r").R
    return Explicit.from_rows(rows, factor.shapes)
