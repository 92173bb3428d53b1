"""Low-rank summaries of curvature: truncation by damping, and merging."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..linalg.gram import SCRATCH
from .base import PerSampleGradients
from .rows import Rows

TOLERANCE = 1e-3  # by default


def truncate(
    factor: PerSampleGradients,
    damping: Tensor,
    limit: int | None = None,
    spectrum: tuple[Float[Tensor, " n"], Float[Tensor, "n n"]] | None = None,
    tolerance: float = TOLERANCE,
) -> tuple[Rows, Float[Tensor, " k"]]:
    """Keep the eigendirections of F with eigenvalue above tolerance * damping: U ~ [p, k], k columns.

    The dropped part changes (F + damping I)^-power by at most the tolerance, relatively. The columns that remain are
    orthogonal: their Gram matrix is the diagonal of the eigenvalues returned.

    Args:
        factor: U [p, n].
        damping: The damping the curvature will be used with, > 0, 0-d.
        limit: Largest k, the leading ones are kept.
        spectrum: Eigenvalues and eigenvectors of the Gram matrix, ascending, where they are known.
        tolerance: Multiple of the damping, >= 0.

    Cost: n^3 + n p k multiply-adds. Memory: p k.
    """
    values, vectors = torch.linalg.eigh(factor.gram()) if spectrum is None else spectrum
    first = int((values <= tolerance * damping).sum())
    first = min(max(first, len(values) - (limit or len(values))), len(values) - 1)
    return combine(factor, vectors[:, first:]), values[first:].clamp(min=0)


def combine(factor: PerSampleGradients, weights: Float[Tensor, "n k"]) -> Rows:
    """Return U weights written out, k columns, formed by tiles. Cost: n p k and the tiles'."""
    parts = []
    for slot, (rows, columns) in enumerate(factor.shapes):
        step = max(1, SCRATCH // max(1, factor.n * columns))
        tiles = [
            weights.T @ factor.tile(slot, i, min(rows, i + step)).reshape(factor.n, -1) for i in range(0, rows, step)
        ]
        parts.append(tiles[0] if len(tiles) == 1 else torch.cat(tiles, 1))
    return Rows(tuple(parts), factor.shapes)


def merge(old: Rows, new: PerSampleGradients, weight: float) -> Rows:
    """Return the factor of weight F_old + (1 - weight) F_new: columns side by side, scaled by square roots.

    The same merge serves moving averages over time, accumulation and ranks. Memory: p (n_old + n_new).
    """
    fresh = combine(new, torch.eye(new.n, dtype=old.parts[0].dtype, device=old.parts[0].device))
    pairs = zip(old.parts, fresh.parts, strict=True)
    return Rows(tuple(torch.cat([a * weight**0.5, b * (1 - weight) ** 0.5]) for a, b in pairs), new.shapes)
