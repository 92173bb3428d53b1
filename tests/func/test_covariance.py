"""Covariance of fitted parameters against certified values, closed forms and repeated fits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seng.errors import BatchError, OptionError
from seng.func import NaturalGradient, SingularError, covariance

from .reference import DTYPE, draw, network

CERTIFIED = 1e-6  # relative; values are certified to 11 digits, fits end within rounding of the loss
X = torch.tensor(
    [77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0], dtype=DTYPE
)
Y = torch.tensor(
    [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78], dtype=DTYPE
)


def misra(b: Tensor, sample: tuple[Tensor, Tensor]) -> Tensor:
    return b[0] * (1 - torch.exp(-b[1] * sample[0])) - sample[1]


def test_standard_errors_are_those_certified_for_misra1a() -> None:
    """Source: NIST, Statistical Reference Datasets, Misra1a."""
    b, data = torch.tensor([250.0, 5e-4], dtype=DTYPE), (X, Y)
    optimizer = NaturalGradient(b, misra, damping=1e-3)
    for _ in range(200):
        optimizer.step(data)
    fit = covariance(misra, b, data)
    torch.testing.assert_close(b, torch.tensor([238.94212918, 5.5015643181e-4], dtype=DTYPE), rtol=CERTIFIED, atol=0)
    expected = torch.tensor([2.7070075241, 7.2668688436e-6], dtype=DTYPE)
    torch.testing.assert_close(fit.standard_errors, expected, rtol=CERTIFIED, atol=0)
    assert fit.residual_deviation == pytest.approx(0.10187876330, rel=CERTIFIED)
    assert fit.freedom == 12


@pytest.mark.parametrize("unit", [1.0, 1e-6])
def test_covariance_of_a_linear_fit_is_the_closed_form(unit: float) -> None:
    a, y = draw(9, 3, seed=1), draw(9, seed=2)
    w = torch.linalg.lstsq(a, y).solution / unit
    fit = covariance(lambda q, s: s[0] @ q["w"] * unit - s[1], {"w": w}, (a, y))
    square = (a @ w * unit - y).square().sum() / 6
    expected = square * torch.linalg.inv(a.mT @ a) / unit**2
    torch.testing.assert_close(fit.matrix, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(fit.standard_errors["w"], expected.diagonal().sqrt(), rtol=1e-9, atol=0)


def test_a_weighted_term_counts_as_repeated_data() -> None:
    """Two equal terms of n residuals are one term of 2 n, whatever common factor the weights have."""
    x, w = draw(8, seed=3), torch.tensor([0.2, 0.4], dtype=DTYPE)
    line = lambda q, s: q[0] + q[1] * s - s.square()  # noqa: E731
    one = covariance(line, w, x)
    two = covariance({"a": line, "b": line}, w, {"a": x[:4], "b": x[4:]}, weights={"a": 3.0, "b": 3.0})
    torch.testing.assert_close(two.matrix, one.matrix, rtol=1e-10, atol=0)
    assert two.residual_deviation == pytest.approx(one.residual_deviation, rel=1e-10)


def test_standard_errors_are_the_spread_of_repeated_fits() -> None:
    x, truth = draw(30, seed=4), torch.tensor([1.0, -2.0], dtype=DTYPE)
    design = torch.stack([torch.ones_like(x), x], 1)
    noise = 0.1 * torch.randn(2000, 30, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    fits = torch.linalg.lstsq(design, (design @ truth + noise).mT).solution.mT
    target = design @ truth + noise[0]
    said = covariance(lambda q, s: q[0] + q[1] * s[0] - s[1], fits[0], (x, target))
    spread = fits.std(0) / 0.1 * said.residual_deviation
    torch.testing.assert_close(said.standard_errors, spread, rtol=0.06, atol=0)  # 2,000 fits: 1.6% standard error


def test_parameters_that_data_do_not_determine_are_refused() -> None:
    w = torch.ones(2, dtype=DTYPE)
    with pytest.raises(SingularError, match="data do not determine all parameters.*depend on one another"):
        covariance(lambda q, s: q[0] + q[1] - s, w, draw(5))
    with pytest.raises(SingularError, match=r"data do not determine all parameters.*\['b'\]|\[\"\['b'\]\"\]"):
        covariance(lambda q, s: q["a"] * s + 0 * q["b"] - 1, {"a": w[0], "b": w[1]}, draw(5))
    with pytest.raises(BatchError, match="too few residuals: expected more than 2"):
        covariance(lambda q, s: q[0] + q[1] * s, w, draw(2))
    with pytest.raises(OptionError, match="fisher has no residuals: expected gauss_newton"):
        covariance(lambda q, s: q[0] + q[1] * s, w, draw(5), fisher="empirical")


def test_a_module_gets_its_errors_by_name() -> None:
    net = network(width=2)
    fit = covariance(lambda u, x: u(x) - x.sum(), net, draw(40, 2))
    assert {name: error.shape for name, error in fit.standard_errors.items()} == {
        name: p.shape for name, p in net.named_parameters()
    }
