"""How far the mean of many draws is from what it should be, in standard errors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DRAWS = 2000
WHOLE = 3.0  # standard errors of the whole matrix, in the Frobenius norm
ENTRY = 4.5  # standard errors of one entry: 1e-5 a pair of tails, so that some hundred entries pass together


def distances(draw: Callable[[torch.Generator], Tensor], truth: Tensor, seed: int = 0) -> tuple[float, float]:
    """Return the distance of the mean of DRAWS draws from the truth, of the whole and of the worst entry.

    |mean - truth|_F has the expected square sum(variances) / DRAWS where the draws are unbiased; that is the
    standard error of the whole. Entries whose draws hardly vary are held to the rounding of the mean.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = torch.stack([draw(generator) for _ in range(DRAWS)]).double()
    error, variance = samples.mean(0) - truth, samples.var(0) / DRAWS
    rounding = 1e-6 * truth.abs().max()  # Gaussian sketches are drawn in float32
    whole = error.norm() / (variance.sum().sqrt() + rounding)
    entry = (error.abs() / (variance.sqrt() + rounding)).max()
    return float(whole), float(entry)


def is_unbiased(draw: Callable[[torch.Generator], Tensor], truth: Tensor) -> bool:
    """Whether the mean of DRAWS draws is within the standard errors above, for a fixed seed."""
    whole, entry = distances(draw, truth)
    return whole <= WHOLE and entry <= ENTRY
