"""Rows seen through a sketch in sample space."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..rows import Rows


def sketched(rows: Rows, sketch: Float[Tensor, "q n"]) -> tuple[Float[Tensor, "q p"], float]:
    """Return S J and trace(J J^T) from one pass over the rows. Cost: n p q multiply-adds."""
    total = sketch.new_zeros(len(sketch), rows.params.size)
    trace = sketch.new_zeros(())
    base = rows.own.start
    for k, piece in enumerate(rows.pieces):
        tile = rows.tile(k).to(sketch.dtype)
        total.addmm_(sketch[:, base + piece.start : base + piece.stop], tile)
        trace += torch.linalg.vector_norm(tile).square()
    return rows.ranks.sum(total), float(rows.ranks.sum(trace))
