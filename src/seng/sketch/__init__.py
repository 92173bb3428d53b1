"""Sketches: random q x d matrices with E[S^T S] = I. One file a sketch; adding one is a line in the table."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import Identity, Sampling, Sketch, generator_for
from .gaussian import Dense, gaussian
from .row_norm import row_norm
from .sparse_sign import SparseSign, sparse_sign
from .uniform import uniform

__all__ = ["SKETCHES", "SKETCH_TYPES", "Dense", "Identity", "Sampling", "Sketch", "SparseSign", "draw", "generator_for"]

# (coordinates d, rows q, generator, squared row norms of U [d]) -> S
SKETCHES: dict[str, Callable[[int, int, torch.Generator, Tensor], Sketch]] = {
    "uniform": uniform,
    "row_norm": row_norm,
    "gaussian": gaussian,
    "sparse_sign": sparse_sign,
}

SKETCH_TYPES: dict[str, type[Sketch]] = {kind.__name__: kind for kind in (Identity, Sampling, Dense, SparseSign)}


def draw(name: str, q: int, generator: torch.Generator, scores: Tensor) -> Sketch:
    """Draw the named sketch for as many coordinates as there are scores; the identity where q covers them all."""
    d = len(scores)
    return Identity(d) if q >= d else SKETCHES[name](d, q, generator, scores)
