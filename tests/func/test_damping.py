"""Rules of the damping."""

from __future__ import annotations

import pytest

from seng.func import DAMPING_RULES
from seng.func.damping import LEAST, MOST

RULE = DAMPING_RULES["levenberg_marquardt"]


def test_damping_falls_where_the_model_is_good_and_rises_where_it_is_bad() -> None:
    good, fair, bad, failed = (RULE(1.0, ratio) for ratio in (0.99, 0.5, 0.01, None))
    assert good < fair == 1.0 < bad < failed


def test_damping_keeps_its_bounds() -> None:
    assert RULE(LEAST, 1.0) == LEAST
    assert RULE(MOST, None) == MOST


@pytest.mark.parametrize("ratio", [None, -1.0, 1.0])
def test_constant_damping_is_left_alone(ratio: float | None) -> None:
    assert DAMPING_RULES["constant"](0.3, ratio) == 0.3
