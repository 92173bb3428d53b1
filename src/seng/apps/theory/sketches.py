"""Bounds that a sketched direction keeps, and how far it is from the exact one: from what a sketch does to a subspace.

Legend: U [p, n], g gradient, Omega [q, p] the sketch, lambda damping; Q an orthonormal basis of the columns of U and g.

    epsilon = |Q^T Omega^T Omega Q - I|      embedding error: lengths in that space are kept to 1 -+ epsilon, squared
    t       = largest eigenvalue of (Omega U)^T Omega U, at most its trace;   s = t / (t + lambda)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...per_sample import Combined, PerSampleGradients, Product, Rows, Sketched, sketch_rows
from ...sketch import SKETCHES

DTYPE = torch.float64


@dataclass(frozen=True)
class Embedding:
    """What a sketch did to the space of U and g.

    Args:
        error: epsilon.
        share: s.
        damping: lambda.
    """

    error: float
    share: float
    damping: float

    @property
    def least(self) -> float:
        """C with g.d >= c |g|^2; says nothing where it is negative."""
        if self.error >= 1:
            return -float("inf")
        stretch = ((1 + self.error) / (1 - self.error)) ** 0.5
        return (1 - (1 + self.error) * self.share - self.error * stretch * self.share) / self.damping

    @property
    def largest(self) -> float:
        """C with |d| <= C |g|."""
        if self.error >= 1:
            return float("inf")
        return (1 + ((1 + self.error) / (1 - self.error)) ** 0.5 * self.share) / self.damping

    @property
    def distance(self) -> float:
        """Bound on |d - exact d| / |exact d|."""
        return self.error / (1 - self.error) * self.share if self.error < 1 else float("inf")


def dense_sketch(factor: PerSampleGradients) -> Float[Tensor, "q p"]:
    """Return Omega of a factor as a matrix; the identity where nothing is sketched."""
    if isinstance(factor, Combined):
        return torch.block_diag(*(dense_sketch(term) for term in factor.terms))
    sizes = [rows * columns for rows, columns in factor.shapes]
    if not isinstance(factor, Sketched):
        return torch.eye(sum(sizes), dtype=DTYPE)
    if factor.right is None:
        return factor.left(torch.eye(sum(sizes), dtype=DTYPE)).mT
    assert isinstance(factor.full, Product)
    pairs = ((factor.left, factor.full.g), (factor.right, factor.full.a))
    left, right = (side(torch.eye(x.shape[-1], dtype=DTYPE)).mT for side, x in pairs)
    return torch.block_diag(*[torch.kron(left.contiguous(), right.contiguous())] * len(factor.full.g))


def embedding(factor: PerSampleGradients, g: Float[Tensor, " p"], damping: float) -> Embedding:
    """Return what a factor's sketch does to the space of U and g. Cost: dense algebra; for studies."""
    u, omega = factor.to_dense(), dense_sketch(factor)
    left, values, _ = torch.linalg.svd(torch.cat([u, g[:, None]], 1), full_matrices=False)
    small = omega @ left[:, values > values[0] * len(g) * torch.finfo(u.dtype).eps]
    error = torch.linalg.matrix_norm(small.mT @ small - torch.eye(small.shape[1], dtype=DTYPE), 2)
    top = float(torch.linalg.eigvalsh(factor.gram())[-1])
    return Embedding(float(error), top / (top + damping), damping)


def direction(factor: PerSampleGradients, g: Float[Tensor, " p"], damping: float) -> Float[Tensor, " p"]:
    """Return (g - U b) / lambda with b of the factor's own, sketched system."""
    shapes = [rows * columns for rows, columns in factor.shapes]
    grads = tuple(part.view(shape) for part, shape in zip(g.split(shapes), factor.shapes, strict=True))
    b = torch.linalg.solve(factor.gram() + damping * torch.eye(factor.n, dtype=DTYPE), factor.mv(grads))
    return (g - torch.cat([part.reshape(-1) for part in factor.rmv(b)])) / damping


@dataclass(frozen=True)
class Row:
    """Medians over draws of one sketch at one size.

    Args:
        sketch: Its name.
        size: Its rows, or columns.
        error: |d - exact d| / |exact d|.
        bound: What theory allows, None where there is no bound.
        violations: Draws in which the error exceeded the bound.
    """

    sketch: str
    size: int
    error: float
    bound: float | None
    violations: int

    @staticmethod
    def of(sketch: str, size: int, found: Sequence[tuple[float, float]], rounding: float = 0.0) -> Row:
        """Sum up the error and the bound, infinite where there is none, of each draw."""
        bound = median(bound for _, bound in found)
        return Row(
            sketch, size, median(error for error, _ in found), bound if bound < float("inf") else None,
            sum(error > bound * (1 + 1e-9) + rounding for error, bound in found),
        )  # fmt: skip


def samples(p: int, n: int, seed: int) -> tuple[Float[Tensor, "p n"], Float[Tensor, " p"]]:
    """Return U whose rows and columns are of very different sizes, as in networks, and the mean gradient."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(p, n, generator=generator, dtype=DTYPE) + torch.randn(p, 1, generator=generator, dtype=DTYPE)
    u = u * torch.logspace(0, -1, p, dtype=DTYPE)[:, None] * torch.linspace(0.2, 2, n, dtype=DTYPE)
    return u, u.mean(1)


def sketch_study(
    sizes: tuple[int, ...] = (32, 64, 128, 256, 512, 1024), p: int = 2048, n: int = 16, draws: int = 25,
    damping: float = 0.1, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Measure the error of directions against the size of every sketch of the table, beside its bound.

    Args:
        sizes: Rows of the sketch.
        p: Parameters.
        n: Samples.
        draws: Of each sketch at each size.
        damping: Relative to the mean eigenvalue of K.
        seed: Of all draws.

    Returns:
        Rows, as plain values.
    """
    u, g = samples(p, n, seed)
    full = Rows((u.mT.contiguous(),), ((p, 1),))
    absolute = damping * float(u.square().sum()) / n
    exact = direction(full, g, absolute)
    rows = []
    for name in SKETCHES:
        generator = torch.Generator().manual_seed(seed + 1)
        for size in sizes:
            found = []
            for _ in range(draws):
                factor = sketch_rows(full, name, size, generator)
                away = float((direction(factor, g, absolute) - exact).norm() / exact.norm())
                found.append((away, embedding(factor, g, absolute)))
            row = Row.of(name, size, [(away, kept.distance) for away, kept in found])
            rows.append({**asdict(row), "embedding": median(kept.error for _, kept in found)})
    return {"parameters": p, "samples": n, "damping": damping, "draws": draws, "rows": rows}
