"""Certified answers of nonlinear regression, from both starts of every data set."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from seng.apps.science.nist import MODELS, regression
from seng.func import NaturalGradient, covariance

DIGITS = 6
STEPS = 1000
ROUNDING = 1e-20  # sum of squared residuals of data made without noise
FAR = {("BoxBOD", 0): 1.0}  # from damping 0.1 its first step ends where the response no longer depends on b2

each_model = pytest.mark.parametrize("name", MODELS)


@each_model
def test_model_has_the_certified_residuals(name: str) -> None:
    data = regression(name)
    residuals = vmap(lambda x, y: data.residual(data.certified, (x, y)))(data.x, data.y)
    assert float(residuals.square().sum()) == pytest.approx(float(data.squares), rel=1e-9, abs=ROUNDING)


@each_model
@pytest.mark.parametrize("start", [0, 1])
def test_fit_reaches_the_certified_parameters(name: str, start: int) -> None:
    data = regression(name)
    b = data.starts[start].clone()
    optimizer = NaturalGradient(b, data.residual, damping=FAR.get((name, start), 0.1))
    results = (optimizer.step((data.x, data.y)) for _ in range(STEPS))
    assert any(result.converged for result in results)
    assert data.digits(b) >= DIGITS


@pytest.mark.parametrize("name", [name for name in MODELS if name != "Lanczos1"])  # whose residuals are rounding
def test_standard_errors_are_certified_ones(name: str) -> None:
    data = regression(name)
    fit = covariance(data.residual, data.certified, (data.x, data.y))
    torch.testing.assert_close(fit.standard_errors, data.deviations, rtol=1e-6, atol=0)


def test_digits_are_those_of_the_worst_parameter() -> None:
    data = regression("Misra1a")
    assert data.digits(data.certified) == 11
    assert data.digits(data.certified * torch.tensor([1.0, 1 + 1e-4], dtype=torch.float64)) == pytest.approx(4)
    assert data.digits(data.certified * torch.nan) == 0
