"""Intervals of ratios hold the truth as often as they say, on made-up losses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seng.apps.bench import statistics
from seng.apps.bench.statistics import LEVEL, median, ratio_interval

TRIES = 300


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(
    ("runs", "least"),
    [(25, LEVEL - 0.03), (5, 0.85)],  # with five runs a median's interval is a little short: docs/benchmarks.md says so
)
def test_interval_holds_the_true_ratio(monkeypatch: pytest.MonkeyPatch, runs: int, least: float, paired: bool) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    generator, truth, held = np.random.default_rng(0), 0.8, 0
    for seed in range(TRIES):
        shared = generator.normal(0, 0.1 if paired else 0.0, runs)  # what a seed does to both
        above = truth * np.exp(shared + generator.normal(0, 0.05, runs))
        below = np.exp(shared + generator.normal(0, 0.05, runs))
        low, high = ratio_interval(above.tolist(), below.tolist(), paired=paired, seed=seed)
        held += low <= truth <= high
    assert held / TRIES >= least


def test_interval_of_equal_runs_is_a_point() -> None:
    losses = [1.0, 2.0, 4.0]
    assert ratio_interval(losses, losses, paired=True) == (1.0, 1.0)


def test_interval_has_the_unit_of_neither_side() -> None:
    above, below = [1.0, 1.2, 1.4, 1.1], [2.0, 2.1, 1.9, 2.4]
    scaled = ratio_interval([8 * x for x in above], [8 * x for x in below], paired=False)
    assert scaled == pytest.approx(ratio_interval(above, below, paired=False))


def test_median_of_runs_that_miss_is_a_miss() -> None:
    assert median([1.0, math.inf, 2.0, math.inf, math.inf]) == math.inf
    assert median([1.0, math.inf, 2.0]) == 2.0
