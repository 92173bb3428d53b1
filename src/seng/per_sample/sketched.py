"""U whose Gram matrix and products U^T v go through a sketch, while U c stays exact."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg import low_rank_products
from ..linalg.gram import SCRATCH
from ..sketch import Identity, Sketch, draw
from .base import Grads, PerSampleGradients
from .product import Product
from .rows import Rows


@dataclass(frozen=True)
class Sketched(PerSampleGradients):
    """b solves the sketched least squares problem of PAPER section 2, U b uses all of U.

    Args:
        full: U.
        small: Omega U, of the same kind.
        left: Sketch of the rows of each gradient, or of the flattened gradient where ``right`` is None.
        right: Sketch of the columns; Omega is the Kronecker product of the two.
    """

    full: PerSampleGradients
    small: PerSampleGradients
    left: Sketch
    right: Sketch | None

    @property
    def n(self) -> int:
        return self.full.n

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.full.shapes

    def tile(self, slot: int, start: int, stop: int) -> Float[Tensor, "n rows columns"]:
        return self.full.tile(slot, start, stop)

    def gram(self) -> Float[Tensor, "n n"]:
        """Return (Omega U)^T (Omega U)."""
        return self.small.gram()

    def mv(self, v: Grads) -> Float[Tensor, " n"]:
        """Return (Omega U)^T (Omega v)."""
        if self.right is None:
            return self.small.mv((self.left(torch.cat([x.reshape(-1) for x in v])),))
        assert isinstance(self.full, Product)
        c, _, _, d_out = self.full.g.shape
        columns = self.right(v[0].view(c, d_out, -1))
        return self.small.mv((self.left(columns.mT).mT.contiguous(),))

    def add_rmv_(self, v: Grads, c: Float[Tensor, " n"], beta: float = 1.0) -> None:
        self.full.add_rmv_(v, c, beta)

    def carrier(self) -> PerSampleGradients:
        return self.full

    @property
    def unsketched(self) -> PerSampleGradients:
        whole = isinstance(self.left, Identity) and (self.right is None or isinstance(self.right, Identity))
        return self if whole else self.full


def sketch_rows(full: Rows, name: str, size: int, generator: torch.Generator) -> Sketched:
    """Sketch the flattened per-sample gradients to ``size`` rows. Cost of the Gram: n^2 size. PAPER section 2."""
    rows = torch.cat(full.parts, 1)
    left = draw(name, size, generator, rows.square().sum(0))
    return Sketched(full, Rows.of((left(rows),)), left, None)


def low_rank(io: Product, rank: int, scale: float, dtype: torch.dtype, generator: torch.Generator) -> Product:
    """Replace every sample's weight gradient by one of rank r; a bias is left to the caller.

    Memory: n r (d_in + d_out) c. Source: PAPER section 3.
    """
    pieces: list[tuple[Tensor, Tensor]] = []
    step = max(1, SCRATCH // max(1, io.g.shape[2] * io.d_in))
    for i in range(0, io.n, step):
        a, g = io.chunk(i, min(io.n, i + step))
        shape = (-1, *a.shape[2:]), (-1, *g.shape[2:])
        low_a, low_g = low_rank_products(a.reshape(shape[0]).to(dtype), g.reshape(shape[1]).to(dtype), rank, generator)
        pieces.append((low_a.unflatten(0, a.shape[:2]), low_g.unflatten(0, a.shape[:2])))
    a, g = (torch.cat(side, 1).contiguous() for side in zip(*pieces, strict=True))
    return Product(a, g, False, scale)


def sketch_sides(full: Product, name: str, size: int, generator: torch.Generator) -> Sketched:
    """Sketch both sides of the products to ``size`` rows each. Cost of the Gram: n^2 r^2 2 size a group."""
    left = draw(name, size, generator, full.g.square().sum((0, 1, 2)))
    right = draw(name, size, generator, full.a.square().sum((0, 1, 2)))
    small = Product(right(full.a).contiguous(), left(full.g).contiguous(), False, full.scale)
    return Sketched(full, small, left, right)
