"""The rules of a comparison, fixed before its results: trials, seeds, budgets and the schedule of learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

BudgetKind = Literal["steps", "seconds"]
BUDGETS: tuple[BudgetKind, ...] = ("seconds", "steps")
WARM_UP = 0.05  # share of the budget in which the learning rate rises
WARM_START = 0.1  # share of the learning rate at the first step
MOST_TUNED = 4  # values that may be tuned of an optimizer


@dataclass(frozen=True)
class Protocol:
    """How many runs an optimizer has, the same for all.

    Args:
        name: Written in every line.
        trials: Runs in which an optimizer's values are tuned, at one workload and budget.
        tuning_seed: Their seed.
        seeds: Seeds of the runs with the best values; none is the tuning seed.
        points: Evaluations in each of these, evenly over the budget.
        share: Share of each workload's budget that a run has.
    """

    name: str
    trials: int
    tuning_seed: int
    seeds: tuple[int, ...]
    points: int
    share: float


FULL = Protocol("full", trials=12, tuning_seed=100, seeds=(0, 1, 2, 3, 4), points=10, share=1.0)
QUICK = Protocol("quick", trials=2, tuning_seed=100, seeds=(0, 1), points=2, share=0.05)


@dataclass(frozen=True)
class Budget:
    """What a run may spend: steps, or seconds of one thread's CPU time."""

    kind: BudgetKind
    amount: float

    def spent(self, steps: int, seconds: float) -> float:
        """Return the share that is spent; at 1 or above the run is over."""
        return (steps if self.kind == "steps" else seconds) / self.amount


@dataclass(frozen=True)
class Range:
    """Values that are tried of a setting.

    Args:
        low: The lowest.
        high: The highest.
        log: Whether they are spread evenly in their logarithm.
    """

    low: float
    high: float
    log: bool = True

    def at(self, share: float) -> float:
        """Return the value at a share of the way from lowest to highest, to three digits."""
        even = self.low + (self.high - self.low) * share
        return float(f"{self.low * (self.high / self.low) ** share if self.log else even:.3g}")


def rate_factor(share: float, decays: bool = True) -> float:
    """Return the learning rate as a share of its setting: a linear rise, then a linear fall to zero.

    The share of the budget spent decides, so that a run of given seconds has the schedule of the length in steps that
    its measured rate of steps makes it.

    Args:
        share: Of the budget, spent before the step, in [0, 1).
        decays: Whether the rate falls; it stays where an optimizer averages its steps in place of a schedule.
    """
    warm = min(1.0, WARM_START + (1 - WARM_START) * share / WARM_UP)
    return warm * (1 - share if decays else 1.0)


def design(defaults: Mapping[str, float], ranges: Mapping[str, Range], trials: int) -> list[dict[str, float]]:
    """Return the values of each tuning trial.

    First the defaults, then the first value (the learning rate) halved and doubled, then values spread evenly over all
    ranges: a Kronecker sequence, the same for all optimizers with as many values.

    Args:
        defaults: The default of each tuned setting.
        ranges: The range of each.
        trials: How many.

    Source: Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018).
    """
    first, d = next(iter(ranges)), len(ranges)
    start = {name: defaults[name] for name in ranges}
    tried = [start, start | {first: start[first] / 2}, start | {first: start[first] * 2}]
    root = 2.0
    for _ in range(60):  # a contraction; settled to the last bit long before
        root = (1 + root) ** (1 / (d + 1))
    for i in range(trials - len(tried)):
        places = [math.modf(0.5 + (i + 1) * root ** -(j + 1))[0] for j in range(d)]
        tried.append({name: span.at(place) for (name, span), place in zip(ranges.items(), places, strict=True)})
    return tried[:trials]
