"""Row sampling with probabilities that follow the squared row norms of U."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Sampling

UNIFORM_SHARE = 0.1  # every coordinate keeps a chance, so the estimate stays unbiased for gradients U has not seen


def row_norm(d: int, q: int, generator: torch.Generator, scores: Tensor) -> Sampling:
    """Draw q of d coordinates without replacement with inclusion probability pi_j ~ scores_j.

    Systematic sampling: coordinates with q * share_j >= 1 are always kept, the others are drawn with
    fixed sample size, and each is scaled by 1 / sqrt(pi_j).

    Cost: O(d) to draw, O(q) a vector.
    Source: Drineas, Kannan, Mahoney, "Fast Monte Carlo algorithms for matrices I" (2006); Madow (1949).
    """
    probability = inclusion_probabilities(scores.double().cpu(), q)
    order = torch.randperm(d, generator=generator)
    edges = probability[order].cumsum(0)
    ticks = torch.rand(1, generator=generator, dtype=torch.float64) + torch.arange(q, dtype=torch.float64)
    index = order[torch.searchsorted(edges, ticks.clamp(max=edges[-1] * (1 - 1e-15))).clamp(max=d - 1)]
    return Sampling(index, probability[index].rsqrt())


def inclusion_probabilities(scores: Tensor, q: int) -> Tensor:
    """Return pi in (0, 1]^d with sum q, proportional to the scores except where that would exceed 1."""
    total = scores.sum()
    flat = torch.full_like(scores, 1 / len(scores))
    share = flat if total <= 0 else (1 - UNIFORM_SHARE) * scores / total + UNIFORM_SHARE * flat
    certain = torch.zeros_like(share, dtype=torch.bool)
    while True:
        rest = q - int(certain.sum())
        probability = torch.where(certain, 1.0, share * (rest / share[~certain].sum()))
        over = (probability >= 1) & ~certain
        if rest == 0 or not over.any():
            return probability.clamp(max=1.0)
        certain |= over
