"""Random numbers of a sample that depend on its number and the draw only: the same for any order and any worker."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# Constants of splitmix64: the odd number nearest 2^64 / golden ratio, and the two multipliers of its mixing.
STEP, FIRST, SECOND = (np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def uniforms(indices: Int[Tensor, " n"], draw: int, count: int) -> Float[Tensor, "n count"]:
    """Return numbers uniform in [0, 1), in float64: a row a sample, the same wherever the sample stands in a batch.

    Args:
        indices: numbers of the samples.
        draw: any whole number; others give unrelated rows.
        count: numbers a sample.

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014 (splitmix64), run as a counter.
    """
    seeds = _mixed(indices.numpy().astype(np.uint64) + _mixed(np.array([draw], dtype=np.int64).view(np.uint64)))
    counters = STEP * np.arange(1, count + 1, dtype=np.uint64)
    bits = _mixed(seeds[:, None] + counters)
    return torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53)  # a double holds 53 bits


def _mixed(values: np.ndarray) -> np.ndarray:
    """Spread each bit of 64-bit numbers over all of them, one to one; products wrap around."""
    values = values + STEP
    values = (values ^ (values >> np.uint64(30))) * FIRST
    values = (values ^ (values >> np.uint64(27))) * SECOND
    return values ^ (values >> np.uint64(31))
