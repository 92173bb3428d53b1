"""Step lengths on losses whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan

import pytest
import torch
from torch import Tensor

from seng.func import LINE_SEARCHES
from seng.func.linesearch import GRID, HALVINGS

Losses = Callable[[Tensor], Tensor]


def parabola(best: float) -> Losses:
    """Loss 1 at length 0, 0 at the best length; its slope is 2 / best."""
    return lambda lengths: (lengths / best - 1) ** 2


def wall(best: float, value: float) -> Losses:
    """The same, but for a loss that is not finite at lengths above 0.3."""
    return lambda lengths: torch.where(lengths > 0.3, torch.full_like(lengths, value), parabola(best)(lengths))


@pytest.mark.parametrize("best", [1.0, 0.5, 2.0**-7])
def test_grid_finds_the_best_of_its_lengths(best: float) -> None:
    length, after = LINE_SEARCHES["grid"](parabola(best), 1.0, 1.0, 2 / best)
    assert length == best
    assert after == 0


@pytest.mark.parametrize("name", ["grid", "backtracking"])
@pytest.mark.parametrize("value", [nan, inf])
def test_searches_pass_over_losses_that_are_not_finite(name: str, value: float) -> None:
    length, after = LINE_SEARCHES[name](wall(0.25, value), 1.0, 1.0, 8.0)
    assert length == 0.25
    assert after == 0


def test_grid_calls_once_for_all_lengths() -> None:
    seen: list[int] = []
    LINE_SEARCHES["grid"](lambda lengths: seen.append(len(lengths)) or lengths, 1.0, 1.0, 1.0)
    assert seen == [GRID]


@pytest.mark.parametrize("name", ["grid", "backtracking"])
def test_searches_give_up_uphill(name: str) -> None:
    tried: list[Tensor] = []
    uphill = lambda lengths: tried.append(lengths) or 1.0 + lengths  # noqa: E731
    assert LINE_SEARCHES[name](uphill, 1.0, 1.0, 1.0) == (0.0, 1.0)
    assert sum(len(lengths) for lengths in tried) == (GRID if name == "grid" else HALVINGS)


def test_backtracking_takes_the_first_length_that_falls_enough() -> None:
    length, after = LINE_SEARCHES["backtracking"](parabola(0.4), 1.0, 1.0, 5.0)
    assert length == 0.5
    assert after == pytest.approx(0.0625)


def test_backtracking_asks_for_more_than_a_bare_decrease() -> None:
    barely = lambda lengths: torch.where(lengths > 0.3, 1.0 - 1e-9 * lengths, parabola(0.25)(lengths))  # noqa: E731
    assert LINE_SEARCHES["backtracking"](barely, 1.0, 1.0, 8.0)[0] == 0.25


@pytest.mark.parametrize(("value", "length"), [(5.0, 0.7), (nan, 0.0), (inf, 0.0)])
def test_none_takes_its_length_unless_the_loss_is_not_finite(value: float, length: float) -> None:
    got, after = LINE_SEARCHES["none"](lambda lengths: torch.full_like(lengths, value), 0.7, 1.0, 1.0)
    assert got == length
    assert after == (5.0 if length else 1.0)
