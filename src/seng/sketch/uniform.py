"""Uniform row sampling without replacement, the paper's choice."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Sampling


def uniform(d: int, q: int, generator: torch.Generator, scores: Tensor) -> Sampling:
    """Draw q of d coordinates uniformly, each scaled by sqrt(d / q).

    Cost: O(d) to draw, O(q) a vector. Source: PAPER section 2.
    """
    index = torch.randperm(d, generator=generator)[:q].sort().values
    return Sampling(index, torch.full((q,), (d / q) ** 0.5, dtype=torch.float64))
