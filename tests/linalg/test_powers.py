"""Shrinkage gives dense powers of the damped Fisher, and its limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seng.linalg import damped_power, shrinkage
from seng.solve import EigenState

ACCURACY = 1e-10  # float64 eigenvalues of matrices up to 12 x 12, conditioned up to 1e4
ROUNDING = 1e-14  # a few operations on one number

POWERS = st.one_of(st.sampled_from([0.25, 0.5, 1.0]), st.floats(0.05, 1.0))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 6), p=st.integers(1, 12), damping=st.floats(1e-3, 1e3), power=POWERS)
def test_shrinkage_matches_dense_power(n: int, p: int, damping: float, power: float) -> None:
    generator = torch.Generator().manual_seed(13 * n + p)
    u = torch.randn(p, n, generator=generator, dtype=torch.float64)
    g = torch.randn(p, generator=generator, dtype=torch.float64)
    lam = torch.tensor(damping, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(u.T @ u)
    direction = g + u @ EigenState(values, vectors).coefficients(u.T @ g, lam, power)
    dense = damped_power(u @ u.T, lam, power, g) * damping**power
    assert (direction - dense).norm() <= ACCURACY * dense.norm()


@pytest.mark.parametrize("power", [0.1, 0.5, 1.0])
def test_damped_power_composes_to_the_inverse(power: float) -> None:
    u = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = torch.ones(5, dtype=torch.float64)
    once = damped_power(u @ u.T, 0.3, power, g)
    whole = damped_power(u @ u.T, 0.3, 1 - power, once) if power < 1 else once
    dense = torch.linalg.solve(u @ u.T + 0.3 * torch.eye(5, dtype=torch.float64), g)
    torch.testing.assert_close(whole, dense, rtol=ACCURACY, atol=0)


@pytest.mark.parametrize("power", [0.1, 0.5, 1.0])
def test_shrinkage_reaches_its_limit_as_eigenvalues_vanish(power: float) -> None:
    damping = torch.tensor(0.2, dtype=torch.float64)
    values = torch.tensor([0.0, 1e-300, 1e-30, 1e-16], dtype=torch.float64)
    limit = torch.full_like(values, -power / 0.2)
    torch.testing.assert_close(shrinkage(values, damping, power), limit, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("power", [0.1, 0.5, 1.0])
def test_shrinkage_is_accurate_next_to_its_limit(power: float) -> None:
    damping, e = torch.tensor(1.0, dtype=torch.float64), 1e-9  # a naive quotient keeps 7 digits here
    series = -power * (1 - (power + 1) / 2 * e)  # the first two terms; the third is below 1e-18
    got = shrinkage(torch.tensor([e], dtype=torch.float64), damping, power)
    torch.testing.assert_close(got, torch.tensor([series], dtype=torch.float64), rtol=ROUNDING, atol=0)


def test_shrinkage_takes_negative_eigenvalues_for_zero() -> None:
    damping = torch.tensor(0.5)
    values = shrinkage(torch.tensor([-1e-3, 0.0]), damping, 0.5)
    assert float(values[0]) == float(values[1])


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_infinite_damping_leaves_the_gradient(power: float) -> None:
    u = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    g = torch.ones(7, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(u.T @ u)
    for damping in (1e8, 1e12):
        lam = torch.tensor(damping, dtype=torch.float64)
        change = u @ EigenState(values, vectors).coefficients(u.T @ g, lam, power)
        assert change.norm() <= 2 * values[-1] / damping * g.norm()  # |d - g| <= power * e / damping * |g|
