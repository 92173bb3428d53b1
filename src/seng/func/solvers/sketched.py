"""Rows seen through a sketch in sample space."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..rows import Rows


def sketched(rows: Rows, sketch: Float[Tensor, "q n"]) -> Float[Tensor, "q p"]:
    """Return S J from one pass over the rows. Cost: n p q multiply-adds."""
    total = sketch.new_zeros(len(sketch), rows.params.size)
    base = rows.own.start
    for k, piece in enumerate(rows.pieces):
        total.addmm_(sketch[:, base + piece.start : base + piece.stop], rows.tile(k).to(sketch.dtype))
    return rows.ranks.sum(total)
