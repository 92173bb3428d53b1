"""Woodbury's identity: n x n systems give the direction of the p x p one."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seng.linalg import cholesky_coefficients, inverse_quadratic

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
def test_inverse_quadratic_matches_dense_solve(n: int, p: int, damping: float) -> None:
    u, g, z = system(n, p, damping)
    got = inverse_quadratic(g @ g, u.T @ g, z, torch.tensor(damping, dtype=torch.float64))
    dense = g @ torch.linalg.solve(u @ u.T + damping * torch.eye(p, dtype=torch.float64), g)
    assert abs(got - dense) <= ACCURACY * (g @ g) / damping


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_inverse_quadratic_is_at_most_one_for_the_samples_own_gradient(n: int, p: int, damping: float) -> None:
    u, _, _ = system(n, p, damping)
    g = u.mean(1) * n**0.5
    factor = torch.linalg.cholesky(u.T @ u + damping * torch.eye(n, dtype=torch.float64))
    y = u.T @ g
    q = inverse_quadratic(g @ g, y, cholesky_coefficients(factor, y), torch.tensor(damping, dtype=torch.float64))
    assert 0 <= q <= 1 + ACCURACY


def test_inverse_quadratic_is_not_negative_where_rounding_is() -> None:
    minus = inverse_quadratic(torch.tensor(1.0), torch.tensor([1.0]), torch.tensor([-1.0001]), torch.tensor(1.0))
    assert float(minus) == 0.0
