"""Robust residuals against the losses' closed forms, and fits with outliers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seng.errors import OptionError
from seng.func import NaturalGradient, natural_gradient, robust
from seng.func.robust import ROBUST_LOSSES

from .reference import DTYPE, draw

EXACT = 1e-12  # float64, closed forms
RHO: dict[str, Callable[[Tensor], Tensor]] = {
    "huber": lambda z: torch.where(z <= 1, z, 2 * z.sqrt() - 1),
    "soft_l1": lambda z: 2 * z / (1 + (1 + z).sqrt()),
    "cauchy": torch.log1p,
}


@pytest.mark.parametrize("loss", ROBUST_LOSSES)
@settings(deadline=None)
@given(r=st.floats(-1e6, 1e6), scale=st.floats(1e-3, 1e3))
def test_half_squares_are_the_loss(loss: str, r: float, scale: float) -> None:
    residual = torch.tensor(r, dtype=DTYPE)
    expected = scale**2 * RHO[loss]((residual / scale).square()) / 2
    got = robust(residual, loss, scale)
    torch.testing.assert_close(got.square() / 2, expected, rtol=EXACT, atol=1e-300)  # subnormal numbers
    assert got * residual >= 0


@pytest.mark.parametrize("loss", ROBUST_LOSSES)
def test_derivatives_are_those_of_the_loss(loss: str) -> None:
    """Also at 0, and beside the points where formulas change."""
    for r in (0.0, 1e-9, 5e-3, 0.02, 1 - 1e-9, 1 + 1e-9, -3.0, 1e3):
        residual = torch.tensor(r, dtype=DTYPE, requires_grad=True)
        got = torch.autograd.grad(robust(residual, loss).square() / 2, residual)[0]
        z = torch.tensor(r, dtype=DTYPE).square().requires_grad_()
        expected = r * torch.autograd.grad(RHO[loss](z), z)[0] if r else torch.zeros((), dtype=DTYPE)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("loss", ROBUST_LOSSES)
def test_small_residuals_are_as_they_are(loss: str) -> None:
    r = draw(5) * 1e-6
    torch.testing.assert_close(robust(r, loss), r, rtol=1e-11, atol=0)


@pytest.mark.parametrize("loss", ROBUST_LOSSES)
def test_outliers_hardly_move_a_fit(loss: str) -> None:
    x = torch.linspace(0, 1, 20, dtype=DTYPE)
    y = 1 - 2 * x
    y[::7] += 30
    fits = []
    for change in (lambda r: r, lambda r: robust(r, loss, 0.01)):
        w = torch.zeros(2, dtype=DTYPE)
        residual: Callable[[Any, Any], Tensor] = lambda q, s, change=change: change(q[0] + q[1] * s[0] - s[1])  # noqa: E731
        optimizer = NaturalGradient(w, residual, damping=1e-3)
        for _ in range(60):
            optimizer.step((x, y))
        fits.append((w - torch.tensor([1.0, -2.0], dtype=DTYPE)).norm().item())
    assert fits[1] < 0.02 < 1 < fits[0]


def test_directions_see_the_gradient_of_the_loss() -> None:
    x, w = draw(9, seed=1), draw(2, seed=2)
    residual: Callable[[Any, Any], Tensor] = lambda q, s: robust(5 * (q[0] + q[1] * s), "cauchy")  # noqa: E731
    d, info = natural_gradient(residual, w, x, damping=1e8, damping_mode="absolute")
    q = w.clone().requires_grad_()
    loss = (0.5 * torch.log1p((5 * (q[0] + q[1] * x)).square())).mean()
    assert info.loss == pytest.approx(loss.item(), rel=EXACT)
    torch.testing.assert_close(d * 1e8, torch.autograd.grad(loss, q)[0], rtol=1e-6, atol=0)


def test_unknown_losses_and_scales_are_refused() -> None:
    with pytest.raises(OptionError, match="unknown loss"):
        robust(draw(2), "hubert")
    with pytest.raises(OptionError, match="scale out of range: expected a number > 0"):
        robust(draw(2), scale=0.0)
