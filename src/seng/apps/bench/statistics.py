"""Medians of runs, and intervals for their ratios."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


def median(values: Sequence[float]) -> float:
    """Return the median; runs that never got there count as infinity."""
    return float(np.median(values))


def ratio_interval(
    above: Sequence[float], below: Sequence[float], *, paired: bool, seed: int = 0
) -> tuple[float, float]:
    """Return an interval for the ratio of two medians: percentiles of the bootstrap, LEVEL of it between them.

    Args:
        above: Values of the numerator, > 0.
        below: Values of the denominator, > 0.
        paired: Whether values at the same place have the same seed, initial network and samples: places are drawn
            then, else each side by itself.
        seed: Of the draws.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    generator = np.random.default_rng(seed)
    first = generator.integers(len(above), size=(RESAMPLES, len(above)))
    second = first if paired else generator.integers(len(below), size=(RESAMPLES, len(below)))
    ratios = np.median(np.asarray(above)[first], axis=1) / np.median(np.asarray(below)[second], axis=1)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
