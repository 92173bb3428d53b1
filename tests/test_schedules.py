"""Schedules against their formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seng import SENG, DenseThenSparse, Exponential, PolynomialLR
from seng.errors import OptionError
from seng.schedules import value_at

ROUNDING = 1e-12  # a few operations on one number
POWERS = 1e-9  # two powers of up to ten thousand
SMALLEST = 1e-300  # below this floats lose digits


@given(step=st.integers(0, 10_000), initial=st.floats(1e-6, 1e3), rate=st.floats(0.5, 1.0), every=st.integers(1, 1000))
def test_exponential_multiplies_every_interval(step: int, initial: float, rate: float, every: int) -> None:
    schedule = Exponential(initial, rate, every)
    assert schedule(0) == initial
    assert schedule(step + every) == pytest.approx(rate * schedule(step), rel=POWERS, abs=SMALLEST)


def test_exponential_stays_above_its_floor() -> None:
    schedule = Exponential(1.0, 0.5, every=2, floor=0.1)
    assert schedule(2) == 0.5
    assert schedule(100) == 0.1


@given(step=st.integers(0, 1000), dense=st.integers(1, 9), sparse=st.integers(1, 99), until=st.integers(0, 500))
def test_dense_then_sparse_changes_once(step: int, dense: int, sparse: int, until: int) -> None:
    assert DenseThenSparse(dense, sparse, until)(step) == (dense if step < until else sparse)


def test_numbers_are_constant_schedules() -> None:
    assert value_at(0.3, 5) == 0.3
    assert value_at(lambda step: step + 1, 5) == 6


@pytest.mark.parametrize("power", [6.0, 1.0, 0.5])
def test_polynomial_lr_matches_its_formula(power: float) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    groups = [{"params": model[0].parameters(), "lr": 0.4}, {"params": model[1].parameters(), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    schedule = PolynomialLR(optimizer, total_steps=10, power=power)
    for t in range(13):
        left = max(0.0, 1 - t / 10) ** power
        assert schedule.get_last_lr() == pytest.approx([0.4 * left, 0.1 * left], rel=ROUNDING)
        assert [group["lr"] for group in optimizer.param_groups] == schedule.get_last_lr()
        optimizer.step()
        schedule.step()


def test_polynomial_lr_resumes_on_seng() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = SENG(model, lr=0.3)
    schedule = PolynomialLR(optimizer, total_steps=20)

    def advance(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 2)).square().mean().backward()
            optimizer.step()
            schedule.step()

    advance(5)
    saved = optimizer.state_dict(), schedule.state_dict()
    advance(5)
    rates = schedule.get_last_lr()
    optimizer.load_state_dict(saved[0])
    schedule.load_state_dict(saved[1])
    advance(5)
    assert schedule.get_last_lr() == rates == [pytest.approx(0.3 * 0.5**6)]
    assert optimizer.param_groups[0]["lr"] == rates[0]


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (Exponential, (0.0, 0.9)),
        (Exponential, (-1.0, 0.9)),
        (Exponential, (float("nan"), 0.9)),
        (Exponential, (1.0, 0.0)),
        (Exponential, (1.0, 0.9, 0)),
        (Exponential, (1.0, 0.9, 1, -0.1)),
        (DenseThenSparse, (0,)),
        (DenseThenSparse, (1, 0)),
        (DenseThenSparse, (1, 1, -1)),
        (PolynomialLR, (torch.optim.SGD([torch.zeros(1)], 0.1), 0)),
        (PolynomialLR, (torch.optim.SGD([torch.zeros(1)], 0.1), 10, 0.0)),
    ],
)
def test_arguments_out_of_range_are_refused(make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    expected = rf"^{make.__name__}\(\): argument out of range: expected .*, got .*\. Pass values in range\.$"
    with pytest.raises(OptionError, match=expected):
        make(*arguments)
