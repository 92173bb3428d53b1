"""How damping follows the run. One function a rule; adding one is a line in the table.

A rule maps (damping, gain ratio) to the next damping. The gain ratio is the fall of the loss over the fall that the
quadratic model promised; it is None where no step was taken.
"""

from __future__ import annotations

from collections.abc import Callable

Rule = Callable[[float, float | None], float]

GOOD, BAD = 0.75, 0.25  # gain ratios. Source: Moré (1978), and most trust-region codes since
DOWN, UP, FAILED = 1 / 3, 2.0, 4.0
LEAST, MOST = 1e-15, 1e15  # where the rule stops: no double precision beyond


def constant(damping: float, gain_ratio: float | None) -> float:
    """Keep the damping, or leave it to its schedule."""
    return damping


def levenberg_marquardt(damping: float, gain_ratio: float | None) -> float:
    """Trust the model more where it promised well, less where it did not, and much less where no step was found."""
    if gain_ratio is None:
        factor = FAILED
    elif gain_ratio < BAD:
        factor = UP
    else:
        factor = DOWN if gain_ratio > GOOD else 1.0
    return min(max(damping * factor, LEAST), MOST)


def nielsen(damping: float, gain_ratio: float | None) -> float:
    """Follow the gain ratio smoothly: a third at 1 and above, the same at 1/2, twice at 0.

    Source: Nielsen, "Damping parameter in Marquardt's method" (1999).
    """
    factor = FAILED if gain_ratio is None else max(DOWN, 1 - (2 * min(max(gain_ratio, 0.0), 1.0) - 1) ** 3)
    return min(max(damping * factor, LEAST), MOST)


DAMPING_RULES: dict[str, Rule] = {
    "constant": constant,
    "levenberg_marquardt": levenberg_marquardt,
    "nielsen": nielsen,
}
