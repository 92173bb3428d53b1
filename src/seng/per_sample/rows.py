"""Per-sample gradients written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg.gram import gram_of_rows
from .base import Grads
from .layer import LayerGradients
from .shape import Shape


@dataclass(frozen=True)
class Rows(LayerGradients, names=("Rows", "Explicit")):
    """U^T as one matrix a parameter: a small layer as captured, or any whose per-sample gradients are written out.

    Args:
        parts: Rows of U^T for each parameter, [n, p_k].
        shapes: Canonical shape of each parameter's gradient.
    """

    kind: ClassVar[str] = "rows"

    parts: tuple[Float[Tensor, "n _"], ...]
    shapes: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(parts: tuple[Float[Tensor, "n _"], ...]) -> Rows:
        """Return rows of parameters of whatever shape: as columns."""
        return Rows(parts, tuple((part.shape[1], 1) for part in parts))

    @property
    def n(self) -> int:
        return self.parts[0].shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def shape(self) -> Shape:
        return Shape(self.kind, self.n, sum(part.shape[1] for part in self.parts), grads=self.dtype)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.parts

    @classmethod
    def of_tensors(cls, shape: Shape, tensors: Sequence[Tensor]) -> Rows:
        return cls.of(tuple(tensors))

    def held(self, scale: float, dtype: torch.dtype) -> Rows:
        """Memory: n p."""
        return Rows(tuple(part.to(dtype) * scale for part in self.parts), self.shapes)

    def written_out(self, scale: float, dtype: torch.dtype) -> Rows:
        return self.held(scale, dtype)

    def multiplied(self, ratio: float) -> Rows:
        return Rows(tuple(part * ratio for part in self.parts), self.shapes)

    def expanded(self, rows: int, generator: torch.Generator) -> tuple[Rows, int]:
        """Return U as it is: there is one row a sample."""
        return self, self.n

    @staticmethod
    def joined(parts: Sequence[Tensor], axis: int) -> Tensor:
        return reduce(torch.add, parts) if axis else torch.cat(parts)  # type: ignore[arg-type]  # positions are added

    def thin(self) -> Rows:
        """Return U of the same F with at most p columns: the triangular factor of a QR decomposition of U^T.

        The columns no longer belong to samples. Cost: 2 n p^2 multiply-adds where p < n, else nothing.
        """
        if sum(part.shape[1] for part in self.parts) >= self.n:
            return self
        return Rows.split(torch.linalg.qr(torch.cat(self.parts, 1), mode="r").R, self.shapes)

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
    def split(rows: Float[Tensor, "n p"], shapes: tuple[tuple[int, ...], ...]) -> Rows:
        """Split a matrix of flattened rows by parameter."""
        sizes = [r * k for r, k in shapes]
        return Rows(tuple(part.contiguous() for part in rows.split(sizes, 1)), shapes)
