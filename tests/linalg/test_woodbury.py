"""Woodbury's identity: n x n systems give the direction of the p x p one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seng.linalg import cholesky_coefficients, metric_length, shrinkage

SINGLE = 1e-5  # float32
ACCURACY = 1e-9  # float64, condition of K + damping I up to 1e5

SHAPES = {"n": st.integers(1, 8), "p": st.integers(1, 20), "damping": st.floats(1e-3, 1e3)}


def system(n: int, p: int, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """U, g, and g + U z by Cholesky."""
    generator = torch.Generator().manual_seed(31 * n + p)
    u = torch.randn(p, n, generator=generator, dtype=torch.float64)
    g = torch.randn(p, generator=generator, dtype=torch.float64)
    factor = torch.linalg.cholesky(u.T @ u + damping * torch.eye(n, dtype=torch.float64))
    return u, g, cholesky_coefficients(factor, u.T @ g)


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_woodbury_matches_dense_solve(n: int, p: int, damping: float) -> None:
    u, g, z = system(n, p, damping)
    dense = damping * torch.linalg.solve(u @ u.T + damping * torch.eye(p, dtype=torch.float64), g)
    assert (g + u @ z - dense).norm() <= ACCURACY * g.norm()


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_metric_length_matches_dense_solve(n: int, p: int, damping: float) -> None:
    u, g, z = system(n, p, damping)
    got = metric_length(g @ g, u.T @ g, z, torch.tensor(damping, dtype=torch.float64), u.square().sum()) ** 2
    dense = g @ torch.linalg.solve(u @ u.T + damping * torch.eye(p, dtype=torch.float64), g)
    assert abs(got - dense) <= ACCURACY * (g @ g) / damping


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_metric_length_is_at_most_one_for_the_samples_own_gradient(n: int, p: int, damping: float) -> None:
    u, _, _ = system(n, p, damping)
    g = u.mean(1) * n**0.5
    factor = torch.linalg.cholesky(u.T @ u + damping * torch.eye(n, dtype=torch.float64))
    y = u.T @ g
    z = cholesky_coefficients(factor, y)
    q = metric_length(g @ g, y, z, torch.tensor(damping, dtype=torch.float64), u.square().sum())
    assert 0 <= q <= 1 + ACCURACY


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 8), p=st.integers(1, 20), exponent=st.integers(-12, 2), inside=st.booleans())
def test_metric_length_is_an_upper_bound_in_float32(n: int, p: int, exponent: int, inside: bool) -> None:
    u, g, _ = system(n, p, 1.0)
    g, damping = u @ g[:1].expand(n) if inside else g, torch.tensor(10.0**exponent, dtype=torch.float64)
    left, singular, _ = torch.linalg.svd(u)  # a solve with F + damping I would lose up to all digits
    eigenvalues = torch.zeros(p, dtype=torch.float64).index_add_(0, torch.arange(len(singular)), singular**2)
    dense = ((left.T @ g).square() / (eigenvalues + damping)).sum().sqrt()
    values, vectors = torch.linalg.eigh(u.T @ u)
    y = u.T @ g
    z = -(vectors @ ((vectors.T @ y) / (values.clamp(min=0) + damping)))
    single = [x.float() for x in (g @ g, y, z, damping, u.square().sum())]
    assert float(metric_length(*single)) >= (1 - SINGLE) * float(dense)


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_length_of_the_direction_of_power_one_half_is_the_metric_length(n: int, p: int, damping: float) -> None:
    u, g, z_one = system(n, p, damping)
    k, y, amount = u.T @ u, u.T @ g, torch.tensor(damping, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(k)
    z = vectors @ (shrinkage(values, amount, 0.5) * (vectors.T @ y))
    got = metric_length(g @ g, 2 * y + k @ z, z, amount, k.trace())
    assert abs(got**2 - (g + u @ z).square().sum() / damping) <= ACCURACY * (g @ g) / damping
    assert abs(got**2 - metric_length(g @ g, y, z_one, amount, k.trace()) ** 2) <= ACCURACY * (g @ g) / damping


def test_metric_length_is_finite_where_the_square_is_not() -> None:
    q = metric_length(torch.tensor(1e36), torch.zeros(1), torch.zeros(1), torch.tensor(1e-6), torch.tensor(1.0))
    assert float(q) == pytest.approx(1e21)
