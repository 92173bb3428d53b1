"""Rules of the damping."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from seng.func import DAMPING_RULES
from seng.func.damping import LEAST, MOST

each_rule = pytest.mark.parametrize("rule", [DAMPING_RULES[name] for name in ("levenberg_marquardt", "nielsen")])
Rule = Callable[[float, float | None], float]


@each_rule
def test_damping_falls_where_the_model_is_good_and_rises_where_it_is_bad(rule: Rule) -> None:
    good, fair, bad, failed = (rule(1.0, ratio) for ratio in (0.99, 0.5, 0.01, None))
    assert good < fair == 1.0 < bad < failed


@each_rule
def test_damping_keeps_its_bounds(rule: Rule) -> None:
    assert rule(LEAST, 1.0) == LEAST
    assert rule(MOST, None) == MOST


@pytest.mark.parametrize(
    ("ratio", "factor"), [(2.0, 1 / 3), (1.0, 1 / 3), (0.75, 0.875), (0.5, 1.0), (0.0, 2.0), (-9.0, 2.0)]
)
def test_nielsen_is_smooth_in_the_gain_ratio(ratio: float, factor: float) -> None:
    assert DAMPING_RULES["nielsen"](0.3, ratio) == pytest.approx(0.3 * factor)


@pytest.mark.parametrize("ratio", [None, -1.0, 1.0])
def test_constant_damping_is_left_alone(ratio: float | None) -> None:
    assert DAMPING_RULES["constant"](0.3, ratio) == 0.3
