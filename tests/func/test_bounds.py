"""Bounds on parameters, beside scipy's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seng.errors import OptionError
from seng.func import NaturalGradient, fit

from .reference import DTYPE, draw

least_squares = pytest.importorskip("scipy.optimize").least_squares
X = torch.linspace(0, 2, 25, dtype=DTYPE)
BOX = (torch.tensor([-0.5, 0.2, -1.0], dtype=DTYPE), torch.tensor([1.5, math.inf, 0.5], dtype=DTYPE))
INSIDE = torch.tensor([0.5, 1.0, 0.0], dtype=DTYPE)


def curve(w: Tensor, x: Tensor) -> Tensor:
    return w[0] * torch.exp(-w[1] * x) + w[2] * torch.sin(3 * x)


@pytest.mark.parametrize("seed", range(12))
def test_fit_within_bounds_is_scipys(seed: int) -> None:
    """True parameters are drawn in and out of the box; bounds then hold some of them."""
    truth = torch.tensor([1.0, 1.0, 0.0], dtype=DTYPE) + draw(3, seed=seed)
    y = curve(truth, X) + 0.05 * draw(len(X), seed=100 + seed)
    w = INSIDE.clone()
    optimizer = NaturalGradient(w, lambda w, s: curve(w, s[0]) - s[1], bounds=BOX)
    for _ in range(100):
        optimizer.step((X, y))
        assert bool(((BOX[0] <= w) & (w <= BOX[1])).all())

    def residuals(v: Any) -> Any:
        return (curve(torch.from_numpy(v), X) - y).numpy()

    low, high = (side.numpy() for side in BOX)
    found = least_squares(residuals, INSIDE.numpy(), bounds=(low, high), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert 0.5 * float((curve(w, X) - y).square().sum()) <= found.cost * (1 + 1e-9)
    torch.testing.assert_close(w, torch.from_numpy(found.x), rtol=1e-5, atol=1e-6)


def test_bounds_that_hold_nothing_change_nothing() -> None:
    pair = []
    for bounds in (None, (-1e3, 1e3)):
        w = INSIDE.clone()
        optimizer = NaturalGradient(w, lambda w, x: curve(w, x) - torch.exp(-2 * x), bounds=bounds)
        pair.append([optimizer.step(X).loss_after for _ in range(10)])
    assert pair[0] == pair[1]


def test_steps_end_where_no_parameter_may_move() -> None:
    w = torch.zeros((), dtype=DTYPE)
    optimizer = NaturalGradient(w, lambda w, x: w - 2 - x, bounds=(-1.0, 1.0))
    results = [optimizer.step(X) for _ in range(5)]
    assert float(w) == 1
    assert results[-1].converged
    assert results[-1].reason == "bounds let no parameter move"


def test_bounds_of_a_module_are_by_name_and_others_are_free() -> None:
    net = nn.Linear(1, 1).double()
    nn.init.zeros_(net.weight)
    fit(net, lambda u, x: u(x) - 3 * x - 5, X[:, None], steps=30, bounds=({}, {"weight": 1.0}))
    assert net.weight.item() == 1
    assert net.bias.item() == pytest.approx(float((2 * X + 5).mean()))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (1.0, r"a pair \(low, high\)"),
        ((1.0, -1.0), "low < high"),
        ((0.9, 2.0), "low < high with params between them"),
        (({"no such": 0.0}, 2.0), "names among"),
        ((torch.zeros(2), 2.0), "tensors of the parameters' shapes"),
    ],
)
def test_bounds_that_cannot_be_used_are_refused(bounds: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        NaturalGradient(INSIDE.clone(), curve, bounds=bounds)
