"""Stages of a fit: when new points are drawn, and how many.

A stage is the steps between two draws. Its points serve as long as what is learned from them holds elsewhere, which the
held-out residual tells. The number of points grows after a stage that did not lower the held-out residual, or that left
it far above that of the points: with too few points, a step fits these and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

PARTED = 2.0  # held-out residual over that of the points, above which the points tell no more
FAR = 10.0  # the same, above which the points were too few
LEAST_STEPS = 10  # of a stage that ends because of that
PATIENCE = 30  # steps without progress, after which a stage ends
PROGRESS = 0.8  # factor by which a residual has fallen, to count as progress
GROWTH = 1.5  # of the number of points
SHARE = 8  # parameters a point, at the beginning
FEWEST = 64  # points at the beginning
LAST = 10  # stages without progress at the largest number of points, after which a fit has converged


@dataclass(frozen=True)
class Stage:
    """What is known of the present stage.

    Args:
        begun: Least held-out residual before it; inf without held-out points.
        least: Least residual since, held out where there are such points.
        steps: Its steps so far.
        stalled: Steps since there was progress.
        converged: Whether no step lowers the loss of its points by more than its rounding.
        gap: Held-out residual over that of the points, when it was last computed.
    """

    begun: float = inf
    least: float = inf
    steps: int = 0
    stalled: int = 0
    converged: bool = False
    gap: float = 1.0

    def after(self, residual: float, held_out: float | None, converged: bool) -> Stage:
        """Return the stage after one more step.

        Args:
            residual: Residual at the points.
            held_out: Residual at the held-out points, or None where it was not computed.
            converged: What the step said.
        """
        judged = residual if held_out is None and self.begun == inf else held_out
        better = judged is not None and judged < PROGRESS * self.least
        return replace(
            self,
            least=judged if better and judged is not None else self.least,
            steps=self.steps + 1,
            stalled=0 if better else self.stalled + 1,
            converged=converged,
            gap=self.gap if held_out is None else held_out / residual if residual else inf,
        )

    @property
    def parted(self) -> bool:
        """Whether the held-out residual has parted from that of the points."""
        return self.gap > PARTED

    @property
    def gained(self) -> bool:
        """Whether the stage lowered the least held-out residual."""
        return self.least < PROGRESS * self.begun

    @property
    def starved(self) -> bool:
        """Whether there were too few points."""
        return not self.gained or self.gap > FAR


Policy = Callable[[Stage], bool]


def never(stage: Stage) -> bool:
    """Keep the points, unless their number has to grow: where the held-out residual has parted and stalls."""
    return stage.parted and (stage.converged or stage.stalled >= PATIENCE)


def stall(stage: Stage) -> bool:
    """Draw points where the residual stalls, or no step lowers it."""
    return stage.converged or stage.stalled >= PATIENCE


def auto(stage: Stage) -> bool:
    """Draw points where the held-out residual has parted from that of the points, or stalls."""
    return stall(stage) or (stage.parted and stage.steps >= LEAST_STEPS)


RESAMPLING: dict[str, Policy] = {"never": never, "stall": stall, "auto": auto}


def first_size(params: int, most: int) -> int:
    """Return the number of points to begin with, for a number of parameters."""
    return min(max(FEWEST, params // SHARE), most)
