"""Sketches: random q x d matrices with E[S^T S] = I. One file a sketch; adding one is a line in the table."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Draw, Heavy, Identity, Sampling, Sketch, generator_for
from .gaussian import Dense, gaussian
from .row_norm import row_norm
from .sparse_sign import SparseSign, sparse_sign
from .uniform import uniform

__all__ = ["SKETCHES", "Dense", "Heavy", "Identity", "Sampling", "Sketch", "SparseSign", "draw", "generator_for",
           "sketch_bytes"]  # fmt: skip

# (coordinates d, rows q, generator, squared row norms of U [d]) -> S
SKETCHES: dict[str, Draw] = {
    "uniform": uniform,
    "row_norm": row_norm,
    "gaussian": gaussian,
    "sparse_sign": sparse_sign,
}


def draw(name: str, q: int, generator: torch.Generator, scores: Tensor) -> Sketch:
    """Draw the named sketch for as many coordinates as there are scores; the identity where q covers them all."""
    d = len(scores)
    return Identity(d) if q >= d else SKETCHES[name](d, q, generator, scores)


def sketch_bytes(name: str, d: int, q: int) -> int:
    """Return what the named sketch takes; little, such as a number for each row, is not counted."""
    how = SKETCHES[name]
    return how.nbytes(d, q) if q < d and isinstance(how, Heavy) else 0
